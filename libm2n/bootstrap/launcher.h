/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who am I, according to the launcher: rank, size, store address and local rank as the
 * environment tells them. First match wins: M2N_RANK/M2N_SIZE/M2N_STORE, torchrun
 * (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK), Open MPI (OMPI_COMM_WORLD_*),
 * PMIx (PMIX_RANK, ...), Slurm (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, ...), Kubernetes
 * indexed jobs (JOB_COMPLETION_INDEX with M2N_SIZE). Looks names up through `get`, so that a
 * test needs no environment, and the one place that calls getenv() stays core/option.c.
 */
#ifndef M2N_LAUNCHER_H
#define M2N_LAUNCHER_H

struct m2n__launch {
	/* "m2n", "torchrun", "openmpi", "pmix", "slurm", "kubernetes", "none" */
	const char *launcher;
	int rank;             /* -1 unknown */
	int n_ranks;          /* -1 unknown */
	int local_rank;       /* -1 unknown */
	int n_local_ranks;    /* -1 unknown */
	char store[256];      /* URL, "" unknown */
	char job[64];         /* a name shared by the job's ranks, "" unknown */
};

typedef const char *(*m2n__getenv_fn)(void *arg, const char *name);

/* 0; -EINVAL when a variable holds no number or a rank is not below the size (named). */
int m2n__launch_detect(m2n__getenv_fn get, void *arg, struct m2n__launch *launch);

#endif
