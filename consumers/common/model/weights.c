/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names and shapes of all tensors of a config, in one table that reading, making and writing share.
 */
#include "weights.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

#define MAX_MISSING 100000

static size_t tensors_per_layer(const struct model_config *config)
{
	return MODEL_EXPERTS + 3 * (size_t)config->n_experts;
}

size_t model_layer_index(const struct model_config *config, uint32_t layer,
	enum model_layer_tensor which)
{
	return 1 + layer * tensors_per_layer(config) + which;
}

size_t model_expert_index(const struct model_config *config, uint32_t layer, uint32_t expert,
	unsigned which)
{
	return model_layer_index(config, layer, MODEL_EXPERTS) + 3 * (size_t)expert + which - 1;
}

size_t model_final_norm_index(const struct model_config *config)
{
	return model_layer_index(config, config->n_layers, MODEL_INPUT_NORM);
}

size_t model_head_index(const struct model_config *config)
{
	return config->tie_word_embeddings ? 0 : model_final_norm_index(config) + 1;
}

struct model_matrix model_weights_matrix(const struct model_weights *weights, size_t index)
{
	const struct model_tensor *tensor = &weights->tensors[index];

	return (struct model_matrix){tensor->data, tensor->dtype, tensor->shape[0],
		tensor->shape[1]};
}

const float *model_weights_vector(const struct model_weights *weights, size_t index)
{
	return weights->tensors[index].data;
}

/* A tensor without data; n_in 0: a vector. */
static int set_tensor(struct model_weights *weights, size_t index, char *name, size_t n_out,
	size_t n_in)
{
	weights->tensors[index] = (struct model_tensor){.name = name, .dtype = MODEL_F32,
		.n_dims = n_in ? 2 : 1, .shape = {n_out, n_in}};
	return name ? 0 : -ENOMEM;
}

static char *name_of_layer(uint32_t layer, const char *what)
{
	char *name;

	return asprintf(&name, "model.layers.%u.%s.weight", layer, what) < 0 ? NULL : name;
}

static char *name_of_expert(uint32_t layer, uint32_t expert, unsigned which)
{
	char *name;

	return asprintf(&name, "model.layers.%u.block_sparse_moe.experts.%u.w%u.weight", layer,
		expert, which) < 0 ? NULL : name;
}

static int list_layer(struct model_weights *weights, uint32_t layer)
{
	const struct model_config *c = &weights->config;
	size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
	const struct {
		const char *name;
		size_t n_out, n_in;
	} list[] = {
		[MODEL_INPUT_NORM] = {"input_layernorm", c->hidden_size, 0},
		[MODEL_Q] = {"self_attn.q_proj", q, c->hidden_size},
		[MODEL_K] = {"self_attn.k_proj", kv, c->hidden_size},
		[MODEL_V] = {"self_attn.v_proj", kv, c->hidden_size},
		[MODEL_O] = {"self_attn.o_proj", c->hidden_size, q},
		[MODEL_POST_NORM] = {"post_attention_layernorm", c->hidden_size, 0},
		[MODEL_GATE] = {"block_sparse_moe.gate", c->n_experts, c->hidden_size},
	};
	size_t at = model_layer_index(c, layer, MODEL_INPUT_NORM);
	int rc = 0;

	for (unsigned i = 0; !rc && i < MODEL_EXPERTS; i++)
		rc = set_tensor(weights, at++, name_of_layer(layer, list[i].name), list[i].n_out,
			list[i].n_in);
	for (uint32_t i = 0; !rc && i < 3 * c->n_experts; i++) {
		int down = i % 3 == 1;

		rc = set_tensor(weights, at++, name_of_expert(layer, i / 3, i % 3 + 1),
			down ? c->hidden_size : c->intermediate_size,
			down ? c->intermediate_size : c->hidden_size);
	}
	return rc;
}

static size_t count_tensors(const struct model_config *config)
{
	return model_final_norm_index(config) + (config->tie_word_embeddings ? 1 : 2);
}

static int list_tensors(struct model_weights *weights)
{
	const struct model_config *c = &weights->config;
	size_t norm = model_final_norm_index(c), n = count_tensors(c);
	int rc;

	weights->tensors = calloc(n, sizeof(weights->tensors[0]));
	weights->owned = calloc(n, sizeof(weights->owned[0]));
	if (!weights->tensors || !weights->owned)
		return model_fail(-ENOMEM, "no memory for a list of %zu tensors", n);
	weights->n_tensors = n;
	rc = set_tensor(weights, 0, strdup("model.embed_tokens.weight"), c->vocab_size,
		c->hidden_size);
	for (uint32_t layer = 0; !rc && layer < c->n_layers; layer++)
		rc = list_layer(weights, layer);
	if (!rc)
		rc = set_tensor(weights, norm, strdup("model.norm.weight"), c->hidden_size, 0);
	if (!rc && !c->tie_word_embeddings)
		rc = set_tensor(weights, norm + 1, strdup("lm_head.weight"), c->vocab_size,
			c->hidden_size);
	return rc ? model_fail(rc, "no memory for the names of %zu tensors", n) : 0;
}

static int is_wanted(const struct model_weights *weights, const struct model_weights_params *params,
	size_t index)
{
	const struct model_config *c = &weights->config;
	size_t layer = (index - 1) / tensors_per_layer(c);
	size_t which = (index - 1) % tensors_per_layer(c);

	if (index == 0 || layer >= c->n_layers || which < MODEL_EXPERTS)
		return (params->parts & MODEL_PART_ATTENTION) != 0;
	if (!(params->parts & MODEL_PART_EXPERTS))
		return 0;
	return !params->wanted || params->wanted(params->arg, (uint32_t)layer,
		(uint32_t)(which - MODEL_EXPERTS) / 3);
}

static int same_shape(const struct model_tensor *a, const struct model_tensor *b)
{
	return a->n_dims == b->n_dims &&
		memcmp(a->shape, b->shape, a->n_dims * sizeof(a->shape[0])) == 0;
}

static int check_tensor(const struct model_checkpoint *checkpoint,
	const struct model_tensor *wanted, const struct model_tensor *found)
{
	char want[128], have[128];

	if (!found)
		return model_fail(-EINVAL, "%s: tensor %s is missing; fetch the checkpoint again, "
			"or correct config.json", checkpoint->dir, wanted->name);
	if (found->dtype == MODEL_OTHER)
		return model_fail(-EINVAL, "%s: tensor %s is of a type that cannot be computed "
			"with; convert it to F32, BF16 or F16", found->path, found->name);
	if (!same_shape(wanted, found))
		return model_fail(-EINVAL, "%s: tensor %s has shape %s, by config.json it is %s",
			found->path, found->name,
			model_shape_text(found->shape, found->n_dims, have, sizeof(have)),
			model_shape_text(wanted->shape, wanted->n_dims, want, sizeof(want)));
	return 0;
}

static int own(struct model_weights *weights, size_t index, enum model_dtype dtype, size_t bytes)
{
	struct model_tensor *tensor = &weights->tensors[index];

	if (posix_memalign(&weights->owned[index], 64, bytes ? bytes : 64) != 0) {
		weights->owned[index] = NULL;
		return model_fail(-ENOMEM, "no memory for tensor %s, %zu bytes", tensor->name,
			bytes);
	}
	tensor->dtype = dtype;
	tensor->bytes = bytes;
	tensor->data = weights->owned[index];
	return 0;
}

/* Where the file is mapped if it can be used there, else in memory of ours. */
static int take_tensor(struct model_weights *weights, size_t index,
	const struct model_tensor *found, int writable)
{
	struct model_tensor *tensor = &weights->tensors[index];
	size_t n_values = found->bytes / model_dtype_bytes(found->dtype);
	size_t unit = model_dtype_bytes(found->dtype);
	int aligned = (uintptr_t)found->data % unit == 0, rc;
	int widened = writable || found->dtype == MODEL_F16 || tensor->n_dims == 1;

	if (aligned && !writable && (!widened || found->dtype == MODEL_F32)) {
		tensor->dtype = found->dtype;
		tensor->bytes = found->bytes;
		tensor->data = found->data;
		return 0;
	}
	rc = own(weights, index, widened ? MODEL_F32 : found->dtype,
		widened ? n_values * sizeof(float) : found->bytes);
	if (rc)
		return rc;
	if (widened && aligned)
		model_to_f32(found->dtype, found->data, n_values, weights->owned[index]);
	else if (!widened || found->dtype == MODEL_F32)
		memcpy(weights->owned[index], found->data, found->bytes);
	for (size_t i = 0; widened && !aligned && found->dtype != MODEL_F32 && i < n_values; i++) {
		uint16_t half;

		memcpy(&half, (const char *)found->data + i * unit, sizeof(half));
		model_to_f32(found->dtype, &half, 1, (float *)weights->owned[index] + i);
	}
	return 0;
}

/* A tensor that the config knows nothing of means that one of the two is wrong. */
static int check_others(const struct model_weights *weights)
{
	const struct model_checkpoint *checkpoint = weights->checkpoint;
	size_t n_known = 0;

	for (size_t i = 0; i < weights->n_tensors; i++)
		n_known += model_checkpoint_find(checkpoint, weights->tensors[i].name) != NULL;
	for (size_t i = 0; n_known < checkpoint->n_tensors && i < checkpoint->n_tensors; i++) {
		const char *name = checkpoint->tensors[i]->name;
		int known = strstr(name, "rotary_emb.inv_freq") != NULL ||
			(weights->config.tie_word_embeddings && !strcmp(name, "lm_head.weight"));

		for (size_t j = 0; !known && j < weights->n_tensors; j++)
			known = !strcmp(weights->tensors[j].name, name);
		if (!known)
			return model_fail(-EINVAL, "%s: tensor %s belongs to no part of the model "
				"that config.json describes", checkpoint->tensors[i]->path, name);
	}
	return 0;
}

static int check_tensors(const struct model_weights *weights)
{
	int rc = 0;

	for (size_t i = 0; !rc && i < weights->n_tensors; i++)
		rc = check_tensor(weights->checkpoint, &weights->tensors[i],
			model_checkpoint_find(weights->checkpoint, weights->tensors[i].name));
	return rc ? rc : check_others(weights);
}

int model_weights_load(struct model_weights *weights, const struct model_weights_params *params)
{
	int rc = 0;

	for (size_t i = 0; !rc && i < weights->n_tensors; i++)
		if (!weights->tensors[i].data && is_wanted(weights, params, i))
			rc = take_tensor(weights, i, model_checkpoint_find(weights->checkpoint,
				weights->tensors[i].name), params->writable);
	return rc;
}

int model_weights_has_expert(const struct model_weights *weights, uint32_t layer, uint32_t expert)
{
	size_t w1 = model_expert_index(&weights->config, layer, expert, 1);

	return weights->tensors[w1].data != NULL;
}

/* Before a list is made of what a broken config.json asks for: a missing tensor is named later. */
static int check_count(const struct model_checkpoint *checkpoint)
{
	size_t n = count_tensors(&checkpoint->config);

	if (n > checkpoint->n_tensors + MAX_MISSING)
		return model_fail(-EINVAL, "%s: config.json describes %zu tensors, the files hold "
			"%zu", checkpoint->dir, n, checkpoint->n_tensors);
	return 0;
}

int model_weights_open(const char *dir, const struct model_weights_params *params,
	struct model_weights **weights)
{
	struct model_weights *opened = calloc(1, sizeof(*opened));
	int rc;

	if (!opened)
		return model_fail(-ENOMEM, "%s: no memory", dir);
	rc = model_checkpoint_open(dir, &opened->checkpoint);
	if (!rc)
		rc = check_count(opened->checkpoint);
	if (!rc) {
		opened->config = opened->checkpoint->config;
		rc = list_tensors(opened);
	}
	if (!rc)
		rc = check_tensors(opened);
	if (!rc)
		rc = model_weights_load(opened, params);
	if (rc) {
		model_weights_close(opened);
		return rc;
	}
	*weights = opened;
	return 0;
}

int model_weights_create(const struct model_config *config,
	const struct model_weights_params *params, struct model_weights **weights)
{
	struct model_weights *created;
	int rc = model_config_check(config, "model");

	if (rc)
		return rc;
	created = calloc(1, sizeof(*created));
	if (!created)
		return model_fail(-ENOMEM, "no memory");
	created->config = *config;
	rc = list_tensors(created);
	for (size_t i = 0; !rc && i < created->n_tensors; i++) {
		if (!is_wanted(created, params, i))
			continue;
		rc = own(created, i, MODEL_F32, model_tensor_bytes(&created->tensors[i]));
		if (!rc)
			memset(created->owned[i], 0, created->tensors[i].bytes);
	}
	if (rc) {
		model_weights_close(created);
		return rc;
	}
	*weights = created;
	return 0;
}

void model_weights_close(struct model_weights *weights)
{
	if (!weights)
		return;
	for (size_t i = 0; i < weights->n_tensors; i++) {
		free((void *)(uintptr_t)weights->tensors[i].name);
		free(weights->owned[i]);
	}
	free(weights->tensors);
	free(weights->owned);
	model_checkpoint_close(weights->checkpoint);
	free(weights);
}

int model_weights_write(const struct model_weights *weights, const char *dir,
	size_t max_shard_bytes)
{
	for (size_t i = 0; i < weights->n_tensors; i++)
		if (!weights->tensors[i].data)
			return model_fail(-EINVAL, "%s: tensor %s is not held by this process", dir,
				weights->tensors[i].name);
	return model_checkpoint_write(dir, &weights->config, weights->tensors, weights->n_tensors,
		max_shard_bytes);
}
