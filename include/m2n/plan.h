/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plan: the routing of one micro-batch. For each expert rank its rows in the order (local
 * expert, token, k), and where each reply lands.
 */
#ifndef M2N_PLAN_H
#define M2N_PLAN_H

#include <m2n/channel.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_plan;

/* Makes an empty plan with room for the channel's max_tokens. 0, -ENOMEM. Owned by the caller. */
M2N_API int m2n_plan_create(struct m2n_channel *channel, struct m2n_plan **plan);
M2N_API void m2n_plan_destroy(struct m2n_plan *plan);

struct m2n_route_params {
	size_t size;
	uint32_t n_tokens;         /* 0..max_tokens */
	const int32_t *expert_ids; /* [n_tokens, top_k], -1: no expert */
	const float *weights;      /* [n_tokens, top_k] f32 row-major; NULL: all 1 */
	uint64_t round;            /* whose map is used; M2N_ROUND_NEXT: the next to send */
	const uint64_t *mask;      /* bitmap over usable expert rank indexes; NULL: all live */
	void *stream;              /* CUDA channel: stream; ids and weights lie on the device */
};
#define M2N_ROUND_NEXT UINT64_MAX
#define M2N_ROUTE_PARAMS_INIT \
	{sizeof(struct m2n_route_params), 0, NULL, NULL, M2N_ROUND_NEXT, NULL, NULL}

/*
 * Routes a micro-batch; the arrays are borrowed for the call (ids and weights are kept inside).
 * Lost expert ranks are left out: their experts' replicas are used.
 *
 * Returns 0; M2N_PARTIAL (pairs were dropped: overflow, or no live rank has the expert; see
 * m2n_plan_query() and m2n_plan_dropped()); -EINVAL (an id out of range: token, k, value, range);
 * M2N_ERR_CAPACITY. Allocates nothing. A plan must not be in use by an unfinished round.
 */
M2N_API int m2n_plan_route(struct m2n_channel *channel, struct m2n_plan *plan,
	const struct m2n_route_params *params);

struct m2n_plan_attr {
	uint32_t n_tokens;
	uint32_t n_rows;    /* routed pairs */
	uint32_t n_sent;    /* rows that travel: fewer with dedup */
	uint32_t n_dropped; /* pairs with an expert but no row */
	uint32_t n_dropped_lost; /* of those: because no live rank has the expert */
};
M2N_API void m2n_plan_query(const struct m2n_plan *plan, struct m2n_plan_attr *attr);
/* [n_tokens] pairs dropped per token; owned by the plan, valid until it is routed again. */
M2N_API const uint8_t *m2n_plan_dropped(const struct m2n_plan *plan);
/* Rows that go to one expert rank. */
M2N_API uint32_t m2n_plan_rank_rows(const struct m2n_plan *plan, uint32_t expert_rank);

/*
 * A plan as bytes, for sinks that are not the sources. pack: -ENOSPC when `bytes` is too small.
 * unpack checks everything: M2N_ERR_PROTOCOL, M2N_ERR_MAP.
 */
M2N_API size_t m2n_plan_packed_bytes(const struct m2n_plan *plan);
M2N_API int m2n_plan_pack(const struct m2n_plan *plan, void *buffer, size_t bytes, size_t *used);
M2N_API int m2n_plan_unpack(struct m2n_channel *channel, struct m2n_plan *plan,
	const void *buffer, size_t bytes, uint64_t round);

#ifdef __cplusplus
}
#endif
#endif
