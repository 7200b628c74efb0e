/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing traces: the recorded choices of a real router, as CSV.
 *
 *	layer,token,rank_hint,expert0..expert{k-1},weight0..weight{k-1}
 *
 * One line per (layer, token), sorted by both; k >= 1 comes from the head line. rank_hint says
 * which request a token belongs to. The experts of a line are distinct, weights are finite and
 * >= 0. Lines end in LF or CR LF, the last end may be missing.
 */
#ifndef M2N_PERFTEST_TRACE_H
#define M2N_PERFTEST_TRACE_H

#include <stddef.h>
#include <stdint.h>

#define TRACE_MAX_TOP_K 256
#define TRACE_MAX_NUMBER 16777215 /* of layers, tokens, hints and expert ids */

/* One layer: arrays borrowed from the trace. */
struct trace_layer {
	uint32_t layer; /* number in the file */
	uint32_t n_tokens;
	uint32_t *token; /* [n_tokens] number in the file, rising */
	uint32_t *rank_hint; /* [n_tokens] */
	int32_t *ids; /* [n_tokens, top_k] row-major */
	float *weights; /* [n_tokens, top_k] */
};

struct trace {
	uint32_t n_layers;
	uint32_t top_k;
	uint32_t n_experts; /* largest expert id + 1 */
	uint32_t max_tokens; /* of any layer */
	struct trace_layer *layers; /* [n_layers] by rising number */
	/* Behind the layers' arrays: all lines. */
	uint32_t *token, *rank_hint;
	int32_t *ids;
	float *weights;
};

/*
 * Reads a trace from `bytes` bytes at `text` (no 0 at the end is needed). name: for error texts.
 * Returns 0; -EINVAL: not a trace, `error` names file, line, what was expected and what was found;
 * -ENOMEM. On success the caller frees the trace with trace_free(); on failure it is untouched.
 */
int trace_parse(const char *name, const char *text, size_t bytes, struct trace *trace, char *error,
	size_t error_bytes);
/* The same from a file; also the errno values of reading it. */
int trace_load(const char *path, struct trace *trace, char *error, size_t error_bytes);
/* Frees what the trace holds and zeroes it. NULL is allowed. */
void trace_free(struct trace *trace);
/* The layer with this number in the file, NULL when there is none. */
const struct trace_layer *trace_find(const struct trace *trace, uint32_t layer);

#endif
