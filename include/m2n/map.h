/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert maps: which expert rank owns which expert.
 *
 * A map is immutable once made. Ownership may be uneven, a rank may own nothing, and an expert
 * may have replicas on several ranks. Ranks are *expert indexes*: positions in the channel's
 * list of expert ranks, not group ranks. A (rank, expert) pair is an *instance*; within a rank
 * instances are ordered by expert id and numbered from 0: the local expert.
 */
#ifndef M2N_MAP_H
#define M2N_MAP_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/export.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_map;

/*
 * Makes a map of n_experts experts on n_ranks expert ranks.
 *
 * owner_first: [n_experts + 1], owners: [owner_first[n_experts]]: expert e is owned by
 * owners[owner_first[e] .. owner_first[e+1]), distinct expert indexes below n_ranks, one at
 * least. Both NULL: contiguous blocks, the first n_experts % n_ranks ranks own one more.
 * Both arrays are borrowed for the call.
 *
 * Returns 0; -EINVAL (the text names the expert and the value); -ENOMEM. `*map` is owned by the
 * caller until m2n_map_destroy(). Thread-safe.
 */
M2N_API int m2n_map_create(uint32_t n_experts, uint32_t n_ranks, const uint32_t *owner_first,
	const uint32_t *owners, struct m2n_map **map);

/* Destroys a map. Channels and plans keep what they need; NULL is allowed. */
M2N_API void m2n_map_destroy(struct m2n_map *map);

/* Number of experts that expert index `rank` owns; 0 when out of range. */
M2N_API uint32_t m2n_map_n_local(const struct m2n_map *map, uint32_t rank);

/* The expert id of local expert `local` of expert index `rank`, or -1. */
M2N_API int32_t m2n_map_expert(const struct m2n_map *map, uint32_t rank, uint32_t local);

/*
 * A map that balances: the greedy placement of MegaScale-Infer (experts by falling load, each to
 * the least loaded rank, the hottest split into replicas while that lowers the maximum).
 *
 * load: [n_experts] f32, rows of the last window, >= 0. max_local: most instances per rank
 * (>= ceil(n_experts / n_ranks)). Every expert gets one owner at least.
 * Returns 0, -EINVAL, -ENOMEM.
 */
M2N_API int m2n_map_balance(uint32_t n_experts, uint32_t n_ranks, const float *load,
	uint32_t max_local, struct m2n_map **map);

#ifdef __cplusplus
}
#endif
#endif
