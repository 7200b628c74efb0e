/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Casts between fp32 and the 16-bit types, on integers, so that the bits are the same on every
 * processor and the compiler can vectorise bf16.
 */
#include "dtype.h"

#include <stdint.h>
#include <string.h>
#include <strings.h>

static const struct {
	const char *name, *torch_name;
	size_t bytes;
} types[] = {
	[MODEL_F32] = {"F32", "float32", 4},
	[MODEL_BF16] = {"BF16", "bfloat16", 2},
	[MODEL_F16] = {"F16", "float16", 2},
	[MODEL_OTHER] = {"another type", "another type", 0},
};

size_t model_dtype_bytes(enum model_dtype dtype)
{
	return types[dtype].bytes;
}

const char *model_dtype_name(enum model_dtype dtype)
{
	return types[dtype].name;
}

const char *model_dtype_torch_name(enum model_dtype dtype)
{
	return types[dtype].torch_name;
}

enum model_dtype model_dtype_parse(const char *name)
{
	int at = 0;

	while (at < MODEL_OTHER && strcasecmp(types[at].name, name) != 0 &&
		strcmp(types[at].torch_name, name) != 0)
		at++;
	return (enum model_dtype)at;
}

static uint32_t f32_bits(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static float f32_of(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static uint16_t bf16_of(float value)
{
	uint32_t bits = f32_bits(value);

	if ((bits & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(bits >> 16 | 0x40);
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float f16_to_f32(uint16_t half)
{
	uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31;
	uint32_t fraction = half & 0x3ff;

	if (exponent == 31)
		return f32_of(sign | 0x7f800000 | fraction << 13);
	if (exponent)
		return f32_of(sign | (exponent + 112) << 23 | fraction << 13);
	/* A subnormal: fraction * 2^-24, exact in fp32. */
	return f32_of(sign | f32_bits((float)fraction * 0x1p-24f));
}

static uint16_t f16_of(float value)
{
	uint32_t bits = f32_bits(value), magnitude = bits & 0x7fffffff;
	uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);

	if (magnitude > 0x7f800000)
		return sign | 0x7e00;
	if (magnitude >= 0x477ff000) /* 65520 and above round to infinity */
		return sign | 0x7c00;
	if (magnitude < 0x38800000) /* subnormal: the adder rounds at 2^-24 */
		return (uint16_t)(sign | (f32_bits(f32_of(magnitude) + 0.5f) - 0x3f000000));
	magnitude += 0xfff + (magnitude >> 13 & 1);
	return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}

/* Plain loops: these are run over whole blocks of weights. */
static void widen_bf16(const uint16_t *src, size_t n_values, float *dst)
{
	for (size_t i = 0; i < n_values; i++)
		dst[i] = f32_of((uint32_t)src[i] << 16);
}

static void widen_f16(const uint16_t *src, size_t n_values, float *dst)
{
	for (size_t i = 0; i < n_values; i++)
		dst[i] = f16_to_f32(src[i]);
}

void model_to_f32(enum model_dtype dtype, const void *src, size_t n_values, float *dst)
{
	if (dtype == MODEL_F32)
		memcpy(dst, src, n_values * sizeof(float));
	else if (dtype == MODEL_BF16)
		widen_bf16(src, n_values, dst);
	else if (dtype == MODEL_F16)
		widen_f16(src, n_values, dst);
}

void model_from_f32(enum model_dtype dtype, const float *src, size_t n_values, void *dst)
{
	uint16_t *halves = dst;

	if (dtype == MODEL_F32)
		memcpy(dst, src, n_values * sizeof(float));
	for (size_t i = 0; dtype == MODEL_BF16 && i < n_values; i++)
		halves[i] = bf16_of(src[i]);
	for (size_t i = 0; dtype == MODEL_F16 && i < n_values; i++)
		halves[i] = f16_of(src[i]);
}

void model_round(enum model_dtype dtype, float *values, size_t n_values)
{
	for (size_t i = 0; dtype == MODEL_BF16 && i < n_values; i++)
		values[i] = f32_of((uint32_t)bf16_of(values[i]) << 16);
	for (size_t i = 0; dtype == MODEL_F16 && i < n_values; i++)
		values[i] = f16_to_f32(f16_of(values[i]));
}
