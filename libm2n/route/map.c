/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert maps: made once from owners by expert, then read only. The instances by rank and the
 * digest are derived here, so that routing only looks things up. One allocation holds the map
 * and its arrays; references are counted with C11 atomics because a round in flight keeps the
 * map it was routed with while the channel has switched to the next.
 */
#include "route/map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/error.h"
#include "util/fnv.h"

static int check_sizes(uint32_t n_experts, uint32_t n_ranks)
{
	if (n_experts == 0 || n_experts > INT32_MAX)
		return m2n__error(-EINVAL, "expert map: n_experts is %u, accepted: 1..%d",
			n_experts, INT32_MAX);
	if (n_ranks == 0 || n_ranks > M2N__MAX_EXPERT_RANKS)
		return m2n__error(-EINVAL, "expert map: n_ranks is %u, accepted: 1..%u", n_ranks,
			M2N__MAX_EXPERT_RANKS);
	return 0;
}

/* owner_first must rise by 1..n_ranks for each expert. */
static int check_first(uint32_t n_experts, uint32_t n_ranks, const uint32_t *owner_first)
{
	if (owner_first[0] != 0)
		return m2n__error(
			-EINVAL, "expert map: owner_first[0] is %u, accepted: 0", owner_first[0]);
	for (uint32_t e = 0; e < n_experts; e++) {
		if (owner_first[e + 1] <= owner_first[e])
			return m2n__error(-EINVAL,
				"expert map: expert %u has no owner (owner_first %u, then %u)", e,
				owner_first[e], owner_first[e + 1]);
		if (owner_first[e + 1] - owner_first[e] > n_ranks)
			return m2n__error(-EINVAL,
				"expert map: expert %u has %u owners, accepted: 1..%u", e,
				owner_first[e + 1] - owner_first[e], n_ranks);
	}
	if (owner_first[n_experts] > INT32_MAX)
		return m2n__error(-EINVAL, "expert map: %u instances in all, accepted: up to %d",
			owner_first[n_experts], INT32_MAX);
	return 0;
}

/* Owners must be ranks, and distinct for each expert. seen: [n_ranks], zeroed. */
static int check_owners(uint32_t n_experts, uint32_t n_ranks, const uint32_t *owner_first,
	const uint32_t *owners, uint32_t *seen)
{
	for (uint32_t e = 0; e < n_experts; e++) {
		for (uint32_t i = owner_first[e]; i < owner_first[e + 1]; i++) {
			if (owners[i] >= n_ranks)
				return m2n__error(-EINVAL,
					"expert map: expert %u has owner %u, accepted: 0..%u", e,
					owners[i], n_ranks - 1);
			if (seen[owners[i]] == e + 1)
				return m2n__error(-EINVAL,
					"expert map: expert %u names owner %u twice, owners must "
					"be distinct",
					e, owners[i]);
			seen[owners[i]] = e + 1;
		}
	}
	return 0;
}

static struct m2n_map *allocate(uint32_t n_experts, uint32_t n_ranks, uint32_t n_instances)
{
	size_t n_words = (size_t)n_experts + 1 + (size_t)n_ranks + 1 + 3 * (size_t)n_instances;
	struct m2n_map *map;
	uint32_t *words;

	map = calloc(1, sizeof(*map) + n_words * sizeof(*words) + n_instances * sizeof(uint16_t));
	if (!map)
		return NULL;
	words = (uint32_t *)(map + 1);
	map->n_experts = n_experts;
	map->n_ranks = n_ranks;
	map->n_instances = n_instances;
	map->owner_first = words;
	map->rank_first = map->owner_first + n_experts + 1;
	map->owner_rank = map->rank_first + n_ranks + 1;
	map->owner_instance = map->owner_rank + n_instances;
	map->expert_of = map->owner_instance + n_instances;
	map->rank_of = (uint16_t *)(map->expert_of + n_instances);
	atomic_init(&map->n_refs, 1);
	return map;
}

/* Contiguous blocks; the first n_experts % n_ranks ranks own one more. */
static void fill_blocks(struct m2n_map *map)
{
	uint32_t base = map->n_experts / map->n_ranks, longer = map->n_experts % map->n_ranks;
	uint32_t e = 0;

	for (uint32_t r = 0; r < map->n_ranks; r++) {
		for (uint32_t n = base + (r < longer); n > 0; n--, e++) {
			map->owner_first[e] = e;
			map->owner_rank[e] = r;
		}
	}
	map->owner_first[e] = e;
}

/* From owners by expert: instances by rank, maxima, digest. */
static void derive(struct m2n_map *map)
{
	uint32_t hash = m2n__fnv_u32(m2n__fnv_u32(M2N__FNV_START, map->n_experts), map->n_ranks);
	uint32_t *next = map->rank_first; /* shifted back below */

	for (uint32_t i = 0; i < map->n_instances; i++)
		map->rank_first[map->owner_rank[i] + 1]++;
	for (uint32_t r = 0; r < map->n_ranks; r++) {
		if (map->rank_first[r + 1] > map->max_local)
			map->max_local = map->rank_first[r + 1];
		map->rank_first[r + 1] += map->rank_first[r];
	}
	for (uint32_t e = 0; e < map->n_experts; e++) {
		uint32_t n_owners = map->owner_first[e + 1] - map->owner_first[e];

		if (n_owners > map->max_owners)
			map->max_owners = n_owners;
		hash = m2n__fnv_u32(hash, n_owners);
		for (uint32_t i = map->owner_first[e]; i < map->owner_first[e + 1]; i++) {
			uint32_t rank = map->owner_rank[i], instance = next[rank]++;

			map->owner_instance[i] = instance;
			map->expert_of[instance] = e;
			map->rank_of[instance] = (uint16_t)rank;
			hash = m2n__fnv_u32(hash, rank);
		}
	}
	/* Filling moved each rank's first to its end, which is the next rank's first. */
	memmove(map->rank_first + 1, map->rank_first, map->n_ranks * sizeof(uint32_t));
	map->rank_first[0] = 0;
	map->digest = hash;
}

static int check_arrays(
	uint32_t n_experts, uint32_t n_ranks, const uint32_t *owner_first, const uint32_t *owners)
{
	uint32_t *seen;
	int status = check_first(n_experts, n_ranks, owner_first);

	if (status)
		return status;
	seen = calloc(n_ranks, sizeof(*seen));
	if (!seen)
		return m2n__error(-ENOMEM, "expert map: no memory to check %u ranks", n_ranks);
	status = check_owners(n_experts, n_ranks, owner_first, owners, seen);
	free(seen);
	return status;
}

int m2n_map_create(uint32_t n_experts, uint32_t n_ranks, const uint32_t *owner_first,
	const uint32_t *owners, struct m2n_map **map)
{
	uint32_t n_instances = n_experts;
	struct m2n_map *made;
	int status;

	if (!map)
		return m2n__error(-EINVAL, "expert map: map is NULL");
	if (!owner_first != !owners)
		return m2n__error(-EINVAL, "expert map: %s is NULL, give both arrays or none",
			owner_first ? "owners" : "owner_first");
	status = check_sizes(n_experts, n_ranks);
	if (status)
		return status;
	if (owners) {
		status = check_arrays(n_experts, n_ranks, owner_first, owners);
		if (status)
			return status;
		n_instances = owner_first[n_experts];
	}
	made = allocate(n_experts, n_ranks, n_instances);
	if (!made)
		return m2n__error(-ENOMEM,
			"expert map: no memory for %u experts, %u ranks, %u instances", n_experts,
			n_ranks, n_instances);
	if (owners) {
		memcpy(made->owner_first, owner_first, ((size_t)n_experts + 1) * sizeof(uint32_t));
		memcpy(made->owner_rank, owners, (size_t)n_instances * sizeof(uint32_t));
	} else {
		fill_blocks(made);
	}
	derive(made);
	*map = made;
	return 0;
}

struct m2n_map *m2n__map_ref(struct m2n_map *map)
{
	/* Relaxed: whoever takes a reference holds one already. */
	atomic_fetch_add_explicit(&map->n_refs, 1, memory_order_relaxed);
	return map;
}

void m2n__map_unref(struct m2n_map *map)
{
	if (!map)
		return;
	/*
	 * R1: release this holder's reads of the map, pairs with A1 of the last holder, so that
	 * nobody still reads what is freed.
	 */
	if (atomic_fetch_sub_explicit(&map->n_refs, 1, memory_order_release) != 1)
		return;
	/* A1: pairs with R1 of every other holder. A load, because tsan does not model fences. */
	(void)atomic_load_explicit(&map->n_refs, memory_order_acquire);
	free(map);
}

void m2n_map_destroy(struct m2n_map *map)
{
	m2n__map_unref(map);
}

uint32_t m2n_map_n_local(const struct m2n_map *map, uint32_t rank)
{
	return map && rank < map->n_ranks ? map->rank_first[rank + 1] - map->rank_first[rank] : 0;
}

int32_t m2n_map_expert(const struct m2n_map *map, uint32_t rank, uint32_t local)
{
	if (local >= m2n_map_n_local(map, rank))
		return -1;
	return (int32_t)map->expert_of[map->rank_first[rank] + local];
}
