/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transfers that do not arrive, break or arrive by half, by the interposer: a deadline that names
 * whom it waited for, or a lost peer; never a wrong row.
 */
#include <errno.h>
#include <stdio.h>
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

	if (!conf->faulty)
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

static struct m2n_exchange *open_with(struct rank *rank, int peer, char kind, uint64_t life)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange;
	char name[16];

	snprintf(name, sizeof(name), "%c%lu", kind, (unsigned long)life);
	params.name = name;
	params.send_to = params.recv_from = &peer;
	params.n_send = params.n_recv = 1;
	params.max_bytes = 8;
	expect_ok(m2n_exchange_create(rank->group, &params, &exchange));
	return exchange;
}

static void put_word(struct m2n_exchange *exchange, int peer, uint64_t word)
{
	expect_ok(m2n_exchange_put(exchange, peer, &(struct m2n_iov){&word, sizeof(word)}, 1,
		M2N_TIMEOUT_DEFAULT));
}

/*
 * Rank 0 closes while messages of rank 1 are on their way; what it opens next, with rank 2, gets
 * the same memory and words if they are given back too early.
 */
static void check_closed(struct rank *rank)
{
	for (uint64_t life = 0; life < 12; life++) {
		struct m2n_exchange *exchange = NULL;
		const void *data;
		size_t bytes;

		if (rank->rank < 2) {
			exchange = open_with(rank, 1 - rank->rank, 'a', life);
			for (int i = 0; i < 2 && rank->rank == 1; i++)
				put_word(exchange, 0, life);
			if (rank->rank == 0)
				word_wait(&rank->word[0], (uint32_t)life + 1);
			else
				word_add(&rank->word[0], 1);
			m2n_exchange_destroy(exchange);
		}
		if (rank->rank != 1)
			exchange = open_with(rank, 2 - rank->rank, 'b', life);
		if (rank->rank == 2) {
			put_word(exchange, 0, ~life);
			expect_ok(m2n_exchange_flush(exchange, 0, M2N_TIMEOUT_DEFAULT));
		}
		if (rank->rank == 0) {
			expect_ok(m2n_exchange_get(
				exchange, 2, M2N_TIMEOUT_DEFAULT, &data, &bytes));
			expect_equal(*(const uint64_t *)data, ~life);
			expect_ok(m2n_exchange_release(exchange, 2));
		}
		rank_barrier(rank); /* by now the late ones have come */
		if (rank->rank == 0)
			expect_status(-EAGAIN, m2n_exchange_get(exchange, 2, 0, &data, &bytes));
		rank_barrier(rank);
		if (rank->rank != 1)
			m2n_exchange_destroy(exchange);
	}
	rank_barrier(rank);
}

static int closed(const struct conf *conf)
{
	if (conf->faulty)
		return run_with(conf, check_closed, "FAULT=delay=2ms,seed=6");
	return ranks_run(3, check_closed, NULL, &conf->opts);
}

const struct conf_case interposer_cases[] = {
	{"interposer: nothing arrives", 3, dropped, HOST_MEMORY},
	{"interposer: connections break", 3, failing, HOST_MEMORY},
	{"interposer: half of a transfer arrives", 3, truncated, HOST_MEMORY},
	{"interposer: some transfers are lost", 3, losing, HOST_MEMORY},
	{"interposer: an exchange is closed under messages on their way", 3, closed, HOST_MEMORY},
	{0},
};
