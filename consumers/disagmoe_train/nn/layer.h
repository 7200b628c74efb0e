/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The computation of training, cut where a disaggregated pipeline cuts it. One layer of a
 * micro-batch of whole sequences is
 *
 *	nn_attention_forward         y = x + attention(norm(x)), rows = norm(y), ids, weights
 *	  dispatch rows              m2n_dispatch_send, sink: the next layer's attention rank
 *	nn_expert_forward            reply = w2(silu(w1 row) * w3 row), for each expert
 *	  combine at the sink        x' = y + sum_k weight_k reply_k: x of the next layer's record
 *
 * and backward, from dx', the gradient of the next layer's x:
 *
 *	  backward of combine        d_reply_k = weight_k dx', d_weight_k = <dx', reply_k>
 *	nn_expert_backward_input     d_rows of each (token, k)
 *	  backward of dispatch       d_rows[t] = sum_k d_rows(t, k): combine with unit weights
 *	nn_attention_backward_input  dx from d_rows, d_weights, dx'
 *	nn_..._backward_weights      gradients of the matrices, at any time after its _input
 *
 * Gradients are added to what nn_params has: accumulation over micro-batches is calling again.
 *
 * Forward bits of a row depend on its own sequence only (model/product.h), not on how sequences
 * and rows are distributed, so routing is the same on any M:N as long as the parameters are.
 * Backward products are plain sgemm: they agree within rounding. Functions do not block, allocate
 * or fail; sizes were checked when records were made.
 */
#ifndef NN_LAYER_H
#define NN_LAYER_H

#include "nn/params.h"

/* What one thread works in: tables of the rotary embedding, buffers for a sequence. */
struct nn_work;

/* For sequences of seq_len tokens. Sets OpenBLAS to one thread. 0; -EINVAL (seq_len is 0 or more
 * than max_positions); -ENOMEM. */
int nn_work_open(const struct model_config *config, uint32_t seq_len, struct nn_work **work);
void nn_work_close(struct nn_work *work);
size_t nn_work_bytes(const struct model_config *config, uint32_t seq_len);

/* x[i] = embedding[ids[i]]; x: [n_rows, hidden] */
void nn_embedding_forward(const struct nn_params *params, const uint32_t *ids, size_t n_rows,
	float *x);
/* dx: [n_rows, hidden] */
void nn_embedding_backward(struct nn_params *params, const uint32_t *ids, size_t n_rows,
	const float *dx);

/*
 * The attention side of one layer and micro-batch, from forward to backward_weights. The memory is
 * the caller's (it may be registered for sending), 64-byte aligned, and the caller gives x and
 * takes y, rows, ids and weights where they lie. backward_input overwrites what it does not need
 * any more (y, q, k, v, probs) with what backward_weights needs.
 */
struct nn_attention_record {
	uint32_t n_seqs;
	size_t n_rows;     /* n_seqs * seq_len: sequence by sequence */
	float *x;          /* [n_rows, hidden] in */
	float *y;          /* [n_rows, hidden] out: the residual that goes to the sink */
	float *rows;       /* [n_rows, hidden] out: what is dispatched */
	float *weights;    /* [n_rows, top_k] out: by falling weight, equal ones by rising id */
	int32_t *ids;      /* [n_rows, top_k] out */
	float *q, *k, *v;  /* [n_rows, heads * head_dim], rotated; k, v of key/value heads */
	float *mixed;      /* [n_rows, n_heads * head_dim] sums of values */
	float *log_sums;   /* [n_rows, n_heads] log of the sum of exp(scores) */
	float *probs;      /* [n_rows, n_experts] of the router */
	float *scale1, *scale2; /* [n_rows] 1 / rms of x, of y */
};

/* Bytes of the memory, and where the record's parts lie in it. */
size_t nn_attention_record_bytes(const struct model_config *config, uint32_t seq_len,
	uint32_t n_seqs);
void nn_attention_record_init(const struct model_config *config, uint32_t seq_len,
	uint32_t n_seqs, void *memory, struct nn_attention_record *record);

void nn_attention_forward(const struct nn_params *params, struct nn_work *work, uint32_t layer,
	struct nn_attention_record *record);
/*
 * The load-balancing loss of a record, after forward and before backward_input: Switch's
 * n_experts * sum_e f_e P_e (1 at perfect balance), taken *per sequence* and summed over the
 * record's sequences. f_e is the share of the sequence's tokens' choices that fall on expert e, P_e
 * the mean probability. A sequence is never cut, so that the sum does not depend on how a step is
 * cut into micro-batches and ranks.
 */
double nn_attention_balance_loss(const struct model_config *config,
	const struct nn_attention_record *record);
/*
 * d_rows: [n_rows, hidden], summed over k; d_weights: [n_rows, top_k]; d_out: [n_rows, hidden],
 * the gradient of x'. balance_scale: alpha / sequences of the step, 0: no balancing loss.
 * dx: [n_rows, hidden], may be d_out. Adds the gradients of both norms.
 */
void nn_attention_backward_input(struct nn_params *params, struct nn_work *work, uint32_t layer,
	struct nn_attention_record *record, const float *d_rows, const float *d_weights,
	const float *d_out, double balance_scale, float *dx);
/* Adds the gradients of q, k, v, o and the router. The record may be used again then. */
void nn_attention_backward_weights(struct nn_params *params, struct nn_work *work, uint32_t layer,
	struct nn_attention_record *record);

/* One expert's rows of one micro-batch. All the memory is the caller's. */
struct nn_expert_record {
	size_t n_rows, max_rows;
	float *rows;      /* [max_rows, hidden] copies of what came */
	float *gate, *up; /* [max_rows, intermediate]; their gradients after backward_input */
	float *act;       /* [max_rows, intermediate] silu(gate) * up */
	float *d_out;     /* [max_rows, hidden] from backward_input on */
};

size_t nn_expert_record_bytes(const struct model_config *config, size_t max_rows);
/* n_rows is 0 until rows come. */
void nn_expert_record_init(const struct model_config *config, size_t max_rows, void *memory,
	struct nn_expert_record *record);
/*
 * Rows come in any number of pieces (segments of several sources): each is put behind what the
 * record has, and replies are those of this piece only. Strides in values. Not more than max_rows
 * in all. rows and replies must not overlap.
 */
void nn_expert_forward(const struct nn_params *params, struct nn_work *work, uint32_t layer,
	uint32_t expert, struct nn_expert_record *record, const float *rows, size_t n_rows,
	size_t stride, float *replies, size_t reply_stride);
/*
 * Gradients of the record's rows first_row .. first_row + n_rows - 1, in the order in which they
 * came; pieces may be other ones than forward's, each row once. d_rows may be d_out.
 */
void nn_expert_backward_input(const struct nn_params *params, struct nn_work *work, uint32_t layer,
	uint32_t expert, struct nn_expert_record *record, size_t first_row, const float *d_out,
	size_t n_rows, size_t stride, float *d_rows, size_t d_rows_stride);
/* Adds the gradients of w1, w2, w3; n_rows of the record is 0 then. */
void nn_expert_backward_weights(struct nn_params *params, struct nn_work *work, uint32_t layer,
	uint32_t expert, struct nn_expert_record *record);

/* Final norm, head and cross entropy of one micro-batch. */
struct nn_head_record {
	size_t n_rows;
	float *x;      /* [n_rows, hidden] in */
	float *normed; /* [n_rows, hidden] */
	float *logits; /* [n_rows, vocab]; their gradient after backward_input */
	float *scale;  /* [n_rows] 1 / rms of x */
	float *log_sums; /* [n_rows] log of the sum of exp(logits) */
};

size_t nn_head_record_bytes(const struct model_config *config, size_t n_rows);
void nn_head_record_init(const struct model_config *config, size_t n_rows, void *memory,
	struct nn_head_record *record);
/* The sum over rows of -log p(targets[row]), in nats; targets NULL: logits only, 0. */
double nn_head_forward(const struct nn_params *params, struct nn_work *work,
	struct nn_head_record *record, const uint32_t *targets);
/* Gradient of loss_scale * that sum (loss_scale: 1 / tokens of the step). dx: [n_rows, hidden].
 * Adds the gradient of the norm. */
void nn_head_backward_input(struct nn_params *params, struct nn_work *work,
	struct nn_head_record *record, const uint32_t *targets, double loss_scale, float *dx);
/* Adds the gradient of lm_head. */
void nn_head_backward_weights(struct nn_params *params, struct nn_work *work,
	struct nn_head_record *record);

#endif
