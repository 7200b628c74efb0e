/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All of the transformer but attention: norms, router, experts, head. Loops over rows; sums that
 * are not products of matrices run in a fixed order in double precision.
 */
#include "model.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "scratch.h"

#define NORM_LANES 8

/* cos and sin of position * theta^(-2i / head_dim), angles in fp32 as Hugging Face has them. */
static int fill_rope(struct model *model)
{
	size_t half = model->config->head_dim / 2;

	model->rope = malloc(model->max_tokens * 2 * half * sizeof(float));
	if (!model->rope)
		return model_fail(-ENOMEM, "no memory for angles of %zu positions",
			model->max_tokens);
	for (size_t i = 0; i < half; i++) {
		float frequency = 1.0f / (float)pow(model->config->rope_theta,
			(double)(2 * i) / (double)(2 * half));

		for (size_t position = 0; position < model->max_tokens; position++) {
			float angle = (float)position * frequency;

			model->rope[position * 2 * half + i] = cosf(angle);
			model->rope[position * 2 * half + half + i] = sinf(angle);
		}
	}
	return 0;
}

int model_create(struct model_weights *weights, size_t max_tokens, struct model **model)
{
	struct model *created = calloc(1, sizeof(*created));
	size_t limit = weights->config.max_positions;
	int rc;

	if (!created) {
		model_weights_close(weights);
		return model_fail(-ENOMEM, "no memory");
	}
	created->weights = weights;
	created->config = &weights->config;
	created->max_tokens = max_tokens ? max_tokens : limit;
	if (created->max_tokens > limit)
		rc = model_fail(-EINVAL, "%zu tokens are more than max_position_embeddings, %zu",
			created->max_tokens, limit);
	else
		rc = fill_rope(created);
	if (rc) {
		model_close(created);
		return rc;
	}
	*model = created;
	return 0;
}

int model_open(const char *dir, const struct model_weights_params *params, size_t max_tokens,
	struct model **model)
{
	struct model_weights *weights;
	int rc = model_weights_open(dir, params, &weights);

	return rc ? rc : model_create(weights, max_tokens, model);
}

void model_close(struct model *model)
{
	if (!model)
		return;
	model_weights_close(model->weights);
	free(model->rope);
	free(model);
}

static size_t largest(size_t a, size_t b)
{
	return a > b ? a : b;
}

struct model_scratch *model_scratch_open(const struct model *model)
{
	const struct model_config *c = model->config;
	size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
	size_t places = (model->max_tokens + MODEL_PAGE_TOKENS) * (c->n_heads / c->n_kv_heads);
	struct model_scratch *s = calloc(1, sizeof(*s));
	struct {
		float **at;
		size_t n_values;
	} parts[] = {{&s->normed, c->hidden_size}, {&s->q, q}, {&s->k, kv}, {&s->v, kv},
		{&s->mixed, q}, {&s->added, c->hidden_size}, {&s->gate, c->intermediate_size},
		{&s->up, c->intermediate_size}, {&s->router, c->n_experts}};
	size_t n_values = places, n_parts = sizeof(parts) / sizeof(parts[0]);

	if (!s)
		return NULL;
	for (size_t i = 0; i < n_parts; i++)
		n_values += MODEL_CHUNK_ROWS * parts[i].n_values;
	s->work = model_work_open(largest(largest(c->hidden_size, c->intermediate_size), q));
	s->memory = malloc(n_values * sizeof(float));
	if (!s->work || !s->memory) {
		model_scratch_close(s);
		return NULL;
	}
	s->scores = s->memory;
	for (size_t i = 0, at = places; i < n_parts; i++) {
		*parts[i].at = s->memory + at;
		at += MODEL_CHUNK_ROWS * parts[i].n_values;
	}
	return s;
}

void model_scratch_close(struct model_scratch *scratch)
{
	if (!scratch)
		return;
	model_work_close(scratch->work);
	free(scratch->memory);
	free(scratch);
}

int model_check_ids(const struct model *model, const uint32_t *ids, size_t n_ids)
{
	for (size_t i = 0; i < n_ids; i++)
		if (ids[i] >= model->config->vocab_size)
			return model_fail(-EINVAL, "token %zu is %u; the vocabulary has %u", i,
				ids[i], model->config->vocab_size);
	return 0;
}

void model_embed(const struct model *model, const uint32_t *ids, size_t n_ids, float *x)
{
	struct model_matrix table = model_weights_matrix(model->weights, 0);
	size_t row_bytes = table.n_in * model_dtype_bytes(table.dtype);

	for (size_t i = 0; i < n_ids; i++)
		model_to_f32(table.dtype, (const char *)table.data + ids[i] * row_bytes, table.n_in,
			x + i * table.n_in);
}

static float row_scale(const float *x, size_t n_values, double eps)
{
	double lanes[NORM_LANES] = {0}, sum = 0;

	for (size_t i = 0; i + NORM_LANES <= n_values; i += NORM_LANES)
		for (size_t j = 0; j < NORM_LANES; j++)
			lanes[j] += (double)x[i + j] * x[i + j];
	for (size_t i = n_values / NORM_LANES * NORM_LANES; i < n_values; i++)
		sum += (double)x[i] * x[i];
	for (size_t j = 0; j < NORM_LANES; j++)
		sum += lanes[j];
	return (float)(1 / sqrt(sum / (double)n_values + eps));
}

void model_norm(const struct model *model, size_t weight_index, const float *x, size_t n_rows,
	float *y)
{
	const float *weight = model_weights_vector(model->weights, weight_index);
	size_t n_values = model->config->hidden_size;

	for (size_t row = 0; row < n_rows; row++, x += n_values, y += n_values) {
		float scale = row_scale(x, n_values, model->config->rms_norm_eps);

		for (size_t i = 0; i < n_values; i++)
			y[i] = weight[i] * (x[i] * scale);
	}
}

void model_moe_rows(const struct model *model, uint32_t layer, const float *x, size_t n_rows,
	float *rows)
{
	model_norm(model, model_layer_index(model->config, layer, MODEL_POST_NORM), x, n_rows,
		rows);
}

/* Logits of all experts into the k likeliest; logits are used up. */
static void choose(float *logits, uint32_t n_experts, uint32_t top_k, int32_t *ids, float *weights)
{
	float max = logits[0];
	double sum = 0, chosen = 0;

	for (uint32_t i = 1; i < n_experts; i++)
		max = logits[i] > max ? logits[i] : max;
	for (uint32_t i = 0; i < n_experts; i++) {
		logits[i] = expf(logits[i] - max);
		sum += logits[i];
	}
	for (uint32_t i = 0; i < n_experts; i++)
		logits[i] = (float)(logits[i] / sum);
	for (uint32_t k = 0; k < top_k; k++) {
		uint32_t best = model_argmax(logits, n_experts);

		ids[k] = (int32_t)best;
		weights[k] = logits[best];
		chosen += logits[best];
		logits[best] = -1.0f;
	}
	for (uint32_t k = 0; k < top_k; k++)
		weights[k] = (float)(weights[k] / chosen);
}

void model_route(const struct model *model, struct model_scratch *scratch, uint32_t layer,
	const float *rows, size_t n_rows, int32_t *ids, float *weights)
{
	const struct model_config *c = model->config;
	struct model_matrix gate = model_weights_matrix(model->weights,
		model_layer_index(c, layer, MODEL_GATE));

	for (size_t row = 0, n; row < n_rows; row += n) {
		n = n_rows - row < MODEL_CHUNK_ROWS ? n_rows - row : MODEL_CHUNK_ROWS;
		model_product(scratch->work, &gate, rows + row * c->hidden_size, n, c->hidden_size,
			scratch->router, c->n_experts);
		for (size_t i = 0; i < n; i++)
			choose(scratch->router + i * c->n_experts, c->n_experts, c->top_k,
				ids + (row + i) * c->top_k, weights + (row + i) * c->top_k);
	}
}

void model_expert(const struct model *model, struct model_scratch *scratch, uint32_t layer,
	uint32_t expert, const float *rows, size_t n_rows, size_t stride, float *replies,
	size_t reply_stride)
{
	const struct model_weights *weights = model->weights;
	size_t first = model_expert_index(model->config, layer, expert, 1);
	struct model_matrix w1 = model_weights_matrix(weights, first);
	struct model_matrix w2 = model_weights_matrix(weights, first + 1);
	struct model_matrix w3 = model_weights_matrix(weights, first + 2);
	float *gate = scratch->gate, *up = scratch->up;

	for (size_t row = 0, n; row < n_rows; row += n) {
		n = n_rows - row < MODEL_CHUNK_ROWS ? n_rows - row : MODEL_CHUNK_ROWS;
		model_product(scratch->work, &w1, rows + row * stride, n, stride, gate, w1.n_out);
		model_product(scratch->work, &w3, rows + row * stride, n, stride, up, w3.n_out);
		for (size_t i = 0; i < n * w1.n_out; i++)
			gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
		model_product(scratch->work, &w2, gate, n, w2.n_in, replies + row * reply_stride,
			reply_stride);
	}
}

void model_combine(const struct model *model, const float *replies, const float *weights,
	size_t n_rows, float *x)
{
	size_t hidden = model->config->hidden_size, top_k = model->config->top_k;

	for (size_t row = 0; row < n_rows; row++, x += hidden)
		for (size_t k = 0; k < top_k; k++) {
			float weight = weights[row * top_k + k];
			const float *reply = replies + (row * top_k + k) * hidden;

			for (size_t i = 0; i < hidden; i++)
				x[i] = fmaf(weight, reply[i], x[i]);
		}
}

void model_logits(const struct model *model, struct model_scratch *scratch, const float *x,
	size_t n_rows, float *logits)
{
	const struct model_config *c = model->config;
	struct model_matrix head = model_weights_matrix(model->weights, model_head_index(c));

	for (size_t row = 0, n; row < n_rows; row += n) {
		n = n_rows - row < MODEL_CHUNK_ROWS ? n_rows - row : MODEL_CHUNK_ROWS;
		model_norm(model, model_final_norm_index(c), x + row * c->hidden_size, n,
			scratch->normed);
		model_product(scratch->work, &head, scratch->normed, n, c->hidden_size,
			logits + row * c->vocab_size, c->vocab_size);
	}
}
