/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placements as numbers: for each expert of each layer a bitmap over the expert ranks that own it.
 * Nothing here communicates.
 */
#ifndef MEGASCALE_OWNERS_H
#define MEGASCALE_OWNERS_H

#include <stddef.h>
#include <stdint.h>

struct owners_shape {
	uint32_t n_ids; /* n_layers * n_experts: layer * n_experts + expert */
	uint32_t n_experts;
	uint32_t n_ranks; /* 1 to 64 */
	uint32_t n_replicas;
	uint32_t max_local; /* most experts of a rank */
	uint32_t max_total; /* most owners of all experts together */
};

/* A channel has room for the first map and for two owners of each expert. */
void owners_shape(struct owners_shape *shape, uint32_t n_layers, uint32_t n_experts,
	uint32_t n_ranks, uint32_t n_replicas);
/*
 * As m2n_map_create() takes them: first [n_ids + 1], then the owners' ranks. To be freed; NULL: no
 * memory.
 */
uint32_t *owners_list(const struct owners_shape *shape, const uint64_t *owners);
/*
 * Experts of a layer in blocks, each on n_replicas ranks that follow each other. Raises max_local
 * to what that takes.
 */
void owners_first(struct owners_shape *shape, uint64_t *owners);
/* The first of n ids that all owners of are lost; NULL: there is none. */
const int32_t *owners_orphan(const uint64_t *owners, uint64_t lost, const int32_t *ids, size_t n);
/*
 * Adds owners until every expert has n_replicas: the hottest first, each to the rank that has the
 * fewest rows and room. 0, or -ENOSPC: there is no room for all.
 */
int owners_replicate(const struct owners_shape *shape, const float *load, uint64_t *owners);
/* Max / mean of the ranks' rows, those of an expert shared evenly among its owners. */
double owners_imbalance(
	const struct owners_shape *shape, const float *load, const uint64_t *owners);

#endif
