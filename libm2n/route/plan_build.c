/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From instances to rows: a stable counting sort. Instances are numbered rank by rank, so one
 * prefix sum over their counts gives the first row of every instance and of every rank; a second
 * pass over the pairs in (token, k) order then hands out row numbers. The same pass numbers
 * unique rows: tokens come in ascending order, so a rank's current token is its newest unique
 * row. Relies on the checks made before; it writes only inside the plan's arena.
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
		return m2n__error(-EINVAL, "plan: the map has %u experts, accepted: %u", map->n_experts,
			limits->n_experts);
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

/* First unique row of each rank: how many different tokens it gets, summed up. */
static void number_unique(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint32_t *used = plan->rank_used, *last = plan->rank_last, row = 0;
	size_t p = 0;

	memset(used, 0, map->n_ranks * sizeof(*used));
	memset(last, 0, map->n_ranks * sizeof(*last));
	for (uint32_t t = 1; t <= plan->n_tokens; t++) {
		for (uint32_t k = 0; k < plan->limits.top_k; k++, p++) {
			uint32_t rank;

			if (plan->pair_row[p] < 0)
				continue;
			rank = map->rank_of[plan->pair_row[p]];
			used[rank] += last[rank] != t;
			last[rank] = t;
		}
	}
	for (uint32_t r = 0; r < map->n_ranks; r++) {
		plan->unique_first[r] = row;
		row += used[r];
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
	uint32_t *used = plan->rank_used, *last = plan->rank_last;
	size_t p = 0;

	memset(used, 0, map->n_ranks * sizeof(*used));
	memset(last, 0, map->n_ranks * sizeof(*last));
	for (uint32_t t = 0; t < plan->n_tokens; t++) {
		for (uint32_t k = 0; k < plan->limits.top_k; k++, p++) {
			int32_t instance = plan->pair_row[p];
			uint32_t rank;

			if (instance < 0)
				continue;
			rank = map->rank_of[instance];
			if (plan->limits.dedup && last[rank] == t + 1)
				continue; /* travels with a row that the rank has room for */
			if (used[rank] < plan->limits.rank_capacity) {
				used[rank]++;
				last[rank] = t + 1;
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
	uint32_t *restrict next = plan->next, *restrict row_token = plan->row_token;
	uint32_t *restrict row_pair = plan->row_pair;
	int32_t *restrict pair_row = plan->pair_row;
	uint16_t *restrict pair_rank = plan->pair_rank;
	const uint16_t *restrict rank_of = map->rank_of;
	uint32_t top_k = plan->limits.top_k, p = 0;

	for (uint32_t t = 0; t < plan->n_tokens; t++) {
		for (uint32_t k = 0; k < top_k; k++, p++) {
			int32_t instance = pair_row[p];
			uint32_t row;

			if (instance < 0)
				continue;
			row = next[instance]++;
			pair_rank[p] = rank_of[instance];
			pair_row[p] = (int32_t)row;
			row_pair[row] = p;
			row_token[row] = t;
		}
	}
}

static void place_unique(struct m2n_plan *plan, const struct m2n_map *map)
{
	uint32_t *next_unique = plan->rank_used, *last = plan->rank_last;
	int reduce = plan->limits.reduce_at_expert;
	uint32_t p = 0;

	memcpy(next_unique, plan->unique_first, map->n_ranks * sizeof(*next_unique));
	memset(last, 0, map->n_ranks * sizeof(*last));
	for (uint32_t t = 0; t < plan->n_tokens; t++) {
		for (uint32_t k = 0; k < plan->limits.top_k; k++, p++) {
			int32_t instance = plan->pair_row[p];
			uint32_t rank, row, unique;
			int is_first;

			if (reduce)
				plan->pair_reply[p] = -1;
			if (instance < 0)
				continue;
			rank = map->rank_of[instance];
			row = plan->next[instance]++;
			is_first = last[rank] != t + 1;
			last[rank] = t + 1;
			next_unique[rank] += (uint32_t)is_first;
			unique = next_unique[rank] - 1;
			plan->pair_rank[p] = (uint16_t)rank;
			plan->pair_row[p] = (int32_t)row;
			plan->row_pair[row] = p;
			plan->row_token[row] = t;
			plan->row_unique[row] = unique;
			plan->unique_token[unique] = t;
			if (reduce && is_first)
				plan->pair_reply[p] = (int32_t)unique;
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
				"plan: expert rank index %u would get %u %srows from source index %u, "
				"accepted: up to %u",
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
	if (plan->map != map) {
		m2n__map_unref(plan->map);
		plan->map = m2n__map_ref(map);
	}
	return 0;
}
