/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What makes a pipeline's times vary: how a recorded routing spreads the tokens over the experts,
 * and how long transfers took by percentiles.
 */
#ifndef PLANNING_LOAD_H
#define PLANNING_LOAD_H

#include <stddef.h>
#include <stdint.h>

struct load_trace {
	uint16_t *experts; /* [n_layers, n_tokens, top_k]; owned */
	size_t n_layers, n_tokens, top_k, n_experts;
};

/* Form: layer,token,rank_hint,expert0..; sorted, as many tokens in each layer. */
int load_trace_read(const char *path, struct load_trace *trace);
void load_trace_free(struct load_trace *trace);
/* Load of the expert over the mean of all in the `n` tokens from `first`, both modulo the trace. */
double load_trace_share(const struct load_trace *trace, size_t layer, size_t first, size_t n,
	size_t expert);

enum { LOAD_MAX_PERCENTILES = 64 };

struct load_jitter {
	double percentile[LOAD_MAX_PERCENTILES], seconds[LOAD_MAX_PERCENTILES];
	size_t n; /* 0: constant */
	uint64_t state;
};

/* Columns percentile and us, both rising. Between two lines the time is linear. */
int load_jitter_read(const char *path, uint64_t seed, struct load_jitter *jitter);
double load_jitter_draw(struct load_jitter *jitter);

#endif
