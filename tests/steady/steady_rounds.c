/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What strace and callgrind look at:
 *
 *   steady_rounds marks N_RANKS        batches of rounds between two marks (system calls that
 *                                      nothing else makes), on self or between two shm ranks
 *   steady_rounds count N_ROUNDS TOKENS TOP_K ROW_BYTES FIRST_EXPERT
 *                                      rounds on self, in this process; callgrind counts
 *                                      steady_round()
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "steady/rounds.h"

#define N_BATCHES 50
#define N_ROUNDS 20

/* A system call that shows where we are: it fails, and does nothing. */
static void mark(int number)
{
	(void)getpriority((enum __priority_which)(1000 + number), 0);
}

static void run_marked(struct rank *rank)
{
	struct steady steady = {.n_tokens = 16, .top_k = 4, .row_bytes = 256};

	steady_open(&steady, rank);
	for (int i = 0; i < 100; i++) {
		steady_route(&steady);
		steady_round(&steady);
	}
	for (int batch = 0; batch < N_BATCHES; batch++) {
		mark(1);
		for (int i = 0; i < N_ROUNDS; i++) {
			steady_route(&steady);
			steady_round(&steady);
		}
		mark(2);
	}
	rank_barrier(rank);
	steady_close(&steady);
}

/* Without helpers/ranks.h's fork: callgrind follows one process. */
static int count(char **args)
{
	struct m2n_ctx_params ctx_params = M2N_CTX_PARAMS_INIT;
	struct m2n_group_params params = M2N_GROUP_PARAMS_INIT;
	struct steady steady = {0};
	struct rank rank = {.n_ranks = 1};
	char dir[] = "/tmp/m2n-steady-XXXXXX", store[64], entry[128];
	int n_rounds = atoi(args[0]);

	steady.n_tokens = (uint32_t)atoi(args[1]);
	steady.top_k = (uint32_t)atoi(args[2]);
	steady.row_bytes = (size_t)atoi(args[3]);
	steady.first_expert = (uint32_t)atoi(args[4]);
	if (!mkdtemp(dir))
		return 1;
	snprintf(store, sizeof(store), "dir:%s", dir);
	ctx_params.backend = "self";
	params.rank = 0;
	params.n_ranks = 1;
	params.store = store;
	expect_ok(m2n_ctx_open(&ctx_params, &rank.ctx));
	expect_ok(m2n_group_join(rank.ctx, &params, &rank.group));
	steady_open(&steady, &rank);
	for (int i = 0; i < n_rounds; i++) {
		steady_route(&steady);
		steady_round(&steady);
	}
	steady_close(&steady);
	rank_close(&rank);
	snprintf(entry, sizeof(entry), "rm -r '%s'", dir);
	return system(entry);
}

int main(int argc, char **argv)
{
	const char *options[] = {"SPIN=1s", "TIMEOUT=20s", NULL};
	struct ranks_opts opts = {.options = options, .no_leak_check = 1};
	int n_ranks;

	if (argc == 7 && !strcmp(argv[1], "count"))
		return count(argv + 2);
	if (argc != 3 || strcmp(argv[1], "marks"))
		return 2;
	n_ranks = atoi(argv[2]);
	opts.backend = n_ranks == 1 ? "self" : "shm";
	return ranks_run(n_ranks, run_marked, NULL, &opts);
}
