/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ends of the model: the embedding, and the final norm, the head and the cross entropy.
 */
#include "nn/work.h"

#include <math.h>
#include <string.h>

void nn_embedding_forward(const struct nn_params *params, const uint32_t *ids, size_t n_rows,
	float *x)
{
	const struct nn_param *table = params->by_index[0];
	size_t h = table->shape[1];

	for (size_t row = 0; row < n_rows; row++)
		memcpy(x + row * h, table->value + ids[row] * h, h * sizeof(float));
}

void nn_embedding_backward(struct nn_params *params, const uint32_t *ids, size_t n_rows,
	const float *dx)
{
	const struct nn_param *table = params->by_index[0];
	size_t h = table->shape[1];

	for (size_t row = 0; row < n_rows; row++) {
		float *grad = table->grad + ids[row] * h;

		for (size_t i = 0; i < h; i++)
			grad[i] += dx[row * h + i];
	}
}

static size_t lay_out(const struct model_config *c, size_t n_rows, void *memory,
	struct nn_head_record *record)
{
	struct nn_carve carve = {memory, 0};

	*record = (struct nn_head_record){.n_rows = n_rows};
	record->x = nn_carve(&carve, n_rows * c->hidden_size);
	record->normed = nn_carve(&carve, n_rows * c->hidden_size);
	record->logits = nn_carve(&carve, n_rows * c->vocab_size);
	record->scale = nn_carve(&carve, n_rows);
	record->log_sums = nn_carve(&carve, n_rows);
	return carve.bytes;
}

size_t nn_head_record_bytes(const struct model_config *config, size_t n_rows)
{
	struct nn_head_record record;

	return lay_out(config, n_rows, NULL, &record);
}

void nn_head_record_init(const struct model_config *config, size_t n_rows, void *memory,
	struct nn_head_record *record)
{
	lay_out(config, n_rows, memory, record);
}

static struct nn_param *norm_of(const struct nn_params *params)
{
	return params->by_index[model_final_norm_index(&params->config)];
}

static struct nn_param *head_of(const struct nn_params *params)
{
	return params->by_index[model_head_index(&params->config)];
}

static float log_sum_exp(const float *logits, size_t n)
{
	float max = logits[0];
	double sum = 0;

	for (size_t i = 1; i < n; i++)
		max = logits[i] > max ? logits[i] : max;
	for (size_t i = 0; i < n; i++)
		sum += expf(logits[i] - max);
	return max + (float)log(sum);
}

double nn_head_forward(const struct nn_params *params, struct nn_work *work,
	struct nn_head_record *record, const uint32_t *targets)
{
	size_t h = params->config.hidden_size, n = params->config.vocab_size;
	double loss = 0;

	nn_norm(norm_of(params), params->config.rms_norm_eps, record->x, record->n_rows,
		record->scale, record->normed);
	nn_product(work, head_of(params), record->normed, record->n_rows, h, record->logits, n);
	for (size_t row = 0; targets && row < record->n_rows; row++) {
		const float *logits = record->logits + row * n;

		record->log_sums[row] = log_sum_exp(logits, n);
		loss += (double)record->log_sums[row] - logits[targets[row]];
	}
	return loss;
}

void nn_head_backward_input(struct nn_params *params, struct nn_work *work,
	struct nn_head_record *record, const uint32_t *targets, double loss_scale, float *dx)
{
	size_t h = params->config.hidden_size, n_values = params->config.vocab_size;
	float scale = (float)loss_scale;

	for (size_t row = 0; row < record->n_rows; row++) {
		float *logits = record->logits + row * n_values;

		for (size_t i = 0; i < n_values; i++)
			logits[i] = expf(logits[i] - record->log_sums[row]) * scale;
		logits[targets[row]] -= scale;
	}
	for (size_t row = 0, n; row < record->n_rows; row += n) {
		n = record->n_rows - row < NN_CHUNK_ROWS ? record->n_rows - row : NN_CHUNK_ROWS;
		nn_product_input_grad(head_of(params), record->logits + row * n_values, n, 0,
			work->hidden, h);
		nn_norm_backward(norm_of(params), record->x + row * h, record->scale + row,
			work->hidden, NULL, n, dx + row * h);
	}
}

void nn_head_backward_weights(struct nn_params *params, struct nn_work *work,
	struct nn_head_record *record)
{
	(void)work;
	nn_product_weight_grad(head_of(params), record->logits, record->normed, record->n_rows);
}
