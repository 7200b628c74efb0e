/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What config.json says about a model, in Hugging Face's Mixtral form. Members that change the
 * result are understood or refused by name; others (token ids, library versions) are ignored.
 */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"

struct model_config {
	/* clang-format off */
	uint32_t vocab_size;
	uint32_t hidden_size;
	uint32_t intermediate_size;   /* of one expert */
	uint32_t n_layers;            /* num_hidden_layers */
	uint32_t n_heads;             /* num_attention_heads */
	uint32_t n_kv_heads;          /* num_key_value_heads */
	uint32_t head_dim;            /* hidden_size / n_heads where the file does not say */
	uint32_t n_experts;           /* num_local_experts */
	uint32_t top_k;               /* num_experts_per_tok */
	uint32_t max_positions;       /* max_position_embeddings */
	uint32_t sliding_window;      /* tokens that a token sees, itself included; 0: all */
	double rms_norm_eps;
	double rope_theta;
	int tie_word_embeddings;
	enum model_dtype dtype;       /* what the weights are said to be stored as */
	/* clang-format on */
};

/* A small model with 256 tokens (bytes) that passes model_config_check(). */
void model_config_default(struct model_config *config);
/* 0, or -EINVAL with a text that names `where` (a file or an option) and the member. */
int model_config_check(const struct model_config *config, const char *where);
/* Reads and checks a file. 0, -EINVAL, -ENOENT or another errno of opening it. */
int model_config_read(const char *path, struct model_config *config);
/* Writes a file that model_config_read() and Hugging Face read. 0 or negative errno. */
int model_config_write(const char *path, const struct model_config *config);

#endif
