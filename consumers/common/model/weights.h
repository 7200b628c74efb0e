/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The weights of a model by place: named tensors with shapes, in the order in which Hugging Face
 * writes them. A process holds the parts that it computes with: attention ranks all but the
 * experts, expert ranks the experts that they own. A part that is not held has data NULL.
 *
 * Weights read from a checkpoint stay where the file is mapped, if their type and alignment allow;
 * F16 is widened to fp32 in memory. A trainer asks for writable fp32 instead, and keeps gradients
 * and moments beside the tensors, by index.
 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "checkpoint.h"
#include "product.h"

enum model_part {
	MODEL_PART_ATTENTION = 1, /* embedding, norms, attention, router, head */
	MODEL_PART_EXPERTS = 2,
	MODEL_PART_ALL = 3,
};

/* Tensors of a layer, by distance from its first one. */
enum model_layer_tensor {
	MODEL_INPUT_NORM,
	MODEL_Q,
	MODEL_K,
	MODEL_V,
	MODEL_O,
	MODEL_POST_NORM,
	MODEL_GATE,
	MODEL_EXPERTS, /* w1, w2, w3 of expert 0, then of expert 1, ... */
};

struct model_weights_params {
	enum model_part parts;
	/* Which experts, with MODEL_PART_EXPERTS; NULL: all of them. */
	int (*wanted)(void *arg, uint32_t layer, uint32_t expert);
	void *arg;
	int writable; /* copies in fp32 that may be changed */
};

struct model_weights {
	struct model_config config;
	struct model_tensor *tensors; /* embedding, layers, final norm, head unless tied */
	size_t n_tensors;
	void **owned; /* [n_tensors] memory of ours under tensors[i].data, or NULL */
	struct model_checkpoint *checkpoint;
};

/*
 * Reads what is asked for; checks that the checkpoint holds every tensor of its config with its
 * shape, and no tensor that belongs to another one. 0, -EINVAL, -ENOENT, -ENOMEM.
 */
int model_weights_open(const char *dir, const struct model_weights_params *params,
	struct model_weights **weights);
/*
 * Reads further parts of the same checkpoint: experts that a new placement gives to this rank. What
 * is held stays as it is. For weights of model_weights_open(). 0; -ENOMEM.
 */
int model_weights_load(struct model_weights *weights, const struct model_weights_params *params);
/* Whether the expert's tensors are held. */
int model_weights_has_expert(const struct model_weights *weights, uint32_t layer, uint32_t expert);
/* Writable fp32 zeros of the parts asked for. params->writable is taken as set. */
int model_weights_create(const struct model_config *config,
	const struct model_weights_params *params, struct model_weights **weights);
void model_weights_close(struct model_weights *weights);

/*
 * Normal random numbers: matrices with standard deviation std (0: 1/sqrt(inputs), embedding 1),
 * norms 1. A tensor's numbers depend on the seed and its name only, so that ranks that hold
 * different parts make one model. For writable weights.
 */
void model_weights_fill(struct model_weights *weights, uint64_t seed, double std);
/* Writes all tensors in the config's dtype; -EINVAL when a part is not held. */
int model_weights_write(const struct model_weights *weights, const char *dir,
	size_t max_shard_bytes);

/* Indices into tensors. */
size_t model_layer_index(const struct model_config *config, uint32_t layer,
	enum model_layer_tensor which);
/* which: 1, 2 or 3, as in w1 (gate), w2 (down), w3 (up). */
size_t model_expert_index(const struct model_config *config, uint32_t layer, uint32_t expert,
	unsigned which);
size_t model_final_norm_index(const struct model_config *config);
/* The embedding's where they are tied. */
size_t model_head_index(const struct model_config *config);
/* A tensor as the operand of a product. */
struct model_matrix model_weights_matrix(const struct model_weights *weights, size_t index);
/* Values of a vector in fp32; borrowed. Norms are held in fp32 whatever the file has. */
const float *model_weights_vector(const struct model_weights *weights, size_t index);

#endif
