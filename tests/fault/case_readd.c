/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer that was lost while its process lives (dropped, or behind a link that broke) is added
 * again: by either side or by both at once, to the group and the channel that are there.
 */
#include <string.h>

#include "fault/fault.h"

enum { BY_LOWER, BY_HIGHER, BY_BOTH };

static void await_live(struct rank *rank, int peer)
{
	struct m2n_peer_attr attr;

	do {
		(void)m2n_ctx_progress(rank->ctx);
		expect_ok(m2n_group_peer(rank->group, peer, &attr));
	} while (attr.state != M2N_PEER_LIVE);
}

static void add_again(struct rank *rank, int peer, int who)
{
	if (who == BY_BOTH || who == (rank->rank < peer ? BY_LOWER : BY_HIGHER))
		expect_ok(m2n_group_add(rank->group, peer, M2N_TIMEOUT_DEFAULT));
	else
		await_live(rank, peer);
}

/* One message each way. */
static void talk(struct m2n_exchange *exchange, int peer, uint32_t word)
{
	const struct m2n_iov iov = {&word, sizeof(word)};
	const void *data;
	size_t bytes;

	expect_ok(m2n_exchange_put(exchange, peer, &iov, 1, M2N_TIMEOUT_DEFAULT));
	expect_ok(m2n_exchange_get(exchange, peer, M2N_TIMEOUT_DEFAULT, &data, &bytes));
	expect(bytes == sizeof(word) && !memcmp(data, &word, bytes));
	expect_ok(m2n_exchange_release(exchange, peer));
	expect_ok(m2n_exchange_flush(exchange, peer, M2N_TIMEOUT_DEFAULT));
}

static void check_exchange(struct rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_peer_attr before, after;
	struct m2n_exchange *exchange;
	int peer = 1 - rank->rank;
	const void *data;
	size_t bytes;

	params.name = "again";
	params.send_to = params.recv_from = &peer;
	params.n_send = params.n_recv = 1;
	params.max_bytes = 16;
	expect_ok(m2n_exchange_create(rank->group, &params, &exchange));
	for (int who = BY_LOWER; who <= BY_BOTH; who++) {
		for (uint32_t i = 0; i < 5; i++)
			talk(exchange, peer, i);
		expect_ok(m2n_group_peer(rank->group, peer, &before));
		rank_barrier(rank);
		if (rank->rank == who % 2)
			expect_ok(m2n_group_drop(rank->group, peer));
		expect_status(M2N_ERR_PEER_LOST,
			m2n_exchange_get(exchange, peer, M2N_TIMEOUT_DEFAULT, &data, &bytes));
		rank_barrier(rank);
		add_again(rank, peer, who);
		expect_ok(m2n_group_peer(rank->group, peer, &after));
		expect(after.incarnation == before.incarnation);
	}
	talk(exchange, peer, 99);
	rank_barrier(rank);
	m2n_exchange_destroy(exchange);
}

static int dropped_exchange(const struct conf *conf)
{
	return ranks_run(2, check_exchange, NULL, &conf->opts);
}

#define N_ROUNDS 300
#define N_DEVICE_ROUNDS 80 /* on the stand-in of a device a round takes milliseconds */
#define DROP_ROUND 5
#define ADD_ROUND 12
#define N_WHOLE_ROUNDS 20 /* the last: the links have long been up again */
#define LOST 3 /* expert rank index 1 */
enum { GONE, AGAIN, ADDED };

static const struct job readd_job = {
	.name = "readd",
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
	.seed = 35,
	.registered = 1,
};

static void be_source(struct rank *rank, struct job_rank *jr)
{
	uint32_t n_rounds = jr->job->n_rounds;

	for (uint32_t round = 0; round < n_rounds; round++) {
		uint64_t before = jr->n_missing + jr->n_dropped;

		if (round == DROP_ROUND) {
			expect_ok(m2n_group_drop(rank->group, LOST));
			word_add(&rank->word[GONE], 1);
		}
		if (round == ADD_ROUND) {
			word_wait(&rank->word[AGAIN], 1);
			expect_ok(m2n_group_add(rank->group, LOST, M2N_TIMEOUT_DEFAULT));
			word_add(&rank->word[ADDED], 1);
			word_wait(&rank->word[ADDED], 2);
		}
		expect_went_on(job_send(jr, round));
		expect_went_on(job_combine(jr, round));
		if (round < DROP_ROUND || round > n_rounds - N_WHOLE_ROUNDS)
			expect_equal(jr->n_missing + jr->n_dropped, before);
	}
}

/* The rank that is dropped: serves, sees that its sources are lost, serves them again. */
static void be_lost(struct rank *rank, struct job_rank *jr)
{
	const struct m2n_batch *batch;
	struct m2n_channel_attr attr;

	for (uint32_t round = 0; round < DROP_ROUND; round++)
		expect_went_on(job_serve(jr));
	word_wait(&rank->word[GONE], 2);
	for (int source = 0; source < 2; source++) {
		struct m2n_peer_attr peer;

		do {
			(void)m2n_ctx_progress(rank->ctx);
			expect_ok(m2n_group_peer(rank->group, source, &peer));
		} while (peer.state == M2N_PEER_LIVE);
	}
	word_set(&rank->word[AGAIN], 1);
	for (int source = 0; source < 2; source++)
		await_live(rank, source);
	for (;;) {
		expect_ok(m2n_channel_query(jr->channel, &attr));
		if (attr.next_recv_round >= jr->job->n_rounds)
			return;
		expect_went_on(job_recv_batch(jr, &batch));
		if (batch->round > jr->job->n_rounds - N_WHOLE_ROUNDS)
			expect_equal(batch->missing[0], 0);
		expect_went_on(job_answer(jr, batch));
	}
}

static void run_channel(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	jr.tolerant = 1;
	jr.dead = 1 << 1;
	if (jr.source >= 0)
		be_source(rank, &jr);
	else if (rank->rank == LOST)
		be_lost(rank, &jr);
	else
		for (uint32_t round = 0; round < jr.job->n_rounds; round++)
			expect_went_on(job_serve(&jr));
	rank_barrier(rank);
	job_close(&jr);
}

static int dropped_expert(const struct conf *conf)
{
	struct job job = readd_job;

	if (conf->memory == M2N_MEMORY_CUDA)
		job.n_rounds = N_DEVICE_ROUNDS;
	return ranks_run(4, run_channel, &job, &conf->opts);
}

const struct conf_case readd_cases[] = {
	{"readd: an exchange with a peer that was dropped, by either side", 2, dropped_exchange,
		HOST_MEMORY},
	{"readd: an expert rank that was dropped serves again", 4, dropped_expert, ANY_MEMORY},
	{0},
};
