/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a training run is, apart from how it is distributed: model, data order and optimiser. Two
 * runs with equal settings and text train the same model. Stored in checkpoints.
 */
#ifndef NN_SETTINGS_H
#define NN_SETTINGS_H

#include <stdint.h>

#include "model/config.h"

struct nn_settings {
	struct model_config config;
	/* clang-format off */
	uint64_t seed;            /* of the first values and of the data's order */
	uint32_t seq_len;         /* tokens of a sequence */
	uint32_t step_seqs;       /* sequences of a step, of all attention ranks */
	uint32_t n_micro_batches; /* of a step; divides step_seqs */
	double held_back;         /* share of the text, at its end, that is not trained on */
	double balance;           /* weight of the load-balancing loss, alpha */
	double learning_rate;     /* the highest */
	double min_learning_rate; /* what the cosine ends at */
	uint64_t warmup_steps;    /* linear, from learning_rate / warmup_steps */
	uint64_t decay_steps;     /* the cosine ends at this step */
	double beta1, beta2, eps, weight_decay;
	double max_grad_norm;     /* 0: no clipping */
	/* clang-format on */
};

/* By name: "small" (below 2.6 nats per byte in 200 steps) or "tiny" (for tests). 0 or -EINVAL. */
int nn_settings_named(const char *name, struct nn_settings *settings);
/* 0, or -EINVAL with a text that names the setting, its value and the range. */
int nn_settings_check(const struct nn_settings *settings);

#endif
