/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading routing traces from any text: accepted ones keep what the header promises, refused
 * ones leave a text and nothing allocated.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../perftest/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(int holds)
{
	if (!holds)
		abort();
}

static void check_layer(const struct trace *trace, const struct trace_layer *layer)
{
	size_t n_pairs = (size_t)layer->n_tokens * trace->top_k;

	require(layer->n_tokens >= 1 && layer->n_tokens <= trace->max_tokens);
	for (uint32_t t = 1; t < layer->n_tokens; t++)
		require(layer->token[t] > layer->token[t - 1]);
	for (size_t p = 0; p < n_pairs; p++) {
		require(layer->ids[p] >= 0 && (uint32_t)layer->ids[p] < trace->n_experts);
		require(layer->weights[p] >= 0 && layer->weights[p] <= 3.4028235e38f);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	char error[200] = "";
	struct trace trace;

	if (trace_parse("input", (const char *)data, bytes, &trace, error, sizeof(error))) {
		require(strncmp(error, "input", 5) == 0);
		return 0;
	}
	require(error[0] == '\0');
	require(trace.n_layers >= 1 && trace.top_k >= 1 && trace.top_k <= TRACE_MAX_TOP_K);
	for (uint32_t l = 0; l < trace.n_layers; l++) {
		require(l == 0 || trace.layers[l].layer > trace.layers[l - 1].layer);
		check_layer(&trace, &trace.layers[l]);
	}
	trace_free(&trace);
	return 0;
}
