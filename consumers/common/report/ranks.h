/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks of a consumer as processes: forked here around a TCP store that the parent hosts, or one
 * that a launcher (mpirun, srun, torchrun) has started already. Each joins one group and runs the
 * same function. A forked rank dies with its parent; SIGINT and SIGTERM to the parent end all.
 */
#ifndef REPORT_RANKS_H
#define REPORT_RANKS_H

#include <sys/types.h>

#include <m2n/m2n.h>

struct rank_env {
	int rank, n_ranks;
	int incarnation; /* 0; for the process that takes a dead rank's place 1, 2, ... */
	struct m2n_ctx *ctx;
	struct m2n_group *group;
};

/* Runs in each rank; its return value, 0 to 255, is the process's exit status. */
typedef int (*rank_main)(const struct rank_env *env, void *arg);

struct ranks_params {
	int n_ranks;
	const char *group;          /* name of the group */
	const char *const *options; /* of the library, "NAME=value"; NULL: none */
	int launched;    /* a launcher started this process: it is one rank, nothing is forked */
	int go_on;       /* when a rank dies or fails the others go on; 0: they are ended */
	int grace_ms;    /* from SIGTERM to SIGKILL for ranks that are ended; 0: 5000 */
	int max_restart; /* times that a rank that died by a signal is started anew */
	int pin;         /* rank i to the i-th usable core, if there are as many */
	/* In the parent, after a rank was started; may be NULL. */
	void (*started)(void *arg, int rank, pid_t pid);
};

struct rank_result {
	int status; /* exit status; -1: it died by a signal or was never started */
	int signal; /* that ended it at last, or 0 */
	int n_restarts;
};

/*
 * Runs all ranks and waits for their end; results: [n_ranks], with `launched` only the own rank's
 * is written. 0: every rank ended with status 0; 1: not so, see results; -EINTR: SIGINT or SIGTERM;
 * other negative codes with a text in model_error(). Not beside other children of the process.
 */
int ranks_run(
	const struct ranks_params *params, rank_main main, void *arg, struct rank_result *results);

/* Rank 0 gives the value, the others wait for it. 0 or a negative code with a text. */
int ranks_share(const struct rank_env *env, const char *key, void *value, size_t bytes);

#endif
