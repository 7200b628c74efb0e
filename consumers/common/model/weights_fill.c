/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random weights by fixed seed: a counter through splitmix64 for each tensor, seeded by its name,
 * and Box-Muller, so that the numbers are the same on every machine with the same libm.
 */
#include "weights.h"

#include <math.h>

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t name_seed(uint64_t seed, const char *name)
{
	uint64_t hash = mix(seed);

	for (; *name; name++)
		hash = mix(hash ^ (unsigned char)*name);
	return hash;
}

static void fill_normal(float *values, size_t n_values, uint64_t seed, double std)
{
	for (size_t i = 0; i < n_values; i++) {
		uint64_t bits = mix(seed + i);
		double radius = sqrt(-2 * log((double)((bits >> 32) + 1) * 0x1p-32));
		double angle = 6.283185307179586 * (double)(bits & 0xffffffff) * 0x1p-32;

		values[i] = (float)(std * radius * cos(angle));
	}
}

void model_weights_fill(struct model_weights *weights, uint64_t seed, double std)
{
	for (size_t i = 0; i < weights->n_tensors; i++) {
		const struct model_tensor *tensor = &weights->tensors[i];
		size_t n_values = tensor->bytes / sizeof(float);
		double own_std = i == 0 ? 1.0 : 1.0 / sqrt((double)tensor->shape[1]);
		float *values = weights->owned[i];

		if (!values)
			continue;
		for (size_t j = 0; tensor->n_dims == 1 && j < n_values; j++)
			values[j] = 1.0f;
		if (tensor->n_dims == 2)
			fill_normal(values, n_values, name_seed(seed, tensor->name),
				std > 0 ? std : own_std);
	}
}
