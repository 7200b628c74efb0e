/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Second copies are placed after the first ones, by what a rank will have then: half of an expert's
 * rows come with the second of two owners.
 */
#include "owners.h"

#include <errno.h>
#include <stdlib.h>

#define BIT(rank) (UINT64_C(1) << (rank))

static uint32_t n_owners(uint64_t owners)
{
	return (uint32_t)__builtin_popcountll(owners);
}

void owners_shape(struct owners_shape *s, uint32_t n_layers, uint32_t n_experts, uint32_t n_ranks,
	uint32_t n_replicas)
{
	uint32_t n_ids = n_layers * n_experts, even = (n_ids + n_ranks - 1) / n_ranks;

	*s = (struct owners_shape){n_ids, n_experts, n_ranks, n_replicas,
		.max_local = 2 * even + 2 < n_ids ? 2 * even + 2 : n_ids,
		.max_total = 2 * n_ids + n_ranks};
	if (s->max_total < n_replicas * n_ids)
		s->max_total = n_replicas * n_ids;
}

uint32_t *owners_list(const struct owners_shape *s, const uint64_t *owners)
{
	uint32_t n = 0, *ranks, *first;

	first = malloc((s->n_ids + 1 + (size_t)s->max_total) * sizeof(*first));
	if (!first)
		return NULL;
	ranks = first + s->n_ids + 1;
	for (uint32_t id = 0; id < s->n_ids; id++) {
		first[id] = n;
		for (uint64_t left = owners[id]; left && n < s->max_total; left &= left - 1)
			ranks[n++] = (uint32_t)__builtin_ctzll(left);
	}
	first[s->n_ids] = n;
	return first;
}

void owners_first(struct owners_shape *s, uint64_t *owners)
{
	uint32_t n_local[64] = {0};

	for (uint32_t id = 0; id < s->n_ids; id++) {
		uint64_t home = (uint64_t)(id % s->n_experts) * s->n_ranks / s->n_experts;

		owners[id] = 0;
		for (uint32_t i = 0; i < s->n_replicas; i++) {
			uint32_t rank = (uint32_t)((home + i) % s->n_ranks);

			owners[id] |= BIT(rank);
			if (++n_local[rank] > s->max_local)
				s->max_local = n_local[rank];
		}
	}
}

const int32_t *owners_orphan(const uint64_t *owners, uint64_t lost, const int32_t *ids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!(owners[ids[i]] & ~lost))
			return &ids[i];
	return NULL;
}

static int by_falling_load(const void *a, const void *b, void *arg)
{
	const float *load = arg;
	uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;

	return load[i] != load[j] ? (load[i] < load[j] ? 1 : -1) : (i > j) - (i < j);
}

/* The rank with the fewest rows that has room and not this expert; n_ranks: none. */
static uint32_t find_rank(const struct owners_shape *s, uint64_t owners, const double *rank_load,
	const uint32_t *n_local)
{
	uint32_t best = s->n_ranks;

	for (uint32_t r = 0; r < s->n_ranks; r++)
		if (!(owners & BIT(r)) && n_local[r] < s->max_local &&
			(best == s->n_ranks || rank_load[r] < rank_load[best] ||
				(rank_load[r] == rank_load[best] && n_local[r] < n_local[best])))
			best = r;
	return best;
}

int owners_replicate(const struct owners_shape *s, const float *load, uint64_t *owners)
{
	double rank_load[64] = {0};
	uint32_t n_local[64] = {0}, total = 0;
	uint32_t *order = malloc(s->n_ids * sizeof(*order));

	if (!order)
		return -ENOMEM;
	for (uint32_t id = 0; id < s->n_ids; id++) {
		uint32_t n = n_owners(owners[id]), all = n > s->n_replicas ? n : s->n_replicas;

		order[id] = id;
		total += n;
		for (uint64_t left = owners[id]; left; left &= left - 1) {
			rank_load[__builtin_ctzll(left)] += (double)load[id] / all;
			n_local[__builtin_ctzll(left)]++;
		}
	}
	qsort_r(order, s->n_ids, sizeof(*order), by_falling_load, (void *)(uintptr_t)load);
	for (uint32_t i = 0; i < s->n_ids; i++)
		for (uint64_t *o = &owners[order[i]]; n_owners(*o) < s->n_replicas; total++) {
			uint32_t r = find_rank(s, *o, rank_load, n_local);

			if (r == s->n_ranks) {
				free(order);
				return -ENOSPC;
			}
			*o |= BIT(r);
			n_local[r]++;
			rank_load[r] += (double)load[order[i]] / s->n_replicas;
		}
	free(order);
	return total <= s->max_total ? 0 : -ENOSPC;
}

double owners_imbalance(const struct owners_shape *s, const float *load, const uint64_t *owners)
{
	double rank_load[64] = {0}, max = 0, sum = 0;

	for (uint32_t id = 0; id < s->n_ids; id++)
		for (uint64_t left = owners[id]; left; left &= left - 1)
			rank_load[__builtin_ctzll(left)] += (double)load[id] / n_owners(owners[id]);
	for (uint32_t r = 0; r < s->n_ranks; r++) {
		max = rank_load[r] > max ? rank_load[r] : max;
		sum += rank_load[r];
	}
	return sum > 0 ? max / sum * s->n_ranks : 1;
}
