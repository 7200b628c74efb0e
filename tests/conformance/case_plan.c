/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans: bad routing, what query tells, capacity with both policies, plans as bytes (whole,
 * short, flipped).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/device.h"
#include "helpers/job_run.h"
#include "helpers/leak.h"

#define N_TOKENS 12
#define TOP_K 3
#define N_EXPERTS 5
#define ROW_BYTES 16

static const int zero;

static struct m2n_channel_params one_rank(const struct rank *rank)
{
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;

	params.memory = rank->memory;
	params.name = "plan";
	params.sources = params.experts = &zero;
	params.n_sources = params.n_expert_ranks = 1;
	params.n_experts = N_EXPERTS;
	params.top_k = TOP_K;
	params.max_tokens = N_TOKENS;
	params.row_bytes = ROW_BYTES;
	return params;
}

static void make_ids(int32_t ids[N_TOKENS * TOP_K], uint64_t seed)
{
	for (uint32_t i = 0; i < N_TOKENS * TOP_K; i++)
		ids[i] = (int32_t)(job_random(seed, i, 0, 0) % (N_EXPERTS + 1)) - 1;
}

/* What the routing comes to, wherever it is made; the plan's numbers are there. */
static int route_plan(struct rank *rank, struct m2n_channel *channel, struct m2n_plan *plan,
	const struct m2n_route_params *params, size_t n_ids)
{
	struct m2n_route_params there = *params;
	int status;

	there.expert_ids = space_in(rank, params->expert_ids, n_ids * sizeof(int32_t));
	status = m2n_plan_route(channel, plan, &there);
	return status ? status : m2n_plan_wait(plan, M2N_TIMEOUT_DEFAULT);
}

static void check_bad_routing(struct rank *rank)
{
	struct m2n_channel_params params = one_rank(rank);
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	int32_t ids[(N_TOKENS + 1) * TOP_K] = {0};
	struct m2n_channel *channel;
	struct m2n_plan_attr attr;
	struct m2n_plan *plan;

	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	expect_ok(m2n_plan_create(channel, &plan));
	route.n_tokens = N_TOKENS;
	route.expert_ids = ids;
	ids[4 * TOP_K + 2] = N_EXPERTS;
	expect_status(-EINVAL, route_plan(rank, channel, plan, &route, (N_TOKENS + 1) * TOP_K));
	expect_text("token 4");
	expect_text("k 2");
	expect_text("5");
	expect_text("0..4");
	m2n_plan_query(plan, &attr);
	expect_equal(attr.n_tokens, 0);
	ids[4 * TOP_K + 2] = -2;
	expect_status(-EINVAL, route_plan(rank, channel, plan, &route, (N_TOKENS + 1) * TOP_K));
	expect_text("-2");
	ids[4 * TOP_K + 2] = INT32_MIN;
	expect_status(-EINVAL, route_plan(rank, channel, plan, &route, (N_TOKENS + 1) * TOP_K));
	ids[4 * TOP_K + 2] = 0;
	route.n_tokens = N_TOKENS + 1;
	expect_status(-EINVAL, route_plan(rank, channel, plan, &route, (N_TOKENS + 1) * TOP_K));
	expect_text("12");
	route.n_tokens = UINT32_MAX;
	expect_status(-EINVAL, route_plan(rank, channel, plan, &route, (N_TOKENS + 1) * TOP_K));
	route.n_tokens = 1;
	route.expert_ids = NULL;
	expect_status(-EINVAL, route_plan(rank, channel, plan, &route, (N_TOKENS + 1) * TOP_K));
	route.n_tokens = 0;
	expect_ok(route_plan(rank, channel, plan, &route, 0));
	m2n_plan_destroy(plan);
	m2n_plan_destroy(NULL);
	space_end(rank);
	m2n_channel_destroy(channel);
}

static int bad_routing(const struct conf *conf)
{
	return ranks_run(1, check_bad_routing, NULL, &conf->opts);
}

static void check_query(struct rank *rank)
{
	struct m2n_channel_params params = one_rank(rank);
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	int32_t ids[N_TOKENS * TOP_K];
	struct m2n_channel *channel;
	struct m2n_plan_attr attr;
	struct m2n_plan *plan;
	uint32_t n_rows = 0, n_tokens = 0;

	params.dedup = 1;
	make_ids(ids, 1);
	for (uint32_t t = 0; t < N_TOKENS; t++) {
		uint32_t n = 0;

		for (uint32_t k = 0; k < TOP_K; k++)
			n += ids[t * TOP_K + k] >= 0;
		n_rows += n;
		n_tokens += n > 0;
	}
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	expect_ok(m2n_plan_create(channel, &plan));
	route.n_tokens = N_TOKENS;
	route.expert_ids = ids;
	expect_ok(route_plan(rank, channel, plan, &route, N_TOKENS * TOP_K));
	m2n_plan_query(plan, &attr);
	expect_equal(attr.n_tokens, N_TOKENS);
	expect_equal(attr.n_rows, n_rows);
	expect_equal(attr.n_sent, n_tokens);
	expect_equal(attr.n_dropped, 0);
	expect_equal(m2n_plan_rank_rows(plan, 0), n_rows);
	for (uint32_t t = 0; t < N_TOKENS; t++)
		expect_equal(m2n_plan_dropped(plan)[t], 0);
	space_end(rank);
	m2n_plan_destroy(plan);
	m2n_channel_destroy(channel);
}

static int query(const struct conf *conf)
{
	return ranks_run(1, check_query, NULL, &conf->opts);
}

/* Sends `plan` as a round and checks out: expert e answers with value e + 1, weights 1. */
static void run_plan(struct rank *rank, struct m2n_channel *channel, struct m2n_plan *plan,
	const int32_t *ids, const uint8_t *taken)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	static const uint8_t rows[N_TOKENS * ROW_BYTES];
	float replies[N_TOKENS * TOP_K][ROW_BYTES / 4] = {{0}};
	float *out = guard_alloc(N_TOKENS * ROW_BYTES);

	send.plan = combine.plan = plan;
	send.rows = space_in(rank, rows, sizeof(rows));
	expect_ok(m2n_dispatch_send(channel, &send));
	expect_ok(m2n_dispatch_recv(channel, &recv, &answer.batch));
	expect_ok(m2n_batch_wait(channel, answer.batch, M2N_TIMEOUT_DEFAULT));
	for (uint32_t s = 0; s < answer.batch->n_segments; s++) {
		const struct m2n_segment *segment = &answer.batch->segments[s];

		for (uint32_t r = 0; r < segment->n_rows; r++) {
			for (size_t i = 0; i < ROW_BYTES / 4; i++)
				replies[segment->first_row + r][i] = (float)segment->expert + 1;
		}
	}
	answer.rows = space_in(rank, replies, sizeof(replies));
	expect_ok(m2n_combine_send(channel, &answer));
	expect_ok(m2n_reply_wait(channel, M2N_TIMEOUT_DEFAULT));
	combine.out = space_out(rank, out, N_TOKENS * ROW_BYTES);
	expect_ok(m2n_combine_recv(channel, &combine));
	space_fetch(rank);
	for (uint32_t t = 0; t < N_TOKENS; t++) {
		float want = 0;

		for (uint32_t k = 0; k < TOP_K; k++)
			want += taken[t * TOP_K + k] ? (float)ids[t * TOP_K + k] + 1 : 0;
		expect(out[t * (ROW_BYTES / 4)] == want);
	}
	space_end(rank);
	guard_free(out);
}

/* Pairs beyond the capacity, in (token, k) order, are the dropped ones. */
static uint32_t take(const int32_t *ids, uint32_t capacity, uint8_t *taken, uint8_t *dropped)
{
	uint32_t n = 0, n_dropped = 0;

	memset(dropped, 0, N_TOKENS);
	for (uint32_t i = 0; i < N_TOKENS * TOP_K; i++) {
		taken[i] = ids[i] >= 0 && n < capacity;
		n += taken[i];
		if (ids[i] >= 0 && !taken[i]) {
			dropped[i / TOP_K]++;
			n_dropped++;
		}
	}
	return n_dropped;
}

static void check_capacity(struct rank *rank)
{
	struct m2n_channel_params params = one_rank(rank);
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	int32_t ids[N_TOKENS * TOP_K];
	uint8_t taken[N_TOKENS * TOP_K], dropped[N_TOKENS];
	struct m2n_channel *channel;
	struct m2n_channel_attr channel_attr;
	struct m2n_plan_attr attr;
	struct m2n_plan *plan;

	params.dtype = M2N_DTYPE_F32;
	params.capacity = 10;
	params.overflow = *(enum m2n_overflow *)rank->arg;
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	expect_ok(m2n_plan_create(channel, &plan));
	make_ids(ids, 2);
	route.n_tokens = N_TOKENS;
	route.expert_ids = ids;
	if (params.overflow == M2N_OVERFLOW_ERROR) {
		expect_status(M2N_ERR_CAPACITY,
			route_plan(rank, channel, plan, &route, N_TOKENS * TOP_K));
		expect_text("10");
		expect_ok(m2n_channel_query(channel, &channel_attr));
		expect_equal(channel_attr.next_send_round, 0);
		for (uint32_t i = 0, n = 0; i < N_TOKENS * TOP_K; i++) {
			n += ids[i] >= 0;
			ids[i] = n > 10 ? -1 : ids[i];
		}
	}
	take(ids, 10, taken, dropped);
	expect_status(params.overflow == M2N_OVERFLOW_DROP ? M2N_PARTIAL : 0,
		route_plan(rank, channel, plan, &route, N_TOKENS * TOP_K));
	m2n_plan_query(plan, &attr);
	expect_equal(attr.n_rows, 10);
	expect_equal(attr.n_dropped, take(ids, 10, taken, dropped));
	expect_equal(attr.n_dropped_lost, 0);
	expect(!memcmp(m2n_plan_dropped(plan), dropped, N_TOKENS));
	run_plan(rank, channel, plan, ids, taken);
	m2n_plan_destroy(plan);
	m2n_channel_destroy(channel);
}

static int capacity(const struct conf *conf)
{
	enum m2n_overflow error = M2N_OVERFLOW_ERROR, drop = M2N_OVERFLOW_DROP;

	return ranks_run(1, check_capacity, &error, &conf->opts) ||
	       ranks_run(1, check_capacity, &drop, &conf->opts);
}

/* Copies of the bytes that end where they end, so that a sanitizer sees a read past them. */
static int unpack_copy(
	struct m2n_channel *channel, struct m2n_plan *plan, const uint8_t *bytes, size_t n)
{
	uint8_t *copy = malloc(n + !n);
	int status;

	memcpy(copy, bytes, n);
	status = m2n_plan_unpack(channel, plan, copy, n, 0);
	free(copy);
	return status;
}

static void check_packed(struct rank *rank)
{
	struct m2n_channel_params params = one_rank(rank);
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	int32_t ids[N_TOKENS * TOP_K];
	uint8_t taken[N_TOKENS * TOP_K], dropped[N_TOKENS];
	struct m2n_channel *channel;
	struct m2n_plan_attr attr, copy_attr;
	struct m2n_plan *plan, *copy;
	size_t bytes, used = 0;
	uint8_t *packed;

	params.dtype = M2N_DTYPE_F32;
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	expect_ok(m2n_plan_create(channel, &plan));
	expect_ok(m2n_plan_create(channel, &copy));
	make_ids(ids, 3);
	take(ids, 1000, taken, dropped);
	route.n_tokens = N_TOKENS;
	route.expert_ids = ids;
	expect_ok(m2n_plan_route(channel, plan, &route));
	bytes = m2n_plan_packed_bytes(plan);
	packed = malloc(bytes);
	expect_status(-ENOSPC, m2n_plan_pack(plan, packed, bytes - 1, &used));
	expect_ok(m2n_plan_pack(plan, packed, bytes, &used));
	expect(used > 0 && used <= bytes);
	for (size_t n = 0; n < used; n++)
		expect_status(M2N_ERR_PROTOCOL, unpack_copy(channel, copy, packed, n));
	for (uint32_t i = 0; i < 2000; i++) {
		size_t bit = job_random(4, i, 0, 0) % (used * 8);
		int status;

		packed[bit / 8] ^= (uint8_t)(1 << bit % 8);
		status = unpack_copy(channel, copy, packed, used);
		expect(status == 0 || status == M2N_ERR_PROTOCOL || status == M2N_ERR_MAP ||
			status == M2N_ERR_VERSION || status == -EINVAL);
		packed[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	expect_ok(unpack_copy(channel, copy, packed, used));
	m2n_plan_query(plan, &attr);
	m2n_plan_query(copy, &copy_attr);
	expect(!memcmp(&attr, &copy_attr, sizeof(attr)));
	run_plan(rank, channel, plan, ids, taken);
	run_plan(rank, channel, copy, ids, taken);
	free(packed);
	m2n_plan_destroy(plan);
	m2n_plan_destroy(copy);
	m2n_channel_destroy(channel);
}

static int packed(const struct conf *conf)
{
	return ranks_run(1, check_packed, NULL, &conf->opts);
}

/* After a switch a plan of the old map is refused, and nothing is queued. */
static void check_old_map(struct rank *rank)
{
	static const uint32_t first[] = {0, 1, 2, 3, 4, 5}, owners[] = {0, 0, 0, 0, 0};
	static const uint32_t bad_first[] = {0, 1, 2, 3, 4};
	struct m2n_channel_params params = one_rank(rank);
	struct m2n_channel *channel;
	struct m2n_map *map;

	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	expect_ok(m2n_map_create(4, 1, bad_first, owners, &map));
	expect_status(-EINVAL, m2n_channel_set_map(channel, map, 1));
	m2n_map_destroy(map);
	expect_ok(m2n_map_create(5, 1, first, owners, &map));
	expect_ok(m2n_channel_set_map(channel, map, 1));
	m2n_map_destroy(map);
	m2n_map_destroy(NULL);
	m2n_channel_destroy(channel);
}

static int old_map(const struct conf *conf)
{
	return ranks_run(1, check_old_map, NULL, &conf->opts);
}

const struct conf_case plan_cases[] = {
	{"plan: routing out of range", 1, bad_routing, ANY_MEMORY},
	{"plan: query", 1, query, ANY_MEMORY},
	{"plan: capacity, refused and dropped", 1, capacity, ANY_MEMORY},
	{"plan: as bytes, whole, short and flipped", 1, packed, HOST_MEMORY},
	{"plan: maps that do not fit", 1, old_map, ANY_MEMORY},
	{0},
};
