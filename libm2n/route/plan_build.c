/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From instances to rows: a stable counting sort. Instances are numbered rank by rank, so one
 * prefix sum over their counts gives the first row of every instance and of every rank; a second
 * pass over the pairs in (token, k) order then hands out row numbers. The same pass numbers
 * unique rows: tokens come in ascending order, so a rank's current token is its newest unique
 * row. A third, sequential pass finds the token of each row, which is cheaper than scattering it.
 * Relies on the checks made before; it writes only inside the plan's arena.
 */
#include "route/plan_build.h"

#include <errno.h>
#include <string.h>

#include "util/error.h"

void m2n__plan_clear(struct m2n_plan *plan)
{
	plan->n_tokens = 0;
	plan->n_rows = 0;
	plan->n_unique = 0;
	plan->n_dropped = 0;
	plan->n_dropped_lost = 0;
	plan->has_weights = 0;
	memset(plan->count, 0, plan->limits.max_instances * sizeof(*plan->count));
	memset(plan->rank_first, 0, (plan->limits.n_ranks + 1) * sizeof(*plan->rank_first));
	memset(plan->unique_first, 0, (plan->limits.n_ranks + 1) * sizeof(*plan->unique_first));
}

int m2n__plan_check_map(const struct m2n_plan *plan, const struct m2n_map *map)
{
	const struct m2n__plan_limits *limits = &plan->limits;

	if (!map)
		return m2n__error(-EINVAL, "plan: the expert map is NULL");
	if (map->n_experts != limits->n_experts)
		return m2n__error(-EINVAL, "plan: the map has %u experts, accepted: %u",
			map->n_experts, limits->n_experts);
	if (map->n_ranks != limits->n_ranks)
		return m2n__error(-EINVAL, "plan: the map has %u expert ranks, accepted: %u",
			map->n_ranks, limits->n_ranks);
	if (map->n_instances > limits->max_instances)
		return m2n__error(-EINVAL, "plan: the map has %u instances, accepted: up to %u",
			map->n_instances, limits->max_instances);
	return 0;
}

/* First row of each instance and rank, from the counts. */
static void number_instances(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint32_t row = 0, i = 0;

	for (uint32_t r = 0; r < map->n_ranks; r++) {
		plan->rank_first[r] = row;
		for (; i < map->rank_first[r + 1]; i++) {
			plan->next[i] = row;
			row += plan->count[i];
		}
	}
	plan->rank_first[map->n_ranks] = row;
	plan->n_rows = row;
}

/*
 * What is known of a rank while the pairs go by: the last token it got, plus 1, in the high half
 * and a count in the low half, so that both take one load and one store. Whether the token is new
 * to the rank is a coin toss; adding it saves the branch.
 */
static inline uint64_t visit(uint64_t *state, uint32_t token)
{
	uint32_t is_new = (uint32_t)(*state >> 32) != token + 1;

	*state = (uint64_t)(token + 1) << 32 | (uint32_t)(*state + is_new);
	return *state;
}

/* First unique row of each rank: how many different tokens it gets, summed up. */
static void number_unique(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint64_t *restrict state = plan->rank_state;
	const int32_t *restrict pair_row = plan->pair_row;
	const uint16_t *restrict rank_of = map->rank_of;
	uint32_t top_k = plan->limits.top_k, n_tokens = plan->n_tokens, row = 0, p = 0;

	memset(state, 0, map->n_ranks * sizeof(*state));
	for (uint32_t t = 0; t < n_tokens; t++) {
		for (uint32_t k = 0; k < top_k; k++, p++) {
			if (pair_row[p] >= 0)
				visit(&state[rank_of[pair_row[p]]], t);
		}
	}
	for (uint32_t r = 0; r < map->n_ranks; r++) {
		plan->unique_first[r] = row;
		row += (uint32_t)state[r];
	}
	plan->unique_first[map->n_ranks] = row;
	plan->n_unique = row;
}

static void number(struct m2n_plan *plan, const struct m2n_map *map)
{
	number_instances(plan, map);
	if (plan->limits.dedup)
		number_unique(plan, map);
	else
		plan->n_unique = plan->n_rows;
}

/* The first rank with more rows than the capacity, or n_ranks. */
static uint32_t find_overflow(const struct m2n_plan *plan)
{
	const struct m2n__plan_limits *limits = &plan->limits;
	uint32_t r;

	if (limits->rank_capacity == 0)
		return limits->n_ranks;
	for (r = 0; r < limits->n_ranks; r++) {
		if (plan->unique_first[r + 1] - plan->unique_first[r] > limits->rank_capacity)
			break;
	}
	return r;
}

/* Takes the row from every pair that comes after its rank is full. */
static void drop_overflow(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint64_t *state = plan->rank_state;
	size_t p = 0;

	memset(state, 0, map->n_ranks * sizeof(*state));
	for (uint32_t t = 0; t < plan->n_tokens; t++) {
		for (uint32_t k = 0; k < plan->limits.top_k; k++, p++) {
			int32_t instance = plan->pair_row[p];
			uint64_t *at;

			if (instance < 0)
				continue;
			at = &state[map->rank_of[instance]];
			if (plan->limits.dedup && *at >> 32 == t + 1)
				continue; /* travels with a row that the rank has room for */
			if ((uint32_t)*at < plan->limits.rank_capacity) {
				*at = (uint64_t)(t + 1) << 32 | ((uint32_t)*at + 1);
				continue;
			}
			plan->pair_row[p] = -1;
			plan->count[instance]--;
			m2n__plan_drop(plan, t);
		}
	}
}

static void place_rows(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint32_t *restrict next = plan->next, *restrict row_pair = plan->row_pair;
	int32_t *restrict pair_row = plan->pair_row;
	uint16_t *restrict pair_rank = plan->pair_rank;
	const uint16_t *restrict rank_of = map->rank_of;
	uint32_t n_pairs = plan->n_tokens * plan->limits.top_k;

	for (uint32_t p = 0; p < n_pairs; p++) {
		int32_t instance = pair_row[p];
		uint32_t row;

		if (instance < 0)
			continue;
		row = next[instance]++;
		pair_rank[p] = rank_of[instance];
		pair_row[p] = (int32_t)row;
		row_pair[row] = p;
	}
}

/* As place_rows(), and the unique row of each row. */
static void place_unique(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint64_t *restrict state = plan->rank_state;
	uint32_t *restrict next = plan->next, *restrict row_pair = plan->row_pair;
	uint32_t *restrict row_unique = plan->row_unique;
	uint32_t *restrict unique_token = plan->unique_token;
	int32_t *restrict pair_row = plan->pair_row;
	uint16_t *restrict pair_rank = plan->pair_rank;
	uint32_t top_k = plan->limits.top_k, n_tokens = plan->n_tokens, p = 0;

	for (uint32_t r = 0; r < map->n_ranks; r++)
		state[r] = plan->unique_first[r];
	for (uint32_t t = 0; t < n_tokens; t++) {
		for (uint32_t k = 0; k < top_k; k++, p++) {
			int32_t instance = pair_row[p];
			uint32_t rank, row, unique;

			if (instance < 0)
				continue;
			rank = map->rank_of[instance];
			row = next[instance]++;
			unique = (uint32_t)visit(&state[rank], t) - 1;
			pair_rank[p] = (uint16_t)rank;
			pair_row[p] = (int32_t)row;
			row_pair[row] = p;
			row_unique[row] = unique;
			unique_token[unique] = t; /* again for each pair of the token there */
		}
	}
}

/*
 * The reply of each pair when expert ranks reduce: the unique row, for the first of a token's
 * pairs on a rank. Unique rows of a rank rise with the token, so a first pair is one whose unique
 * row is the rank's next.
 */
static void place_replies(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint64_t *restrict next = plan->rank_state; /* here the next unique row of each rank */
	const uint32_t *restrict row_unique = plan->row_unique;
	const int32_t *restrict pair_row = plan->pair_row;
	const uint16_t *restrict pair_rank = plan->pair_rank;
	int32_t *restrict pair_reply = plan->pair_reply;
	uint32_t n_pairs = plan->n_tokens * plan->limits.top_k;

	for (uint32_t r = 0; r < map->n_ranks; r++)
		next[r] = plan->unique_first[r];
	for (uint32_t p = 0; p < n_pairs; p++) {
		uint32_t unique, is_first;

		pair_reply[p] = -1;
		if (pair_row[p] < 0)
			continue;
		unique = row_unique[pair_row[p]];
		is_first = unique == next[pair_rank[p]];
		next[pair_rank[p]] += is_first;
		/* All ones unless first. */
		pair_reply[p] = (int32_t)(unique | (is_first - 1));
	}
}

/*
 * Token of each row: pair / top_k. Dividing by multiplying with the reciprocal is exact here: the
 * quotient of pair + 0.5 is at least 0.5 / top_k away from an integer, and two roundings move it
 * by less than pair / top_k * 2^-23 in float (2^-52 in double), which is less for pairs below
 * 2^22 (2^31). Compilers make vector code of both loops.
 */
static void find_tokens(struct m2n_plan *plan)
{
	uint32_t n_rows = plan->n_rows, top_k = plan->limits.top_k;
	const uint32_t *restrict row_pair = plan->row_pair;
	uint32_t *restrict row_token = plan->row_token;

	if (plan->n_tokens * top_k <= 1u << 22) {
		float inverse = 1.0f / (float)top_k;

		for (uint32_t row = 0; row < n_rows; row++) {
			float middle = (float)(int32_t)row_pair[row] + 0.5f;

			row_token[row] = (uint32_t)(int32_t)(middle * inverse);
		}
	} else {
		double inverse = 1.0 / (double)top_k;

		for (uint32_t row = 0; row < n_rows; row++) {
			double middle = (double)(int32_t)row_pair[row] + 0.5;

			row_token[row] = (uint32_t)(int32_t)(middle * inverse);
		}
	}
}

int m2n__plan_build(struct m2n_plan *plan, struct m2n_map *map)
{
	uint32_t rank;

	number(plan, map);
	rank = find_overflow(plan);
	if (rank < map->n_ranks) {
		if (!plan->limits.drop_overflow)
			return m2n__error(M2N_ERR_CAPACITY,
				"plan: expert rank index %u would get %u %srows from source "
				"index %u, accepted: up to %u",
				rank, plan->unique_first[rank + 1] - plan->unique_first[rank],
				plan->limits.dedup ? "unique " : "", plan->source,
				plan->limits.rank_capacity);
		drop_overflow(plan, map);
		number(plan, map);
	}
	if (plan->limits.dedup)
		place_unique(plan, map);
	else
		place_rows(plan, map);
	if (plan->limits.reduce_at_expert)
		place_replies(plan, map);
	find_tokens(plan);
	if (plan->map != map) {
		m2n__map_unref(plan->map);
		plan->map = m2n__map_ref(map);
	}
	return 0;
}
