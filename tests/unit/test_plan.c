/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans: hand-written routings whose every array is known, and a property test that rebuilds
 * each routing from the oracle m2n__ref_rows() over many shapes with a fixed seed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "route/plan.h"
#include "route/reference.h"
#include "util/error.h"

#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static struct m2n_map *make_blocks(uint32_t n_experts, uint32_t n_ranks)
{
	struct m2n_map *map = NULL;

	assert_int_equal(m2n_map_create(n_experts, n_ranks, NULL, NULL, &map), 0);
	return map;
}

static struct m2n_plan *make_plan(const struct m2n_map *map, uint32_t max_tokens, uint32_t top_k,
	struct m2n__plan_limits extra)
{
	struct m2n_plan *plan = NULL;

	extra.max_tokens = max_tokens;
	extra.top_k = top_k;
	extra.n_experts = map->n_experts;
	extra.n_ranks = map->n_ranks;
	extra.max_instances = map->n_instances;
	assert_int_equal(m2n__plan_create(&extra, &plan), 0);
	return plan;
}

static const struct m2n__plan_limits plain = {0};

#define assert_u32s(array, ...)                                                                    \
	do {                                                                                       \
		const uint32_t want_[] = {__VA_ARGS__};                                            \
		assert_memory_equal(array, want_, sizeof(want_));                                  \
	} while (0)
#define assert_i32s(array, ...)                                                                    \
	do {                                                                                       \
		const int32_t want_[] = {__VA_ARGS__};                                             \
		assert_memory_equal(array, want_, sizeof(want_));                                  \
	} while (0)

/* Four experts on two ranks, three tokens, top-2, an absent choice and a repeated expert. */
static const int32_t small_ids[] = {3, 0, /**/ 1, -1, /**/ 0, 0};

static void rows_are_by_expert_then_token_then_k(void **state)
{
	const float weights[] = {.5f, .25f, 1, 9, .75f, .125f};
	struct m2n_map *map = make_blocks(4, 2);
	struct m2n_plan *plan = make_plan(map, 8, 2, plain);

	(void)state;
	assert_int_equal(m2n__plan_route(plan, map, 0, 3, small_ids, weights, NULL), 0);
	assert_int_equal(plan->n_rows, 5);
	assert_int_equal(plan->n_unique, 5);
	assert_int_equal(plan->n_dropped, 0);
	assert_u32s(plan->count, 3, 1, 0, 1);
	assert_u32s(plan->rank_first, 0, 4, 5);
	assert_u32s(plan->row_token, 0, 2, 2, 1, 0);
	assert_u32s(plan->row_pair, 1, 4, 5, 2, 0);
	assert_i32s(plan->pair_row, 4, 0, 3, -1, 1, 2);
	assert_ptr_equal(plan->pair_reply, plan->pair_row);
	assert_ptr_equal(plan->reply_first, plan->rank_first);
	assert_null(plan->row_unique);
	assert_int_equal(plan->pair_rank[0], 1);
	assert_int_equal(plan->pair_rank[1], 0);
	assert_memory_equal(plan->weight, weights, sizeof(weights));
	assert_int_equal(m2n__plan_route(plan, map, 0, 1, small_ids, NULL, NULL), 0);
	assert_true(plan->weight[0] == 1 && plan->weight[1] == 1);
	assert_false(plan->has_weights);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

static void dedup_sends_a_token_once_per_rank(void **state)
{
	struct m2n__plan_limits limits = {.dedup = 1};
	struct m2n_map *map = make_blocks(4, 2);
	struct m2n_plan *plan = make_plan(map, 8, 2, limits);
	static const int32_t ids[] = {1, 0, /**/ 3, 0, /**/ 0, 0};

	(void)state;
	assert_int_equal(m2n__plan_route(plan, map, 0, 3, ids, NULL, NULL), 0);
	assert_u32s(plan->rank_first, 0, 5, 6);
	assert_u32s(plan->unique_first, 0, 3, 4);
	assert_int_equal(plan->n_unique, 4);
	assert_u32s(plan->row_token, 0, 1, 2, 2, 0, 1);
	assert_u32s(plan->row_unique, 0, 1, 2, 2, 0, 3);
	assert_u32s(plan->unique_token, 0, 1, 2, 1);
	assert_i32s(plan->pair_reply, 4, 0, 5, 1, 2, 3);
	assert_ptr_equal(plan->reply_first, plan->rank_first);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

static void reduced_replies_come_once_per_rank(void **state)
{
	struct m2n__plan_limits limits = {.dedup = 1, .reduce_at_expert = 1};
	struct m2n_map *map = make_blocks(4, 2);
	struct m2n_plan *plan = make_plan(map, 8, 2, limits);
	static const int32_t ids[] = {1, 0, /**/ 3, 0, /**/ -1, 0};

	(void)state;
	assert_int_equal(m2n__plan_route(plan, map, 0, 3, ids, NULL, NULL), 0);
	assert_u32s(plan->reply_first, 0, 3, 4);
	assert_i32s(plan->pair_reply, 0, -1, 3, 1, -1, 2);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

static void replicas_take_turns_by_source_and_token(void **state)
{
	/* Expert 0 on ranks 1 and 0 in this order, expert 1 on rank 1. */
	const uint32_t first[] = {0, 2, 3}, owners[] = {1, 0, 1};
	static const int32_t ids[] = {0, 0, 0, 1};
	const uint64_t only_0 = 1, only_1 = 2;
	struct m2n_map *map = NULL;
	struct m2n_plan *plan;

	(void)state;
	assert_int_equal(m2n_map_create(2, 2, first, owners, &map), 0);
	plan = make_plan(map, 8, 1, plain);
	assert_int_equal(m2n__plan_route(plan, map, 0, 4, ids, NULL, NULL), 0);
	assert_u32s(plan->count, 1, 2, 1);
	assert_u32s(plan->row_token, 1, 0, 2, 3);
	assert_int_equal(m2n__plan_route(plan, map, 1, 4, ids, NULL, NULL), 0);
	assert_u32s(plan->count, 2, 1, 1);
	assert_u32s(plan->row_token, 0, 2, 1, 3);
	/* Only live owners take turns. */
	assert_int_equal(m2n__plan_route(plan, map, 0, 4, ids, NULL, &only_1), 0);
	assert_u32s(plan->count, 0, 3, 1);
	/* Expert 1 has no other owner. */
	assert_int_equal(m2n__plan_route(plan, map, 0, 4, ids, NULL, &only_0), M2N_PARTIAL);
	assert_u32s(plan->count, 3, 0, 0);
	assert_int_equal(plan->n_dropped, 1);
	assert_int_equal(plan->n_dropped_lost, 1);
	assert_int_equal(plan->dropped[3], 1);
	assert_int_equal(plan->dropped[2], 0);
	assert_int_equal(plan->pair_row[3], -1);
	assert_non_null(strstr(m2n_error_text(), "1 pairs dropped, the first of token 3"));
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

static void capacity_is_exact(void **state)
{
	struct m2n__plan_limits limits = {.rank_capacity = 5};
	static const int32_t ids[] = {0, 1, 0, 1, 1, 1};
	struct m2n_map *map = make_blocks(4, 2);
	struct m2n_plan *plan = make_plan(map, 8, 1, limits);

	(void)state;
	for (uint32_t n = 4; n <= 5; n++)
		assert_int_equal(m2n__plan_route(plan, map, 2, n, ids, NULL, NULL), 0);
	assert_int_equal(m2n__plan_route(plan, map, 2, 6, ids, NULL, NULL), M2N_ERR_CAPACITY);
	assert_string_equal(m2n_error_text(), "plan: expert rank index 0 would get 6 rows from "
					      "source index 2, accepted: up to 5");
	assert_int_equal(plan->n_tokens, 0);
	assert_int_equal(plan->n_rows, 0);
	assert_u32s(plan->rank_first, 0, 0, 0);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

static void overflow_drops_the_last_pairs(void **state)
{
	struct m2n__plan_limits limits = {.rank_capacity = 2, .drop_overflow = 1};
	static const int32_t ids[] = {1, 2, /**/ 1, 0, /**/ 0, 0, /**/ 2, 3};
	struct m2n_map *map = make_blocks(4, 2);
	struct m2n_plan *plan = make_plan(map, 8, 2, limits);

	(void)state;
	/* Rank 0 keeps (0,0) and (1,0): the lower expert id of (1,1) wins nothing. */
	assert_int_equal(m2n__plan_route(plan, map, 0, 4, ids, NULL, NULL), M2N_PARTIAL);
	assert_u32s(plan->count, 0, 2, 2, 0);
	assert_i32s(plan->pair_row, 0, 2, 1, -1, -1, -1, 3, -1);
	assert_int_equal(plan->n_dropped, 4);
	assert_int_equal(plan->n_dropped_lost, 0);
	assert_memory_equal(plan->dropped, "\0\1\2\1", 4);
	m2n__plan_destroy(plan);
	/* With dedup a token that has its row keeps all its pairs. */
	limits.dedup = 1;
	plan = make_plan(map, 8, 2, limits);
	assert_int_equal(m2n__plan_route(plan, map, 0, 4, ids, NULL, NULL), M2N_PARTIAL);
	assert_u32s(plan->count, 1, 2, 2, 1);
	assert_memory_equal(plan->dropped, "\0\0\2\0", 4);
	assert_int_equal(plan->n_unique, 4);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

static void bad_input_names_the_place(void **state)
{
	static const int32_t high[] = {0, 1, 2, 4}, low[] = {0, 1, -2, 0};
	struct m2n_map *map = make_blocks(4, 2), *other = make_blocks(5, 2);
	struct m2n_map *wide = make_blocks(4, 3);
	struct m2n_plan *plan = make_plan(map, 2, 2, plain);

	(void)state;
	assert_int_equal(m2n__plan_route(plan, map, 0, 2, high, NULL, NULL), -EINVAL);
	assert_string_equal(m2n_error_text(), "plan: token 1, k 1: expert id 4 is out of range, "
					      "accepted: 0..3, or -1 for none");
	assert_int_equal(plan->n_tokens, 0);
	assert_u32s(plan->count, 0, 0, 0, 0);
	assert_int_equal(m2n__plan_route(plan, map, 0, 2, low, NULL, NULL), -EINVAL);
	assert_non_null(strstr(m2n_error_text(), "token 1, k 0: expert id -2"));
	assert_int_equal(m2n__plan_route(plan, map, 0, 2, high, NULL, &(uint64_t){1}), -EINVAL);
	assert_int_equal(m2n__plan_route(plan, map, 0, 3, high, NULL, NULL), -EINVAL);
	assert_string_equal(m2n_error_text(), "plan: n_tokens is 3, accepted: 0..2");
	assert_int_equal(m2n__plan_route(plan, map, 0, 1, NULL, NULL, NULL), -EINVAL);
	assert_int_equal(m2n__plan_route(plan, map, UINT32_MAX, 1, high, NULL, NULL), -EINVAL);
	assert_int_equal(m2n__plan_route(plan, NULL, 0, 1, high, NULL, NULL), -EINVAL);
	assert_int_equal(m2n__plan_route(plan, other, 0, 1, high, NULL, NULL), -EINVAL);
	assert_string_equal(m2n_error_text(), "plan: the map has 5 experts, accepted: 4");
	assert_int_equal(m2n__plan_route(plan, wide, 0, 1, high, NULL, NULL), -EINVAL);
	assert_int_equal(m2n__plan_route(plan, map, 0, 1, high, NULL, NULL), 0);
	m2n__plan_destroy(plan);
	m2n_map_destroy(wide);
	m2n_map_destroy(other);
	m2n_map_destroy(map);
}

static void a_map_with_more_instances_is_refused(void **state)
{
	const uint32_t first[] = {0, 2, 4}, owners[] = {0, 1, 0, 1};
	struct m2n_map *map = make_blocks(2, 2), *replicated = NULL;
	struct m2n_plan *plan = make_plan(map, 2, 1, plain);

	(void)state;
	assert_int_equal(m2n_map_create(2, 2, first, owners, &replicated), 0);
	assert_int_equal(m2n__plan_route(plan, replicated, 0, 0, NULL, NULL, NULL), -EINVAL);
	assert_string_equal(m2n_error_text(), "plan: the map has 4 instances, accepted: up to 2");
	m2n__plan_destroy(plan);
	m2n_map_destroy(replicated);
	m2n_map_destroy(map);
}

static void limits_are_checked(void **state)
{
	const struct m2n__plan_limits good = {
		.max_tokens = 8, .top_k = 2, .n_experts = 4, .n_ranks = 2, .max_instances = 4};
	struct m2n__plan_limits bad[8];
	struct m2n_plan *plan = NULL;

	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
		bad[i] = good;
	bad[0].top_k = 0;
	bad[1].max_tokens = UINT32_MAX;
	bad[2].n_experts = 0;
	bad[3].n_ranks = 0;
	bad[4].n_ranks = 65536;
	bad[5].max_instances = 3;
	bad[6].reduce_at_expert = 1;
	bad[7].top_k = UINT32_MAX;
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		assert_int_equal(m2n__plan_create(&bad[i], &plan), -EINVAL);
		assert_null(plan);
		assert_int_equal(m2n__plan_bytes(&bad[i]), 0);
	}
	assert_int_equal(m2n__plan_create(&good, &plan), 0);
	assert_int_equal(m2n__plan_bytes(&good), sizeof(*plan) + plan->arena_bytes);
	m2n__plan_destroy(plan);
	m2n__plan_destroy(NULL);
}

static void a_plan_keeps_its_map(void **state)
{
	struct m2n_map *map = make_blocks(4, 2), *next = make_blocks(4, 2);
	struct m2n_plan *plan = make_plan(map, 8, 2, plain);

	(void)state;
	assert_int_equal(m2n__plan_route(plan, map, 0, 3, small_ids, NULL, NULL), 0);
	m2n_map_destroy(map);
	assert_ptr_equal(plan->map, map);
	assert_int_equal(plan->map->n_experts, 4);
	assert_int_equal(m2n__plan_route(plan, next, 0, 3, small_ids, NULL, NULL), 0);
	assert_ptr_equal(plan->map, next);
	m2n__plan_destroy(plan);
	m2n_map_destroy(next);
}

static void routing_again_forgets_what_was_dropped(void **state)
{
	struct m2n__plan_limits limits = {.rank_capacity = 1, .drop_overflow = 1};
	static const int32_t both[] = {0, 0, 3, -1}, apart[] = {0, -1, 3, -1};
	struct m2n_map *map = make_blocks(4, 2);
	struct m2n_plan *plan = make_plan(map, 8, 2, limits);

	(void)state;
	assert_int_equal(m2n__plan_route(plan, map, 0, 2, both, NULL, NULL), M2N_PARTIAL);
	assert_memory_equal(plan->dropped, "\1\0", 2);
	assert_int_equal(m2n__plan_route(plan, map, 0, 2, apart, NULL, NULL), 0);
	assert_memory_equal(plan->dropped, "\0\0", 2);
	assert_int_equal(plan->n_dropped, 0);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

static void check_tokens(uint32_t n_tokens, uint32_t top_k)
{
	struct m2n_map *map = make_blocks(1, 1);
	struct m2n_plan *plan = make_plan(map, n_tokens, top_k, plain);
	int32_t *ids = calloc((size_t)n_tokens * top_k, sizeof(*ids));
	uint32_t row = 0;

	assert_int_equal(m2n__plan_route(plan, map, 0, n_tokens, ids, NULL, NULL), 0);
	for (uint32_t t = 0; t < n_tokens; t++) {
		for (uint32_t k = 0; k < top_k; k++, row++) {
			if (plan->row_token[row] != t)
				fail_msg("top_k %u: row %u has token %u, not %u", top_k, row,
					plan->row_token[row], t);
		}
	}
	free(ids);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

/* Tokens come from a division by a reciprocal: sizes up to and past its bound for f32. */
static void tokens_are_exact_for_any_top_k(void **state)
{
	(void)state;
	for (uint32_t top_k = 1; top_k < 260; top_k++)
		check_tokens(100, top_k);
	check_tokens((1u << 22) / 49, 49);
	check_tokens((1u << 22) / 3 + 1, 3);
}

/* A small generator of its own: the same numbers everywhere. */
static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(((random_state >> 32) * n) >> 32);
}

/* A map with 1..max_owners owners for each expert, in a random order. */
static struct m2n_map *random_map(uint32_t n_experts, uint32_t n_ranks, uint32_t max_owners)
{
	uint32_t *first = calloc(n_experts + 1, sizeof(*first));
	uint32_t *owners = calloc((size_t)n_experts * n_ranks, sizeof(*owners));
	struct m2n_map *map = NULL;

	for (uint32_t e = 0; e < n_experts; e++) {
		uint32_t n = 1 + random_below(max_owners < n_ranks ? max_owners : n_ranks);
		uint32_t start = random_below(n_ranks);

		first[e + 1] = first[e] + n;
		for (uint32_t i = 0; i < n; i++)
			owners[first[e] + i] = (start + n_ranks - i) % n_ranks;
	}
	assert_int_equal(m2n_map_create(n_experts, n_ranks, first, owners, &map), 0);
	free(first);
	free(owners);
	return map;
}

struct shape {
	uint32_t n_tokens, top_k, n_experts, n_ranks, max_owners, source;
	unsigned skew; /* 0 uniform, 1 low ids more often, 2 all to the last, 3 none at all */
	int lose; /* mark some ranks lost */
	int dedup, reduce;
};

static int32_t *random_ids(const struct shape *shape)
{
	size_t n_pairs = (size_t)shape->n_tokens * shape->top_k;
	int32_t *ids = calloc(n_pairs + 1, sizeof(*ids));

	for (size_t p = 0; p < n_pairs; p++) {
		switch (shape->skew) {
		case 0:
			ids[p] = (int32_t)random_below(shape->n_experts + 1) - 1;
			break;
		case 1:
			ids[p] = (int32_t)random_below(1 + random_below(shape->n_experts));
			break;
		case 2:
			ids[p] = (int32_t)shape->n_experts - 1;
			break;
		default:
			ids[p] = -1;
		}
	}
	return ids;
}

/* Position of `rank` among the live owners of `expert`, -1: not one; *n: how many there are. */
static int find_owner(const struct m2n_map *map, uint32_t expert, uint32_t rank,
	const uint64_t *live, uint32_t *n)
{
	int at = -1;

	*n = 0;
	for (uint32_t i = map->owner_first[expert]; i < map->owner_first[expert + 1]; i++) {
		uint32_t owner = map->owner_rank[i];

		if (!(live[owner / 64] >> (owner % 64) & 1))
			continue;
		if (owner == rank)
			at = (int)*n;
		++*n;
	}
	return at;
}

/* Rows, counts and replies of the plan against the oracle, rank by rank, expert by expert. */
static void check_rows(const struct m2n_plan *plan, const struct m2n_map *map,
	const struct shape *shape, const int32_t *ids, const uint64_t *live)
{
	size_t n_pairs = (size_t)shape->n_tokens * shape->top_k;
	uint32_t *token = calloc(n_pairs + 1, sizeof(*token)), *k = calloc(n_pairs + 1, sizeof(*k));
	uint32_t row = 0, instance = 0, n_owners;

	for (uint32_t r = 0; r < map->n_ranks; r++) {
		assert_int_equal(plan->rank_first[r], row);
		for (uint32_t l = 0; l < m2n_map_n_local(map, r); l++, instance++) {
			int32_t expert = m2n_map_expert(map, r, l);
			int owner = find_owner(map, (uint32_t)expert, r, live, &n_owners);
			size_t n = owner < 0 ? 0
					     : m2n__ref_rows(shape->n_tokens, shape->top_k, ids,
						       expert, shape->source, (uint32_t)owner,
						       n_owners, token, k);

			assert_int_equal(plan->count[instance], n);
			for (size_t i = 0; i < n; i++, row++) {
				uint32_t pair = token[i] * shape->top_k + k[i];

				assert_int_equal(plan->row_token[row], token[i]);
				assert_int_equal(plan->row_pair[row], pair);
				assert_int_equal(plan->pair_row[pair], row);
				assert_int_equal(plan->pair_rank[pair], r);
			}
		}
	}
	assert_int_equal(plan->rank_first[map->n_ranks], row);
	assert_int_equal(plan->n_rows, row);
	free(token);
	free(k);
}

/* Unique rows and replies by their definition: quadratic, from rows that check_rows() proved. */
static void check_unique(const struct m2n_plan *plan)
{
	uint32_t unique = 0;

	for (uint32_t r = 0; r < plan->limits.n_ranks; r++) {
		assert_int_equal(plan->unique_first[r], unique);
		for (uint32_t t = 0; t < plan->n_tokens; t++) {
			int is_here = 0;

			for (uint32_t k = 0; k < plan->limits.top_k; k++) {
				size_t p = (size_t)t * plan->limits.top_k + k;

				if (plan->pair_row[p] < 0 || plan->pair_rank[p] != r)
					continue;
				assert_int_equal(plan->row_unique[plan->pair_row[p]], unique);
				if (plan->limits.reduce_at_expert)
					assert_int_equal(
						plan->pair_reply[p], is_here ? -1 : (int)unique);
				is_here = 1;
			}
			if (is_here)
				assert_int_equal(plan->unique_token[unique++], t);
		}
	}
	assert_int_equal(plan->unique_first[plan->limits.n_ranks], unique);
	assert_int_equal(plan->n_unique, unique);
}

/* Pairs without a row, and that exactly those with an id are counted as dropped. */
static void check_dropped(const struct m2n_plan *plan, const int32_t *ids)
{
	uint32_t n_dropped = 0, n_rows = 0;
	size_t p = 0;

	for (uint32_t t = 0; t < plan->n_tokens; t++) {
		uint32_t of_token = 0;

		for (uint32_t k = 0; k < plan->limits.top_k; k++, p++) {
			of_token += plan->pair_row[p] < 0 && ids[p] >= 0;
			n_rows += plan->pair_row[p] >= 0;
			if (ids[p] < 0) {
				assert_int_equal(plan->pair_row[p], -1);
				assert_int_equal(plan->pair_reply[p], -1);
			}
		}
		assert_int_equal(plan->dropped[t], of_token < 255 ? of_token : 255);
		n_dropped += of_token;
	}
	assert_int_equal(plan->n_dropped, n_dropped);
	assert_int_equal(plan->n_rows, n_rows);
}

static void check_shape(const struct shape *shape)
{
	struct m2n__plan_limits limits = {.dedup = shape->dedup, .reduce_at_expert = shape->reduce};
	struct m2n_map *map = random_map(shape->n_experts, shape->n_ranks, shape->max_owners);
	struct m2n_plan *plan = make_plan(map, shape->n_tokens, shape->top_k, limits);
	uint64_t *live = calloc(shape->n_ranks / 64 + 1, sizeof(*live));
	int32_t *ids = random_ids(shape);
	int status;

	for (uint32_t r = 0; r < shape->n_ranks; r++) {
		if (!shape->lose || random_below(3))
			live[r / 64] |= (uint64_t)1 << (r % 64);
	}
	status = m2n__plan_route(plan, map, shape->source, shape->n_tokens, ids, NULL, live);
	assert_int_equal(status, plan->n_dropped ? M2N_PARTIAL : 0);
	check_rows(plan, map, shape, ids, live);
	check_dropped(plan, ids);
	assert_int_equal(plan->n_dropped, plan->n_dropped_lost);
	if (shape->dedup)
		check_unique(plan);
	else
		assert_int_equal(plan->n_unique, plan->n_rows);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
	free(live);
	free(ids);
}

static void every_shape_is_what_the_oracle_says(void **state)
{
	static const struct shape shapes[] = {
		{.n_tokens = 0, .top_k = 1, .n_experts = 1, .n_ranks = 1, .max_owners = 1},
		{.n_tokens = 1,
			.top_k = 1,
			.n_experts = 1,
			.n_ranks = 1,
			.max_owners = 1,
			.skew = 2},
		{.n_tokens = 17, .top_k = 8, .n_experts = 8, .n_ranks = 3, .max_owners = 1},
		{.n_tokens = 64,
			.top_k = 4,
			.n_experts = 16,
			.n_ranks = 5,
			.max_owners = 3,
			.source = 7},
		{.n_tokens = 33,
			.top_k = 2,
			.n_experts = 7,
			.n_ranks = 16,
			.max_owners = 2,
			.skew = 1},
		{.n_tokens = 50,
			.top_k = 3,
			.n_experts = 12,
			.n_ranks = 4,
			.max_owners = 4,
			.skew = 2},
		{.n_tokens = 9,
			.top_k = 3,
			.n_experts = 12,
			.n_ranks = 4,
			.max_owners = 1,
			.skew = 3},
		{.n_tokens = 128,
			.top_k = 8,
			.n_experts = 256,
			.n_ranks = 64,
			.max_owners = 1,
			.skew = 1},
		{.n_tokens = 100,
			.top_k = 6,
			.n_experts = 64,
			.n_ranks = 130,
			.max_owners = 9,
			.source = 1000003},
		{.n_tokens = 3, .top_k = 300, .n_experts = 2, .n_ranks = 2, .max_owners = 1},
	};

	(void)state;
	random_state = 20240229;
	for (size_t i = 0; i < ARRAY_LENGTH(shapes); i++) {
		for (unsigned variant = 0; variant < 6; variant++) {
			struct shape shape = shapes[i];

			shape.dedup = variant % 3 > 0;
			shape.reduce = variant % 3 > 1;
			shape.lose = variant / 3 > 0;
			for (unsigned repeat = 0; repeat < 5; repeat++)
				check_shape(&shape);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_are_by_expert_then_token_then_k),
		cmocka_unit_test(dedup_sends_a_token_once_per_rank),
		cmocka_unit_test(reduced_replies_come_once_per_rank),
		cmocka_unit_test(replicas_take_turns_by_source_and_token),
		cmocka_unit_test(capacity_is_exact),
		cmocka_unit_test(overflow_drops_the_last_pairs),
		cmocka_unit_test(bad_input_names_the_place),
		cmocka_unit_test(a_map_with_more_instances_is_refused),
		cmocka_unit_test(limits_are_checked),
		cmocka_unit_test(a_plan_keeps_its_map),
		cmocka_unit_test(routing_again_forgets_what_was_dropped),
		cmocka_unit_test(tokens_are_exact_for_any_top_k),
		cmocka_unit_test(every_shape_is_what_the_oracle_says),
	};

	return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
