/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One value at a time: bf16, fp16 and fp8 (e4m3) to and from f32 by their bits, all rounding to
 * nearest even. The scalar table is made of these, and the tails of the others. Static inline,
 * so that each table's copy is compiled with that table's instructions. Rows have any alignment:
 * values are loaded and stored through memcpy.
 */
#ifndef M2N_KERNEL_VALUE_H
#define M2N_KERNEL_VALUE_H

#include <math.h>
#include <string.h>

#include "kernel/kernel.h"

#define M2N__FP8_MAX 448.0f
#define M2N__FP8_MIN_AMAX 0x1p-117f /* 448 divided by it is finite */

static inline uint32_t f32_bits(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static inline float f32_from_bits(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static inline float bf16_to_f32(uint16_t bits)
{
	return f32_from_bits((uint32_t)bits << 16);
}

static inline uint16_t bf16_from_f32(float value)
{
	uint32_t bits = f32_bits(value);

	if (value != value)
		return (uint16_t)(bits >> 16 | 0x40); /* quiet, and never an infinity */
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t bits)
{
	uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
	uint32_t magnitude = bits & 0x7fff;

	if (magnitude >= 0x7c00) /* infinity, NaN */
		return f32_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
	if (magnitude >= 0x400)
		return f32_from_bits(sign | ((magnitude << 13) + ((127 - 15) << 23)));
	return f32_from_bits(sign | f32_bits((float)magnitude * 0x1p-24f));
}

static inline uint16_t f16_from_f32(float value)
{
	uint32_t bits = f32_bits(value);
	uint32_t sign = bits >> 16 & 0x8000;
	uint32_t magnitude = bits & 0x7fffffff;

	if (magnitude > 0x7f800000)
		return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
	if (magnitude >= 0x477ff000) /* 65520 and up round to infinity */
		return (uint16_t)(sign | 0x7c00);
	if (magnitude >= 0x38800000) /* 2^-14: normal in fp16 */
		return (uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) -
						 ((127 - 15) << 23)) >>
						 13);
	/* One unit of 0.5f's last place is fp16's smallest: the addition rounds. */
	return (uint16_t)(sign | (f32_bits(f32_from_bits(magnitude) + 0.5f) - 0x3f000000));
}

static inline float fp8_to_f32(uint8_t bits)
{
	uint32_t sign = (uint32_t)(bits & 0x80) << 24;
	uint32_t magnitude = bits & 0x7f;

	if (magnitude == 0x7f)
		return f32_from_bits(sign | 0x7fc00000);
	if (magnitude >= 8)
		return f32_from_bits(sign | ((magnitude << 20) + ((127 - 7) << 23)));
	return f32_from_bits(sign | f32_bits((float)magnitude * 0x1p-9f));
}

static inline uint8_t fp8_from_f32(float value)
{
	uint32_t bits = f32_bits(value);
	uint32_t sign = bits >> 24 & 0x80;
	uint32_t magnitude = bits & 0x7fffffff;

	if (magnitude > 0x7f800000)
		return 0x7f;
	if (magnitude >= 0x43e00000) /* 448 */
		return (uint8_t)(sign | 0x7e);
	if (magnitude >= 0x3c800000) /* 2^-6: normal in fp8 */
		return (uint8_t)(sign | (magnitude + 0x7ffff + (magnitude >> 20 & 1) -
						((127 - 7) << 23)) >>
						20);
	/* One unit of 2^14's last place is fp8's smallest: the addition rounds. */
	return (uint8_t)(sign | (f32_bits(f32_from_bits(magnitude) + 0x1p14f) - 0x46800000));
}

static inline float load_value(enum m2n_dtype dtype, const void *row, size_t i)
{
	uint16_t bits;
	float value;

	if (dtype == M2N_DTYPE_F32) {
		memcpy(&value, (const char *)row + 4 * i, sizeof(value));
		return value;
	}
	memcpy(&bits, (const char *)row + 2 * i, sizeof(bits));
	return dtype == M2N_DTYPE_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

static inline void store_value(enum m2n_dtype dtype, void *row, size_t i, float value)
{
	uint16_t bits;

	if (dtype == M2N_DTYPE_F32) {
		memcpy((char *)row + 4 * i, &value, sizeof(value));
		return;
	}
	bits = dtype == M2N_DTYPE_BF16 ? bf16_from_f32(value) : f16_from_f32(value);
	memcpy((char *)row + 2 * i, &bits, sizeof(bits));
}

/* The scale of a block whose largest finite magnitude is `amax`, and what to multiply with. */
static inline float fp8_scale(float amax, float *inverse)
{
	if (amax == 0.0f) {
		*inverse = 1.0f;
		return 1.0f;
	}
	if (amax < M2N__FP8_MIN_AMAX)
		amax = M2N__FP8_MIN_AMAX;
	*inverse = M2N__FP8_MAX / amax;
	return amax / M2N__FP8_MAX;
}

#endif
