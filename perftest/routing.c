/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Made-up routings. Each token draws top_k distinct experts: uniformly, from a few hot ones
 * (khot:K), or with falling popularity (zipf:S, expert of popularity rank r with a chance in
 * proportion to 1/(r+1)^S). Which experts are popular is decided by the seed, so that the load
 * does not sit on the first rank by construction. Weights fall from k to k and sum to 1.
 */
#include "routing.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t align_up(uint64_t value)
{
	return (value + 63) & ~UINT64_C(63);
}

struct perf_routing *perf_routing_alloc(uint32_t n_variants, uint32_t n_sources,
	uint32_t n_expert_ranks, uint32_t n_experts, uint32_t top_k, uint32_t max_tokens)
{
	uint64_t n_pairs = (uint64_t)n_variants * n_sources * max_tokens * top_k;
	uint64_t tokens_at = align_up(sizeof(struct perf_routing));
	uint64_t ids_at = align_up(tokens_at + (uint64_t)n_variants * n_sources * sizeof(uint32_t));
	uint64_t weights_at = align_up(ids_at + n_pairs * sizeof(int32_t));
	uint64_t bytes = align_up(weights_at + n_pairs * sizeof(float));
	struct perf_routing *routing = calloc(1, bytes);

	if (routing == NULL)
		return NULL;
	*routing = (struct perf_routing){.bytes = bytes, .n_variants = n_variants,
		.n_sources = n_sources, .n_expert_ranks = n_expert_ranks, .n_experts = n_experts,
		.top_k = top_k, .max_tokens = max_tokens, .tokens_at = tokens_at, .ids_at = ids_at,
		.weights_at = weights_at};
	return routing;
}

static size_t part(const struct perf_routing *routing, uint32_t variant, uint32_t source)
{
	return ((size_t)variant * routing->n_sources + source);
}

uint32_t *perf_routing_tokens(const struct perf_routing *routing, uint32_t variant, uint32_t source)
{
	return (uint32_t *)((uintptr_t)routing + routing->tokens_at) +
	       part(routing, variant, source);
}

int32_t *perf_routing_ids(const struct perf_routing *routing, uint32_t variant, uint32_t source)
{
	return (int32_t *)((uintptr_t)routing + routing->ids_at) +
		part(routing, variant, source) * routing->max_tokens * routing->top_k;
}

float *perf_routing_weights(const struct perf_routing *routing, uint32_t variant, uint32_t source)
{
	return (float *)((uintptr_t)routing + routing->weights_at) +
		part(routing, variant, source) * routing->max_tokens * routing->top_k;
}

uint32_t perf_routing_owner(const struct perf_routing *routing, int32_t expert)
{
	uint32_t e = (uint32_t)expert;
	uint32_t block = routing->n_experts / routing->n_expert_ranks;
	uint32_t n_larger = routing->n_experts % routing->n_expert_ranks;

	if (e < n_larger * (block + 1))
		return e / (block + 1);
	return n_larger + (e - n_larger * (block + 1)) / block;
}

uint64_t perf_routing_rows(
	const struct perf_routing *routing, uint32_t variant, int source, int expert_rank)
{
	uint64_t n_rows = 0;

	for (uint32_t s = 0; s < routing->n_sources; s++) {
		if (source >= 0 && s != (uint32_t)source)
			continue;
		const int32_t *ids = perf_routing_ids(routing, variant, s);
		size_t n_pairs = (size_t)*perf_routing_tokens(routing, variant, s) * routing->top_k;
		for (size_t i = 0; i < n_pairs; i++) {
			if (ids[i] < 0)
				continue;
			n_rows += expert_rank < 0 ||
				perf_routing_owner(routing, ids[i]) == (uint32_t)expert_rank;
		}
	}
	return n_rows;
}

/* A stream of numbers in (0, 1]. */
static double draw(uint64_t *state)
{
	return (double)((perf_mix(++*state) >> 11) + 1) * 0x1p-53;
}

/*
 * top_k distinct experts, each with a chance in proportion to its popularity: those with the
 * smallest of independent exponential times (Efraimidis and Spirakis, 2006), in their order.
 */
static void pick(const double *popularity, uint32_t n_experts, uint32_t top_k, uint64_t *state,
	double *times, int32_t *ids)
{
	uint32_t n = 0;

	for (uint32_t e = 0; e < n_experts; e++) {
		double time = -log(draw(state)) / popularity[e];
		if (n == top_k && time >= times[n - 1])
			continue;
		uint32_t at = n < top_k ? n++ : n - 1;
		for (; at > 0 && times[at - 1] > time; at--) {
			times[at] = times[at - 1];
			ids[at] = ids[at - 1];
		}
		times[at] = time;
		ids[at] = (int32_t)e;
	}
}

static void weigh(uint32_t top_k, uint64_t *state, float *weights)
{
	double sum = 0;
	double last = 1;

	for (uint32_t k = 0; k < top_k; k++) {
		last *= 0.5 + 0.5 * draw(state);
		weights[k] = (float)last;
		sum += last;
	}
	for (uint32_t k = 0; k < top_k; k++)
		weights[k] = (float)(weights[k] / sum);
}

/* Popularity of popularity rank r; experts are dealt to ranks by a shuffle of the seed. */
static void set_popularity(
	double *popularity, uint32_t n_experts, uint64_t seed, double khot, double zipf)
{
	uint64_t state = perf_mix(seed ^ 0x706f70);

	for (uint32_t r = 0; r < n_experts; r++) {
		popularity[r] = 1;
		if (khot > 0 && r >= khot)
			popularity[r] = 1e-12; /* only when the hot ones are fewer than top_k */
		if (zipf > 0)
			popularity[r] = pow(r + 1, -zipf);
	}
	for (uint32_t i = n_experts; i > 1; i--) {
		uint32_t j = (uint32_t)(perf_mix(++state) % i);
		double kept = popularity[i - 1];
		popularity[i - 1] = popularity[j];
		popularity[j] = kept;
	}
}

static void fill(struct perf_routing *routing, const struct perf_args *args,
	const double *popularity, double *times)
{
	for (uint32_t s = 0; s < routing->n_sources; s++) {
		uint64_t state = perf_mix(args->seed * 1000003 + s);
		int32_t *ids = perf_routing_ids(routing, 0, s);
		float *weights = perf_routing_weights(routing, 0, s);
		*perf_routing_tokens(routing, 0, s) = (uint32_t)args->n_tokens;
		for (uint64_t t = 0; t < args->n_tokens; t++) {
			pick(popularity, routing->n_experts, routing->top_k, &state, times,
				ids + t * routing->top_k);
			weigh(routing->top_k, &state, weights + t * routing->top_k);
		}
	}
}

/* "khot:K" and "zipf:S" into their numbers; both 0 for uniform. False: neither of them. */
static bool read_form(const struct perf_args *args, double *khot, double *zipf)
{
	const char *form = args->routing;
	char *end = NULL;

	*khot = *zipf = 0;
	if (strcmp(form, "uniform") == 0)
		return true;
	if (strncmp(form, "khot:", 5) == 0) {
		*khot = strtod(form + 5, &end);
		return *end == '\0' && *khot >= 1 && *khot <= (double)args->n_experts &&
			*khot == floor(*khot);
	}
	if (strncmp(form, "zipf:", 5) == 0) {
		*zipf = strtod(form + 5, &end);
		return *end == '\0' && *zipf > 0 && *zipf <= 10;
	}
	return false;
}

struct perf_routing *perf_routing_make(const struct perf_args *args, char *text, size_t text_bytes)
{
	double khot, zipf;
	struct perf_routing *routing = NULL;

	if (strncmp(args->routing, "trace:", 6) == 0)
		return perf_routing_trace(args, args->routing + 6, text, text_bytes);
	if (!read_form(args, &khot, &zipf)) {
		snprintf(text, text_bytes,
			"--routing: '%s' is none of uniform, khot:K (1 <= K <= %" PRIu64
			"), zipf:S (0 < S <= 10), trace:FILE[,layer=L]",
			args->routing, args->n_experts);
		return NULL;
	}
	double *popularity = malloc(args->n_experts * sizeof(double));
	double *times = malloc(args->top_k * sizeof(double));
	if (popularity != NULL && times != NULL)
		routing = perf_routing_alloc(1, (uint32_t)args->n_sources,
			(uint32_t)args->n_expert_ranks, (uint32_t)args->n_experts,
			(uint32_t)args->top_k, args->n_tokens > 0 ? (uint32_t)args->n_tokens : 1);
	if (routing != NULL) {
		set_popularity(popularity, routing->n_experts, args->seed, khot, zipf);
		fill(routing, args, popularity, times);
	} else {
		snprintf(text, text_bytes, "no memory for the routing of %" PRIu64 " tokens",
			args->n_tokens);
	}
	free(popularity);
	free(times);
	return routing;
}
