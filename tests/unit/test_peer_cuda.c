/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA kernels of a round among peers that lie, die, come late, or take no part: the others
 * must not be hurt, memory neither, and reports must name whom they are about. And the dot
 * product of the backward pass, which has no peers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "doubles/device_launch.h"
#include "gpu_world.h"

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static struct world world;

static uint32_t *words(uint64_t at)
{
	return (uint32_t *)(uintptr_t)at;
}

static uint64_t *longs(uint64_t at)
{
	return (uint64_t *)(uintptr_t)at;
}

/* All sources have routed and sent. */
static void open_sent(const struct config *c)
{
	world_seed(3);
	world_open(&world, c);
	for (uint32_t s = 0; s < world.c.n_sources; s++) {
		world_route(&world, s);
		(void)m2n__plan_route(world.source[s].host, world.host_map, s, world.c.tokens,
			world.source[s].ids, world.source[s].weights, NULL);
	}
	world_plan(&world);
	world_dispatch(&world);
}

static uint32_t rows_between(uint32_t s, uint32_t j)
{
	const struct m2n_plan *plan = world.source[s].host;

	return plan->rank_first[j + 1] - plan->rank_first[j];
}

/* ---- rows ---------------------------------------------------------------------------------- */

/* What rank j has when `missing` are: the code, nobody of them in a cell, no bytes astray. */
static void check_batch(uint32_t j, uint64_t missing, int code)
{
	const struct rank *r = &world.rank[j];
	uint64_t all = (UINT64_C(1) << world.c.n_sources) - 1;
	uint32_t n_rows = 0;

	assert_int_equal(r->mirror->code, code);
	assert_true(r->mirror->missing[0] == missing);
	assert_true(longs(r->batch.present)[0] == (all & ~missing));
	for (uint32_t s = 0; s < world.c.n_sources; s++) {
		int is_missing = missing >> s & 1;

		n_rows += is_missing ? 0 : rows_between(s, j);
		assert_int_equal(
			words(r->batch.source_rows)[s], is_missing ? 0 : rows_between(s, j));
		for (uint32_t e = 0; is_missing && e < r->n_local; e++)
			assert_int_equal(r->mirror->cell_rows[e * world.c.n_sources + s], 0);
	}
	assert_int_equal(r->mirror->n_rows, n_rows);
	assert_true(r->recv_report->seq == (code ? 2 : 0));
	if (code) {
		assert_int_equal(r->recv_report->code, code);
		assert_true(r->recv_report->peers[0] == missing);
	}
}

static void receive(uint32_t j, struct m2n__gpu_recv_args *args)
{
	device_run(M2N__GPU_AWAIT_ROWS, &args->shape, world.c.n_sources, args);
	assert_true(world.rank[j].mirror->ticket == args->ticket);
	device_run(M2N__GPU_UNPACK, &args->shape, world.c.max_tokens, args);
}

static uint32_t *payload(struct m2n__gpu_head *head)
{
	return (uint32_t *)(void *)(head + 1);
}

static void lie_rows(struct m2n__gpu_head *head)
{
	head->n_rows = world.c.max_tokens * world.c.top_k + 1;
}

static void lie_many_rows(struct m2n__gpu_head *head)
{
	head->n_rows = head->n_sent = UINT32_MAX;
}

static void lie_sent(struct m2n__gpu_head *head)
{
	head->n_sent = head->n_rows + 1;
}

static void lie_fewer_sent(struct m2n__gpu_head *head)
{
	head->n_sent = head->n_rows - 1;
}

static void lie_counts(struct m2n__gpu_head *head)
{
	payload(head)[1]++;
}

/* A sum of 32 bits would be right. */
static void lie_wrapping_counts(struct m2n__gpu_head *head)
{
	payload(head)[0] += 0x80000000u;
	payload(head)[1] += 0x80000000u;
}

static void lie_sink(struct m2n__gpu_head *head)
{
	head->sink = 0;
}

static void lie_place(struct m2n__gpu_head *head)
{
	head->place = world.shape.n_region_slots * world.shape.reply_region_bytes -
		      head->n_rows * world.c.out_row_bytes + 64;
}

static void lie_far_place(struct m2n__gpu_head *head)
{
	head->place = UINT64_MAX - 63;
}

static void lie_crooked_place(struct m2n__gpu_head *head)
{
	head->place++;
}

static void lie_digest(struct m2n__gpu_head *head)
{
	head->map_digest++;
}

static void test_lies(void **state)
{
	static const struct {
		void (*tell)(struct m2n__gpu_head *head);
		int code;
	} lies[] = {{lie_rows, M2N_ERR_PROTOCOL}, {lie_many_rows, M2N_ERR_PROTOCOL},
		{lie_sent, M2N_ERR_PROTOCOL}, {lie_fewer_sent, M2N_ERR_PROTOCOL},
		{lie_counts, M2N_ERR_PROTOCOL}, {lie_wrapping_counts, M2N_ERR_PROTOCOL},
		{lie_sink, M2N_ERR_PROTOCOL}, {lie_place, M2N_ERR_PROTOCOL},
		{lie_far_place, M2N_ERR_PROTOCOL}, {lie_crooked_place, M2N_ERR_PROTOCOL},
		{lie_digest, M2N_ERR_MAP}};
	static const struct config c = {.name = "lies", .n_sources = 3, .max_tokens = 12};

	(void)state;
	for (size_t i = 0; i < LENGTH(lies); i++) {
		struct m2n__gpu_recv_args args;
		struct m2n__gpu_reply_args reply;

		open_sent(&c);
		lies[i].tell(world_slot(&world, 1, 0, 0));
		args = world_recv_args(&world, 0);
		receive(0, &args);
		check_batch(0, 2, lies[i].code);
		reply = world_reply_args(&world, 0);
		device_run(M2N__GPU_REPLY, &reply.shape, world.c.max_tokens, &reply);
		assert_true(world_reply_head(&world, 0, 0, 0)->signal == 1);
		assert_true(world_reply_head(&world, 1, 0, 0)->signal == 0);
		assert_true(world_reply_head(&world, 2, 0, 0)->signal == 1);
		world_close(&world);
	}
}

static const struct config with_index = {.name = "index", .dedup = 1, .reduce_at_expert = 1,
	.top_k = 4, .n_sources = 3, .dtype = M2N_DTYPE_BF16};

/* The index of a source's rows in rank 0's slot. */
static uint32_t *index_of(uint32_t s)
{
	size_t counts = (world.rank[0].n_local * sizeof(uint32_t) + 63) / 64 * 64;

	return payload(world_slot(&world, s, 0, 0)) + counts / sizeof(uint32_t);
}

static void test_lying_index(void **state)
{
	struct m2n__gpu_recv_args args;

	(void)state;
	open_sent(&with_index);
	index_of(2)[rows_between(2, 0) - 1] = world_slot(&world, 2, 0, 0)->n_sent;
	args = world_recv_args(&world, 0);
	receive(0, &args);
	check_batch(0, 4, M2N_ERR_PROTOCOL);
	world_close(&world);
}

/* A peer changes its index after it was checked: only its own rows are nonsense then. */
static void test_changed_index(void **state)
{
	static const uint32_t values[] = {UINT32_MAX, 0, 1};
	struct m2n__gpu_recv_args args;
	struct m2n__gpu_reply_args reply;

	(void)state;
	for (size_t i = 0; i < LENGTH(values); i++) {
		open_sent(&with_index);
		args = world_recv_args(&world, 0);
		device_run(M2N__GPU_AWAIT_ROWS, &args.shape, world.c.n_sources, &args);
		for (uint32_t r = 0; r < rows_between(1, 0); r++)
			index_of(1)[r] = values[i];
		device_run(M2N__GPU_UNPACK, &args.shape, world.c.max_tokens, &args);
		reply = world_reply_args(&world, 0);
		device_run(M2N__GPU_REDUCE, &reply.shape, world.c.max_tokens, &reply);
		check_batch(0, 0, 0);
		world_close(&world);
	}
}

static const struct config three = {.name = "three sources", .n_sources = 3, .n_ranks = 2};

/* Takes a source's head back, as if it had not come. */
static void withhold(uint32_t s, uint32_t j)
{
	world_slot(&world, s, j, 0)->signal = 0;
}

static void test_dead_source(void **state)
{
	struct m2n__gpu_recv_args args;

	(void)state;
	open_sent(&three);
	withhold(1, 0);
	world.rank[0].alive[1] = 0;
	world.rank[0].alive[2] = 0; /* what it sent before counts */
	args = world_recv_args(&world, 0);
	receive(0, &args);
	check_batch(0, 2, M2N_PARTIAL);
	world_close(&world);
}

static void test_never_linked(void **state)
{
	struct m2n__gpu_recv_args args;

	(void)state;
	open_sent(&three);
	world.rank[0].alive[0] = 0;
	world.rank[0].rx[0] = (struct m2n__gpu_rx){0};
	args = world_recv_args(&world, 0);
	receive(0, &args);
	check_batch(0, 1, M2N_PARTIAL);
	world_close(&world);
}

static void test_deadline(void **state)
{
	struct m2n__gpu_recv_args args;

	(void)state;
	open_sent(&three);
	withhold(2, 1);
	args = world_recv_args(&world, 1);
	args.timeout_ns = 3000000;
	receive(1, &args);
	check_batch(1, 4, -ETIMEDOUT);
	world_close(&world);
}

/* Neither the mask nor the first round of a link is an error. */
static void test_no_part(void **state)
{
	struct m2n__gpu_recv_args args;

	(void)state;
	open_sent(&three);
	withhold(0, 0);
	withhold(1, 0);
	args = world_recv_args(&world, 0);
	args.has_mask = 1;
	args.mask[0] = 6;
	world.rank[0].rx[1].first_round = 1;
	receive(0, &args);
	check_batch(0, 3, 0);
	world_close(&world);
}

/* A head that comes while the kernel waits; and a source that goes while it waits. */
static void test_while_waiting(void **state)
{
	struct m2n__gpu_recv_args args;

	(void)state;
	for (int dies = 0; dies < 2; dies++) {
		open_sent(&three);
		withhold(1, 0);
		args = world_recv_args(&world, 0);
		args.timeout_ns = -1;
		device_start(M2N__GPU_AWAIT_ROWS, &args.shape, world.c.n_sources, &args);
		usleep(5000);
		assert_true(__atomic_load_n(&world.rank[0].mirror->ticket, __ATOMIC_ACQUIRE) == 0);
		if (dies)
			__atomic_store_n(&world.rank[0].alive[1], 0, __ATOMIC_RELEASE);
		else
			__atomic_store_n(
				&world_slot(&world, 1, 0, 0)->signal, 1, __ATOMIC_RELEASE);
		device_finish();
		check_batch(0, dies ? 2 : 0, dies ? M2N_PARTIAL : 0);
		world_close(&world);
	}
}

/* By messages: the head alone is not the round when it counts transfers that have not come. */
static void test_not_whole(void **state)
{
	static const struct config c = {.name = "not whole", .is_messaging = 1};
	struct m2n__gpu_recv_args args;
	struct m2n__gpu_rx *rx;

	(void)state;
	open_sent(&c);
	rx = &world.rank[0].rx[1];
	world_slot(&world, 1, 0, 0)->n_body_puts = 2;
	longs(rx->arrived)[1] = 1;
	args = world_recv_args(&world, 0);
	args.timeout_ns = 3000000;
	receive(0, &args);
	check_batch(0, 2, -ETIMEDOUT);
	assert_true(longs(rx->seen)[0] == 0);
	longs(rx->arrived)[1] = 2;
	world.rank[0].rounds->recv = 0;
	world.rank[0].recv_report->seq = 0;
	longs(world.rank[0].rx[0].seen)[0] = 0;
	args = world_recv_args(&world, 0);
	receive(0, &args);
	check_batch(0, 0, 0);
	assert_true(longs(rx->seen)[0] == 1 && longs(rx->seen)[1] == 2);
	world_close(&world);
}

/* ---- sending ------------------------------------------------------------------------------- */

static void route_and_plan(const struct config *c)
{
	world_seed(4);
	world_open(&world, c);
	for (uint32_t s = 0; s < world.c.n_sources; s++) {
		world_route(&world, s);
		(void)m2n__plan_route(world.source[s].host, world.host_map, s, world.c.tokens,
			world.source[s].ids, world.source[s].weights, NULL);
	}
	world_plan(&world);
}

static void check_unsent(uint64_t part, int code, uint32_t n_rows)
{
	const struct source *s = &world.source[0];

	assert_true(s->part[0] == part);
	assert_true(s->rounds->send == 1);
	assert_true(s->send_report->seq == (code ? 2 : 0));
	if (code) {
		assert_int_equal(s->send_report->code, code);
		assert_int_equal(s->send_report->n_rows, n_rows);
		assert_true(s->send_report->peers[0] == (7 & ~part));
	}
	for (uint32_t j = 0; j < 3; j++)
		assert_true(world_slot(&world, 0, j, 0)->signal == (part >> j & 1));
}

static const struct config to_three = {.name = "three ranks", .n_sources = 1, .n_ranks = 3,
	.n_experts = 6, .top_k = 3};

static void test_ranks_left_out(void **state)
{
	struct m2n__gpu_dispatch_args args;

	(void)state;
	for (int how = 0; how < 3; how++) {
		route_and_plan(&to_three);
		args = world_dispatch_args(&world, 0);
		if (how == 0)
			world.source[0].tx[1].live = 0;
		if (how == 1)
			world.source[0].tx[1].first_round = 1;
		args.has_mask = how == 2;
		args.mask[0] = 5;
		device_run(M2N__GPU_DISPATCH, &args.shape, world.c.max_tokens, &args);
		check_unsent(5, M2N_PARTIAL, rows_between(0, 1));
		world_close(&world);
	}
}

static void test_no_place(void **state)
{
	struct m2n__gpu_dispatch_args args;

	(void)state;
	route_and_plan(&to_three);
	args = world_dispatch_args(&world, 0);
	world.source[0].places[0] = M2N__GPU_NONE;
	device_run(M2N__GPU_DISPATCH, &args.shape, world.c.max_tokens, &args);
	check_unsent(0, -ENOBUFS, world.source[0].host->n_rows);
	world_close(&world);
}

/* The rows of a round that could not be sent are missing, and the slot has a place again. */
static void test_no_place_combine(void **state)
{
	struct source *s = &world.source[0];

	(void)state;
	route_and_plan(&to_three);
	s->places[0] = M2N__GPU_NONE;
	s->held[0] = 1;
	world_dispatch(&world);
	world_combine(&world);
	assert_int_equal(s->combine_report->code, M2N_PARTIAL);
	assert_int_equal(s->places[0], world.c.depth);
	for (uint32_t t = 0; t < world.c.tokens; t++)
		assert_int_equal(s->missing[t], world.c.top_k);
	world_close(&world);
}

/* ---- replies ------------------------------------------------------------------------------- */

/* Sums of what came from the ranks but `lost`. */
static void check_sums(uint32_t lost)
{
	const struct source *s = &world.source[0];
	const struct m2n__kernels *scalar = m2n__kernels_select("scalar");
	uint8_t out[4096];

	for (uint32_t t = 0; t < world.c.tokens; t++) {
		const void *rows[64];
		float weights[64];
		uint32_t n = 0, missing = 0;

		for (uint32_t p = t * world.c.top_k; p < (t + 1) * world.c.top_k; p++) {
			if (s->host->pair_row[p] < 0)
				continue;
			if (s->host->pair_rank[p] == lost) {
				missing++;
				continue;
			}
			rows[n] = s->region +
				  (uint32_t)s->host->pair_row[p] * world.c.out_row_bytes;
			weights[n++] = s->host->weight[p];
		}
		scalar->wsum[world.c.dtype](out, NULL, rows, weights, n, world.shape.n_values, 0);
		assert_memory_equal(s->out + t * s->out_stride, out, world.c.out_row_bytes);
		assert_int_equal(s->missing[t], missing);
	}
}

static void check_missing(uint32_t lost, int code)
{
	const struct source *s = &world.source[0];

	assert_true(s->answered[0] == (7 & ~(UINT64_C(1) << lost)));
	assert_true(s->combine_report->seq == 2);
	assert_int_equal(s->combine_report->code, code);
	assert_int_equal(s->combine_report->n_rows, rows_between(0, lost));
	assert_true(s->combine_report->peers[0] == UINT64_C(1) << lost);
	check_sums(lost);
	/* what the rank sent may still come: another place next time */
	assert_int_equal(s->held[0], 1);
	assert_int_equal(s->places[0], world.c.depth);
}

static void open_replied(void)
{
	route_and_plan(&to_three);
	world_dispatch(&world);
	world_receive(&world);
	for (uint32_t j = 0; j < 3; j++)
		for (uint32_t r = 0; r < world.rank[j].mirror->n_rows; r++)
			world_fill(world.c.dtype,
				world.rank[j].out_rows + r * world.rank[j].out_stride,
				world.shape.n_values);
	world_reply(&world);
}

static void test_missing_replies(void **state)
{
	(void)state;
	for (int how = 0; how < 3; how++) {
		struct m2n__gpu_combine_args args;

		open_replied();
		args = world_combine_args(&world, 0);
		if (how == 2)
			world_reply_head(&world, 0, 1, 0)->n_rows++;
		else
			world_reply_head(&world, 0, 1, 0)->signal = 0;
		if (how == 0)
			world.source[0].alive[1] = 0;
		if (how == 1)
			args.timeout_ns = 3000000;
		device_run(M2N__GPU_AWAIT_REPLIES, &args.shape, world.c.n_ranks, &args);
		device_run(M2N__GPU_COMBINE, &args.shape, world.c.max_tokens, &args);
		check_missing(1, how == 1 ? -ETIMEDOUT : M2N_PARTIAL);
		world_close(&world);
	}
}

/* Both region slots of a slot are held: the next round of it cannot be sent. */
static void test_both_held(void **state)
{
	(void)state;
	open_replied();
	world_reply_head(&world, 0, 1, 0)->signal = 0;
	world.source[0].alive[1] = 0;
	world.source[0].held[world.c.depth] = 1;
	world_combine(&world);
	assert_int_equal(world.source[0].places[0], M2N__GPU_NONE);
	world_close(&world);
}

/* A sink whose link has gone gets nothing and is named. */
static void test_lost_sink(void **state)
{
	(void)state;
	open_sent(&three);
	world_receive(&world);
	world.rank[0].tx[1].live = 0;
	world_reply(&world);
	assert_int_equal(world.rank[0].reply_report->code, M2N_PARTIAL);
	assert_int_equal(world.rank[0].reply_report->n_rows, rows_between(1, 0));
	assert_true(world.rank[0].reply_report->peers[0] == 2);
	assert_true(world_reply_head(&world, 1, 0, 0)->signal == 0);
	assert_true(world_reply_head(&world, 2, 0, 0)->signal == 1);
	world_close(&world);
}

/* ---- dot ----------------------------------------------------------------------------------- */

static void check_dot(enum m2n_dtype dtype, uint32_t n_values, uint32_t top_k, uint32_t n_tokens)
{
	const struct m2n__kernels *scalar = m2n__kernels_select("scalar");
	size_t bytes = n_values * m2n__dtype_bytes(dtype), pairs = n_tokens * top_k;
	size_t stride = bytes + (n_values % 2 ? 1 : 6);
	uint8_t *dy = device_alloc(n_tokens * stride + 1);
	uint8_t *replies = device_alloc(pairs * bytes + 1);
	float *grad = device_alloc(pairs * sizeof(*grad) + 1);
	struct m2n__gpu_dot_args args = {.shape = {.top_k = top_k, .dtype = dtype,
		.out_row_bytes = bytes, .n_values = n_values}, .dy = (uintptr_t)dy,
		.dy_stride = stride, .replies = (uintptr_t)replies, .grad = (uintptr_t)grad,
		.n_tokens = n_tokens};

	for (uint32_t t = 0; t < n_tokens; t++)
		world_fill(dtype, dy + t * stride, n_values);
	world_fill(dtype, replies, pairs * n_values);
	device_run(M2N__GPU_DOT, &args.shape, n_tokens, &args);
	for (size_t p = 0; p < pairs; p++) {
		float want = scalar->dot[dtype](
			dy + p / top_k * stride, replies + p * bytes, n_values);

		if (memcmp(&grad[p], &want, sizeof(want)))
			fail_msg("dot of %u values, dtype %d, pair %zu: %a, not %a", n_values,
				(int)dtype, p, (double)grad[p], (double)want);
	}
	device_free_all();
}

static void test_dot(void **state)
{
	static const uint32_t sizes[] = {1, 15, 16, 17, 127, 128, 129, 300, 1000};

	(void)state;
	world_seed(5);
	for (size_t i = 0; i < LENGTH(sizes); i++)
		for (int dtype = 0; dtype < M2N__N_DTYPES; dtype++) {
			check_dot((enum m2n_dtype)dtype, sizes[i], 3, 5);
			check_dot((enum m2n_dtype)dtype, sizes[i], 1, 1);
		}
	check_dot(M2N_DTYPE_BF16, 64, 4, 0);
}

static int setup(void **state)
{
	(void)state;
	device_open();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	device_close();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lies),
		cmocka_unit_test(test_lying_index),
		cmocka_unit_test(test_changed_index),
		cmocka_unit_test(test_dead_source),
		cmocka_unit_test(test_never_linked),
		cmocka_unit_test(test_deadline),
		cmocka_unit_test(test_no_part),
		cmocka_unit_test(test_while_waiting),
		cmocka_unit_test(test_not_whole),
		cmocka_unit_test(test_ranks_left_out),
		cmocka_unit_test(test_no_place),
		cmocka_unit_test(test_no_place_combine),
		cmocka_unit_test(test_missing_replies),
		cmocka_unit_test(test_both_held),
		cmocka_unit_test(test_lost_sink),
		cmocka_unit_test(test_dot),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
