/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From logits to a token.
 */
#include "model.h"

#include <math.h>
#include <stdlib.h>

uint32_t model_argmax(const float *logits, size_t n_logits)
{
	size_t best = 0;

	for (size_t i = 1; i < n_logits; i++)
		if (logits[i] > logits[best])
			best = i;
	return (uint32_t)best;
}

static int by_logit(const void *a, const void *b, void *arg)
{
	const uint32_t *x = a, *y = b;
	const float *logits = arg;

	if (logits[*x] != logits[*y])
		return logits[*x] > logits[*y] ? -1 : 1;
	return (*x > *y) - (*x < *y);
}

/* A number from 0 to below 1 (splitmix64). */
static double next_uniform(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

uint32_t model_sample(const float *logits, size_t n_logits, float temperature, float top_p,
	uint64_t *state, uint32_t *order)
{
	double total = 0, kept = 0, at;
	size_t n = 0;

	if (!(temperature > 0))
		return model_argmax(logits, n_logits);
	for (size_t i = 0; i < n_logits; i++)
		order[i] = (uint32_t)i;
	qsort_r(order, n_logits, sizeof(*order), by_logit, (void *)(uintptr_t)logits);
	for (size_t i = 0; i < n_logits; i++)
		total += exp((logits[order[i]] - logits[order[0]]) / (double)temperature);
	while (n < n_logits && (n == 0 || kept < top_p * total)) {
		kept += exp((logits[order[n]] - logits[order[0]]) / (double)temperature);
		n++;
	}
	at = next_uniform(state) * kept;
	for (size_t i = 0; i < n; i++) {
		at -= exp((logits[order[i]] - logits[order[0]]) / (double)temperature);
		if (at < 0)
			return order[i];
	}
	return order[n - 1];
}
