/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values of rows, 16 bytes at a time, to and from f32: the arithmetic of kernel/value.h, bit for
 * bit (payloads of NaN apart). And 16 bytes from or to any address, of which only those of the
 * row are touched: where both are aligned it is one access, else two aligned ones shifted
 * together, or smaller ones; at the end of a row bytes.
 */
#ifndef M2N_KERNEL_CUDA_VALUE_CUH
#define M2N_KERNEL_CUDA_VALUE_CUH

#include <m2n/types.h>

#include "kernel/cuda/device.h"

#define FP8_MAX 448.0f
#define FP8_MIN_AMAX 0x1p-117f
#define FP8_BLOCK 128u /* values of a scale */

template <int DTYPE> struct values {
	static const uint32_t bytes = DTYPE == M2N_DTYPE_F32 ? 4 : 2;
	static const uint32_t n = 16 / bytes; /* in a vector */
};

DEVICE float bf16_to_float(uint32_t bits)
{
	return float_of(bits << 16);
}

DEVICE uint32_t bf16_from_float(float value)
{
	uint32_t bits = bits_of(value);

	if (value != value)
		return bits >> 16 | 0x40;
	return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

DEVICE uint32_t fp8_from_float(float value)
{
	uint32_t bits = bits_of(value), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;

	if (magnitude > 0x7f800000)
		return 0x7f;
	if (magnitude >= 0x43e00000) /* 448 */
		return sign | 0x7e;
	if (magnitude >= 0x3c800000) /* 2^-6: normal in fp8 */
		return sign |
		       (magnitude + 0x7ffff + (magnitude >> 20 & 1) - ((127 - 7) << 23)) >> 20;
	/* one unit of 2^14's last place is fp8's smallest: the addition rounds */
	return sign | (bits_of(add(float_of(magnitude), 0x1p14f)) - 0x46800000);
}

/* The scale of a block, and what to multiply with: kernel/value.h's fp8_scale(). */
DEVICE float fp8_scale(float amax, float *inverse)
{
	*inverse = 1.0f;
	if (amax == 0.0f)
		return 1.0f;
	if (amax < FP8_MIN_AMAX)
		amax = FP8_MIN_AMAX;
	*inverse = divide(FP8_MAX, amax);
	return divide(amax, FP8_MAX);
}

/* Half `i` (0, 1) of a word. */
template <int DTYPE> DEVICE float from_half(uint32_t word, uint32_t i)
{
	uint32_t bits = i ? word >> 16 : word & 0xffff;

	return DTYPE == M2N_DTYPE_BF16 ? bf16_to_float(bits) : half_to_float((uint16_t)bits);
}

template <int DTYPE> DEVICE uint32_t to_word(float low, float high)
{
	if (DTYPE == M2N_DTYPE_BF16)
		return bf16_from_float(low) | bf16_from_float(high) << 16;
	return half_from_float(low) | (uint32_t)half_from_float(high) << 16;
}

/* The values of a vector; f has values<DTYPE>::n of them. */
template <int DTYPE> DEVICE void unpack(uint4 v, float *f)
{
	const uint32_t word[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		if (DTYPE == M2N_DTYPE_F32) {
			f[i] = float_of(word[i]);
		} else {
			f[2 * i] = from_half<DTYPE>(word[i], 0);
			f[2 * i + 1] = from_half<DTYPE>(word[i], 1);
		}
	}
}

template <int DTYPE> DEVICE uint4 pack(const float *f)
{
	uint32_t word[4];

#pragma unroll
	for (uint32_t i = 0; i < 4; i++)
		word[i] = DTYPE == M2N_DTYPE_F32 ? bits_of(f[i])
						 : to_word<DTYPE>(f[2 * i], f[2 * i + 1]);
	return make_uint4(word[0], word[1], word[2], word[3]);
}

/* One value of a row at any address. */
template <int DTYPE> DEVICE float load_value(const uint8_t *row, uint64_t i)
{
	const uint8_t *from = row + i * values<DTYPE>::bytes;
	uint32_t bits = 0;

	if ((uintptr_t)from % values<DTYPE>::bytes == 0)
		bits = DTYPE == M2N_DTYPE_F32 ? *(const uint32_t *)from : *(const uint16_t *)from;
	else
		for (uint32_t b = 0; b < values<DTYPE>::bytes; b++)
			bits |= (uint32_t)from[b] << 8 * b;
	return DTYPE == M2N_DTYPE_F32 ? float_of(bits) : from_half<DTYPE>(bits, 0);
}

/* ---- 16 bytes at any address --------------------------------------------------------------- */

/* Bytes [shift, shift + 16) of a and b, side by side; shift is 1 to 15. */
DEVICE uint4 shift_bytes(uint4 a, uint4 b, uint32_t shift)
{
	uint32_t bits = shift % 4 * 8;

	if (shift & 8) {
		a = make_uint4(a.z, a.w, b.x, b.y);
		b = make_uint4(b.z, b.w, 0, 0);
	}
	if (shift & 4) {
		a = make_uint4(a.y, a.z, a.w, b.x);
		b.x = b.y;
	}
	return make_uint4(funnel_right(a.x, a.y, bits), funnel_right(a.y, a.z, bits),
		funnel_right(a.z, a.w, bits), funnel_right(a.w, b.x, bits));
}

/* The first n bytes (1 to 16), zeros behind them. */
static __device__ __noinline__ uint4 load_bytes(const uint8_t *from, uint32_t n)
{
	uint32_t word[4] = {0, 0, 0, 0};

#pragma unroll
	for (uint32_t i = 0; i < 16; i++)
		if (i < n)
			word[i / 4] |= (uint32_t)from[i] << i % 4 * 8;
	return make_uint4(word[0], word[1], word[2], word[3]);
}

/* The next 16 bytes of a row of which n_left (at least 1) are left. */
template <int ALIGNED> DEVICE uint4 load_part(const uint8_t *from, uint64_t n_left)
{
	uint32_t shift = (uint32_t)(uintptr_t)from % 16;

	if (ALIGNED || (shift == 0 && n_left >= 16))
		return load_stream(from);
	if (shift && n_left >= 32 - shift)
		return shift_bytes(load_near(from - shift), load_near(from - shift + 16), shift);
	return load_bytes(from, n_left < 16 ? (uint32_t)n_left : 16);
}

DEVICE uint32_t word_of(uint4 v, uint32_t i)
{
	uint32_t low = i & 1 ? v.y : v.x, high = i & 1 ? v.w : v.z;

	return i & 2 ? high : low;
}

/* n bytes (1 to 16) to an address that allows no more than `unit` bytes at a time. */
static __device__ __noinline__ void store_pieces(uint8_t *to, uint4 v, uint32_t n, uint32_t unit)
{
	if (n == 16 && unit == 8) {
		((uint64_t *)to)[0] = v.x | (uint64_t)v.y << 32;
		((uint64_t *)to)[1] = v.z | (uint64_t)v.w << 32;
	} else if (n == 16 && unit == 4) {
		for (uint32_t i = 0; i < 4; i++)
			((uint32_t *)to)[i] = word_of(v, i);
	} else if (unit >= 2 && n % 2 == 0) {
		for (uint32_t i = 0; i < n / 2; i++)
			((uint16_t *)to)[i] = (uint16_t)(word_of(v, i / 2) >> i % 2 * 16);
	} else {
		for (uint32_t i = 0; i < n; i++)
			to[i] = (uint8_t)(word_of(v, i / 4) >> i % 4 * 8);
	}
}

/* The next 16 bytes of a row of which n_left (at least 1) are left. */
template <int ALIGNED> DEVICE void store_part(uint8_t *to, uint4 v, uint64_t n_left)
{
	uint32_t low = (uint32_t)(uintptr_t)to % 16;

	if (ALIGNED || (low == 0 && n_left >= 16))
		store_stream(to, v);
	else
		store_pieces(to, v, n_left < 16 ? (uint32_t)n_left : 16, low ? low & -low : 16);
}

#endif
