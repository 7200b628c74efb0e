/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The expert side of a layer: w2(silu(w1 row) * w3 row) for the rows of one expert, its gradient
 * by the rows, and, apart, by the matrices.
 */
#include "nn/work.h"

#include <math.h>
#include <string.h>

static size_t lay_out(const struct model_config *c, size_t max_rows, void *memory,
	struct nn_expert_record *record)
{
	struct nn_carve carve = {memory, 0};

	*record = (struct nn_expert_record){.max_rows = max_rows};
	record->rows = nn_carve(&carve, max_rows * c->hidden_size);
	record->gate = nn_carve(&carve, max_rows * c->intermediate_size);
	record->up = nn_carve(&carve, max_rows * c->intermediate_size);
	record->act = nn_carve(&carve, max_rows * c->intermediate_size);
	record->d_out = nn_carve(&carve, max_rows * c->hidden_size);
	return carve.bytes;
}

size_t nn_expert_record_bytes(const struct model_config *config, size_t max_rows)
{
	struct nn_expert_record record;

	return lay_out(config, max_rows, NULL, &record);
}

void nn_expert_record_init(const struct model_config *config, size_t max_rows, void *memory,
	struct nn_expert_record *record)
{
	lay_out(config, max_rows, memory, record);
}

static void copy_rows(float *dst, const float *src, size_t n_rows, size_t stride, size_t n_values)
{
	for (size_t row = 0; row < n_rows; row++)
		memcpy(dst + row * n_values, src + row * stride, n_values * sizeof(float));
}

void nn_expert_forward(const struct nn_params *params, struct nn_work *work, uint32_t layer,
	uint32_t expert, struct nn_expert_record *record, const float *rows, size_t n_rows,
	size_t stride, float *replies, size_t reply_stride)
{
	size_t h = params->config.hidden_size, inner = params->config.intermediate_size;
	size_t at = record->n_rows * inner;
	float *own_rows = record->rows + record->n_rows * h;
	float *gate = record->gate + at, *up = record->up + at, *act = record->act + at;

	copy_rows(own_rows, rows, n_rows, stride, h);
	nn_product(work, nn_params_expert(params, layer, expert, 1), own_rows, n_rows, h, gate,
		inner);
	nn_product(work, nn_params_expert(params, layer, expert, 3), own_rows, n_rows, h, up,
		inner);
	for (size_t i = 0; i < n_rows * inner; i++)
		act[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
	nn_product(work, nn_params_expert(params, layer, expert, 2), act, n_rows, inner, replies,
		reply_stride);
	record->n_rows += n_rows;
}

/* gate and up become their gradients from the product's. With s = 1 / (1 + exp(-g)), silu(g) = g s
 * and silu'(g) = s + g s (1 - s). */
static void backward_act(float *gate, float *up, const float *d_act, size_t n_values)
{
	for (size_t i = 0; i < n_values; i++) {
		float s = 1.0f / (1.0f + expf(-gate[i])), silu = gate[i] * s;

		gate[i] = d_act[i] * up[i] * (s + silu * (1.0f - s));
		up[i] = d_act[i] * silu;
	}
}

void nn_expert_backward_input(const struct nn_params *params, struct nn_work *work, uint32_t layer,
	uint32_t expert, struct nn_expert_record *record, size_t first_row, const float *d_out,
	size_t n_rows, size_t stride, float *d_rows, size_t d_rows_stride)
{
	size_t h = params->config.hidden_size, inner = params->config.intermediate_size;
	const struct nn_param *w1 = nn_params_expert(params, layer, expert, 1);
	const struct nn_param *w2 = nn_params_expert(params, layer, expert, 2);
	const struct nn_param *w3 = nn_params_expert(params, layer, expert, 3);

	for (size_t row = 0, n; row < n_rows; row += n) {
		size_t at = first_row + row;
		float *own_d_out = record->d_out + at * h;
		float *gate = record->gate + at * inner, *up = record->up + at * inner;

		n = n_rows - row < NN_CHUNK_ROWS ? n_rows - row : NN_CHUNK_ROWS;
		copy_rows(own_d_out, d_out + row * stride, n, stride, h);
		nn_product_input_grad(w2, own_d_out, n, 0, work->wide, inner);
		backward_act(gate, up, work->wide, n * inner);
		nn_product_input_grad(w1, gate, n, 0, d_rows + row * d_rows_stride, d_rows_stride);
		nn_product_input_grad(w3, up, n, 1, d_rows + row * d_rows_stride, d_rows_stride);
	}
}

void nn_expert_backward_weights(struct nn_params *params, struct nn_work *work, uint32_t layer,
	uint32_t expert, struct nn_expert_record *record)
{
	(void)work;
	nn_product_weight_grad(nn_params_expert(params, layer, expert, 1), record->gate,
		record->rows, record->n_rows);
	nn_product_weight_grad(nn_params_expert(params, layer, expert, 2), record->d_out,
		record->act, record->n_rows);
	nn_product_weight_grad(nn_params_expert(params, layer, expert, 3), record->up,
		record->rows, record->n_rows);
	record->n_rows = 0;
}
