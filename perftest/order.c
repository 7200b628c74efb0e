/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows in the order expert, token, k by counting; expert ranks own contiguous experts, so that
 * this is the order by expert rank too.
 */
#include "order.h"

#include <stdlib.h>
#include <string.h>

bool perf_order_alloc(struct perf_order *order, const struct perf_routing *routing)
{
	size_t n_pairs = (size_t)routing->max_tokens * routing->top_k;

	memset(order, 0, sizeof(*order));
	order->rank_first = calloc(routing->n_expert_ranks + 1, sizeof(uint32_t));
	order->expert_rows = calloc(routing->n_experts, sizeof(uint32_t));
	order->next = calloc(routing->n_experts, sizeof(uint32_t));
	order->row_token = calloc(n_pairs, sizeof(uint32_t));
	order->pair_row = calloc(n_pairs, sizeof(int32_t));
	return order->rank_first != NULL && order->expert_rows != NULL && order->next != NULL &&
		order->row_token != NULL && order->pair_row != NULL;
}

void perf_order_free(struct perf_order *order)
{
	free(order->rank_first);
	free(order->expert_rows);
	free(order->next);
	free(order->row_token);
	free(order->pair_row);
}

void perf_order_make(struct perf_order *order, const struct perf_routing *routing,
	uint32_t variant, uint32_t source)
{
	const int32_t *ids = perf_routing_ids(routing, variant, source);
	uint32_t n_tokens = *perf_routing_tokens(routing, variant, source);
	size_t n_pairs = (size_t)n_tokens * routing->top_k;
	uint32_t row = 0;

	memset(order->expert_rows, 0, routing->n_experts * sizeof(uint32_t));
	memset(order->rank_first, 0, (routing->n_expert_ranks + 1) * sizeof(uint32_t));
	for (size_t i = 0; i < n_pairs; i++)
		if (ids[i] >= 0)
			order->expert_rows[ids[i]]++;
	for (uint32_t e = 0; e < routing->n_experts; e++) {
		order->next[e] = row;
		row += order->expert_rows[e];
		order->rank_first[perf_routing_owner(routing, (int32_t)e) + 1] = row;
	}
	/* Ranks without an expert are the last ones. */
	for (uint32_t r = 0; r < routing->n_expert_ranks; r++)
		if (order->rank_first[r + 1] < order->rank_first[r])
			order->rank_first[r + 1] = order->rank_first[r];
	order->n_rows = row;
	for (size_t i = 0; i < n_pairs; i++) {
		order->pair_row[i] = ids[i] < 0 ? -1 : (int32_t)order->next[ids[i]]++;
		if (ids[i] >= 0)
			order->row_token[order->pair_row[i]] = (uint32_t)(i / routing->top_k);
	}
}
