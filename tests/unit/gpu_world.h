/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole M:N job in one process for tests of the kernels: sources and expert ranks with their
 * slots, tables of links and batches as kernel/gpu.h describes them, host plans beside the
 * device's, and a carrier that plays the progress thread where peers are reached by messages.
 */
#ifndef M2N_UNIT_GPU_WORLD_H
#define M2N_UNIT_GPU_WORLD_H

#include <m2n/channel.h>

#include "kernel/gpu.h"
#include "kernel/kernel.h"
#include "route/plan.h"

#define WORLD_MAX_PEERS 8

enum routing { ROUTE_RANDOM, ROUTE_ALL_TO_ONE, ROUTE_NONE, ROUTE_HOLES, ROUTE_REPEATED };

/* What a case is about; zeros are filled in with small usual values by world_open(). */
struct config {
	const char *name;
	uint32_t n_sources, n_ranks, n_experts, top_k, max_tokens, depth;
	uint64_t row_bytes, scale_bytes, out_row_bytes;
	enum m2n_dtype dtype;
	enum m2n_cast cast;
	int dedup, reduce_at_expert;
	uint32_t capacity;
	int drop_overflow;
	int replicas;    /* owners per expert; 0: one */
	enum routing routing;
	uint32_t tokens; /* of each source; 0: max_tokens, ~0: none */
	uint32_t pad;    /* bytes between rows of the caller's, and in front of the first */
	int with_row_weights, with_residual, with_unit_weights, with_replies, without_weights;
	int is_messaging;
};

struct source {
	struct m2n_plan *host;
	struct m2n__gpu_plan plan;
	struct m2n__gpu_summary *summary;
	int32_t *ids;
	float *weights, *row_weights;
	uint8_t *rows, *scales, *residual, *out, *replies, *missing;
	uint64_t row_stride, scale_stride, out_stride;
	struct m2n__gpu_tx *tx;
	struct m2n__gpu_rx *rx;
	struct m2n__gpu_post *posts; /* [n_ranks, depth] */
	uint8_t *staging;            /* messaging: [n_ranks, depth] slots */
	uint8_t *reply_slots;        /* [n_ranks, depth] heads */
	uint8_t *region;
	uint32_t *alive, *places, *held;
	uint64_t *part, *answered;
	struct m2n__gpu_rounds *rounds;
	struct m2n__gpu_report *send_report, *combine_report;
	struct m2n__gpu_count *sent, *received; /* [n_ranks] rows out, replies in */
	const uint8_t **out_row; /* [rows of the plan] the output that an expert gave for it */
};

struct rank {
	struct m2n__gpu_batch batch;
	struct m2n__gpu_mirror *mirror;
	uint32_t n_local;
	uint8_t *slots; /* [n_sources, depth] */
	uint8_t *out_rows;
	uint64_t out_stride;
	struct m2n__gpu_rx *rx;
	struct m2n__gpu_tx *tx;
	struct m2n__gpu_post *posts; /* [n_sources, depth] */
	uint8_t *reply_heads;        /* messaging: [n_sources, depth] staged heads */
	uint8_t *reply_staging;      /* messaging: [n_sources] regions */
	uint32_t *alive;
	struct m2n__gpu_rounds *rounds;
	struct m2n__gpu_report *recv_report, *reply_report;
	struct m2n__gpu_count *received, *sent; /* [n_sources] rows in, replies out */
};

struct world {
	struct config c;
	struct m2n_map *host_map;
	struct m2n__gpu_map map;
	struct m2n__gpu_shape shape; /* but for self_source and self_rank */
	struct source source[WORLD_MAX_PEERS];
	struct rank rank[WORLD_MAX_PEERS];
	uint64_t ticket;
};

uint32_t world_random(void);
void world_seed(uint64_t seed);
/* n finite values of moderate size. */
void world_fill(enum m2n_dtype dtype, void *at, size_t n);

void world_open(struct world *w, const struct config *c);
void world_close(struct world *w);

/* Arguments of each kernel, for this world. */
struct m2n__gpu_plan_args world_plan_args(struct world *w, uint32_t s);
struct m2n__gpu_dispatch_args world_dispatch_args(struct world *w, uint32_t s);
struct m2n__gpu_recv_args world_recv_args(struct world *w, uint32_t j);
struct m2n__gpu_reply_args world_reply_args(struct world *w, uint32_t j);
struct m2n__gpu_combine_args world_combine_args(struct world *w, uint32_t s);
struct m2n__gpu_shape world_shape_of(const struct world *w, int source, int rank);

/* New ids, weights, rows of a source; the host's plan of them. */
void world_route(struct world *w, uint32_t s);
uint32_t world_n_tokens(const struct world *w);
/* The slot of a source at a rank. */
struct m2n__gpu_head *world_slot(struct world *w, uint32_t s, uint32_t j, uint64_t round);
struct m2n__gpu_head *world_reply_head(struct world *w, uint32_t s, uint32_t j, uint64_t round);

/* The steps of a round, each over all sources or ranks; the carrier runs where it must. */
void world_plan(struct world *w);
void world_dispatch(struct world *w);
void world_receive(struct world *w);
void world_reply(struct world *w);
void world_combine(struct world *w);

#endif
