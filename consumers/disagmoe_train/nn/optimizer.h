/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AdamW with decoupled decay (Loshchilov and Hutter, 2019), gradient clipping by the global norm in
 * two halves, so that ranks can add their squares in between, and a linear warm-up with cosine
 * decay.
 */
#ifndef NN_OPTIMIZER_H
#define NN_OPTIMIZER_H

#include "nn/params.h"
#include "nn/settings.h"

/* Learning rate of a step, counted from 0. */
double nn_learning_rate(const struct nn_settings *settings, uint64_t step);

/* Sum of a gradient's squares, in double and in order. */
double nn_param_square_sum(const struct nn_param *param);
/* Of all tensors held, in their order. Replicas of a data-parallel group count once: the group's
 * first rank gives its sum, the others 0. */
double nn_params_square_sum(const struct nn_params *params);
/* What gradients are multiplied with: 1, or max_norm / norm (max_norm 0: always 1). */
double nn_clip_factor(double square_sum, double max_norm);

/*
 * One update with gradients times clip_factor. step counts from 0. Does not touch the gradients.
 * m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
 * value -= rate * (m / (1 - b1^(step+1)) / (sqrt(v / (1 - b2^(step+1))) + eps) + decay * value).
 */
void nn_adamw_step(struct nn_params *params, const struct nn_settings *settings, uint64_t step,
	double clip_factor);

#endif
