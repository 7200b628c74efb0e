/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed plans: the round trip keeps everything, and bytes that lie give an error or a plan of
 * the same size that holds together. Guard bytes catch a write past the packed end.
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
#include "util/error.h"
#include "wire/plan_wire.h"

#define TOKENS 5
#define TOP_K 3
#define EXPERTS 6
#define RANKS 3

static const int32_t ids[TOKENS * TOP_K] = {0, 5, 3, 1, 1, -1, 2, 0, 4, -1, -1, -1, 5, 4, 0};
static const float weights[TOKENS * TOP_K] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* A map with replicas of expert 0, and a plan of each mode. */
struct fixture {
	struct m2n_map *map;
	struct m2n_plan *plan, *copy;
	uint8_t *bytes;
	size_t n_bytes;
};

static const struct m2n__plan_limits base = {.max_tokens = TOKENS,
	.top_k = TOP_K,
	.n_experts = EXPERTS,
	.n_ranks = RANKS,
	.max_instances = EXPERTS + 1};

static void open_fixture(struct fixture *f, const struct m2n__plan_limits *limits,
	const float *given_weights, const uint64_t *live)
{
	const uint32_t first[] = {0, 2, 3, 4, 5, 6, 7}, owners[] = {0, 1, 0, 1, 1, 2, 2};
	size_t used = 0;

	f->map = NULL;
	assert_int_equal(m2n_map_create(EXPERTS, RANKS, first, owners, &f->map), 0);
	assert_int_equal(m2n__plan_create(limits, &f->plan), 0);
	assert_int_equal(m2n__plan_create(limits, &f->copy), 0);
	assert_true(m2n__plan_route(f->plan, f->map, 4, TOKENS, ids, given_weights, live) >= 0);
	f->n_bytes = m2n__plan_packed_bytes(f->plan);
	assert_true(f->n_bytes <= m2n__plan_max_packed_bytes(limits));
	f->bytes = malloc(f->n_bytes + 8);
	memset(f->bytes, 0xa5, f->n_bytes + 8);
	assert_int_equal(m2n__plan_pack(f->plan, f->bytes, f->n_bytes, &used), 0);
	assert_int_equal(used, f->n_bytes);
	assert_memory_equal(f->bytes + f->n_bytes, "\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5", 8);
}

static void close_fixture(struct fixture *f)
{
	free(f->bytes);
	m2n__plan_destroy(f->plan);
	m2n__plan_destroy(f->copy);
	m2n_map_destroy(f->map);
}

static void assert_same(const struct m2n_plan *a, const struct m2n_plan *b)
{
	size_t n_pairs = (size_t)a->n_tokens * TOP_K;

	assert_int_equal(a->source, b->source);
	assert_int_equal(a->n_tokens, b->n_tokens);
	assert_int_equal(a->n_rows, b->n_rows);
	assert_int_equal(a->n_unique, b->n_unique);
	assert_int_equal(a->n_dropped, b->n_dropped);
	assert_int_equal(a->n_dropped_lost, b->n_dropped_lost);
	assert_int_equal(a->has_weights, b->has_weights);
	assert_memory_equal(a->count, b->count, 4 * (EXPERTS + 1));
	assert_memory_equal(a->rank_first, b->rank_first, 4 * (RANKS + 1));
	assert_memory_equal(a->reply_first, b->reply_first, 4 * (RANKS + 1));
	assert_memory_equal(a->row_token, b->row_token, 4 * a->n_rows);
	assert_memory_equal(a->row_pair, b->row_pair, 4 * a->n_rows);
	assert_memory_equal(a->unique_token, b->unique_token, 4 * a->n_unique);
	assert_memory_equal(a->pair_row, b->pair_row, 4 * n_pairs);
	assert_memory_equal(a->pair_reply, b->pair_reply, 4 * n_pairs);
	assert_memory_equal(a->weight, b->weight, 4 * n_pairs);
	assert_memory_equal(a->dropped, b->dropped, a->n_tokens);
	for (size_t p = 0; p < n_pairs; p++) {
		if (a->pair_row[p] >= 0)
			assert_int_equal(a->pair_rank[p], b->pair_rank[p]);
	}
	if (a->row_unique)
		assert_memory_equal(a->row_unique, b->row_unique, 4 * a->n_rows);
}

/* What any reader of a plan relies on: offsets rise, and every index is inside its array. */
static void assert_sound(const struct m2n_plan *plan)
{
	uint32_t n_pairs = plan->n_tokens * plan->limits.top_k, n_rows = 0;

	assert_true(plan->n_tokens <= plan->limits.max_tokens);
	assert_true(plan->n_rows <= n_pairs && plan->n_unique <= plan->n_rows);
	assert_int_equal(plan->rank_first[RANKS], plan->n_rows);
	assert_int_equal(plan->unique_first[RANKS], plan->n_unique);
	for (uint32_t r = 0; r < RANKS; r++) {
		assert_true(plan->rank_first[r] <= plan->rank_first[r + 1]);
		assert_true(plan->unique_first[r] <= plan->unique_first[r + 1]);
	}
	for (uint32_t p = 0; p < n_pairs; p++) {
		int32_t row = plan->pair_row[p];

		assert_true(row >= -1 && row < (int32_t)plan->n_rows);
		assert_true(plan->pair_reply[p] >= -1);
		assert_true(plan->pair_reply[p] < (int32_t)plan->reply_first[RANKS]);
		if (row < 0)
			continue;
		n_rows++;
		assert_int_equal(plan->row_pair[row], p);
		assert_int_equal(plan->row_token[row], p / plan->limits.top_k);
		assert_true(plan->pair_rank[p] < RANKS);
	}
	assert_int_equal(n_rows, plan->n_rows);
}

static void the_round_trip_keeps_everything(void **state)
{
	const uint64_t live_sets[] = {7, 3}; /* rank 2 lost: experts 4 and 5 have no owner */

	(void)state;
	for (unsigned mode = 0; mode < 12; mode++) {
		struct m2n__plan_limits limits = base;
		struct fixture f;

		limits.dedup = mode % 3 > 0;
		limits.reduce_at_expert = mode % 3 > 1;
		open_fixture(&f, &limits, mode / 3 % 2 ? weights : NULL, &live_sets[mode / 6]);
		assert_int_equal(f.plan->n_dropped, mode / 6 ? 4 : 0);
		assert_int_equal(m2n__plan_unpack(f.copy, f.map, f.bytes, f.n_bytes), 0);
		assert_same(f.plan, f.copy);
		assert_sound(f.copy);
		close_fixture(&f);
	}
}

static void an_empty_plan_travels_too(void **state)
{
	struct fixture f;
	uint8_t bytes[M2N__PLAN_HEADER_BYTES];
	size_t used = 0;

	(void)state;
	open_fixture(&f, &base, weights, NULL);
	assert_int_equal(m2n__plan_route(f.plan, f.map, 9, 0, NULL, NULL, NULL), 0);
	assert_int_equal(m2n__plan_packed_bytes(f.plan), sizeof(bytes));
	assert_int_equal(m2n__plan_pack(f.plan, bytes, sizeof(bytes), &used), 0);
	assert_int_equal(m2n__plan_unpack(f.copy, f.map, bytes, used), 0);
	assert_same(f.plan, f.copy);
	close_fixture(&f);
}

static void more_instances_than_16_bits_travel(void **state)
{
	struct m2n__plan_limits limits = {.max_tokens = 2,
		.top_k = 1,
		.n_experts = 70000,
		.n_ranks = 3,
		.max_instances = 70000};
	const int32_t far_ids[] = {69999, 65535};
	struct m2n_map *map = NULL;
	struct m2n_plan *plan = NULL, *copy = NULL;
	uint8_t bytes[256];
	size_t used = 0;

	(void)state;
	assert_int_equal(m2n_map_create(70000, 3, NULL, NULL, &map), 0);
	assert_int_equal(m2n__plan_create(&limits, &plan), 0);
	assert_int_equal(m2n__plan_create(&limits, &copy), 0);
	assert_int_equal(m2n__plan_route(plan, map, 0, 2, far_ids, NULL, NULL), 0);
	assert_int_equal(m2n__plan_pack(plan, bytes, sizeof(bytes), &used), 0);
	assert_int_equal(used, M2N__PLAN_HEADER_BYTES + 8);
	assert_int_equal(m2n__plan_unpack(copy, map, bytes, used), 0);
	assert_int_equal(copy->count[69999], 1);
	assert_int_equal(copy->count[65535], 1);
	m2n__plan_destroy(plan);
	m2n__plan_destroy(copy);
	m2n_map_destroy(map);
}

/* The form is a contract: the bytes of a small plan, written by hand. */
static void the_form_is_as_documented(void **state)
{
	static const uint8_t want[] = {
		'M', '2', 'N', 'P', 1, 0, 0, 0, /* magic, version, flags */
		56, 0, 0, 0, 0, 0, 0, 0, /* length */
		0, 0, 0, 0, 7, 0, 0, 0, /* digest (put in below), source */
		3, 0, 0, 0, 1, 0, 0, 0, /* n_tokens, top_k */
		2, 0, 0, 0, 2, 0, 0, 0, /* n_instances, n_rows */
		0, 0, 0, 0, 0, 0, 0, 0, /* dropped, lost */
		1, 0, 0xff, 0xff, 0, 0, 0, 0, /* instances, padding */
	};
	struct m2n__plan_limits limits = {
		.max_tokens = 3, .top_k = 1, .n_experts = 2, .n_ranks = 1, .max_instances = 2};
	const int32_t few_ids[] = {1, -1, 0};
	struct m2n_map *map = NULL;
	struct m2n_plan *plan = NULL;
	uint8_t bytes[64];
	size_t used = 0;

	(void)state;
	assert_int_equal(m2n_map_create(2, 1, NULL, NULL, &map), 0);
	assert_int_equal(m2n__plan_create(&limits, &plan), 0);
	assert_int_equal(m2n__plan_pack(plan, bytes, sizeof(bytes), &used), -EINVAL);
	assert_int_equal(m2n__plan_route(plan, map, 7, 3, few_ids, NULL, NULL), 0);
	assert_int_equal(m2n__plan_pack(plan, bytes, sizeof(want) - 1, &used), -ENOSPC);
	assert_int_equal(m2n__plan_pack(plan, bytes, sizeof(bytes), &used), 0);
	assert_int_equal(used, sizeof(want));
	assert_int_equal(bytes[16] | bytes[17] << 8, map->digest & 0xffff);
	memset(bytes + 16, 0, 4);
	assert_memory_equal(bytes, want, sizeof(want));
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
}

/* Every byte takes every value; the copy lies in memory of its exact size for the sanitizer. */
static void no_single_byte_breaks_unpacking(void **state)
{
	const uint64_t live = 3;

	(void)state;
	for (unsigned mode = 0; mode < 3; mode++) {
		struct m2n__plan_limits limits = base;
		struct fixture f;
		uint8_t *bytes;
		size_t n_refused = 0;

		limits.dedup = mode > 0;
		limits.reduce_at_expert = mode > 1;
		limits.rank_capacity = 5;
		limits.drop_overflow = 1;
		open_fixture(&f, &limits, weights, &live);
		bytes = malloc(f.n_bytes);
		memcpy(bytes, f.bytes, f.n_bytes);
		for (size_t i = 0; i < f.n_bytes; i++) {
			for (unsigned flip = 1; flip < 256; flip++) {
				int status;

				bytes[i] = f.bytes[i] ^ (uint8_t)flip;
				status = m2n__plan_unpack(f.copy, f.map, bytes, f.n_bytes);
				n_refused += status < 0;
				assert_true(status <= 0);
				assert_sound(f.copy);
				assert_int_equal(f.copy->n_tokens, status ? 0 : TOKENS);
				if (!status)
					assert_int_equal(m2n__plan_packed_bytes(f.copy), f.n_bytes);
			}
			bytes[i] = f.bytes[i];
		}
		/* All of the header but the source is checked. */
		assert_true(n_refused > (M2N__PLAN_HEADER_BYTES - 4) * 250);
		for (size_t n = 0; n < f.n_bytes; n++) {
			uint8_t *cut = malloc(n + 1);

			memcpy(cut, f.bytes, n);
			assert_true(m2n__plan_unpack(f.copy, f.map, cut, n) < 0);
			free(cut);
		}
		free(bytes);
		close_fixture(&f);
	}
}

/* Changes the 32 bits at an offset, unpacks, changes them back. */
static int unpack_with(struct fixture *f, size_t offset, uint32_t value)
{
	uint8_t kept[4];
	int status;

	memcpy(kept, f->bytes + offset, 4);
	for (int i = 0; i < 4; i++)
		f->bytes[offset + (size_t)i] = (uint8_t)(value >> (8 * i));
	status = m2n__plan_unpack(f->copy, f->map, f->bytes, f->n_bytes);
	memcpy(f->bytes + offset, kept, 4);
	return status;
}

static void lies_are_named(void **state)
{
	struct fixture f;

	(void)state;
	open_fixture(&f, &base, weights, NULL);
	assert_int_equal(unpack_with(&f, 0, 0), M2N_ERR_PROTOCOL);
	assert_non_null(strstr(m2n_error_text(), "offset 0: magic is 0x00000000"));
	assert_int_equal(unpack_with(&f, 4, 2), M2N_ERR_VERSION);
	assert_int_equal(unpack_with(&f, 4, 1 | 0x100u << 16), M2N_ERR_PROTOCOL);
	assert_non_null(strstr(m2n_error_text(), "flags are 0x100"));
	assert_int_equal(unpack_with(&f, 4, 1 | M2N__PLAN_DEDUP << 16 | M2N__PLAN_WEIGHTS << 16),
		M2N_ERR_PROTOCOL);
	assert_non_null(strstr(m2n_error_text(), "dedup 1"));
	assert_int_equal(unpack_with(&f, 8, 1), M2N_ERR_PROTOCOL);
	assert_int_equal(unpack_with(&f, 16, 1), M2N_ERR_MAP);
	assert_int_equal(unpack_with(&f, 20, UINT32_MAX), M2N_ERR_PROTOCOL);
	assert_int_equal(unpack_with(&f, 24, UINT32_MAX), M2N_ERR_PROTOCOL);
	assert_int_equal(unpack_with(&f, 28, UINT32_MAX), M2N_ERR_PROTOCOL);
	assert_int_equal(unpack_with(&f, 32, 8), M2N_ERR_MAP);
	assert_int_equal(unpack_with(&f, 36, 0), M2N_ERR_PROTOCOL);
	assert_non_null(strstr(m2n_error_text(), "n_rows is 0, but 11 pairs have an instance"));
	assert_int_equal(unpack_with(&f, 40, 1), M2N_ERR_PROTOCOL);
	assert_int_equal(unpack_with(&f, 44, 1), M2N_ERR_PROTOCOL);
	assert_int_equal(unpack_with(&f, 48, 7), M2N_ERR_PROTOCOL);
	assert_non_null(strstr(
		m2n_error_text(), "token 0, k 0: instance 7 is out of range, accepted: 0..6"));
	assert_int_equal(m2n__plan_unpack(f.copy, f.map, f.bytes, f.n_bytes), 0);
	close_fixture(&f);
}

/* The numbers of dropped pairs must fit the pairs that have no row, token by token. */
static void dropped_pairs_need_pairs_without_a_row(void **state)
{
	const uint64_t live = 3;
	struct fixture f;
	uint8_t *dropped;

	(void)state;
	open_fixture(&f, &base, NULL, &live);
	dropped = f.bytes + f.n_bytes - TOKENS;
	assert_memory_equal(dropped, "\1\0\1\0\2", TOKENS);
	memcpy(dropped, "\0\1\1\0\2", TOKENS); /* token 1 has one pair without an id */
	assert_int_equal(m2n__plan_unpack(f.copy, f.map, f.bytes, f.n_bytes), 0);
	memcpy(dropped, "\0\2\1\0\1", TOKENS);
	assert_int_equal(m2n__plan_unpack(f.copy, f.map, f.bytes, f.n_bytes), M2N_ERR_PROTOCOL);
	assert_string_equal(
		m2n_error_text(), "packed plan: token 1 dropped 2 pairs, accepted: 0..1");
	memcpy(dropped, "\1\0\1\0\1", TOKENS);
	assert_int_equal(m2n__plan_unpack(f.copy, f.map, f.bytes, f.n_bytes), M2N_ERR_PROTOCOL);
	assert_string_equal(m2n_error_text(),
		"packed plan, offset 40: n_dropped is 4 (4 lost), the tokens say 3..3");
	close_fixture(&f);
}

static void rows_beyond_the_capacity_are_refused(void **state)
{
	struct m2n__plan_limits small = base;
	struct m2n_plan *copy = NULL;
	struct fixture f;

	(void)state;
	open_fixture(&f, &base, NULL, NULL);
	small.rank_capacity = 2;
	for (int drop = 0; drop < 2; drop++) {
		small.drop_overflow = drop;
		assert_int_equal(m2n__plan_create(&small, &copy), 0);
		assert_int_equal(
			m2n__plan_unpack(copy, f.map, f.bytes, f.n_bytes), M2N_ERR_PROTOCOL);
		assert_int_equal(copy->n_tokens, 0);
		m2n__plan_destroy(copy);
	}
	small.rank_capacity = 0;
	small.max_tokens = TOKENS - 1;
	assert_int_equal(m2n__plan_create(&small, &copy), 0);
	assert_int_equal(m2n__plan_unpack(copy, f.map, f.bytes, f.n_bytes), M2N_ERR_PROTOCOL);
	assert_string_equal(
		m2n_error_text(), "packed plan, offset 24: n_tokens is 5, accepted: 0..4");
	m2n__plan_destroy(copy);
	close_fixture(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_round_trip_keeps_everything),
		cmocka_unit_test(an_empty_plan_travels_too),
		cmocka_unit_test(more_instances_than_16_bits_travel),
		cmocka_unit_test(the_form_is_as_documented),
		cmocka_unit_test(no_single_byte_breaks_unpacking),
		cmocka_unit_test(lies_are_named),
		cmocka_unit_test(dropped_pairs_need_pairs_without_a_row),
		cmocka_unit_test(rows_beyond_the_capacity_are_refused),
	};

	return cmocka_run_group_tests_name("plan pack", tests, NULL, NULL);
}
