/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The attention side of a layer: norms, projections, attention and router, forward and backward.
 * Backward goes sequence by sequence and leaves in the record what the matrices' gradients are
 * products of, so that those may come later.
 */
#include "nn/work.h"

#include <string.h>

static size_t lay_out(const struct model_config *c, uint32_t seq_len, uint32_t n_seqs,
	void *memory, struct nn_attention_record *record)
{
	size_t n = (size_t)n_seqs * seq_len, q = (size_t)c->n_heads * c->head_dim;
	size_t kv = (size_t)c->n_kv_heads * c->head_dim;
	struct nn_carve carve = {memory, 0};

	*record = (struct nn_attention_record){.n_seqs = n_seqs, .n_rows = n};
	record->x = nn_carve(&carve, n * c->hidden_size);
	record->y = nn_carve(&carve, n * c->hidden_size);
	record->rows = nn_carve(&carve, n * c->hidden_size);
	record->weights = nn_carve(&carve, n * c->top_k);
	record->ids = nn_carve(&carve, n * c->top_k);
	record->q = nn_carve(&carve, n * q);
	record->k = nn_carve(&carve, n * kv);
	record->v = nn_carve(&carve, n * kv);
	record->mixed = nn_carve(&carve, n * q);
	record->log_sums = nn_carve(&carve, n * c->n_heads);
	record->probs = nn_carve(&carve, n * c->n_experts);
	record->scale1 = nn_carve(&carve, n);
	record->scale2 = nn_carve(&carve, n);
	return carve.bytes;
}

size_t nn_attention_record_bytes(const struct model_config *config, uint32_t seq_len,
	uint32_t n_seqs)
{
	struct nn_attention_record record;

	return lay_out(config, seq_len, n_seqs, NULL, &record);
}

void nn_attention_record_init(const struct model_config *config, uint32_t seq_len,
	uint32_t n_seqs, void *memory, struct nn_attention_record *record)
{
	lay_out(config, seq_len, n_seqs, memory, record);
}

/* The part of a record that one sequence has. */
static struct nn_attention_record sequence_of(const struct model_config *c,
	const struct nn_attention_record *record, uint32_t seq)
{
	size_t n = record->n_rows / record->n_seqs, at = seq * n;
	size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;

	return (struct nn_attention_record){1, n, record->x + at * c->hidden_size,
		record->y + at * c->hidden_size, record->rows + at * c->hidden_size,
		record->weights + at * c->top_k, record->ids + at * c->top_k, record->q + at * q,
		record->k + at * kv, record->v + at * kv, record->mixed + at * q,
		record->log_sums + at * c->n_heads, record->probs + at * c->n_experts,
		record->scale1 + at, record->scale2 + at};
}

/* The tensors of the part. */
struct side {
	struct nn_param *norm1, *q, *k, *v, *o, *norm2, *gate;
};

static struct side side_of(const struct nn_params *params, uint32_t layer)
{
	return (struct side){nn_params_layer(params, layer, MODEL_INPUT_NORM),
		nn_params_layer(params, layer, MODEL_Q), nn_params_layer(params, layer, MODEL_K),
		nn_params_layer(params, layer, MODEL_V), nn_params_layer(params, layer, MODEL_O),
		nn_params_layer(params, layer, MODEL_POST_NORM),
		nn_params_layer(params, layer, MODEL_GATE)};
}

/* y = x + attention(norm(x)) */
static void forward_attention(struct nn_work *work, const struct side *side,
	struct nn_attention_record *s)
{
	const struct model_config *c = work->config;
	size_t h = c->hidden_size, q = side->q->shape[0], kv = side->k->shape[0];

	nn_norm(side->norm1, c->rms_norm_eps, s->x, s->n_rows, s->scale1, work->hidden);
	nn_product(work, side->q, work->hidden, s->n_rows, h, s->q, q);
	nn_product(work, side->k, work->hidden, s->n_rows, h, s->k, kv);
	nn_product(work, side->v, work->hidden, s->n_rows, h, s->v, kv);
	nn_rotate(work, c->n_heads, 1, s->q);
	nn_rotate(work, c->n_kv_heads, 1, s->k);
	nn_attend(work, s->q, s->k, s->v, s->mixed, s->log_sums);
	nn_product(work, side->o, s->mixed, s->n_rows, q, s->y, h);
	for (size_t i = 0; i < s->n_rows * h; i++)
		s->y[i] += s->x[i];
}

/* rows = norm(y), and where they go */
static void forward_router(struct nn_work *work, const struct side *side,
	struct nn_attention_record *s)
{
	const struct model_config *c = work->config;

	nn_norm(side->norm2, c->rms_norm_eps, s->y, s->n_rows, s->scale2, s->rows);
	nn_product(work, side->gate, s->rows, s->n_rows, c->hidden_size, s->probs, c->n_experts);
	for (size_t row = 0; row < s->n_rows; row++)
		nn_route_row(c, s->probs + row * c->n_experts, s->ids + row * c->top_k,
			s->weights + row * c->top_k);
}

void nn_attention_forward(const struct nn_params *params, struct nn_work *work, uint32_t layer,
	struct nn_attention_record *record)
{
	struct side side = side_of(params, layer);

	for (uint32_t seq = 0; seq < record->n_seqs; seq++) {
		struct nn_attention_record s = sequence_of(&params->config, record, seq);

		forward_attention(work, &side, &s);
		forward_router(work, &side, &s);
	}
}

/* y becomes its gradient, probs those of the logits. */
static void backward_router(struct nn_work *work, const struct side *side,
	struct nn_attention_record *s, const float *d_rows, const float *d_weights,
	const float *d_out, double balance_scale)
{
	size_t h = work->config->hidden_size;

	nn_route_backward(work, s->probs, s->ids, s->weights, d_weights, balance_scale);
	memcpy(work->hidden, d_rows, s->n_rows * h * sizeof(float));
	nn_product_input_grad(side->gate, s->probs, s->n_rows, 1, work->hidden, h);
	nn_norm_backward(side->norm2, s->y, s->scale2, work->hidden, d_out, s->n_rows, s->y);
}

/* q, k, v become the gradients of what the projections gave. y is its gradient. */
static void backward_attention(struct nn_work *work, const struct side *side,
	struct nn_attention_record *s, float *dx)
{
	const struct model_config *c = work->config;
	size_t h = c->hidden_size;

	nn_product_input_grad(side->o, s->y, s->n_rows, 0, work->heads, side->o->shape[1]);
	nn_attend_backward(work, s->q, s->k, s->v, s->log_sums, work->heads);
	nn_rotate(work, c->n_heads, -1, s->q);
	nn_rotate(work, c->n_kv_heads, -1, s->k);
	nn_product_input_grad(side->q, s->q, s->n_rows, 0, work->hidden, h);
	nn_product_input_grad(side->k, s->k, s->n_rows, 1, work->hidden, h);
	nn_product_input_grad(side->v, s->v, s->n_rows, 1, work->hidden, h);
	nn_norm_backward(side->norm1, s->x, s->scale1, work->hidden, s->y, s->n_rows, dx);
}

void nn_attention_backward_input(struct nn_params *params, struct nn_work *work, uint32_t layer,
	struct nn_attention_record *record, const float *d_rows, const float *d_weights,
	const float *d_out, double balance_scale, float *dx)
{
	struct side side = side_of(params, layer);
	size_t n = record->n_rows / record->n_seqs, h = params->config.hidden_size;

	for (uint32_t seq = 0; seq < record->n_seqs; seq++) {
		struct nn_attention_record s = sequence_of(&params->config, record, seq);
		size_t at = seq * n * h;

		backward_router(work, &side, &s, d_rows + at,
			d_weights + seq * n * params->config.top_k, d_out + at, balance_scale);
		backward_attention(work, &side, &s, dx + at);
	}
}

void nn_attention_backward_weights(struct nn_params *params, struct nn_work *work, uint32_t layer,
	struct nn_attention_record *record)
{
	struct side side = side_of(params, layer);

	nn_product_weight_grad(side.o, record->y, record->mixed, record->n_rows);
	nn_product_weight_grad(side.gate, record->probs, record->rows, record->n_rows);
	for (uint32_t seq = 0; seq < record->n_seqs; seq++) {
		struct nn_attention_record s = sequence_of(&params->config, record, seq);

		nn_norm_again(side.norm1, s.x, s.scale1, s.n_rows, work->hidden);
		nn_product_weight_grad(side.q, s.q, work->hidden, s.n_rows);
		nn_product_weight_grad(side.k, s.k, work->hidden, s.n_rows);
		nn_product_weight_grad(side.v, s.v, work->hidden, s.n_rows);
	}
}
