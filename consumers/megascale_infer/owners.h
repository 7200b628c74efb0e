/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placements as numbers: for each expert of each layer a bitmap over the expert ranks that own it.
 * Nothing here communicates.
 */
#ifndef MEGASCALE_OWNERS_H
#define MEGASCALE_OWNERS_H

#include <stdint.h>

struct owners_shape {
	uint32_t n_ids; /* n_layers * n_experts: layer * n_experts + expert */
	uint32_t n_experts;
	uint32_t n_ranks; /* 1 to 64 */
	uint32_t n_replicas;
	uint32_t max_local; /* most experts of a rank */
	uint32_t max_total; /* most owners of all experts together */
};

/* Experts of a layer in blocks, each on n_replicas ranks that follow each other. */
void owners_first(const struct owners_shape *shape, uint64_t *owners);
/*
 * Adds owners until every expert has n_replicas: the hottest first, each to the rank that has the
 * fewest rows and room. 0, or -ENOSPC: there is no room for all.
 */
int owners_replicate(const struct owners_shape *shape, const float *load, uint64_t *owners);
/* Max / mean of the ranks' rows, those of an expert shared evenly among its owners. */
double owners_imbalance(
	const struct owners_shape *shape, const float *load, const uint64_t *owners);

#endif
