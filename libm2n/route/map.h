/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of an expert map: owners by expert (CSR) and instances by rank (CSR), reference
 * counted because a channel may switch maps while rounds routed with the old one are in flight.
 */
#ifndef M2N_ROUTE_MAP_H
#define M2N_ROUTE_MAP_H

#include <stdatomic.h>
#include <m2n/map.h>

#define M2N__MAX_EXPERT_RANKS 65535u /* an expert index fits 16 bits in plans */

struct m2n_map {
	atomic_uint n_refs;
	uint32_t n_experts;
	uint32_t n_ranks;
	uint32_t n_instances;
	uint32_t max_owners;      /* of any expert */
	uint32_t max_local;       /* of any rank */
	uint32_t digest;          /* of the whole content; travels in headers */
	uint32_t *owner_first;    /* [n_experts + 1] */
	uint32_t *owner_rank;     /* [n_instances] by expert: expert index of the rank */
	uint32_t *owner_instance; /* [n_instances] by expert: the instance's number */
	uint32_t *rank_first;     /* [n_ranks + 1] first instance of each rank */
	uint32_t *expert_of;      /* [n_instances] by instance: the expert id */
	uint16_t *rank_of;        /* [n_instances] by instance: expert index of the rank */
};

struct m2n_map *m2n__map_ref(struct m2n_map *map); /* takes a reference, returns map */
void m2n__map_unref(struct m2n_map *map);

#endif
