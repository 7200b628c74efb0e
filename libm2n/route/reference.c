/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The oracle in plain loops: slow, and written to be read. It has its own number conversions
 * (by arithmetic on values, where the kernels shift bits), so that a mistake in a kernel or a
 * plan cannot hide in both. Relies on fmaf() being exact.
 */
#include "route/reference.h"

#include <math.h>
#include <string.h>

/* A 16-bit float with n_mantissa stored bits and the exponent bias `bias`. */
struct small_float {
	int n_mantissa;
	int bias;
};

static const struct small_float bf16 = {7, 127};
static const struct small_float f16 = {10, 15};

static float decode(struct small_float form, uint16_t bits)
{
	int n_exponent = 15 - form.n_mantissa;
	int exponent = (bits >> form.n_mantissa) & ((1 << n_exponent) - 1);
	int mantissa = bits & ((1 << form.n_mantissa) - 1);
	float value;

	if (exponent == (1 << n_exponent) - 1)
		value = mantissa ? NAN : INFINITY;
	else if (exponent == 0)
		value = ldexpf((float)mantissa, 1 - form.bias - form.n_mantissa);
	else
		value = ldexpf((float)(mantissa + (1 << form.n_mantissa)),
			exponent - form.bias - form.n_mantissa);
	return bits & 0x8000 ? -value : value;
}

/* The nearest representable value, ties to the even mantissa; NaN becomes a quiet NaN. */
static uint16_t encode(struct small_float form, float value)
{
	uint16_t sign = signbit(value) ? 0x8000 : 0;
	int n_exponent = 15 - form.n_mantissa;
	uint16_t infinity = (uint16_t)(((1 << n_exponent) - 1) << form.n_mantissa);
	int exponent;
	double steps;

	if (isnan(value))
		return sign | infinity | (uint16_t)(1 << (form.n_mantissa - 1));
	if (isinf(value))
		return sign | infinity;
	if (value == 0)
		return sign;
	exponent = ilogbf(value);
	if (exponent < 1 - form.bias)
		exponent = 1 - form.bias;
	/* How many steps of this binade the value is: below 2^n_mantissa it is subnormal. */
	steps = ldexp(fabs((double)value), form.n_mantissa - exponent);
	if (steps - floor(steps) == 0.5)
		steps = 2 * floor((floor(steps) + 1) / 2);
	else
		steps = floor(steps + 0.5);
	/* Rounding up to the next binade carries into the exponent by itself. */
	steps += (double)(exponent + form.bias - 1) * (double)(1 << form.n_mantissa);
	return steps >= infinity ? sign | infinity : sign | (uint16_t)steps;
}

float m2n__ref_load(enum m2n_dtype dtype, const void *row, size_t i)
{
	uint16_t bits;
	float value;

	if (dtype == M2N_DTYPE_F32) {
		memcpy(&value, (const char *)row + 4 * i, sizeof(value));
		return value;
	}
	memcpy(&bits, (const char *)row + 2 * i, sizeof(bits));
	return decode(dtype == M2N_DTYPE_BF16 ? bf16 : f16, bits);
}

void m2n__ref_store(enum m2n_dtype dtype, void *row, size_t i, float value)
{
	uint16_t bits;

	if (dtype == M2N_DTYPE_F32) {
		memcpy((char *)row + 4 * i, &value, sizeof(value));
		return;
	}
	bits = encode(dtype == M2N_DTYPE_BF16 ? bf16 : f16, value);
	memcpy((char *)row + 2 * i, &bits, sizeof(bits));
}

size_t m2n__ref_rows(uint32_t n_tokens, uint32_t top_k, const int32_t *ids, int32_t expert,
	uint32_t source, uint32_t owner, uint32_t n_owners, uint32_t *rows_token, uint32_t *rows_k)
{
	size_t n_rows = 0;

	for (uint32_t t = 0; t < n_tokens; t++) {
		if (((uint64_t)source + t) % n_owners != owner)
			continue;
		for (uint32_t k = 0; k < top_k; k++) {
			if (ids[(size_t)t * top_k + k] != expert)
				continue;
			rows_token[n_rows] = t;
			rows_k[n_rows] = k;
			n_rows++;
		}
	}
	return n_rows;
}

void m2n__ref_combine(enum m2n_dtype dtype, uint32_t n_tokens, uint32_t top_k, size_t n_values,
	const void *const *replies, const float *weights, const void *residual, void *out)
{
	for (uint32_t t = 0; t < n_tokens; t++) {
		for (size_t i = 0; i < n_values; i++) {
			size_t at = (size_t)t * n_values + i;
			float sum = residual ? m2n__ref_load(dtype, residual, at) : 0.0f;

			for (uint32_t k = 0; k < top_k; k++) {
				size_t pair = (size_t)t * top_k + k;

				if (!replies[pair])
					continue;
				sum = fmaf(weights ? weights[pair] : 1.0f,
					m2n__ref_load(dtype, replies[pair], i), sum);
			}
			m2n__ref_store(dtype, out, at, sum);
		}
	}
}
