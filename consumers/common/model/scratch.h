/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one thread works in: rows are taken 64 at a time, so that the sizes depend on the model
 * only.
 */
#ifndef MODEL_SCRATCH_H
#define MODEL_SCRATCH_H

#include "model.h"

#define MODEL_CHUNK_ROWS 64

struct model_scratch {
	struct model_work *work;
	float *memory;  /* under all that follows; each [MODEL_CHUNK_ROWS, ...] but the last */
	float *normed;  /* [hidden] */
	float *q;       /* [n_heads, head_dim] */
	float *k, *v;   /* [n_kv_heads, head_dim] */
	float *mixed;   /* [n_heads, head_dim] weighted sums of values */
	float *added;   /* [hidden] */
	float *gate, *up; /* [intermediate_size] */
	float *router;  /* [n_experts] */
	float *scores;  /* [n_heads / n_kv_heads, max_tokens rounded up to pages] */
};

/* y = x / sqrt(mean(x^2) + eps) * weight, row by row */
void model_norm(const struct model *model, size_t weight_index, const float *x, size_t n_rows,
	float *y);

#endif
