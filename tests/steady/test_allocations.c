/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A steady round allocates nothing: the allocator is wrapped (helpers/alloc.c) and its count stands
 * still over a thousand rounds, at sources and expert ranks, with either placement, with dedup.
 */
#include <stdio.h>

#include "helpers/alloc.h"
#include "steady/rounds.h"

static void check_count(struct rank *rank)
{
	struct steady steady = *(struct steady *)rank->arg;
	unsigned long before;

	steady_open(&steady, rank);
	for (int i = 0; i < 20; i++) {
		steady_route(&steady);
		steady_round(&steady);
	}
	before = alloc_count();
	for (int i = 0; i < 1000; i++) {
		steady_route(&steady);
		steady_round(&steady);
	}
	expect_equal(alloc_count() - before, 0);
	rank_barrier(rank);
	steady_close(&steady);
}

int main(void)
{
	static const struct {
		const char *name;
		int n_ranks;
		enum m2n_placement placement;
		int dedup;
	} cases[] = {
		{"self", 1, M2N_PLACEMENT_SLOT, 0},
		{"self, exact", 1, M2N_PLACEMENT_EXACT, 0},
		{"self, dedup", 1, M2N_PLACEMENT_SLOT, 1},
		{"shm", 2, M2N_PLACEMENT_SLOT, 0},
		{"shm, exact", 2, M2N_PLACEMENT_EXACT, 0},
		{"shm, exact, dedup", 2, M2N_PLACEMENT_EXACT, 1},
	};
	const int n = (int)(sizeof(cases) / sizeof(cases[0]));
	int failed = 0;

	printf("1..%d\n", n);
	fflush(stdout);
	for (int i = 0; i < n; i++) {
		struct steady steady = {.n_tokens = 16,
			.top_k = 4,
			.row_bytes = 256,
			.placement = cases[i].placement,
			.dedup = cases[i].dedup};
		struct ranks_opts opts = {.backend = cases[i].n_ranks == 1 ? "self" : "shm"};
		int result = ranks_run(cases[i].n_ranks, check_count, &steady, &opts);

		printf("%s %d - no allocation in a round: %s\n", result ? "not ok" : "ok", i + 1,
			cases[i].name);
		fflush(stdout);
		failed |= result;
	}
	return failed != 0;
}
