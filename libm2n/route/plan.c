/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans: their memory, and the first half of routing, which finds the instance of each (token, k)
 * pair. All arrays lie in one arena, sized at creation by the same function that places them, so
 * the size and the layout cannot disagree; it is zeroed there, so that no round takes a page
 * fault. Maps without replicas and with every rank live take a loop that only looks up; the
 * general loop works on owners that are live, in the map's order.
 */
#include "route/plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "route/plan_build.h"
#include "util/error.h"

#define ARRAY_ALIGN 64

static int check_limits(const struct m2n__plan_limits *limits)
{
	if (limits->top_k == 0 || limits->top_k > INT32_MAX)
		return m2n__error(
			-EINVAL, "plan: top_k is %u, accepted: 1..%d", limits->top_k, INT32_MAX);
	if (limits->max_tokens > (uint32_t)INT32_MAX / limits->top_k)
		return m2n__error(-EINVAL, "plan: max_tokens is %u, accepted: 0..%u with top_k %u",
			limits->max_tokens, (uint32_t)INT32_MAX / limits->top_k, limits->top_k);
	if (limits->n_experts == 0 || limits->n_experts > INT32_MAX)
		return m2n__error(-EINVAL, "plan: n_experts is %u, accepted: 1..%d",
			limits->n_experts, INT32_MAX);
	if (limits->n_ranks == 0 || limits->n_ranks > M2N__MAX_EXPERT_RANKS)
		return m2n__error(-EINVAL, "plan: n_ranks is %u, accepted: 1..%u", limits->n_ranks,
			M2N__MAX_EXPERT_RANKS);
	if (limits->max_instances < limits->n_experts || limits->max_instances > INT32_MAX)
		return m2n__error(-EINVAL, "plan: max_instances is %u, accepted: %u..%d",
			limits->max_instances, limits->n_experts, INT32_MAX);
	if (limits->reduce_at_expert && !limits->dedup)
		return m2n__error(-EINVAL, "plan: reduce_at_expert needs dedup");
	return 0;
}

/* The next array of n elements; without a base only the bytes are counted. */
static void *take(char *base, size_t *used, size_t n, size_t element_bytes)
{
	char *at = base ? base + *used : NULL;

	*used += (n * element_bytes + ARRAY_ALIGN - 1) / ARRAY_ALIGN * ARRAY_ALIGN;
	return at;
}

/* Places all arrays in the arena and returns its size. base NULL: only the size. */
static size_t place_arrays(struct m2n_plan *plan, const struct m2n__plan_limits *limits, char *base)
{
	size_t n_pairs = (size_t)limits->max_tokens * limits->top_k;
	size_t n_ranks = limits->n_ranks, n_instances = limits->max_instances;
	size_t used = 0;

	plan->count = take(base, &used, n_instances, 4);
	plan->rank_first = take(base, &used, n_ranks + 1, 4);
	plan->row_token = take(base, &used, n_pairs, 4);
	plan->row_pair = take(base, &used, n_pairs, 4);
	plan->pair_row = take(base, &used, n_pairs, 4);
	plan->pair_rank = take(base, &used, n_pairs, 2);
	plan->weight = take(base, &used, n_pairs, 4);
	plan->dropped = take(base, &used, limits->max_tokens, 1);
	plan->next = take(base, &used, n_instances, 4);
	plan->live_first = take(base, &used, (size_t)limits->n_experts + 1, 4);
	plan->live_instance = take(base, &used, n_instances, 4);
	plan->rank_state = take(base, &used, n_ranks, 8);
	/* Without dedup a row is its own unique row, without reduction its own reply. */
	plan->unique_first = plan->rank_first;
	plan->unique_token = plan->row_token;
	plan->row_unique = NULL;
	plan->pair_reply = plan->pair_row;
	if (limits->dedup) {
		plan->unique_first = take(base, &used, n_ranks + 1, 4);
		plan->unique_token = take(base, &used, n_pairs, 4);
		plan->row_unique = take(base, &used, n_pairs, 4);
	}
	if (limits->reduce_at_expert)
		plan->pair_reply = take(base, &used, n_pairs, 4);
	plan->reply_first = limits->reduce_at_expert ? plan->unique_first : plan->rank_first;
	return used;
}

size_t m2n__plan_bytes(const struct m2n__plan_limits *limits)
{
	struct m2n_plan plan;

	return check_limits(limits) ? 0 : sizeof(plan) + place_arrays(&plan, limits, NULL);
}

int m2n__plan_create(const struct m2n__plan_limits *limits, struct m2n_plan **plan)
{
	struct m2n_plan *made;
	int status = check_limits(limits);

	if (status)
		return status;
	made = calloc(1, sizeof(*made));
	if (!made)
		return m2n__error(-ENOMEM, "plan: no memory");
	made->limits = *limits;
	made->arena_bytes = place_arrays(made, limits, NULL);
	made->arena = aligned_alloc(ARRAY_ALIGN, made->arena_bytes);
	if (!made->arena) {
		status = m2n__error(-ENOMEM, "plan: no memory for %zu bytes (%u tokens, top_k %u)",
			made->arena_bytes, limits->max_tokens, limits->top_k);
		free(made);
		return status;
	}
	memset(made->arena, 0, made->arena_bytes);
	place_arrays(made, limits, made->arena);
	*plan = made;
	return 0;
}

void m2n__plan_destroy(struct m2n_plan *plan)
{
	if (!plan)
		return;
	m2n__map_unref(plan->map);
	free(plan->arena);
	free(plan);
}

/* Whether some rank of the map is lost. */
static int any_lost(const struct m2n_map *map, const uint64_t *live)
{
	uint32_t n_words = map->n_ranks / 64, rest = map->n_ranks % 64;

	if (!live)
		return 0;
	for (uint32_t w = 0; w < n_words; w++) {
		if (live[w] != UINT64_MAX)
			return 1;
	}
	return rest > 0 && (~live[n_words] & (((uint64_t)1 << rest) - 1)) != 0;
}

/* The live owners of each expert, in the map's order. */
static void filter_owners(struct m2n_plan *plan, const struct m2n_map *map, const uint64_t *live)
{
	uint32_t n = 0;

	for (uint32_t e = 0; e < map->n_experts; e++) {
		plan->live_first[e] = n;
		for (uint32_t i = map->owner_first[e]; i < map->owner_first[e + 1]; i++) {
			uint32_t rank = map->owner_rank[i];

			if (live[rank / 64] >> (rank % 64) & 1)
				plan->live_instance[n++] = map->owner_instance[i];
		}
	}
	plan->live_first[map->n_experts] = n;
}

/* One live owner for every expert. Returns the first pair with a bad id, or n_pairs. */
static uint32_t assign_single(struct m2n_plan *plan, const struct m2n_map *map, uint32_t n_pairs,
	const int32_t *restrict ids)
{
	const uint32_t *restrict instance_of = map->owner_instance;
	uint32_t *restrict count = plan->count;
	int32_t *restrict pair_row = plan->pair_row;
	uint32_t n_experts = map->n_experts, p;

	for (p = 0; p < n_pairs; p++) {
		int32_t id = ids[p];

		if ((uint32_t)id >= n_experts) {
			if (id != -1)
				break;
			pair_row[p] = -1;
			continue;
		}
		count[instance_of[id]]++;
		pair_row[p] = (int32_t)instance_of[id];
	}
	return p;
}

/*
 * Any number of live owners: [first[e], first[e + 1]) of `instances`. A pair without one is
 * dropped. Returns the first pair with a bad id, or the number of pairs.
 */
static uint32_t assign_general(
	struct m2n_plan *plan, const int32_t *ids, const uint32_t *first, const uint32_t *instances)
{
	uint32_t top_k = plan->limits.top_k, p = 0;

	for (uint32_t t = 0; t < plan->n_tokens; t++) {
		for (uint32_t k = 0; k < top_k; k++, p++) {
			int32_t id = ids[p];
			uint32_t n_owners, pick;

			plan->pair_row[p] = -1;
			if ((uint32_t)id >= plan->limits.n_experts) {
				if (id != -1)
					return p;
				continue;
			}
			n_owners = first[id + 1] - first[id];
			if (n_owners == 0) {
				plan->n_dropped_lost++;
				m2n__plan_drop(plan, t);
				continue;
			}
			pick = n_owners == 1 ? 0 : (plan->source + t) % n_owners;
			pick = instances[first[id] + pick];
			plan->count[pick]++;
			plan->pair_row[p] = (int32_t)pick;
		}
	}
	return p;
}

static void keep_weights(struct m2n_plan *plan, uint32_t n_pairs, const float *weights)
{
	plan->has_weights = weights != NULL;
	if (weights && n_pairs) {
		memcpy(plan->weight, weights, n_pairs * sizeof(*weights));
		return;
	}
	for (uint32_t p = 0; p < n_pairs; p++)
		plan->weight[p] = 1.0f;
}

static int check_route(const struct m2n_plan *plan, const struct m2n_map *map, uint32_t source,
	uint32_t n_tokens, const int32_t *ids)
{
	int status = m2n__plan_check_map(plan, map);

	if (status)
		return status;
	if (source > INT32_MAX)
		return m2n__error(-EINVAL, "plan: the source index is %u, accepted: 0..%d", source,
			INT32_MAX);
	if (n_tokens > plan->limits.max_tokens)
		return m2n__error(-EINVAL, "plan: n_tokens is %u, accepted: 0..%u", n_tokens,
			plan->limits.max_tokens);
	if (n_tokens > 0 && !ids)
		return m2n__error(-EINVAL, "plan: ids is NULL, %u x %u expert ids are needed",
			n_tokens, plan->limits.top_k);
	return 0;
}

static int report_dropped(const struct m2n_plan *plan)
{
	uint32_t token = 0;

	while (plan->dropped[token] == 0)
		token++;
	return m2n__error(M2N_PARTIAL,
		"plan: %u pairs dropped, the first of token %u: %u without a live rank that owns "
		"the expert, %u beyond the capacity of %u rows per expert rank",
		plan->n_dropped, token, plan->n_dropped_lost,
		plan->n_dropped - plan->n_dropped_lost, plan->limits.rank_capacity);
}

int m2n__plan_route(struct m2n_plan *plan, struct m2n_map *map, uint32_t source, uint32_t n_tokens,
	const int32_t *ids, const float *weights, const uint64_t *live)
{
	uint32_t top_k = plan->limits.top_k, n_pairs, bad;
	int status;

	m2n__plan_clear(plan);
	status = check_route(plan, map, source, n_tokens, ids);
	if (status)
		return status;
	plan->source = source;
	plan->n_tokens = n_tokens;
	memset(plan->dropped, 0, n_tokens);
	n_pairs = n_tokens * top_k;
	if (any_lost(map, live)) {
		filter_owners(plan, map, live);
		bad = assign_general(plan, ids, plan->live_first, plan->live_instance);
	} else if (map->max_owners > 1) {
		bad = assign_general(plan, ids, map->owner_first, map->owner_instance);
	} else {
		bad = assign_single(plan, map, n_pairs, ids);
	}
	if (bad < n_pairs) {
		m2n__plan_clear(plan);
		return m2n__error(-EINVAL,
			"plan: token %u, k %u: expert id %d is out of range, accepted: 0..%u, or "
			"-1 for none",
			bad / top_k, bad % top_k, ids[bad], map->n_experts - 1);
	}
	status = m2n__plan_build(plan, map);
	if (status) {
		m2n__plan_clear(plan);
		return status;
	}
	keep_weights(plan, n_pairs, weights);
	return plan->n_dropped ? report_dropped(plan) : 0;
}
