/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of a rank's parameters. Names and shapes are read off an empty set of the model's
 * weights, so that there is one list of them; the random numbers are those of weights_fill.c with
 * another scale: a counter through splitmix64, seeded by the tensor's name, and Box-Muller.
 */
#include "nn/params.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

#define ALIGN_VALUES 16
#define N_SLABS 4
#define INIT_STD 0.02

static int check_config(const struct model_config *config)
{
	int rc = model_config_check(config, "model");

	if (!rc && config->tie_word_embeddings)
		rc = model_fail(-EINVAL, "model: tie_word_embeddings cannot be trained: embedding "
			"and head lie on different ranks; set it to false");
	if (!rc && config->dtype != MODEL_F32)
		rc = model_fail(-EINVAL, "model: weights in %s cannot be trained; set torch_dtype "
			"to float32", model_dtype_torch_name(config->dtype));
	return rc;
}

/* Which part of the model a tensor belongs to, by its place in the list of all. */
static void locate(const struct model_config *config, size_t index, struct nn_param *param)
{
	size_t per_layer = model_layer_index(config, 1, MODEL_INPUT_NORM) -
		model_layer_index(config, 0, MODEL_INPUT_NORM);
	size_t which;

	param->index = index;
	param->part = index == 0 ? NN_EMBEDDING : NN_HEAD;
	param->layer = param->expert = 0;
	if (index == 0 || index >= model_final_norm_index(config))
		return;
	which = (index - 1) % per_layer;
	param->layer = (uint32_t)((index - 1) / per_layer);
	param->part = which < MODEL_EXPERTS ? NN_ATTENTION : NN_EXPERT;
	if (which >= MODEL_EXPERTS)
		param->expert = (uint32_t)(which - MODEL_EXPERTS) / 3;
}

static int is_wanted(nn_wanted *wanted, void *arg, const struct nn_param *param)
{
	return !wanted || wanted(arg, param->part, param->layer, param->expert);
}

/* Fills the list and counts values; params->n is 0 before. */
static void list_params(struct nn_params *params, nn_wanted *wanted, void *arg)
{
	const struct model_weights *names = params->names;

	for (size_t i = 0; i < names->n_tensors; i++) {
		const struct model_tensor *tensor = &names->tensors[i];
		struct nn_param *param = &params->list[params->n];

		locate(&params->config, i, param);
		if (!is_wanted(wanted, arg, param))
			continue;
		param->name = tensor->name;
		param->n_dims = tensor->n_dims;
		param->shape[0] = tensor->shape[0];
		param->shape[1] = tensor->n_dims == 2 ? tensor->shape[1] : 0;
		param->n_values = tensor->shape[0] * (tensor->n_dims == 2 ? tensor->shape[1] : 1);
		param->decays = tensor->n_dims == 2;
		params->by_index[i] = param;
		params->n_values += param->n_values;
		params->n++;
	}
}

static size_t slab_values(size_t n_values)
{
	return (n_values + ALIGN_VALUES - 1) / ALIGN_VALUES * ALIGN_VALUES;
}

static int make_slabs(struct nn_params *params)
{
	size_t slab = slab_values(params->n_values), at = 0;
	size_t bytes = N_SLABS * slab * sizeof(float);
	void *memory;

	if (posix_memalign(&memory, ALIGN_VALUES * sizeof(float), bytes ? bytes : 64) != 0)
		return model_fail(-ENOMEM, "no memory for %zu parameters, %zu bytes",
			params->n_values, bytes);
	memset(memory, 0, bytes);
	params->values = memory;
	params->grads = params->values + slab;
	params->m = params->grads + slab;
	params->v = params->m + slab;
	for (size_t i = 0; i < params->n; i++) {
		struct nn_param *param = &params->list[i];

		param->value = params->values + at;
		param->grad = params->grads + at;
		param->m = params->m + at;
		param->v = params->v + at;
		at += param->n_values;
	}
	return 0;
}

int nn_params_create(const struct model_config *config, nn_wanted *wanted, void *arg,
	struct nn_params **params)
{
	struct model_weights_params none = {0};
	struct nn_params *created;
	int rc = check_config(config);

	if (rc)
		return rc;
	created = calloc(1, sizeof(*created));
	if (!created)
		return model_fail(-ENOMEM, "no memory");
	created->config = *config;
	rc = model_weights_create(config, &none, &created->names);
	if (!rc) {
		created->list = calloc(created->names->n_tensors, sizeof(created->list[0]));
		created->by_index = calloc(created->names->n_tensors,
			sizeof(created->by_index[0]));
		if (!created->list || !created->by_index)
			rc = model_fail(-ENOMEM, "no memory for a list of %zu tensors",
				created->names->n_tensors);
	}
	if (!rc) {
		list_params(created, wanted, arg);
		rc = make_slabs(created);
	}
	if (rc) {
		nn_params_destroy(created);
		return rc;
	}
	*params = created;
	return 0;
}

void nn_params_destroy(struct nn_params *params)
{
	if (!params)
		return;
	model_weights_close(params->names);
	free(params->values);
	free(params->list);
	free(params->by_index);
	free(params);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void fill_normal(struct nn_param *param, uint64_t seed, double std)
{
	uint64_t start = mix(seed);

	for (const char *at = param->name; *at; at++)
		start = mix(start ^ (unsigned char)*at);
	for (size_t i = 0; i < param->n_values; i++) {
		uint64_t bits = mix(start + i);
		double radius = sqrt(-2 * log((double)((bits >> 32) + 1) * 0x1p-32));
		double angle = 6.283185307179586 * (double)(bits & 0xffffffff) * 0x1p-32;

		param->value[i] = (float)(std * radius * cos(angle));
	}
}

/* Whether the product is added to the residual stream. */
static int is_output(const struct nn_params *params, const struct nn_param *param)
{
	const struct model_config *c = &params->config;

	return (param->part == NN_ATTENTION &&
		param->index == model_layer_index(c, param->layer, MODEL_O)) ||
		(param->part == NN_EXPERT &&
		param->index == model_expert_index(c, param->layer, param->expert, 2));
}

void nn_params_fill(struct nn_params *params, uint64_t seed)
{
	double shrink = 1 / sqrt(2.0 * params->config.n_layers);

	for (size_t i = 0; i < params->n; i++) {
		struct nn_param *param = &params->list[i];

		for (size_t j = 0; param->n_dims == 1 && j < param->n_values; j++)
			param->value[j] = 1.0f;
		if (param->n_dims == 2)
			fill_normal(param, seed,
				is_output(params, param) ? INIT_STD * shrink : INIT_STD);
	}
}

void nn_params_zero_grads(struct nn_params *params)
{
	memset(params->grads, 0, params->n_values * sizeof(float));
}

struct nn_param *nn_params_find(const struct nn_params *params, const char *name)
{
	for (size_t i = 0; i < params->n; i++)
		if (!strcmp(params->list[i].name, name))
			return &params->list[i];
	return NULL;
}

struct nn_param *nn_params_layer(const struct nn_params *params, uint32_t layer,
	enum model_layer_tensor which)
{
	return params->by_index[model_layer_index(&params->config, layer, which)];
}

struct nn_param *nn_params_expert(const struct nn_params *params, uint32_t layer, uint32_t expert,
	unsigned which)
{
	return params->by_index[model_expert_index(&params->config, layer, expert, which)];
}

/* By part, so that a planner need not list the tensors of a large model. */
size_t nn_params_count(const struct model_config *config, nn_wanted *wanted, void *arg)
{
	size_t h = config->hidden_size, q = (size_t)config->n_heads * config->head_dim;
	size_t kv = (size_t)config->n_kv_heads * config->head_dim;
	size_t attention = 2 * h + 2 * h * (q + kv) + h * config->n_experts, sum = 0;
	size_t expert = 3 * h * config->intermediate_size, table = h * config->vocab_size;

	if (!wanted || wanted(arg, NN_EMBEDDING, 0, 0))
		sum += table;
	if (!wanted || wanted(arg, NN_HEAD, 0, 0))
		sum += h + table;
	for (uint32_t layer = 0; layer < config->n_layers; layer++) {
		if (!wanted || wanted(arg, NN_ATTENTION, layer, 0))
			sum += attention;
		for (uint32_t i = 0; i < config->n_experts; i++)
			if (!wanted || wanted(arg, NN_EXPERT, layer, i))
				sum += expert;
	}
	return sum;
}

size_t nn_params_bytes(size_t n_values)
{
	return N_SLABS * slab_values(n_values) * sizeof(float);
}

int nn_all_finite(const float *values, size_t n_values)
{
	/* 0 * x is 0 for every number and NaN for the rest; four sums have no long chain. */
	float sums[4] = {0};

	for (size_t i = 0; i < n_values; i++)
		sums[i % 4] += values[i] * 0.0f;
	return sums[0] + sums[1] + sums[2] + sums[3] == 0.0f;
}
