/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rank that died is replaced by a new process with its number: it joins the group that is
 * there, links to the channel that is there, and takes part again; the survivors' group and
 * channel stay the same.
 */
#include <stdio.h>
#include <string.h>

#include "fault/fault.h"

#define KILL_ROUND 4
#define N_ROUNDS 200

#define N_ASKED 12
#define LATER_VICTIM 2

enum { DYING, REPLACED, LINKED };

static const struct job rejoin_job = {
	.name = "rejoin",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 6,
	.top_k = 3,
	.n_tokens = 14,
	.row_bytes = 48,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = N_ROUNDS,
	.seed = 33,
};
#define VICTIM 3 /* expert rank index 1 */

/* Serves until the sources are through: the rounds that are left from where it came in. */
static void serve_rest(struct rank *rank, struct job_rank *jr)
{
	struct m2n_channel_attr attr;

	for (;;) {
		expect_ok(m2n_channel_query(jr->channel, &attr));
		if (attr.next_recv_round >= jr->job->n_rounds)
			break;
		if (rank->rank == VICTIM && attr.next_recv_round == KILL_ROUND &&
			!atomic_load(&rank->word[REPLACED])) {
			word_set(&rank->word[DYING], 1);
			rank_die();
		}
		expect_went_on(job_serve(jr));
	}
}

static void be_source(struct rank *rank, struct job_rank *jr)
{
	uint64_t before = 0;

	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		before = jr->n_missing + jr->n_dropped;
		expect_went_on(job_send(jr, round));
		expect_went_on(job_combine(jr, round));
		if (round == KILL_ROUND + 3) {
			/* The new process is there: wait for it, the round after has it again. */
			word_wait(&rank->word[REPLACED], 1);
			expect_ok(m2n_group_add(rank->group, VICTIM, M2N_TIMEOUT_DEFAULT));
		}
	}
	/* Long since back: the last round lacks nothing. */
	expect_equal(jr->n_missing + jr->n_dropped, before);
}

static void run_rank(struct rank *rank)
{
	struct m2n_peer_attr attr;
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	jr.tolerant = 1;
	jr.dead = 1 << 1;
	if (jr.source >= 0) {
		be_source(rank, &jr);
		expect_ok(m2n_group_peer(rank->group, VICTIM, &attr));
		expect_equal(attr.state, M2N_PEER_LIVE);
	} else {
		serve_rest(rank, &jr);
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int replaced_expert(const struct conf *conf)
{
	struct job job = rejoin_job;
	struct ranks *ranks = ranks_start(4, run_rank, &job, &conf->opts);

	if (ranks_wait_word(ranks, DYING, 1) == 0) {
		if (ranks_wait_end(ranks, VICTIM) == 0) {
			word_set(&ranks_words(ranks)[REPLACED], 1);
			ranks_spawn(ranks, VICTIM, run_rank);
		}
	}
	return ranks_finish(ranks);
}

/*
 * A process that took a round's rows dies, and is replaced before its replies are waited for: they
 * do not come, however well the new one is linked. The next round has them again.
 */
static void ask_both(struct rank *rank, struct job_rank *jr)
{
	for (uint32_t round = 0; round < N_ASKED; round++) {
		int status = job_send(jr, round);
		uint64_t before = jr->n_missing;

		expect_ok(status);
		if (round == KILL_ROUND) {
			while (!atomic_load(&rank->word[LINKED]))
				(void)m2n_ctx_progress(rank->ctx);
			expect_ok(m2n_group_add(rank->group, LATER_VICTIM, M2N_TIMEOUT_DEFAULT));
		}
		expect_equal(job_combine(jr, round), round == KILL_ROUND ? M2N_PARTIAL : 0);
		expect_equal(jr->n_missing > before, round == KILL_ROUND);
	}
}

static void answer_until_killed(struct rank *rank, struct job_rank *jr)
{
	const struct m2n_batch *batch;
	struct m2n_channel_attr attr;
	uint32_t round;

	if (atomic_load(&rank->word[REPLACED]))
		word_set(&rank->word[LINKED], 1);
	expect_ok(m2n_channel_query(jr->channel, &attr));
	for (round = (uint32_t)attr.next_recv_round; round < N_ASKED; round++) {
		expect_ok(job_recv_batch(jr, &batch));
		if (rank->rank == LATER_VICTIM && round == KILL_ROUND) {
			word_set(&rank->word[DYING], 1);
			rank_die();
		}
		expect_ok(job_answer(jr, batch));
	}
}

static void run_between(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	jr.tolerant = 1;
	jr.dead = 1 << 1;
	if (jr.source >= 0)
		ask_both(rank, &jr);
	else
		answer_until_killed(rank, &jr);
	rank_barrier(rank);
	job_close(&jr);
}

static int replaced_between(const struct conf *conf)
{
	struct job job = rejoin_job;
	struct ranks *ranks;

	job.n_sources = 1;
	ranks = ranks_start(3, run_between, &job, &conf->opts);
	if (ranks_wait_word(ranks, DYING, 1) == 0 && ranks_wait_end(ranks, LATER_VICTIM) == 0) {
		word_set(&ranks_words(ranks)[REPLACED], 1);
		ranks_spawn(ranks, LATER_VICTIM, run_between);
	}
	return ranks_finish(ranks);
}

/* An exchange links again by itself once the peer is added. */
static void check_exchange(struct rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange;
	int peer = 1 - rank->rank;
	struct m2n_peer_attr before, after;
	const void *data;
	size_t bytes;
	int again = (int)atomic_load(&rank->word[REPLACED]);
	int status;

	params.name = "again";
	params.send_to = params.recv_from = &peer;
	params.n_send = params.n_recv = 1;
	params.max_bytes = 16;
	expect_ok(m2n_exchange_create(rank->group, &params, &exchange));
	if (rank->rank == 1) {
		expect_ok(m2n_exchange_put(
			exchange, 0, &(struct m2n_iov){"ab", 2}, 1, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_exchange_flush(exchange, 0, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_exchange_get(exchange, 0, M2N_TIMEOUT_DEFAULT, &data, &bytes));
		if (!again) {
			word_set(&rank->word[DYING], 1);
			rank_die();
		}
		expect_ok(m2n_exchange_release(exchange, 0));
		rank_barrier(rank);
		m2n_exchange_destroy(exchange);
		return;
	}
	for (int life = 0; life < 2; life++) {
		expect_ok(m2n_exchange_get(exchange, 1, M2N_TIMEOUT_DEFAULT, &data, &bytes));
		expect(bytes == 2 && !memcmp(data, "ab", 2));
		expect_ok(m2n_exchange_release(exchange, 1));
		expect_ok(m2n_exchange_put(
			exchange, 1, &(struct m2n_iov){"cd", 2}, 1, M2N_TIMEOUT_DEFAULT));
		status = m2n_exchange_flush(exchange, 1, M2N_TIMEOUT_DEFAULT);
		if (life == 1) {
			expect_ok(status);
			break;
		}
		expect(status == 0 || status == M2N_ERR_PEER_LOST); /* it dies on receipt */
		expect_ok(m2n_group_peer(rank->group, 1, &before));
		expect_status(M2N_ERR_PEER_LOST,
			m2n_exchange_get(exchange, 1, M2N_TIMEOUT_DEFAULT, &data, &bytes));
		word_wait(&rank->word[REPLACED], 1);
		expect_ok(m2n_group_add(rank->group, 1, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_group_peer(rank->group, 1, &after));
		expect(after.incarnation != before.incarnation);
	}
	rank_barrier(rank);
	m2n_exchange_destroy(exchange);
}

static int replaced_exchange(const struct conf *conf)
{
	struct ranks *ranks = ranks_start(2, check_exchange, NULL, &conf->opts);

	if (ranks_wait_word(ranks, DYING, 1) == 0 && ranks_wait_end(ranks, 1) == 0) {
		word_set(&ranks_words(ranks)[REPLACED], 1);
		ranks_spawn(ranks, 1, check_exchange);
	}
	return ranks_finish(ranks);
}

#define LOST_SOURCE 1
#define FIRST_ROUND 12 /* of the new source: agreed by the application */

/* Rounds of a source, from `round` on. */
static void send_rounds(struct job_rank *jr, uint32_t round, uint32_t end)
{
	for (; round < end; round++) {
		expect_ok(job_send(jr, round));
		expect_ok(job_combine(jr, round));
	}
}

static void be_new_source(struct rank *rank, struct job_rank *jr)
{
	expect_ok(m2n_channel_admit(jr->channel, LOST_SOURCE, FIRST_ROUND));
	word_set(&rank->word[LINKED], 1);
	send_rounds(jr, FIRST_ROUND, jr->job->n_rounds);
}

/* Serves without the lost source, lets the new one in, and serves it. */
static void admit_and_serve(struct rank *rank, struct job_rank *jr)
{
	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		const struct m2n_batch *batch;
		int is_missing;

		if (round == FIRST_ROUND) {
			while (!atomic_load(&rank->word[LINKED]))
				(void)m2n_ctx_progress(rank->ctx);
			expect_ok(m2n_group_add(rank->group, LOST_SOURCE, M2N_TIMEOUT_DEFAULT));
			expect_ok(m2n_channel_admit(jr->channel, LOST_SOURCE, FIRST_ROUND));
		}
		expect_went_on(job_recv_batch(jr, &batch));
		is_missing = (int)(batch->missing[0] >> LOST_SOURCE & 1);
		expect_equal(is_missing, round >= KILL_ROUND && round < FIRST_ROUND);
		expect_equal(batch->round, round);
		expect_went_on(job_answer(jr, batch));
	}
}

static void run_with_new_source(struct rank *rank)
{
	struct job_rank jr;
	int again = (int)atomic_load(&rank->word[REPLACED]);

	expect_ok(job_open(&jr, rank, rank->arg));
	if (rank->rank == LOST_SOURCE && again) {
		be_new_source(rank, &jr);
	} else if (rank->rank == LOST_SOURCE) {
		send_rounds(&jr, 0, KILL_ROUND);
		word_set(&rank->word[DYING], 1);
		rank_die();
	} else if (jr.source >= 0) {
		send_rounds(&jr, 0, jr.job->n_rounds);
	} else {
		jr.tolerant = 1;
		admit_and_serve(rank, &jr);
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int replaced_source(const struct conf *conf)
{
	struct job job = rejoin_job;
	struct ranks *ranks;

	job.n_rounds = 30;
	ranks = ranks_start(4, run_with_new_source, &job, &conf->opts);
	if (ranks_wait_word(ranks, DYING, 1) == 0 && ranks_wait_end(ranks, LOST_SOURCE) == 0) {
		word_set(&ranks_words(ranks)[REPLACED], 1);
		ranks_spawn(ranks, LOST_SOURCE, run_with_new_source);
	}
	return ranks_finish(ranks);
}

const struct conf_case rejoin_cases[] = {
	{"rejoin: an exchange with a rank that was replaced", 2, replaced_exchange, HOST_MEMORY},
	{"rejoin: an expert rank is replaced and serves again", 4, replaced_expert, ANY_MEMORY},
	{"rejoin: a round whose expert rank is replaced before it is combined", 3,
		replaced_between, ANY_MEMORY},
	{"rejoin: a source is replaced and admitted again", 4, replaced_source, ANY_MEMORY},
	{0},
};
