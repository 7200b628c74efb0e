/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of rows as the yardsticks need it: for one source and variant, rows sorted by expert
 * rank, expert, token, k, and for each pair where its row lies. What a plan is to libm2n,
 * computed here by plain loops so that a yardstick owes nothing to what it measures.
 */
#ifndef PERF_ORDER_H
#define PERF_ORDER_H

#include "routing.h"

struct perf_order {
	uint32_t n_rows;
	uint32_t *rank_first;  /* [n_expert_ranks + 1] first row of each expert rank */
	uint32_t *expert_rows; /* [n_experts] rows of each expert */
	uint32_t *row_token;   /* [n_rows] */
	int32_t *pair_row;     /* [max_tokens, top_k], -1: none */
	uint32_t *next;        /* scratch [n_experts] */
};

/* Room for any variant. False: no memory. */
bool perf_order_alloc(struct perf_order *order, const struct perf_routing *routing);
void perf_order_free(struct perf_order *order);
void perf_order_make(struct perf_order *order, const struct perf_routing *routing,
	uint32_t variant, uint32_t source);

#endif
