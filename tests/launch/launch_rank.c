/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rank that knows nothing but what its launcher tells: joins, runs a verified job with two
 * sources and two expert ranks, and prints one line. Started four times by test_launch.py.
 */
#include <stdio.h>
#include <stdlib.h>

#include "helpers/job_run.h"

static const struct job launch_job = {
	.name = "launch",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 8,
	.top_k = 4,
	.n_tokens = 32,
	.row_bytes = 256,
	.out_row_bytes = 256,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 2,
	.n_rounds = 5,
	.seed = 50,
	.residual = 1,
};

int main(void)
{
	struct rank rank = {0};
	struct job_rank jr;

	expect_ok(m2n_ctx_open(NULL, &rank.ctx));
	expect_ok(m2n_group_join(rank.ctx, NULL, &rank.group));
	rank.rank = m2n_group_rank(rank.group);
	rank.n_ranks = m2n_group_size(rank.group);
	expect_equal(rank.n_ranks, 4);
	expect_ok(job_open(&jr, &rank, &launch_job));
	job_rounds(&jr);
	job_close(&jr);
	rank_close(&rank);
	printf("rank %d of %d: good\n", rank.rank, rank.n_ranks);
	return 0;
}
