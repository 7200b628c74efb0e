/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kill -9 at each protocol step. 2 sources and 3 expert ranks run rounds; in round KILL_ROUND one
 * of them dies between two of its calls. The others must come to the end: with replicas the last
 * rounds lack nothing, without them the rows of the dead rank are reported and everything else
 * is right. The time from the death to the end of the first whole round is printed, not judged.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fault/fault.h"

#define KILL_ROUND 5
#define N_ROUNDS 16

/* Steps of an expert rank and of a source, in the order of the protocol. */
enum step { BEFORE_RECV, BEFORE_ANSWER, AFTER_ANSWER, BEFORE_SEND, BEFORE_COMBINE, AFTER_COMBINE };

enum { COMBINED = 100 }; /* sources that have all of the round before the death */

struct kill_test {
	struct job job;
	enum step step;
	int victim; /* group rank */
};

struct times { /* in the shared memory, ns */
	_Atomic int64_t death;
	_Atomic int64_t recovered[RANKS_MAX];
};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void die_at(struct rank *rank, uint32_t round, enum step step)
{
	const struct kill_test *test = rank->arg;
	struct times *times = rank->shared;

	if (rank->rank != test->victim || round != KILL_ROUND || step != test->step)
		return;
	/* A dead process sends nothing, not even what it had posted: the round before must be
	 * through, or its replies could be missing as well. */
	while (rank->rank >= test->job.n_sources &&
		atomic_load(&rank->word[COMBINED]) < (uint32_t)test->job.n_sources)
		(void)m2n_ctx_progress(rank->ctx);
	atomic_store(&times->death, now_ns());
	rank_die();
}

/* A partial result names the dead rank. */
static void check_name(struct rank *rank, int status)
{
	const struct kill_test *test = rank->arg;

	if (status == M2N_PARTIAL)
		expect_rank_named(test->victim);
}

static void be_expert(struct rank *rank, struct job_rank *jr)
{
	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		const struct m2n_batch *batch;
		int status;

		die_at(rank, round, BEFORE_RECV);
		status = job_recv_batch(jr, &batch);
		expect_went_on(status);
		check_name(rank, status);
		die_at(rank, round, BEFORE_ANSWER);
		status = job_answer(jr, batch);
		expect_went_on(status);
		check_name(rank, status);
		die_at(rank, round, AFTER_ANSWER);
	}
}

/* Rows of round `round` that only the dead expert rank could have served. */
static uint64_t n_orphans(const struct kill_test *test, int source, uint32_t round)
{
	const struct job *job = &test->job;
	uint64_t n = 0;
	int rank_of[JOB_MAX_TOP_K];

	for (uint32_t t = 0; t < job_n_tokens(job, source); t++) {
		job_pair_ranks(job, round, source, t, NULL, rank_of);
		for (uint32_t k = 0; k < job->top_k; k++)
			n += rank_of[k] >= 0 && job_expert_rank(job, rank_of[k]) == test->victim;
	}
	return n;
}

static void be_source(struct rank *rank, struct job_rank *jr)
{
	const struct kill_test *test = rank->arg;
	struct times *times = rank->shared;
	uint64_t before = 0, last = 0;
	struct m2n_plan_attr attr;

	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		int status;

		before = jr->n_missing + jr->n_dropped;
		die_at(rank, round, BEFORE_SEND);
		status = job_send(jr, round);
		expect_went_on(status);
		die_at(rank, round, BEFORE_COMBINE);
		status = job_combine(jr, round);
		expect_went_on(status);
		check_name(rank, status);
		die_at(rank, round, AFTER_COMBINE);
		if (round == KILL_ROUND - 1)
			word_add(&rank->word[COMBINED], 1);
		if (round >= KILL_ROUND && !atomic_load(&times->recovered[rank->rank]) &&
			atomic_load(&times->death))
			atomic_store(&times->recovered[rank->rank], now_ns());
		last = jr->n_missing + jr->n_dropped - before;
		if (round < KILL_ROUND)
			expect_equal(last, 0);
	}
	m2n_plan_query(jr->flight[(jr->job->n_rounds - 1) % jr->job->in_flight].plan, &attr);
	if (test->job.map == JOB_MAP_REPLICAS || test->victim < jr->job->n_sources) {
		expect_equal(last, 0);
	} else {
		expect_equal(last, n_orphans(test, jr->source, jr->job->n_rounds - 1));
		expect_equal(attr.n_dropped_lost, last);
	}
}

static void check_state(struct rank *rank, int victim)
{
	struct m2n_peer_attr attr;

	do {
		expect_ok(m2n_group_peer(rank->group, victim, &attr));
	} while (attr.state == M2N_PEER_LIVE);
	expect_equal(attr.state, M2N_PEER_LOST);
	expect(attr.reason[0]);
}

static void run_rank(struct rank *rank)
{
	const struct kill_test *test = rank->arg;
	struct job_rank jr;
	int victim_is_peer;

	expect_ok(job_open(&jr, rank, &test->job));
	jr.tolerant = 1;
	if (test->victim >= test->job.n_sources)
		jr.dead = (uint64_t)1 << (test->victim - test->job.n_sources);
	if (jr.source >= 0)
		be_source(rank, &jr);
	else
		be_expert(rank, &jr);
	victim_is_peer = (rank->rank < test->job.n_sources) != (test->victim < test->job.n_sources);
	if (victim_is_peer)
		check_state(rank, test->victim);
	/* Survivors end together: who left early is no witness for the others. */
	word_add(&rank->word[0], 1);
	word_wait(&rank->word[0], (uint32_t)rank->n_ranks - 1);
	job_close(&jr);
}

static int run_kill(const struct conf *conf, struct kill_test *test, const char *what)
{
	struct ranks_opts opts = conf->opts;
	struct times times;
	int64_t slowest = 0;
	int result;

	opts.shared_bytes = sizeof(times);
	result = ranks_run_shared(job_n_ranks(&test->job), run_rank, test, &opts, &times);
	if (result) {
		printf("# rank %d killed %s%s%s\n", test->victim, what,
			test->job.map == JOB_MAP_REPLICAS ? ", replicas" : "",
			test->job.placement == M2N_PLACEMENT_EXACT ? ", exact" : "");
		return result;
	}
	for (int i = 0; i < test->job.n_sources; i++) {
		int64_t took = times.recovered[i] - times.death;

		if (times.recovered[i] && took > slowest)
			slowest = took;
	}
	printf("# killed %s%s%s: round completed %.2f ms after the death\n", what,
		test->job.map == JOB_MAP_REPLICAS ? ", replicas" : "",
		test->job.placement == M2N_PLACEMENT_EXACT ? ", exact" : "", (double)slowest / 1e6);
	return 0;
}

static const struct job kill_job = {
	.name = "kill",
	.n_sources = 2,
	.n_expert_ranks = 3,
	.n_experts = 6,
	.top_k = 3,
	.n_tokens = 14,
	.row_bytes = 48,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = N_ROUNDS,
	.seed = 30,
	.residual = 1,
};

static int kill_all_steps(const struct conf *conf, enum job_map map, enum m2n_placement placement)
{
	static const struct {
		enum step step;
		int victim;
		const char *what;
	} steps[] = {
		{BEFORE_RECV, 3, "before dispatch_recv"},
		{BEFORE_ANSWER, 3, "before combine_send"},
		{AFTER_ANSWER, 3, "after combine_send"},
		{BEFORE_SEND, 1, "before dispatch_send"},
		{BEFORE_COMBINE, 1, "before combine_recv"},
		{AFTER_COMBINE, 1, "after combine_recv"},
	};

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		struct kill_test test = {kill_job, steps[i].step, steps[i].victim};
		int result;

		test.job.map = map;
		test.job.placement = placement;
		result = run_kill(conf, &test, steps[i].what);
		if (result)
			return result;
	}
	return 0;
}

static int kill_with_replicas(const struct conf *conf)
{
	return kill_all_steps(conf, JOB_MAP_REPLICAS, M2N_PLACEMENT_SLOT);
}

static int kill_without(const struct conf *conf)
{
	return kill_all_steps(conf, JOB_MAP_BLOCKS, M2N_PLACEMENT_SLOT);
}

static int kill_exact(const struct conf *conf)
{
	int result = kill_all_steps(conf, JOB_MAP_REPLICAS, M2N_PLACEMENT_EXACT);

	return result ? result : kill_all_steps(conf, JOB_MAP_BLOCKS, M2N_PLACEMENT_EXACT);
}

/* A rank that dies before it creates its channel: the others are told, and try again without. */
static void check_no_channel(struct rank *rank)
{
	const struct kill_test *test = rank->arg;
	struct m2n_channel_params params;
	struct m2n_channel *channel = NULL;
	int lists[2][JOB_MAX_RANKS];
	char name[32];
	int status;

	expect_ok(m2n_group_put(rank->group, "here", "", 0, M2N_TIMEOUT_DEFAULT));
	rank_barrier(rank);
	if (rank->rank == test->victim)
		rank_die();
	job_channel_params(&test->job, lists, &params);
	params.timeout_ns = 300000000;
	status = m2n_channel_create(rank->group, &params, &channel);
	if (rank->rank < test->job.n_sources) { /* has a link with the dead rank */
		snprintf(name, sizeof(name), "%d", test->victim);
		if (status != -ETIMEDOUT && status != M2N_ERR_PEER_LOST)
			rank_fail(__FILE__, __LINE__, "%d: %s", status, m2n_error_text());
		expect_text(name);
		expect(channel == NULL);
	}
	word_add(&rank->word[0], 1);
	word_wait(&rank->word[0], (uint32_t)rank->n_ranks - 1);
	m2n_channel_destroy(channel);
}

static int kill_before_channel(const struct conf *conf)
{
	struct kill_test test = {kill_job, BEFORE_RECV, 3};

	return ranks_run(5, check_no_channel, &test, &conf->opts);
}

/* A receiver of plain bytes: what had arrived from the dead rank is still given out. */
static void check_exchange(struct rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange;
	int peer = 1 - rank->rank;
	const void *data;
	size_t bytes;

	params.name = "last words";
	params.send_to = params.recv_from = &peer;
	params.n_send = params.n_recv = 1;
	params.max_bytes = 16;
	params.depth = 4;
	expect_ok(m2n_exchange_create(rank->group, &params, &exchange));
	if (rank->rank == 1) {
		for (int i = 0; i < 3; i++) {
			expect_ok(
				m2n_exchange_put(exchange, 0, &(struct m2n_iov){"0123", 4}, 1, 0));
			expect_ok(m2n_exchange_flush(exchange, 0, M2N_TIMEOUT_DEFAULT));
		}
		rank_barrier(rank);
		rank_die();
	}
	rank_barrier(rank);
	for (int i = 0; i < 3; i++) {
		expect_ok(m2n_exchange_get(exchange, 1, M2N_TIMEOUT_DEFAULT, &data, &bytes));
		expect(bytes == 4 && !memcmp(data, "0123", 4));
		expect_ok(m2n_exchange_release(exchange, 1));
	}
	expect_status(M2N_ERR_PEER_LOST,
		m2n_exchange_get(exchange, 1, M2N_TIMEOUT_DEFAULT, &data, &bytes));
	expect_text("rank 1");
	expect_status(M2N_ERR_PEER_LOST,
		m2n_exchange_put(exchange, 1, &(struct m2n_iov){"x", 1}, 1, M2N_TIMEOUT_DEFAULT));
	m2n_exchange_destroy(exchange);
}

static int kill_exchange(const struct conf *conf)
{
	return ranks_run(2, check_exchange, NULL, &conf->opts);
}

const struct conf_case kill_cases[] = {
	{"kill: at each step, experts with replicas", 2, kill_with_replicas, ANY_MEMORY},
	{"kill: at each step, experts without replicas", 2, kill_without, ANY_MEMORY},
	{"kill: at each step, exact placement", 2, kill_exact, HOST_MEMORY},
	{"kill: before the channel is there", 2, kill_before_channel, ANY_MEMORY},
	{"kill: the last messages of an exchange are given out", 2, kill_exchange, HOST_MEMORY},
	{0},
};
