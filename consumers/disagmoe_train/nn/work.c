/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread's buffers; products and norms with their gradients.
 */
#include "nn/work.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#include "model/error.h"

#define ALIGN 64
#define NORM_LANES 8

void *nn_carve(struct nn_carve *carve, size_t n_values)
{
	char *at = carve->memory ? carve->memory + carve->bytes : NULL;

	carve->bytes += (n_values * sizeof(float) + ALIGN - 1) / ALIGN * ALIGN;
	return at;
}

static size_t lay_out(struct nn_work *work, const struct model_config *c, uint32_t seq_len,
	void *memory)
{
	size_t rows = seq_len > NN_CHUNK_ROWS ? seq_len : NN_CHUNK_ROWS;
	struct nn_carve carve = {memory, 0};

	work->rope = nn_carve(&carve, (size_t)seq_len * c->head_dim);
	work->hidden = nn_carve(&carve, rows * c->hidden_size);
	work->heads = nn_carve(&carve, rows * c->n_heads * c->head_dim);
	work->wide = nn_carve(&carve, (size_t)NN_CHUNK_ROWS * c->intermediate_size);
	work->scores = nn_carve(&carve, (size_t)NN_QUERY_BLOCK * seq_len);
	work->d_scores = nn_carve(&carve, (size_t)NN_QUERY_BLOCK * seq_len);
	work->d_k = nn_carve(&carve, (size_t)seq_len * c->head_dim);
	work->d_v = nn_carve(&carve, (size_t)seq_len * c->head_dim);
	work->experts = nn_carve(&carve, 2 * (size_t)c->n_experts);
	return carve.bytes;
}

/* cos and sin of position * theta^(-2i / head_dim), in fp32 as the served model has them. */
static void fill_rope(struct nn_work *work)
{
	size_t half = work->config->head_dim / 2;

	for (size_t i = 0; i < half; i++) {
		float frequency = 1.0f / (float)pow(work->config->rope_theta,
			(double)(2 * i) / (double)(2 * half));

		for (size_t position = 0; position < work->seq_len; position++) {
			float angle = (float)position * frequency;

			work->rope[position * 2 * half + i] = cosf(angle);
			work->rope[position * 2 * half + half + i] = sinf(angle);
		}
	}
}

static size_t largest(size_t a, size_t b)
{
	return a > b ? a : b;
}

int nn_work_open(const struct model_config *config, uint32_t seq_len, struct nn_work **work)
{
	struct nn_work *opened;
	size_t bytes;

	if (seq_len == 0 || seq_len > config->max_positions)
		return model_fail(-EINVAL, "sequences of %u tokens; 1 to max_position_embeddings, "
			"%u, are possible", seq_len, config->max_positions);
	opened = calloc(1, sizeof(*opened));
	if (!opened)
		return model_fail(-ENOMEM, "no memory");
	opened->own_config = *config;
	opened->config = &opened->own_config;
	opened->seq_len = seq_len;
	opened->product = model_work_open(largest(largest(config->hidden_size,
		config->intermediate_size), (size_t)config->n_heads * config->head_dim));
	bytes = lay_out(opened, config, seq_len, NULL);
	if (posix_memalign(&opened->memory, ALIGN, bytes) != 0)
		opened->memory = NULL;
	if (!opened->product || !opened->memory) {
		nn_work_close(opened);
		return model_fail(-ENOMEM, "no memory for sequences of %u tokens, %zu bytes",
			seq_len, bytes);
	}
	lay_out(opened, config, seq_len, opened->memory);
	fill_rope(opened);
	*work = opened;
	return 0;
}

void nn_work_close(struct nn_work *work)
{
	if (!work)
		return;
	model_work_close(work->product);
	free(work->memory);
	free(work);
}

size_t nn_work_bytes(const struct model_config *config, uint32_t seq_len)
{
	struct nn_work work;

	return sizeof(work) + lay_out(&work, config, seq_len, NULL);
}

void nn_product(struct nn_work *work, const struct nn_param *w, const float *x, size_t n_rows,
	size_t x_stride, float *y, size_t y_stride)
{
	struct model_matrix matrix = {w->value, MODEL_F32, w->shape[0], w->shape[1]};

	model_product(work->product, &matrix, x, n_rows, x_stride, y, y_stride);
}

void nn_product_input_grad(const struct nn_param *w, const float *dy, size_t n_rows, int add,
	float *dx, size_t dx_stride)
{
	blasint n_out = (blasint)w->shape[0], n_in = (blasint)w->shape[1];

	if (n_rows > 0)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)n_rows, n_in, n_out,
			1.0f, dy, n_out, w->value, n_in, add ? 1.0f : 0.0f, dx, (blasint)dx_stride);
}

void nn_product_weight_grad(struct nn_param *w, const float *dy, const float *x, size_t n_rows)
{
	blasint n_out = (blasint)w->shape[0], n_in = (blasint)w->shape[1];

	if (n_rows > 0)
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n_out, n_in, (blasint)n_rows,
			1.0f, dy, n_out, x, n_in, 1.0f, w->grad, n_in);
}

/* In lanes, so that the compiler may use vectors without changing the order of sums. */
double nn_dot(const float *a, const float *b, size_t n_values)
{
	double lanes[NORM_LANES] = {0}, sum = 0;

	for (size_t i = 0; i + NORM_LANES <= n_values; i += NORM_LANES)
		for (size_t j = 0; j < NORM_LANES; j++)
			lanes[j] += (double)a[i + j] * b[i + j];
	for (size_t i = n_values / NORM_LANES * NORM_LANES; i < n_values; i++)
		sum += (double)a[i] * b[i];
	for (size_t j = 0; j < NORM_LANES; j++)
		sum += lanes[j];
	return sum;
}

void nn_norm_again(const struct nn_param *weight, const float *x, const float *scale,
	size_t n_rows, float *y)
{
	size_t n = weight->n_values;

	for (size_t row = 0; row < n_rows; row++, x += n, y += n)
		for (size_t i = 0; i < n; i++)
			y[i] = weight->value[i] * (x[i] * scale[row]);
}

void nn_norm(const struct nn_param *weight, double eps, const float *x, size_t n_rows,
	float *scale, float *y)
{
	size_t n = weight->n_values;

	for (size_t row = 0; row < n_rows; row++) {
		double squares = nn_dot(x + row * n, x + row * n, n);

		scale[row] = (float)(1 / sqrt(squares / (double)n + eps));
	}
	nn_norm_again(weight, x, scale, n_rows, y);
}

void nn_norm_backward(struct nn_param *weight, const float *x, const float *scale,
	const float *dy, const float *residual, size_t n_rows, float *dx)
{
	size_t n = weight->n_values;

	for (size_t row = 0; row < n_rows; row++, x += n, dy += n, dx += n) {
		const float *add = residual ? residual + row * n : NULL;
		float s = scale[row], mean = 0;
		double sum = 0;

		for (size_t i = 0; i < n; i++) {
			sum += (double)(dy[i] * weight->value[i]) * x[i];
			weight->grad[i] += dy[i] * (x[i] * s);
		}
		mean = (float)(sum * s * s / (double)n);
		for (size_t i = 0; i < n; i++) {
			float d = s * (dy[i] * weight->value[i] - x[i] * mean);

			dx[i] = add ? add[i] + d : d;
		}
	}
}
