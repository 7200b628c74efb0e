/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Launchers: for each environment, as the launcher sets it, what must be read from it, and which
 * variable a refusal must name. Environments are texts; the process's own is never looked at.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "bootstrap/launcher.h"
#include "util/error.h"

#define MAX_VARIABLES 12

struct good {
	const char *env[MAX_VARIABLES]; /* "NAME=value" */
	const char *launcher;
	int rank, n_ranks, local_rank, n_local_ranks;
	const char *store; /* %u: the user's id */
	const char *job;
};

struct bad {
	const char *env[MAX_VARIABLES];
	const char *text[2]; /* both must be in the error */
};

#define OMPI \
	"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1", \
		"OMPI_COMM_WORLD_LOCAL_SIZE=4"
#define TORCH \
	"RANK=5", "WORLD_SIZE=8", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=4", "TORCHELASTIC_RUN_ID=r1"
#define SLURM "SLURM_PROCID=3", "SLURM_NTASKS=6", "SLURM_LOCALID=1", "SLURM_NODEID=1"
#define SLURM_JOB(nodes) SLURM, "SLURM_JOB_ID=1234", "SLURM_STEP_ID=0", "SLURM_STEP_NODELIST=" nodes

static const struct good good[] = {
	{{NULL}, "none", -1, -1, -1, -1, "", ""},
	{{"HOME=/root", "M2N_SIZE=4"}, "none", -1, -1, -1, -1, "", ""},
	{{"M2N_STORE=dir:/x"}, "none", -1, -1, -1, -1, "dir:/x", ""},
	{{"M2N_RANK=0", "M2N_SIZE=1"}, "m2n", 0, 1, -1, -1, "", ""},
	{{"M2N_RANK=2", "M2N_SIZE=3", "M2N_STORE=tcp://h:1", "M2N_LOCAL_RANK=0",
		 "M2N_LOCAL_SIZE=1", "M2N_JOB=a/b c"},
		"m2n", 2, 3, 0, 1, "tcp://h:1", "a_b_c"},
	/* M2N_* comes before every launcher; an empty variable is an unset one. */
	{{TORCH, OMPI, "M2N_RANK=7", "M2N_SIZE=9"}, "m2n", 7, 9, -1, -1, "", ""},
	{{TORCH, OMPI, "M2N_RANK="}, "torchrun", 5, 8, 1, 4, "", "r1"},
	{{TORCH, "MASTER_ADDR=node7", "MASTER_PORT=29500"}, "torchrun", 5, 8, 1, 4,
		"tcp://node7:29501", "r1"},
	{{TORCH, "MASTER_ADDR=fd00::7", "MASTER_PORT=29500"}, "torchrun", 5, 8, 1, 4,
		"tcp://[fd00::7]:29501", "r1"},
	{{TORCH, "MASTER_ADDR=n", "MASTER_PORT=65535", "M2N_STORE=dir:/s"}, "torchrun", 5, 8, 1, 4,
		"dir:/s", "r1"},
	/* RANK alone is a common name and no sign of torchrun. */
	{{"RANK=5"}, "none", -1, -1, -1, -1, "", ""},
	{{OMPI, "OMPI_MCA_ess_base_jobid=3735552001", "PMIX_RANK=1", "PMIX_NAMESPACE=x"}, "openmpi",
		1, 4, 1, 4, "dir:/dev/shm/m2n-%u-3735552001", "3735552001"},
	{{OMPI, "PMIX_NAMESPACE=prterun-h-17@1"}, "openmpi", 1, 4, 1, 4,
		"dir:/dev/shm/m2n-%u-prterun-h-17_1", "prterun-h-17_1"},
	{{OMPI}, "openmpi", 1, 4, 1, 4, "", ""},
	{{OMPI, "OMPI_MCA_ess_base_jobid=9", "M2N_STORE=tcp://h:5"}, "openmpi", 1, 4, 1, 4,
		"tcp://h:5", "9"},
	{{"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1",
		 "OMPI_COMM_WORLD_LOCAL_SIZE=2", "OMPI_MCA_ess_base_jobid=9"},
		"openmpi", 3, 4, 1, 2, "", "9"},
	{{"PMIX_RANK=3", "PMIX_NAMESPACE=slurm.pmix.77.0", "PMIX_SIZE=4"}, "pmix", 3, 4, -1, -1,
		"", "slurm.pmix.77.0"},
	{{"PMIX_RANK=3", "M2N_SIZE=5"}, "pmix", 3, 5, -1, -1, "", ""},
	{{"PMIX_RANK=3"}, "pmix", 3, -1, -1, -1, "", ""},
	/* srun --mpi=pmix: PMIx tells no size, Slurm does. */
	{{"PMIX_RANK=3", SLURM_JOB("a[1-3]")}, "slurm", 3, 6, 1, -1, "tcp://a1:21234",
		"slurm-1234.0"},
	{{SLURM_JOB("node[007-009,12],gpu1"), "SLURM_STEP_TASKS_PER_NODE=2(x3)"}, "slurm", 3, 6, 1,
		2, "tcp://node007:21234", "slurm-1234.0"},
	{{SLURM_JOB("r[1-2]n[03,07]-ib"), "SLURM_STEP_TASKS_PER_NODE=1,5"}, "slurm", 3, 6, 1, 5,
		"tcp://r1n03-ib:21234", "slurm-1234.0"},
	{{SLURM_JOB("solo"), "SLURM_STEP_TASKS_PER_NODE=6"}, "slurm", 3, 6, 1, -1,
		"tcp://solo:21234", "slurm-1234.0"},
	{{SLURM_JOB("a,b"), "SLURM_STEP_TASKS_PER_NODE=what"}, "slurm", 3, 6, 1, -1,
		"tcp://a:21234", "slurm-1234.0"},
	{{SLURM, "SLURM_JOB_ID=4294967295", "SLURM_JOB_NODELIST=b[3]"}, "slurm", 3, 6, 1, -1,
		"tcp://b3:27295", "slurm-4294967295.0"},
	{{SLURM, "SLURM_JOB_ID=1234", "SLURM_STEP_ID=2", "SLURM_STEP_NODELIST=c"}, "slurm", 3, 6, 1,
		-1, "tcp://c:37072", "slurm-1234.2"},
	{{SLURM}, "slurm", 3, 6, 1, -1, "", ""},
	{{"JOB_COMPLETION_INDEX=2", "M2N_SIZE=4", "M2N_STORE=tcp://svc:5000"}, "kubernetes", 2, 4,
		-1, -1, "tcp://svc:5000", ""},
	{{"JOB_COMPLETION_INDEX=2"}, "kubernetes", 2, -1, -1, -1, "", ""},
};

static const struct bad bad[] = {
	{{"M2N_RANK=1"}, {"M2N_RANK", "M2N_SIZE"}},
	{{"M2N_RANK=x", "M2N_SIZE=2"}, {"M2N_RANK='x'", "0 to"}},
	{{"M2N_RANK=-1", "M2N_SIZE=2"}, {"M2N_RANK='-1'", "number"}},
	{{"M2N_RANK=1 ", "M2N_SIZE=2"}, {"M2N_RANK='1 '", "number"}},
	{{"M2N_RANK=0x1", "M2N_SIZE=2"}, {"M2N_RANK", "number"}},
	{{"M2N_RANK=0", "M2N_SIZE=0"}, {"M2N_SIZE='0'", "1 to"}},
	{{"M2N_RANK=0", "M2N_SIZE=2147483648"}, {"M2N_SIZE", "2147483647"}},
	{{"M2N_RANK=0", "M2N_SIZE=99999999999999999999999"}, {"M2N_SIZE", "2147483647"}},
	{{"M2N_RANK=2", "M2N_SIZE=2"}, {"M2N_RANK=2", "M2N_SIZE=2"}},
	{{"M2N_RANK=0", "M2N_SIZE=2", "M2N_LOCAL_RANK=2", "M2N_LOCAL_SIZE=2"},
		{"M2N_LOCAL_RANK=2", "M2N_LOCAL_SIZE=2"}},
	{{"RANK=8", "WORLD_SIZE=8"}, {"RANK=8", "WORLD_SIZE=8"}},
	{{TORCH, "MASTER_ADDR=n", "MASTER_PORT=65535"}, {"MASTER_PORT=65535", "M2N_STORE"}},
	{{TORCH, "MASTER_ADDR=n", "MASTER_PORT=0"}, {"MASTER_PORT='0'", "65535"}},
	{{TORCH, "MASTER_ADDR=n", "MASTER_PORT=http"}, {"MASTER_PORT='http'", "number"}},
	{{"OMPI_COMM_WORLD_RANK=4", "OMPI_COMM_WORLD_SIZE=4"},
		{"OMPI_COMM_WORLD_RANK=4", "OMPI_COMM_WORLD_SIZE=4"}},
	{{"PMIX_RANK=5", "M2N_SIZE=5"}, {"PMIX_RANK=5", "M2N_SIZE=5"}},
	{{"SLURM_PROCID=0", "SLURM_NTASKS="  "two"}, {"SLURM_NTASKS='two'", "number"}},
	{{SLURM, "SLURM_JOB_ID=12a", "SLURM_STEP_NODELIST=c"}, {"SLURM_JOB_ID='12a'", "number"}},
	{{SLURM_JOB("a[1-2")}, {"SLURM_STEP_NODELIST='a[1-2'", "first host"}},
	{{SLURM_JOB("a]1")}, {"SLURM_STEP_NODELIST", "first host"}},
	{{SLURM_JOB(",b")}, {"SLURM_STEP_NODELIST", "first host"}},
	{{"JOB_COMPLETION_INDEX=two", "M2N_SIZE=4"}, {"JOB_COMPLETION_INDEX='two'", "number"}},
};

static const char *look_up(void *arg, const char *name)
{
	const char *const *env = arg;
	size_t n = strlen(name);

	for (int i = 0; i < MAX_VARIABLES && env[i]; i++)
		if (!strncmp(env[i], name, n) && env[i][n] == '=')
			return env[i] + n + 1;
	return NULL;
}

static int detect(const char *const env[MAX_VARIABLES], struct m2n__launch *launch)
{
	const char *copy[MAX_VARIABLES];

	memcpy(copy, env, sizeof(copy));
	return m2n__launch_detect(look_up, copy, launch);
}

static void launchers_are_read(void **state)
{
	struct m2n__launch launch;
	char store[256];

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		const struct good *g = &good[i];

		memset(&launch, 0x5a, sizeof(launch));
		if (detect(g->env, &launch))
			fail_msg("case %zu: %s", i, m2n_error_text());
		if (strcmp(launch.launcher, g->launcher) || launch.rank != g->rank ||
			launch.n_ranks != g->n_ranks || launch.local_rank != g->local_rank ||
			launch.n_local_ranks != g->n_local_ranks)
			fail_msg("case %zu: %s rank %d of %d, local %d of %d", i, launch.launcher,
				launch.rank, launch.n_ranks, launch.local_rank,
				launch.n_local_ranks);
		if (strchr(g->store, '%'))
			snprintf(store, sizeof(store), "dir:/dev/shm/m2n-%u-%s",
				(unsigned)geteuid(), g->job);
		else
			strcpy(store, g->store);
		assert_string_equal(launch.store, store);
		assert_string_equal(launch.job, g->job);
	}
}

static void bad_values_are_named(void **state)
{
	struct m2n__launch launch, before;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(&launch, 0x5a, sizeof(launch));
		before = launch;
		if (detect(bad[i].env, &launch) != -EINVAL)
			fail_msg("case %zu is accepted", i);
		assert_memory_equal(&launch, &before, sizeof(launch));
		for (int j = 0; j < 2; j++)
			if (!strstr(m2n_error_text(), bad[i].text[j]))
				fail_msg("case %zu: no '%s' in '%s'", i, bad[i].text[j],
					m2n_error_text());
	}
}

static void long_values_are_cut_or_refused(void **state)
{
	const char *env[MAX_VARIABLES] = {TORCH, "MASTER_PORT=1"};
	char host[400] = "MASTER_ADDR=", store[400] = "M2N_STORE=dir:", job[400] = "M2N_JOB=";
	struct m2n__launch launch;

	(void)state;
	memset(host + strlen(host), 'h', 300);
	memset(store + strlen(store), 's', 300);
	memset(job + strlen(job), 'j', 300);
	env[6] = host;
	assert_int_equal(detect(env, &launch), -EINVAL);
	env[6] = store;
	assert_int_equal(detect(env, &launch), -EINVAL);
	env[6] = job;
	assert_int_equal(detect(env, &launch), 0);
	assert_int_equal(strlen(launch.job), sizeof(launch.job) - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(launchers_are_read),
		cmocka_unit_test(bad_values_are_named),
		cmocka_unit_test(long_values_are_cut_or_refused),
	};

	return cmocka_run_group_tests_name("launcher", tests, NULL, NULL);
}
