/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transfers that do not arrive, break or arrive by half, by the interposer: a deadline that names
 * whom it waited for, or a lost peer; never a wrong row.
 */
#include <errno.h>
#include <string.h>

#include "fault/fault.h"

static const struct job wire_job = {
	.name = "wire",
	.n_sources = 1,
	.n_expert_ranks = 2,
	.n_experts = 4,
	.top_k = 2,
	.n_tokens = 9,
	.row_bytes = 48,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = 8,
	.seed = 32,
};

static void check_dropped(struct rank *rank)
{
	const struct m2n_batch *batch;
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	jr.timeout_ns = 100000000;
	if (jr.source >= 0) {
		expect_went_on(job_send(&jr, 0));
		expect_status(-ETIMEDOUT, job_combine(&jr, 0));
		expect_text("ranks 1 (");
		expect_text("2 (");
	} else {
		expect_status(-ETIMEDOUT, job_recv_batch(&jr, &batch));
		expect_text("ranks 0");
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int run_with(const struct conf *conf, rank_fn fn, const char *fault)
{
	const char *options[] = {"TIMEOUT=3s", fault, NULL};
	struct ranks_opts opts = conf->opts;
	struct job job = wire_job;

	if (!conf->messaging)
		return RANKS_SKIP;
	opts.options = options;
	return ranks_run(3, fn, &job, &opts);
}

static int dropped(const struct conf *conf)
{
	return run_with(conf, check_dropped, "FAULT=drop=1");
}

/* Every call ends; rows are right or reported. */
static void check_broken(struct rank *rank)
{
	struct job_rank jr;
	int status = 0;

	expect_ok(job_open(&jr, rank, rank->arg));
	jr.tolerant = 1;
	jr.dead = 3;
	jr.timeout_ns = 1000000000;
	for (uint32_t round = 0; round < jr.job->n_rounds && status >= 0; round++) {
		status = jr.source >= 0 ? job_send(&jr, round) : job_serve(&jr);
		if (jr.source >= 0 && status >= 0)
			status = job_combine(&jr, round);
		if (status < 0)
			expect(status == -ETIMEDOUT || status == M2N_ERR_PEER_LOST);
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int failing(const struct conf *conf)
{
	return run_with(conf, check_broken, "FAULT=fail=0.2,seed=3");
}

static int truncated(const struct conf *conf)
{
	return run_with(conf, check_broken, "FAULT=truncate=0.2,seed=4");
}

static int losing(const struct conf *conf)
{
	return run_with(conf, check_broken, "FAULT=drop=0.1,reorder=0.5,seed=5");
}

const struct conf_case interposer_cases[] = {
	{"interposer: nothing arrives", 3, dropped},
	{"interposer: connections break", 3, failing},
	{"interposer: half of a transfer arrives", 3, truncated},
	{"interposer: some transfers are lost", 3, losing},
	{0},
};
