/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AdamW, its schedule and clipping.
 */
#include "nn/optimizer.h"

#include <math.h>

double nn_learning_rate(const struct nn_settings *settings, uint64_t step)
{
	uint64_t warmup = settings->warmup_steps, end = settings->decay_steps;
	double range = settings->learning_rate - settings->min_learning_rate, part;

	if (step < warmup)
		return settings->learning_rate * (double)(step + 1) / (double)warmup;
	if (step >= end)
		return settings->min_learning_rate;
	part = (double)(step - warmup) / (double)(end - warmup);
	return settings->min_learning_rate + range * 0.5 * (1 + cos(3.141592653589793 * part));
}

double nn_param_square_sum(const struct nn_param *param)
{
	double sum = 0;

	for (size_t i = 0; i < param->n_values; i++)
		sum += (double)param->grad[i] * param->grad[i];
	return sum;
}

double nn_params_square_sum(const struct nn_params *params)
{
	double sum = 0;

	for (size_t i = 0; i < params->n; i++)
		sum += nn_param_square_sum(&params->list[i]);
	return sum;
}

double nn_clip_factor(double square_sum, double max_norm)
{
	double norm = sqrt(square_sum);

	return max_norm > 0 && norm > max_norm ? max_norm / norm : 1;
}

static void update(struct nn_param *param, const struct nn_settings *settings, uint64_t step,
	float factor)
{
	double rate = nn_learning_rate(settings, step), n = (double)step + 1;
	float b1 = (float)settings->beta1, b2 = (float)settings->beta2, eps = (float)settings->eps;
	float keep1 = (float)(1 - settings->beta1), keep2 = (float)(1 - settings->beta2);
	float scale1 = (float)(1 / (1 - pow(settings->beta1, n)));
	float scale2 = (float)(1 / (1 - pow(settings->beta2, n)));
	float shrink = param->decays ? (float)(1 - rate * settings->weight_decay) : 1.0f;
	float lr = (float)rate;

	for (size_t i = 0; i < param->n_values; i++) {
		float g = param->grad[i] * factor;

		param->m[i] = b1 * param->m[i] + keep1 * g;
		param->v[i] = b2 * param->v[i] + keep2 * g * g;
		param->value[i] = param->value[i] * shrink -
			lr * (param->m[i] * scale1 / (sqrtf(param->v[i] * scale2) + eps));
	}
}

void nn_adamw_step(struct nn_params *params, const struct nn_settings *settings, uint64_t step,
	double clip_factor)
{
	for (size_t i = 0; i < params->n; i++)
		update(&params->list[i], settings, step, (float)clip_factor);
}
