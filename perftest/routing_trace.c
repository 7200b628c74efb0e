/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recorded routings: each layer is a variant, and the tokens of a request go to the source
 * rank_hint % M, in their order, at most --tokens of them.
 */
#include "routing.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"

/* "FILE[,layer=L]" into a path (to be freed) and a layer, -1 for all. NULL: not of this form. */
static char *read_form(const char *form, long *layer)
{
	const char *comma = strstr(form, ",layer=");
	size_t length = comma != NULL ? (size_t)(comma - form) : strlen(form);
	char *end = NULL;

	*layer = -1;
	if (comma != NULL) {
		*layer = strtol(comma + 7, &end, 10);
		if (end == comma + 7 || *end != '\0' || *layer < 0)
			return NULL;
	}
	return length > 0 ? strndup(form, length) : NULL;
}

static bool check(const struct perf_args *args, const struct trace *trace, long layer, char *text,
	size_t text_bytes)
{
	if (layer >= 0 && trace_find(trace, (uint32_t)layer) == NULL) {
		snprintf(text, text_bytes, "--routing: the trace has no layer %ld; it has %u to %u",
			layer, trace->layers[0].layer, trace->layers[trace->n_layers - 1].layer);
		return false;
	}
	if (trace->top_k > 64 || (args->top_k_given && args->top_k != trace->top_k)) {
		snprintf(text, text_bytes, "--top-k: the trace has %u experts per token; %s",
			trace->top_k, trace->top_k > 64 ? "64 at most" : "leave --top-k out");
		return false;
	}
	if (args->experts_given && args->n_experts < trace->n_experts) {
		snprintf(text, text_bytes, "--experts: %" PRIu64 ", the trace needs %u or more",
			args->n_experts, trace->n_experts);
		return false;
	}
	return true;
}

/* The tokens of one layer, dealt to the sources. With routing NULL only the largest share. */
static uint32_t deal(const struct perf_args *args, const struct trace_layer *layer, uint32_t top_k,
	struct perf_routing *routing, uint32_t variant)
{
	uint32_t shares[1024] = {0};
	uint32_t largest = 0;

	for (uint32_t t = 0; t < layer->n_tokens; t++) {
		uint32_t source = layer->rank_hint[t] % (uint32_t)args->n_sources;
		uint32_t at = shares[source];
		if (args->tokens_given && at >= args->n_tokens)
			continue;
		shares[source]++;
		largest = at + 1 > largest ? at + 1 : largest;
		if (routing == NULL)
			continue;
		memcpy(perf_routing_ids(routing, variant, source) + (size_t)at * top_k,
			layer->ids + (size_t)t * top_k, top_k * sizeof(int32_t));
		memcpy(perf_routing_weights(routing, variant, source) + (size_t)at * top_k,
			layer->weights + (size_t)t * top_k, top_k * sizeof(float));
	}
	for (uint32_t s = 0; routing != NULL && s < args->n_sources; s++)
		*perf_routing_tokens(routing, variant, s) = shares[s];
	return largest;
}

static struct perf_routing *deal_all(
	const struct perf_args *args, const struct trace *trace, long layer)
{
	const struct trace_layer *first =
		layer >= 0 ? trace_find(trace, (uint32_t)layer) : trace->layers;
	uint32_t n = layer >= 0 ? 1 : trace->n_layers;
	uint32_t max_tokens = 1;

	if (args->max_layers > 0 && args->max_layers < n)
		n = (uint32_t)args->max_layers;
	for (uint32_t v = 0; v < n; v++) {
		uint32_t largest = deal(args, &first[v], trace->top_k, NULL, v);
		max_tokens = largest > max_tokens ? largest : max_tokens;
	}
	struct perf_routing *routing = perf_routing_alloc(n, (uint32_t)args->n_sources,
		(uint32_t)args->n_expert_ranks,
		args->experts_given ? (uint32_t)args->n_experts : trace->n_experts, trace->top_k,
		max_tokens);
	for (uint32_t v = 0; routing != NULL && v < n; v++)
		deal(args, &first[v], trace->top_k, routing, v);
	return routing;
}

struct perf_routing *perf_routing_trace(
	const struct perf_args *args, const char *form, char *text, size_t text_bytes)
{
	struct perf_routing *routing = NULL;
	struct trace trace;
	long layer;
	char *path = read_form(form, &layer);

	if (path == NULL) {
		snprintf(text, text_bytes, "--routing: 'trace:%s' is not trace:FILE[,layer=L]",
			form);
		return NULL;
	}
	int status = trace_load(path, &trace, text, text_bytes);
	free(path);
	if (status != 0)
		return NULL;
	if (check(args, &trace, layer, text, text_bytes)) {
		routing = deal_all(args, &trace, layer);
		if (routing == NULL)
			snprintf(text, text_bytes, "no memory for the trace");
	}
	trace_free(&trace);
	return routing;
}
