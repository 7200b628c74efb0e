/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing on the device (PLAN_RANKS, PLAN) against route/plan.c: every array, the summary, what
 * is dropped, and what is refused, over the sizes and grids that break things.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "doubles/device_launch.h"
#include "doubles/device_run.h"
#include "gpu_world.h"

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static struct world world;

static const uint32_t *words(uint64_t at)
{
	return (const uint32_t *)(uintptr_t)at;
}

static void check_words(
	const char *what, const uint32_t *got, const uint32_t *want, size_t n, uint32_t source)
{
	for (size_t i = 0; i < n; i++)
		if (got[i] != want[i])
			fail_msg("%s, source %u: %s[%zu] is %u, not %u", world.c.name, source, what,
				i, got[i], want[i]);
}

static void check_pair(const struct source *s, uint32_t source, uint32_t p)
{
	const struct m2n_plan *host = s->host;
	uint32_t instance = words(s->plan.pair_instance)[p], row, unique, rank;

	if (host->pair_row[p] < 0) {
		if (instance != M2N__GPU_NONE)
			fail_msg("%s, source %u: pair %u has instance %u, not none", world.c.name,
				source, p, instance);
		return;
	}
	if (instance >= world.map.n_instances)
		fail_msg("%s, source %u: pair %u has no row", world.c.name, source, p);
	rank = world.host_map->rank_of[instance];
	row = words(s->plan.first)[instance] + words(s->plan.pair_position)[p];
	if (row != (uint32_t)host->pair_row[p] || rank != host->pair_rank[p])
		fail_msg("%s, source %u: pair %u has row %u, rank %u, not %d, %u", world.c.name,
			source, p, row, rank, host->pair_row[p], host->pair_rank[p]);
	if (!world.c.dedup)
		return;
	unique = words(s->plan.pair_unique)[p];
	assert_int_equal((unique & 0x7fffffff) + host->unique_first[rank], host->row_unique[row]);
	if (world.c.reduce_at_expert)
		assert_int_equal(unique >> 31, host->pair_reply[p] >= 0);
}

/* The scratch is clean again, or the next routing would go wrong. */
static void check_work(const struct source *s)
{
	const uint32_t *work = words(s->plan.work);

	for (size_t i = 0; i < 2 * 32 + 4; i++)
		assert_int_equal(work[i], 0);
}

static void check_summary(const struct source *s, int code)
{
	const struct m2n_plan *host = s->host;

	assert_int_equal(s->summary->code, code);
	assert_int_equal(s->summary->n_tokens, host->n_tokens);
	assert_int_equal(s->summary->n_rows, host->n_rows);
	assert_int_equal(s->summary->n_sent, host->n_unique);
	assert_int_equal(s->summary->n_dropped, host->n_dropped);
	assert_int_equal(s->summary->n_dropped_lost, host->n_dropped_lost);
	for (uint32_t r = 0; r < world.c.n_ranks; r++)
		assert_int_equal(s->summary->rank_rows[r],
			host->rank_first[r + 1] - host->rank_first[r]);
}

static void check_plan(uint32_t source, int code)
{
	const struct source *s = &world.source[source];
	const struct m2n_plan *host = s->host;
	uint32_t n_ranks = world.c.n_ranks;

	check_summary(s, code);
	assert_int_equal(*words(s->plan.n_tokens), host->n_tokens);
	check_words("count", words(s->plan.count), host->count, world.map.n_instances, source);
	check_words(
		"rank_first", words(s->plan.rank_first), host->rank_first, n_ranks + 1, source);
	check_words("unique_first", words(s->plan.unique_first), host->unique_first, n_ranks + 1,
		source);
	check_work(s);
	for (uint32_t p = 0; p < host->n_tokens * world.c.top_k; p++)
		check_pair(s, source, p);
	if (!host->n_tokens)
		return;
	assert_memory_equal((const void *)(uintptr_t)s->plan.weight, host->weight,
		host->n_tokens * world.c.top_k * 4);
	assert_memory_equal(
		(const void *)(uintptr_t)s->plan.dropped, host->dropped, host->n_tokens);
}

/* Routes on both sides; live: bitmap, 0 for all. */
static void check_route(uint32_t source, uint64_t live, int by_mask)
{
	struct source *s = &world.source[source];
	struct m2n__gpu_plan_args args = world_plan_args(&world, source);
	int code = m2n__plan_route(s->host, world.host_map, source, args.n_tokens, s->ids,
		world.c.without_weights ? NULL : s->weights, live ? &live : NULL);

	for (uint32_t j = 0; j < world.c.n_ranks; j++)
		s->tx[j].live = by_mask || !live || (live >> j & 1);
	args.has_mask = live && by_mask;
	args.mask[0] = live;
	if (world.c.dedup || world.c.capacity)
		device_run(M2N__GPU_PLAN_RANKS, &args.shape, args.n_tokens, &args);
	device_run(M2N__GPU_PLAN, &args.shape, args.n_tokens, &args);
	assert_true(s->summary->ticket == args.ticket);
	check_plan(source, code);
}

static const struct config cases[] = {
	{.name = "plain", .top_k = 4},
	{.name = "one token", .max_tokens = 1},
	{.name = "no token", .tokens = UINT32_MAX},
	{.name = "top_k 1", .top_k = 1, .max_tokens = 33},
	{.name = "odd top_k", .top_k = 3, .max_tokens = 35},
	{.name = "top_k 64", .top_k = 64, .n_experts = 70, .max_tokens = 9},
	{.name = "1,100 tokens", .max_tokens = 1100, .top_k = 8, .n_experts = 64, .n_ranks = 8},
	{.name = "two tiles", .max_tokens = 4200, .top_k = 8, .n_experts = 5, .n_sources = 1},
	{.name = "one expert", .n_experts = 1, .n_ranks = 1, .max_tokens = 40},
	{.name = "ranks without experts", .n_experts = 3, .n_ranks = 8},
	{.name = "all to one", .routing = ROUTE_ALL_TO_ONE, .max_tokens = 70, .top_k = 4},
	{.name = "none", .routing = ROUTE_NONE},
	{.name = "holes", .routing = ROUTE_HOLES, .top_k = 5, .max_tokens = 50},
	{.name = "repeated", .routing = ROUTE_REPEATED, .top_k = 6, .max_tokens = 50},
	{.name = "no weights", .without_weights = 1},
	{.name = "replicas", .replicas = 3, .n_ranks = 4, .n_experts = 9, .top_k = 4,
		.max_tokens = 60, .n_sources = 3},
	{.name = "dedup", .dedup = 1, .top_k = 8, .n_experts = 32, .n_ranks = 4,
		.max_tokens = 100},
	{.name = "dedup, 1,100 tokens", .dedup = 1, .reduce_at_expert = 1, .top_k = 4,
		.max_tokens = 1100, .n_ranks = 3},
	{.name = "dedup, repeated, replicas", .dedup = 1, .reduce_at_expert = 1, .top_k = 8,
		.replicas = 2, .n_ranks = 3, .routing = ROUTE_REPEATED, .max_tokens = 40},
	{.name = "capacity, drop", .capacity = 7, .drop_overflow = 1, .top_k = 3,
		.max_tokens = 40},
	{.name = "capacity, dedup, drop", .capacity = 7, .drop_overflow = 1, .top_k = 4,
		.dedup = 1, .reduce_at_expert = 1, .max_tokens = 40, .routing = ROUTE_REPEATED},
	{.name = "capacity, replicas, drop", .capacity = 20, .drop_overflow = 1, .top_k = 4,
		.replicas = 2, .n_ranks = 3, .max_tokens = 64},
	{.name = "capacity, error", .capacity = 4, .max_tokens = 40},
	{.name = "capacity, dedup, error", .capacity = 4, .max_tokens = 40, .dedup = 1},
	{.name = "capacity, kept", .capacity = 80, .max_tokens = 40},
	{.name = "5,000 experts", .n_experts = 5000, .top_k = 2, .max_tokens = 40, .dedup = 1,
		.n_sources = 1},
};

static void for_each_case(void (*check)(void))
{
	for (size_t i = 0; i < LENGTH(cases); i++) {
		world_seed(i + 1);
		world_open(&world, &cases[i]);
		check();
		world_close(&world);
	}
}

static void route_thrice(void)
{
	for (uint32_t n = 0; n < 3; n++)
		for (uint32_t s = 0; s < world.c.n_sources; s++) {
			world_route(&world, s);
			check_route(s, 0, 0);
		}
}

static void test_routes(void **state)
{
	(void)state;
	for_each_case(route_thrice);
}

/* Some ranks are lost, by their links or by the mask; then they are back. */
static void route_with_losses(void)
{
	uint64_t all = (UINT64_C(1) << world.c.n_ranks) - 1;

	for (uint64_t live = 1; live <= all && live < 12 && world.c.max_tokens < 500; live++) {
		world_route(&world, 0);
		check_route(0, live, live % 2 == 0);
		check_route(0, 0, 0);
	}
}

static void test_losses(void **state)
{
	(void)state;
	for_each_case(route_with_losses);
}

static void check_bad(uint32_t token, uint32_t k, int32_t id)
{
	struct source *s = &world.source[0];
	size_t p = token * world.c.top_k + k;
	int32_t before = s->ids[p];

	s->ids[p] = id;
	check_route(0, 0, 0);
	assert_int_equal(s->summary->code, -EINVAL);
	assert_int_equal(s->summary->bad_token, token);
	assert_int_equal(s->summary->bad_k, k);
	assert_int_equal(s->summary->bad_id, id);
	s->ids[p] = before;
	check_route(0, 0, 0);
}

static void test_bad_ids(void **state)
{
	static const struct config c = {.name = "bad ids", .top_k = 3, .max_tokens = 50};

	(void)state;
	world_seed(7);
	world_open(&world, &c);
	world_route(&world, 0);
	world.source[0].ids[140] = 99; /* only the first is told */
	check_bad(0, 0, 8);
	check_bad(21, 2, -2);
	check_bad(46, 1, INT32_MIN);
	check_bad(46, 1, INT32_MAX);
	world_close(&world);
}

/* Ids that are aligned to their own size only. */
static void test_unaligned_ids(void **state)
{
	static const struct config c = {.name = "unaligned ids", .top_k = 3, .max_tokens = 50,
		.tokens = 48};

	(void)state;
	world_seed(8);
	world_open(&world, &c);
	for (unsigned i = 0; i < 3; i++) {
		world.source[0].ids++;
		world_route(&world, 0);
		check_route(0, 0, 0);
	}
	world_close(&world);
}

static void test_grids(void **state)
{
	static const struct config c = {.name = "grids", .top_k = 4, .max_tokens = 150,
		.n_experts = 24, .n_ranks = 3, .dedup = 1, .replicas = 2};
	static const unsigned grids[][2] = {{1, 32}, {1, 1024}, {7, 64}, {40, 96}, {3, 512}};
	struct m2n__gpu_plan_args args;

	(void)state;
	world_seed(9);
	world_open(&world, &c);
	world_route(&world, 1);
	assert_int_equal(m2n__plan_route(world.source[1].host, world.host_map, 1, 150,
				 world.source[1].ids, world.source[1].weights, NULL), 0);
	for (size_t i = 0; i < LENGTH(grids); i++) {
		m2n_double_block_seed = i;
		args = world_plan_args(&world, 1);
		device_run_grid(M2N__GPU_PLAN_RANKS, &args.shape, args.n_tokens, 3, grids[i][1],
			&args);
		device_run_grid(M2N__GPU_PLAN, &args.shape, args.n_tokens, grids[i][0],
			grids[i][1], &args);
		check_plan(1, 0);
	}
	m2n_double_block_seed = 0;
	world_close(&world);
}

/* A link that goes down between the two kernels, or between two blocks, changes nothing. */
static void test_links_change(void **state)
{
	static const struct config c = {.name = "links change", .top_k = 4, .max_tokens = 60,
		.n_ranks = 3, .dedup = 1, .replicas = 2};
	struct m2n__gpu_plan_args args;

	(void)state;
	world_seed(10);
	world_open(&world, &c);
	world_route(&world, 0);
	assert_int_equal(m2n__plan_route(world.source[0].host, world.host_map, 0, 60,
				 world.source[0].ids, world.source[0].weights, NULL), 0);
	args = world_plan_args(&world, 0);
	device_run(M2N__GPU_PLAN_RANKS, &args.shape, args.n_tokens, &args);
	world.source[0].tx[1].live = 0;
	device_run(M2N__GPU_PLAN, &args.shape, args.n_tokens, &args);
	check_plan(0, 0);
	check_route(0, 5, 0); /* the next routing sees it */
	world_close(&world);
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
		cmocka_unit_test(test_routes),
		cmocka_unit_test(test_losses),
		cmocka_unit_test(test_bad_ids),
		cmocka_unit_test(test_unaligned_ids),
		cmocka_unit_test(test_grids),
		cmocka_unit_test(test_links_change),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
