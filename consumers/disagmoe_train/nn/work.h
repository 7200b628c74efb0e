/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the computation share inside: a thread's buffers, products, norms, and cutting
 * memory into arrays.
 */
#ifndef NN_WORK_H
#define NN_WORK_H

#include "nn/layer.h"

#define NN_CHUNK_ROWS 256  /* rows of experts and head that go through at once */
#define NN_QUERY_BLOCK 64  /* rows of attention whose scores exist at a time */

struct nn_work {
	const struct model_config *config; /* &own_config */
	struct model_config own_config;
	uint32_t seq_len;
	struct model_work *product;
	void *memory; /* under all that follows */
	float *rope;           /* [seq_len, head_dim]: cosines, then sines */
	float *hidden;         /* [rows, hidden]; rows: seq_len, or NN_CHUNK_ROWS if that is more */
	float *heads;          /* [rows, n_heads * head_dim] */
	float *wide;           /* [NN_CHUNK_ROWS, intermediate] */
	float *scores, *d_scores; /* [NN_QUERY_BLOCK, seq_len] */
	float *d_k, *d_v;      /* [seq_len, head_dim] of one key/value head */
	float *experts;        /* [2, n_experts] */
};

/* Cuts memory into 64-byte aligned arrays; with memory NULL only counts. */
struct nn_carve {
	char *memory;
	size_t bytes;
};
void *nn_carve(struct nn_carve *carve, size_t n_values);

/* y = x W^T by model_product(); the parameter is a matrix. */
void nn_product(struct nn_work *work, const struct nn_param *w, const float *x, size_t n_rows,
	size_t x_stride, float *y, size_t y_stride);
/* dx = dy W, or dx += dy W with `add`. */
void nn_product_input_grad(const struct nn_param *w, const float *dy, size_t n_rows, int add,
	float *dx, size_t dx_stride);
/* grad += dy^T x */
void nn_product_weight_grad(struct nn_param *w, const float *dy, const float *x, size_t n_rows);

double nn_dot(const float *a, const float *b, size_t n_values);
/* y = weight * (x * scale), scale = 1 / sqrt(mean(x^2) + eps) */
void nn_norm(const struct nn_param *weight, double eps, const float *x, size_t n_rows,
	float *scale, float *y);
/* y from a scale that is known */
void nn_norm_again(const struct nn_param *weight, const float *x, const float *scale,
	size_t n_rows, float *y);
/* dx = residual + the gradient of x from dy; residual NULL: none. dx may be x or residual. Adds the
 * gradient of the weight. */
void nn_norm_backward(struct nn_param *weight, const float *x, const float *scale,
	const float *dy, const float *residual, size_t n_rows, float *dx);

/* Attention of one sequence, from rotated q and k. Arrays of whole rows, all heads. */
void nn_attend(struct nn_work *work, const float *q, const float *k, const float *v, float *mixed,
	float *log_sums);
/* q, k, v become their gradients (of the rotated ones) from d_mixed. */
void nn_attend_backward(struct nn_work *work, float *q, float *k, float *v,
	const float *log_sums, const float *d_mixed);
/* Turns heads of n_rows rows by their positions; direction 1 or -1, backward. */
void nn_rotate(const struct nn_work *work, uint32_t n_heads, float direction, float *heads);

/* The router's choice of one row: logits become probabilities. */
void nn_route_row(const struct model_config *config, float *logits, int32_t *ids, float *weights);
/* Gradients of the logits of one sequence, in place of the probabilities. */
void nn_route_backward(struct nn_work *work, float *probs, const int32_t *ids,
	const float *weights, const float *d_weights, double balance_scale);

#endif
