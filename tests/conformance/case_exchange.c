/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The exchange: order, credits, sizes 0..max, many peers, the link to oneself, gather lists,
 * refusals, counters, disagreeing shapes.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/job.h"

#define MAX_BYTES 1000
#define TEST_NAME "bytes"

static int create(struct rank *rank, const int *send_to, size_t n_send, const int *recv_from,
	size_t n_recv, size_t max_bytes, uint32_t depth, struct m2n_exchange **exchange)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;

	/* Lists are borrowed for the call: after it they hold something else. */
	int lists[2][RANKS_MAX];
	int status;

	for (size_t i = 0; i < n_send; i++)
		lists[0][i] = send_to[i];
	for (size_t i = 0; i < n_recv; i++)
		lists[1][i] = recv_from[i];
	params.name = TEST_NAME;
	params.send_to = lists[0];
	params.n_send = n_send;
	params.recv_from = lists[1];
	params.n_recv = n_recv;
	params.max_bytes = max_bytes;
	params.depth = depth;
	status = m2n_exchange_create(rank->group, &params, exchange);
	memset(lists, 0xff, sizeof(lists));
	return status;
}

/* Message number i from one rank to another: its size and bytes. */
static size_t make_message(int from, int to, uint32_t i, uint8_t *data)
{
	static const size_t sizes[] = {
		0, 1, 7, 63, 64, 65, 192, 193, 500, MAX_BYTES - 1, MAX_BYTES};
	size_t bytes = sizes[(i + (unsigned)from) % (sizeof(sizes) / sizeof(sizes[0]))];

	for (size_t b = 0; b < bytes; b++)
		data[b] = (uint8_t)job_random((uint64_t)from, (uint64_t)to, i, b);
	return bytes;
}

static int put_message(
	struct m2n_exchange *exchange, int from, int to, uint32_t i, int64_t timeout_ns)
{
	uint8_t data[MAX_BYTES];
	size_t bytes = make_message(from, to, i, data);
	size_t third = bytes / 3;
	const struct m2n_iov iov[] = {
		{data, third},
		{data + third, 0},
		{data + third, bytes - third},
	};
	int status = m2n_exchange_put(exchange, to, iov, 3, timeout_ns);

	if (status == 0)
		expect_ok(m2n_exchange_flush(exchange, to, M2N_TIMEOUT_DEFAULT));
	return status;
}

static void check_message(struct m2n_exchange *exchange, int from, int to, uint32_t i)
{
	uint8_t want[MAX_BYTES];
	size_t n = make_message(from, to, i, want);
	const void *data;
	size_t bytes;

	expect_ok(m2n_exchange_get(exchange, from, M2N_TIMEOUT_DEFAULT, &data, &bytes));
	expect_equal(bytes, n);
	if (memcmp(data, want, n))
		rank_fail(__FILE__, __LINE__, "message %u from rank %d: wrong bytes", i, from);
}

/* All to all, the own rank too; `depth` messages ahead of what is read. */
static void check_all_to_all(struct rank *rank)
{
	const uint32_t *depth = rank->arg;
	struct m2n_exchange *exchange;
	struct m2n_counters sent, received;
	int all[RANKS_MAX];
	uint32_t n_messages = 40;

	for (int i = 0; i < rank->n_ranks; i++)
		all[i] = (i + rank->rank) % rank->n_ranks;
	expect_ok(create(rank, all, (size_t)rank->n_ranks, all, (size_t)rank->n_ranks, MAX_BYTES,
		*depth, &exchange));
	for (uint32_t i = 0; i < n_messages + *depth; i++) {
		for (int p = 0; i < n_messages && p < rank->n_ranks; p++)
			expect_ok(
				put_message(exchange, rank->rank, all[p], i, M2N_TIMEOUT_DEFAULT));
		for (int p = 0; i + 1 >= *depth && i + 1 - *depth < n_messages && p < rank->n_ranks;
			p++) {
			check_message(exchange, p, rank->rank, i + 1 - *depth);
			expect_ok(m2n_exchange_release(exchange, p));
		}
	}
	for (int p = 0; p < rank->n_ranks; p++) {
		expect_ok(m2n_exchange_counters(exchange, p, &sent, &received));
		expect_equal(sent.n_rounds, n_messages);
		expect_equal(received.n_rounds, n_messages);
		expect(sent.bytes > 0 && received.bytes > 0);
		expect_equal(sent.n_rows, 0);
	}
	rank_barrier(rank);
	m2n_exchange_destroy(exchange);
}

static int all_to_all(const struct conf *conf)
{
	int n = strstr(conf->backend, "self") ? 1 : 4;

	for (uint32_t depth = 1; depth <= 4; depth++) {
		int result = ranks_run(n, check_all_to_all, &depth, &conf->opts);

		if (result)
			return result;
	}
	return 0;
}

static int many_peers(const struct conf *conf)
{
	uint32_t depth = 2;

	return ranks_run(12, check_all_to_all, &depth, &conf->opts);
}

/* With every slot full a put is refused and queues nothing; a release lets one more in. */
static void check_credits(struct rank *rank)
{
	const int self = rank->rank;
	struct m2n_exchange *exchange;
	const void *data;
	size_t bytes;
	uint32_t n_sent = 0, n_got = 0;

	expect_ok(create(rank, &self, 1, &self, 1, MAX_BYTES, 3, &exchange));
	expect_status(-EAGAIN, m2n_exchange_get(exchange, self, 0, &data, &bytes));
	expect_status(-ETIMEDOUT, m2n_exchange_get(exchange, self, 5000000, &data, &bytes));
	expect_text("0");
	expect_status(-EINVAL, m2n_exchange_release(exchange, self));
	for (; n_sent < 3; n_sent++)
		expect_ok(put_message(exchange, self, self, n_sent, M2N_TIMEOUT_DEFAULT));
	expect_status(-EAGAIN, put_message(exchange, self, self, n_sent, 0));
	expect_status(-ETIMEDOUT, put_message(exchange, self, self, n_sent, 5000000));
	check_message(exchange, self, self, n_got);
	expect_status(-EBUSY, m2n_exchange_get(exchange, self, 0, &data, &bytes));
	expect_status(-EAGAIN, put_message(exchange, self, self, n_sent, 0));
	expect_ok(m2n_exchange_release(exchange, self));
	n_got++;
	expect_status(-EINVAL, m2n_exchange_release(exchange, self));
	expect_ok(put_message(exchange, self, self, n_sent++, M2N_TIMEOUT_DEFAULT));
	for (; n_got < n_sent; n_got++) {
		check_message(exchange, self, self, n_got);
		expect_ok(m2n_exchange_release(exchange, self));
	}
	expect_status(-EAGAIN, m2n_exchange_get(exchange, self, 0, &data, &bytes));
	m2n_exchange_destroy(exchange);
}

static int credits(const struct conf *conf)
{
	return ranks_run(1, check_credits, NULL, &conf->opts);
}

/* A slot that was given back is free, though its credit lies in a message that was not taken. */
static void check_carried(struct rank *rank)
{
	const int peer = rank->n_ranks - 1 - rank->rank, is_first = rank->rank == 0;
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange, *told;
	uint32_t n_messages = is_first ? 3 + (rank->n_ranks == 1) : 4;
	const void *data;
	size_t bytes;

	params.name = "told";
	params.send_to = params.recv_from = &peer;
	params.n_send = is_first;
	params.n_recv = peer == 0;
	params.depth = 1;
	expect_ok(m2n_exchange_create(rank->group, &params, &told));
	expect_ok(create(rank, &peer, 1, &peer, 1, MAX_BYTES, 3, &exchange));
	for (uint32_t i = 0; i < 2; i++)
		expect_ok(put_message(exchange, rank->rank, peer, i, M2N_TIMEOUT_DEFAULT));
	check_message(exchange, peer, rank->rank, 0);
	expect_ok(m2n_exchange_release(exchange, peer));
	expect_ok(put_message(exchange, rank->rank, peer, 2, M2N_TIMEOUT_DEFAULT));
	if (is_first) {
		expect_ok(put_message(exchange, rank->rank, peer, 3, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_exchange_put(told, peer, NULL, 0, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_exchange_flush(told, peer, M2N_TIMEOUT_DEFAULT));
	}
	/* The other one waits meanwhile, for something else. */
	if (peer == 0) {
		expect_ok(m2n_exchange_get(told, 0, M2N_TIMEOUT_DEFAULT, &data, &bytes));
		expect_ok(m2n_exchange_release(told, 0));
	}
	for (uint32_t i = 1; i < n_messages; i++) {
		check_message(exchange, peer, rank->rank, i);
		expect_ok(m2n_exchange_release(exchange, peer));
	}
	rank_barrier(rank);
	m2n_exchange_destroy(told);
	m2n_exchange_destroy(exchange);
}

static int carried(const struct conf *conf)
{
	int result = ranks_run(1, check_carried, NULL, &conf->opts);

	return result || strstr(conf->backend, "self")
		       ? result
		       : ranks_run(2, check_carried, NULL, &conf->opts);
}

static void check_refusals(struct rank *rank)
{
	static uint8_t data[MAX_BYTES + 1];
	const int self = rank->rank;
	struct m2n_exchange *exchange;
	struct m2n_iov iov = {data, MAX_BYTES + 1};
	const struct m2n_iov two[] = {{data, MAX_BYTES}, {data, 1}};
	const struct m2n_iov huge[] = {{data, SIZE_MAX}, {data, 2}};
	const void *got = NULL;
	size_t bytes = 12345;

	expect_ok(create(rank, &self, 1, &self, 1, MAX_BYTES, 2, &exchange));
	expect_status(-EMSGSIZE, m2n_exchange_put(exchange, self, &iov, 1, 0));
	expect_text("1000");
	expect_status(-EMSGSIZE, m2n_exchange_put(exchange, self, two, 2, 0));
	expect_status(-EMSGSIZE, m2n_exchange_put(exchange, self, huge, 2, 0));
	expect_status(-EINVAL, m2n_exchange_put(exchange, 1, two, 1, 0));
	expect_status(-EINVAL, m2n_exchange_put(exchange, -1, two, 1, 0));
	expect_status(-EINVAL, m2n_exchange_get(exchange, 1, 0, &got, &bytes));
	expect_status(-EAGAIN, m2n_exchange_get(exchange, self, 0, &got, &bytes));
	expect(got == NULL && bytes == 12345);
	expect_ok(m2n_exchange_put(exchange, self, NULL, 0, 0));
	expect_ok(m2n_exchange_get(exchange, self, M2N_TIMEOUT_DEFAULT, &got, &bytes));
	expect_equal(bytes, 0);
	expect_ok(m2n_exchange_release(exchange, self));
	m2n_exchange_destroy(exchange);
	m2n_exchange_destroy(NULL);
}

static int refusals(const struct conf *conf)
{
	return ranks_run(1, check_refusals, NULL, &conf->opts);
}

static void check_create_errors(struct rank *rank)
{
	const int self = rank->rank, nobody = -1, twice[] = {0, 0};
	struct m2n_exchange *exchange = NULL;

	expect_status(-EINVAL, create(rank, &nobody, 1, NULL, 0, 8, 1, &exchange));
	expect_text("-1");
	expect_status(-EINVAL, create(rank, twice, 2, NULL, 0, 8, 1, &exchange));
	expect_status(-EINVAL, create(rank, &self, 1, &self, 1, 8, 0, &exchange));
	expect_text("depth");
	expect_text("1..64");
	expect_status(-EINVAL, create(rank, &self, 1, &self, 1, 8, 65, &exchange));
	expect_text("65");
	expect(create(rank, &self, 1, &self, 1, SIZE_MAX / 2, 2, &exchange) < 0);
	expect(exchange == NULL);
	/* Nothing is left of the failures: the name is free. */
	expect_ok(create(rank, &self, 1, &self, 1, 8, 64, &exchange));
	m2n_exchange_destroy(exchange);
}

static int create_errors(const struct conf *conf)
{
	return ranks_run(1, check_create_errors, NULL, &conf->opts);
}

/* Rank 1 says other bytes (round 0) or another depth (round 1) than rank 0. */
static void check_shapes(struct rank *rank)
{
	int peer = 1 - rank->rank;
	struct m2n_exchange *exchange = NULL;

	expect_status(M2N_ERR_SHAPE,
		create(rank, &peer, 1, &peer, 1, rank->rank ? 4321 : 1234, 2, &exchange));
	expect_text("1234");
	expect_text("4321");
	expect_text("rank 0");
	expect_text("rank 1");
	expect(exchange == NULL);
	rank_barrier(rank);
	expect_status(M2N_ERR_SHAPE,
		create(rank, &peer, 1, &peer, 1, 100, rank->rank ? 3 : 7, &exchange));
	expect_text("depth");
	expect_text("3");
	expect_text("7");
	rank_barrier(rank);
	expect_ok(create(rank, &peer, 1, &peer, 1, 100, 3, &exchange));
	rank_barrier(rank);
	m2n_exchange_destroy(exchange);
}

static int shapes(const struct conf *conf)
{
	return ranks_run(2, check_shapes, NULL, &conf->opts);
}

/* One way only, with a receiver that comes late and names what it misses. */
static void check_late(struct rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange = NULL;
	int peer = 1 - rank->rank;

	params.name = TEST_NAME;
	params.max_bytes = MAX_BYTES;
	params.timeout_ns = 100000000;
	if (rank->rank == 0) {
		params.send_to = &peer;
		params.n_send = 1;
		expect_status(-ETIMEDOUT, m2n_exchange_create(rank->group, &params, &exchange));
		expect_text("1");
		expect(exchange == NULL);
	}
	rank_barrier(rank);
	params.timeout_ns = M2N_TIMEOUT_DEFAULT;
	params.send_to = rank->rank == 0 ? &peer : NULL;
	params.n_send = rank->rank == 0;
	params.recv_from = rank->rank == 1 ? &peer : NULL;
	params.n_recv = rank->rank == 1;
	expect_ok(m2n_exchange_create(rank->group, &params, &exchange));
	for (uint32_t i = 0; i < 100; i++) {
		if (rank->rank == 0) {
			expect_ok(put_message(exchange, 0, 1, i, M2N_TIMEOUT_DEFAULT));
			continue;
		}
		check_message(exchange, 0, 1, i);
		expect_ok(m2n_exchange_release(exchange, 0));
	}
	rank_barrier(rank);
	m2n_exchange_destroy(exchange);
}

static int late(const struct conf *conf)
{
	return ranks_run(2, check_late, NULL, &conf->opts);
}

/* A peer that sends all it has and closes: it is there, its messages come, then it is gone. */
static void check_brief(struct rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	int peer = 1 - rank->rank;
	struct m2n_exchange *exchange;
	const void *data;
	char name[16];
	size_t bytes;

	params.name = name;
	params.max_bytes = 8;
	params.send_to = params.recv_from = &peer;
	params.n_send = rank->rank == 1;
	params.n_recv = rank->rank == 0;
	for (int life = 0; life < 40; life++) {
		uint64_t word = (uint64_t)life;

		snprintf(name, sizeof(name), "brief%d", life);
		expect_ok(m2n_exchange_create(rank->group, &params, &exchange));
		for (int i = 0; i < 2 && rank->rank == 1; i++)
			expect_ok(m2n_exchange_put(exchange, 0, &(struct m2n_iov){&word, 8}, 1,
				M2N_TIMEOUT_DEFAULT));
		for (int i = 0; i < 2 && rank->rank == 0; i++) {
			expect_ok(m2n_exchange_get(
				exchange, 1, M2N_TIMEOUT_DEFAULT, &data, &bytes));
			expect(bytes == 8 && !memcmp(data, &word, 8));
			expect_ok(m2n_exchange_release(exchange, 1));
		}
		if (rank->rank == 0)
			expect_status(M2N_ERR_PEER_LOST, m2n_exchange_get(exchange, 1,
					M2N_TIMEOUT_DEFAULT, &data, &bytes));
		m2n_exchange_destroy(exchange);
	}
	rank_barrier(rank);
}

static int brief(const struct conf *conf)
{
	return ranks_run(2, check_brief, NULL, &conf->opts);
}

const struct conf_case exchange_cases[] = {
	{"exchange: all to all in order, sizes 0..max, depth 1..4", 1, all_to_all, HOST_MEMORY},
	{"exchange: twelve ranks, all to all", 12, many_peers, HOST_MEMORY},
	{"exchange: credits", 1, credits, HOST_MEMORY},
	{"exchange: credits that messages carry", 1, carried, HOST_MEMORY},
	{"exchange: refusals queue nothing", 1, refusals, HOST_MEMORY},
	{"exchange: errors of create", 1, create_errors, HOST_MEMORY},
	{"exchange: disagreeing shapes", 2, shapes, HOST_MEMORY},
	{"exchange: a peer that comes late", 2, late, HOST_MEMORY},
	{"exchange: a peer that closes when it has sent", 2, brief, HOST_MEMORY},
	{0},
};
