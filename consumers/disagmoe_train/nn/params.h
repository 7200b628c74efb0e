/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parameters that a rank trains: named tensors of the Mixtral layout (names and shapes are
 * those of model/weights.h), each with value, gradient and AdamW's two moments. A rank holds any
 * set of parts; a part is the smallest thing that a placement moves. All values of a rank lie in
 * one slab, all gradients in another in the same order, so that a data-parallel sum is one
 * operation.
 *
 * First values depend on the seed and the tensor's name only: any distribution of ranks starts
 * from the same model.
 */
#ifndef NN_PARAMS_H
#define NN_PARAMS_H

#include "model/weights.h"

enum nn_part {
	NN_EMBEDDING, /* model.embed_tokens */
	NN_ATTENTION, /* of one layer: both norms, q, k, v, o and the router */
	NN_EXPERT,    /* of one layer and expert: w1, w2, w3 */
	NN_HEAD,      /* model.norm and lm_head */
};

/* Whether a rank holds a part. layer and expert are 0 where the part has none. */
typedef int nn_wanted(void *arg, enum nn_part part, uint32_t layer, uint32_t expert);

struct nn_param {
	const char *name; /* "model.layers.0.self_attn.q_proj.weight" */
	size_t index;     /* in the order of all tensors of the model: model_layer_index() ... */
	enum nn_part part;
	uint32_t layer, expert;
	unsigned n_dims;
	size_t shape[2]; /* matrices [n_out, n_in] row-major, norms [n] */
	size_t n_values;
	int decays;      /* matrices; norms do not */
	float *value, *grad, *m, *v; /* [n_values], in the slabs below */
};

struct nn_params {
	struct model_config config;
	struct nn_param *list; /* [n], by rising index */
	size_t n;
	size_t n_values; /* of each slab */
	/* 64-byte aligned; tensors lie in list's order without holes. */
	float *values, *grads, *m, *v;
	struct nn_param **by_index;    /* [names->n_tensors]; NULL: not held */
	struct model_weights *names;   /* all tensors of the model, without data */
};

/*
 * Makes the parts that are wanted (NULL: all); everything is 0. 0; -EINVAL: a config that
 * cannot be trained here (tied embeddings are refused); -ENOMEM.
 */
int nn_params_create(const struct model_config *config, nn_wanted *wanted, void *arg,
	struct nn_params **params);
void nn_params_destroy(struct nn_params *params);
/*
 * First values: matrices normal with standard deviation 0.02, divided by sqrt(2 n_layers) where the
 * output is added to the residual stream (o_proj, w2); norms 1.
 */
void nn_params_fill(struct nn_params *params, uint64_t seed);
/* Sets all gradients to 0. */
void nn_params_zero_grads(struct nn_params *params);

/* NULL: not held. */
struct nn_param *nn_params_find(const struct nn_params *params, const char *name);
/* The tensor of a layer, or of an expert (which: 1, 2, 3 as in w1, w2, w3). NULL: not held. */
struct nn_param *nn_params_layer(const struct nn_params *params, uint32_t layer,
	enum model_layer_tensor which);
struct nn_param *nn_params_expert(const struct nn_params *params, uint32_t layer, uint32_t expert,
	unsigned which);
/* Values of the parts in all; what a rank holds without making it. */
size_t nn_params_count(const struct model_config *config, nn_wanted *wanted, void *arg);
/* Bytes that nn_params_create() takes for n_values. */
size_t nn_params_bytes(size_t n_values);
/* Whether no value is NaN or infinite. */
int nn_all_finite(const float *values, size_t n_values);

#endif
