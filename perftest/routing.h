/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routings to measure with: who goes to which expert, for each variant (a layer of a trace, else
 * one), source and token. One flat block without pointers, so that the MPI helper can read it
 * where the ranks do; the same arguments give the same block in every process.
 */
#ifndef PERF_ROUTING_H
#define PERF_ROUTING_H

#include "args.h"

struct perf_routing {
	uint64_t bytes; /* of the whole block */
	uint32_t n_variants;
	uint32_t n_sources;
	uint32_t n_expert_ranks;
	uint32_t n_experts;
	uint32_t top_k;
	uint32_t max_tokens;  /* of any source in any variant; at least 1 */
	uint64_t tokens_at;   /* uint32_t [n_variants, n_sources] */
	uint64_t ids_at;      /* int32_t [n_variants, n_sources, max_tokens, top_k], -1: none */
	uint64_t weights_at;  /* float, the same shape */
};

/*
 * Makes the routing that args ask for. NULL: it cannot be, and `text` says why and what is
 * accepted. Freed with free().
 */
struct perf_routing *perf_routing_make(
	const struct perf_args *args, char *text, size_t text_bytes);
/* An empty block of these sizes, for the two makers. */
struct perf_routing *perf_routing_alloc(uint32_t n_variants, uint32_t n_sources,
	uint32_t n_expert_ranks, uint32_t n_experts, uint32_t top_k, uint32_t max_tokens);
/* From a recorded trace: "FILE[,layer=L]". */
struct perf_routing *perf_routing_trace(
	const struct perf_args *args, const char *form, char *text, size_t text_bytes);

uint32_t *perf_routing_tokens(
	const struct perf_routing *routing, uint32_t variant, uint32_t source);
int32_t *perf_routing_ids(const struct perf_routing *routing, uint32_t variant, uint32_t source);
float *perf_routing_weights(const struct perf_routing *routing, uint32_t variant, uint32_t source);
/* The expert rank that owns an expert: contiguous blocks, the first ones larger by one. */
uint32_t perf_routing_owner(const struct perf_routing *routing, int32_t expert);
/* Routed pairs of a variant: from one source (-1: all) to one expert rank (-1: all). */
uint64_t perf_routing_rows(
	const struct perf_routing *routing, uint32_t variant, int source, int expert_rank);

/* A well mixed 64-bit number from another (splitmix64). */
static inline uint64_t perf_mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

#endif
