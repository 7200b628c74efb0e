/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans: the routing of one micro-batch, as pure functions over arrays; no I/O, no channel.
 *
 * Rows (one per routed (token, k) pair) are numbered globally in the order rank, local expert,
 * token, k: the order on the wire, and the order of the replies (mirror addressing). With dedup
 * a token travels once per rank: its *unique* row; `row_unique` says which. With
 * reduce_at_expert a reply is one row per unique row, else one per row.
 *
 * All arrays are allocated at creation for max_tokens and every map of the channel's limits;
 * routing allocates nothing. Routing is a stable counting sort by instance: O(tokens * top_k +
 * instances).
 */
#ifndef M2N_ROUTE_PLAN_H
#define M2N_ROUTE_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "route/map.h"

struct m2n__gpu_plan_part;

/* What a plan must fit; fixed at creation. */
struct m2n__plan_limits {
	uint32_t max_tokens;
	uint32_t top_k;
	uint32_t n_experts;
	uint32_t n_ranks;       /* expert ranks */
	uint32_t max_instances; /* over all ranks, of any map that will be used */
	uint32_t rank_capacity; /* most (with dedup: unique) rows to an expert rank; 0: no limit */
	int dedup;
	int reduce_at_expert;
	int drop_overflow; /* overflow: 0 error, 1 drop and report */
};

struct m2n_plan {
	struct m2n__plan_limits limits;
	struct m2n_map *map; /* referenced; the map this routing was made with */
	uint32_t source;     /* source index that routed it */
	uint32_t n_tokens;
	uint32_t n_rows;
	uint32_t n_unique;        /* == n_rows without dedup */
	uint32_t n_dropped;       /* pairs that have an expert id but no row */
	uint32_t n_dropped_lost;  /* of those: because no live rank owns the expert */
	int has_weights;
	uint32_t *count;          /* [max_instances] rows per instance */
	uint32_t *rank_first;     /* [n_ranks + 1] first row of each rank */
	uint32_t *unique_first;   /* [n_ranks + 1] first unique row of each rank */
	uint32_t *reply_first;    /* [n_ranks + 1] first reply row: one of the two above */
	uint32_t *row_token;      /* [n_rows] */
	uint32_t *row_pair;       /* [n_rows] token * top_k + k */
	uint32_t *row_unique;     /* [n_rows] global unique row; NULL without dedup */
	uint32_t *unique_token;   /* [n_unique]; row_token without dedup */
	int32_t *pair_row;        /* [n_tokens * top_k] global row, -1: none */
	uint16_t *pair_rank;      /* [n_tokens * top_k] expert index, valid where pair_row >= 0 */
	/*
	 * [n_tokens * top_k] global reply row to add for this pair, -1: none. With
	 * reduce_at_expert only the first pair of a token on a rank has one.
	 */
	int32_t *pair_reply;
	float *weight;            /* [n_tokens * top_k], 1 when none were given */
	uint8_t *dropped;         /* [n_tokens] dropped pairs of this token, 255 at most */
	struct m2n__gpu_plan_part *device; /* the core's, of a channel in CUDA memory; else NULL */
	void *arena;              /* one allocation behind all arrays */
	size_t arena_bytes;
	/* Scratch of one routing. */
	uint32_t *next;           /* [max_instances] next row of each instance */
	uint32_t *live_first;     /* [n_experts + 1] owners that are live, as in the map */
	uint32_t *live_instance;  /* [max_instances] */
	uint64_t *rank_state;     /* [n_ranks] last token seen at the rank and a count */
};

int m2n__plan_create(const struct m2n__plan_limits *limits, struct m2n_plan **plan);
void m2n__plan_destroy(struct m2n_plan *plan);
/* Bytes that m2n__plan_create() allocates for these limits; 0 when it would refuse them. */
size_t m2n__plan_bytes(const struct m2n__plan_limits *limits);

/*
 * Routes n_tokens tokens. ids: [n_tokens, top_k] expert ids, -1 = no expert; weights: the same
 * shape or NULL. live: bitmap over expert indexes (bit r of word r/64), NULL = all live.
 * A replica is picked by (source + token) modulo the number of live owners, in owner order.
 * An expert may be named twice by one token (two rows). Beyond rank_capacity the pairs that come
 * last in (token, k) order at that rank are the ones to go; with dedup a pair whose token is
 * already at the rank needs no room.
 *
 * Returns 0; M2N_PARTIAL when pairs were dropped (overflow with drop_overflow, or no live
 * owner); -EINVAL (id out of range: token, k, value and range in the text; too many tokens; map
 * that does not fit the limits); M2N_ERR_CAPACITY. On failure the plan is empty (0 tokens).
 */
int m2n__plan_route(struct m2n_plan *plan, struct m2n_map *map, uint32_t source, uint32_t n_tokens,
	const int32_t *ids, const float *weights, const uint64_t *live);

/* A plan as bytes: see wire/plan_wire.h for the form. -ENOSPC when `bytes` is too small. */
size_t m2n__plan_packed_bytes(const struct m2n_plan *plan);
/* The most that any plan of these limits needs. */
size_t m2n__plan_max_packed_bytes(const struct m2n__plan_limits *limits);
int m2n__plan_pack(const struct m2n_plan *plan, void *buffer, size_t bytes, size_t *used);
/*
 * Fills `plan` from bytes that a peer sent: everything is checked (M2N_ERR_PROTOCOL names what
 * and where); limits must fit and the map digest must be the map's (M2N_ERR_MAP).
 * The packed form holds the instance of each pair, not the derived arrays. An unpacked plan may
 * have n_dropped > 0: what its source dropped. On failure the plan is empty.
 */
int m2n__plan_unpack(struct m2n_plan *plan, struct m2n_map *map, const void *buffer, size_t bytes);

#endif
