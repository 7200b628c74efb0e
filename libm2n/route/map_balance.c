/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A balanced expert map: the greedy placement of MegaScale-Infer. Experts go by falling load,
 * each to the least loaded rank that has room. Then the expert whose replicas carry most gets
 * one more, and everything is placed anew, for as long as that lowers the maximum. Routing takes
 * replicas in turn, so each carries an equal share. Of hot experts with equal load one split
 * alone lowers nothing: the search goes on for n_ranks splits after the last that helped.
 * Ranks wait in a heap, so one placement costs O(instances * log(ranks)).
 */
#include "route/map.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util/error.h"

struct expert {
	double share; /* load of one replica */
	uint32_t id;
};

struct rank {
	double load;
	uint32_t n_local;
	uint32_t id;
};

struct balance {
	uint32_t n_experts, n_ranks, max_local;
	uint32_t n_slots; /* most instances in all */
	const float *load;
	uint32_t *n_replicas; /* [n_experts] */
	struct expert *order; /* [n_experts] */
	struct rank *heap; /* [n_ranks] least loaded first, full ranks left out */
	struct rank *taken; /* [n_ranks] ranks that have a replica of the expert at hand */
	uint32_t *first; /* [n_experts + 1] the placement at hand, as m2n_map_create() takes it */
	uint32_t *owners; /* [n_slots] */
	uint32_t *best_first; /* [n_experts + 1] */
	uint32_t *best_owners; /* [n_slots] */
};

static int check(uint32_t n_experts, uint32_t n_ranks, const float *load, uint32_t max_local,
	struct m2n_map **map)
{
	uint32_t least;

	if (!load || !map)
		return m2n__error(-EINVAL, "expert map: %s is NULL", load ? "map" : "load");
	if (n_experts == 0 || n_experts > INT32_MAX)
		return m2n__error(-EINVAL, "expert map: n_experts is %u, accepted: 1..%d",
			n_experts, INT32_MAX);
	if (n_ranks == 0 || n_ranks > M2N__MAX_EXPERT_RANKS)
		return m2n__error(-EINVAL, "expert map: n_ranks is %u, accepted: 1..%u", n_ranks,
			M2N__MAX_EXPERT_RANKS);
	least = n_experts / n_ranks + (n_experts % n_ranks > 0);
	if (max_local < least)
		return m2n__error(-EINVAL,
			"expert map: max_local is %u, accepted: from %u (%u experts on %u ranks)",
			max_local, least, n_experts, n_ranks);
	for (uint32_t e = 0; e < n_experts; e++) {
		if (!isfinite(load[e]) || load[e] < 0)
			return m2n__error(-EINVAL,
				"expert map: expert %u has load %g, accepted: finite, from 0", e,
				(double)load[e]);
	}
	return 0;
}

static void release(struct balance *b)
{
	free(b->n_replicas);
	free(b->order);
	free(b->heap);
	free(b->taken);
	free(b->first);
	free(b->owners);
	free(b->best_first);
	free(b->best_owners);
}

static int allocate(struct balance *b)
{
	b->n_replicas = calloc(b->n_experts, sizeof(*b->n_replicas));
	b->order = calloc(b->n_experts, sizeof(*b->order));
	b->heap = calloc(b->n_ranks, sizeof(*b->heap));
	b->taken = calloc(b->n_ranks, sizeof(*b->taken));
	b->first = calloc((size_t)b->n_experts + 1, sizeof(*b->first));
	b->owners = calloc(b->n_slots, sizeof(*b->owners));
	b->best_first = calloc((size_t)b->n_experts + 1, sizeof(*b->best_first));
	b->best_owners = calloc(b->n_slots, sizeof(*b->best_owners));
	if (b->n_replicas && b->order && b->heap && b->taken && b->first && b->owners &&
		b->best_first && b->best_owners)
		return 0;
	return m2n__error(-ENOMEM, "expert map: no memory to place %u experts on %u ranks",
		b->n_experts, b->n_ranks);
}

/* Falling share; ties by id, so that the result is the same everywhere. */
static int compare_experts(const void *a, const void *b)
{
	const struct expert *x = a, *y = b;

	if (x->share != y->share)
		return x->share > y->share ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

/* Less load first, then fewer experts, then the lower rank. */
static int is_before(const struct rank *x, const struct rank *y)
{
	if (x->load != y->load)
		return x->load < y->load;
	return x->n_local != y->n_local ? x->n_local < y->n_local : x->id < y->id;
}

static void heap_push(struct rank *heap, uint32_t *n, struct rank rank)
{
	uint32_t i = (*n)++;

	while (i > 0 && is_before(&rank, &heap[(i - 1) / 2])) {
		heap[i] = heap[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	heap[i] = rank;
}

static struct rank heap_pop(struct rank *heap, uint32_t *n)
{
	struct rank least = heap[0], moved = heap[--*n];
	uint32_t i = 0, child;

	while ((child = 2 * i + 1) < *n) {
		if (child + 1 < *n && is_before(&heap[child + 1], &heap[child]))
			child++;
		if (!is_before(&heap[child], &moved))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = moved;
	return least;
}

/*
 * Places every replica; replicas of one expert on different ranks. Returns the largest load of a
 * rank, or a negative value when some replica found no rank with room.
 */
static double place(struct balance *b)
{
	uint32_t n_heap = 0;
	double max = 0;

	for (uint32_t e = 0; e < b->n_experts; e++) {
		b->order[e] = (struct expert){(double)b->load[e] / b->n_replicas[e], e};
		b->first[e + 1] = b->first[e] + b->n_replicas[e];
	}
	qsort(b->order, b->n_experts, sizeof(*b->order), compare_experts);
	for (uint32_t r = 0; r < b->n_ranks; r++)
		heap_push(b->heap, &n_heap, (struct rank){0, 0, r});
	for (uint32_t i = 0; i < b->n_experts; i++) {
		uint32_t e = b->order[i].id, n = b->n_replicas[e];

		if (n > n_heap)
			return -1;
		for (uint32_t j = 0; j < n; j++) {
			b->taken[j] = heap_pop(b->heap, &n_heap);
			b->owners[b->first[e] + j] = b->taken[j].id;
		}
		for (uint32_t j = 0; j < n; j++) {
			b->taken[j].load += b->order[i].share;
			if (b->taken[j].load > max)
				max = b->taken[j].load;
			if (++b->taken[j].n_local < b->max_local)
				heap_push(b->heap, &n_heap, b->taken[j]);
		}
	}
	return max;
}

/* The expert whose replicas carry most and that can have one more; n_experts: none. */
static uint32_t find_hottest(const struct balance *b)
{
	uint32_t hottest = b->n_experts;
	double most = 0;

	for (uint32_t e = 0; e < b->n_experts; e++) {
		double share = (double)b->load[e] / b->n_replicas[e];

		if (b->n_replicas[e] < b->n_ranks && share > most) {
			most = share;
			hottest = e;
		}
	}
	return hottest;
}

static void keep(struct balance *b)
{
	memcpy(b->best_first, b->first, ((size_t)b->n_experts + 1) * sizeof(*b->first));
	memcpy(b->best_owners, b->owners, (size_t)b->first[b->n_experts] * sizeof(*b->owners));
}

static void search(struct balance *b)
{
	uint32_t n_instances = b->n_experts, n_vain = 0;
	double best, mean = 0;

	for (uint32_t e = 0; e < b->n_experts; e++) {
		b->n_replicas[e] = 1;
		mean += (double)b->load[e] / b->n_ranks;
	}
	best = place(b); /* single owners always fit: max_local was checked */
	keep(b);
	while (n_instances++ < b->n_slots && n_vain < b->n_ranks && best > mean * (1 + 1e-6)) {
		uint32_t e = find_hottest(b);
		double max;

		if (e == b->n_experts)
			return;
		b->n_replicas[e]++;
		max = place(b);
		n_vain++;
		/* Replicas cost memory: what rounding alone wins is not worth one. */
		if (max >= 0 && max < best * (1 - 1e-9)) {
			best = max;
			n_vain = 0;
			keep(b);
		}
	}
}

int m2n_map_balance(uint32_t n_experts, uint32_t n_ranks, const float *load, uint32_t max_local,
	struct m2n_map **map)
{
	struct balance b = {.n_experts = n_experts, .n_ranks = n_ranks, .load = load};
	uint64_t n_slots;
	int status = check(n_experts, n_ranks, load, max_local, map);

	if (status)
		return status;
	b.max_local = max_local < n_experts ? max_local : n_experts;
	n_slots = (uint64_t)b.max_local * n_ranks;
	b.n_slots = n_slots < INT32_MAX ? (uint32_t)n_slots : INT32_MAX;
	status = allocate(&b);
	if (!status) {
		search(&b);
		status = m2n_map_create(n_experts, n_ranks, b.best_first, b.best_owners, map);
	}
	release(&b);
	return status;
}
