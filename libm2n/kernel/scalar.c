/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference kernels: one value at a time, in the order that kernel.h promises, with nothing
 * but C. Every other table must give the same bits. Copies are memcpy(), whose own non-temporal
 * paths fence before they return.
 */
#include "kernel/tables.h"
#include "kernel/value.h"

#include <stdatomic.h>

static void copy(void *dst, const void *src, size_t bytes)
{
	if (bytes)
		memcpy(dst, src, bytes);
}

static void scatter(void *const *dst, unsigned n_dst, const void *src, size_t bytes)
{
	for (unsigned i = 0; i < n_dst; i++)
		copy(dst[i], src, bytes);
}

static void own(const void *at, size_t bytes)
{
	(void)at, (void)bytes;
}

static void fence(void)
{
	atomic_thread_fence(memory_order_seq_cst);
}

static inline void wsum(enum m2n_dtype dtype, void *out, const void *residual, const void *const *x,
	const float *w, unsigned n, size_t n_values)
{
	for (size_t i = 0; i < n_values; i++) {
		float sum = residual ? load_value(dtype, residual, i) : 0.0f;

		for (unsigned k = 0; k < n; k++)
			sum = fmaf(w ? w[k] : 1.0f, load_value(dtype, x[k], i), sum);
		store_value(dtype, out, i, sum);
	}
}

static inline void scale(enum m2n_dtype dtype, void *out, const void *x, float w, size_t n_values)
{
	for (size_t i = 0; i < n_values; i++)
		store_value(dtype, out, i, w * load_value(dtype, x, i));
}

static inline float dot(enum m2n_dtype dtype, const void *a, const void *b, size_t n_values)
{
	float part[16] = {0};

	for (size_t i = 0; i < n_values; i++)
		part[i % 16] = fmaf(load_value(dtype, a, i), load_value(dtype, b, i), part[i % 16]);
	for (unsigned half = 8; half > 0; half /= 2)
		for (unsigned j = 0; j < half; j++)
			part[j] += part[j + half];
	return part[0];
}

#define KERNELS_OF(dtype, suffix)                                                                  \
	static void wsum_##suffix(void *out, const void *residual, const void *const *x,           \
		const float *w, unsigned n, size_t n_values, int nt)                               \
	{                                                                                          \
		(void)nt;                                                                          \
		wsum(dtype, out, residual, x, w, n, n_values);                                     \
	}                                                                                          \
	static void scale_##suffix(void *out, const void *x, float w, size_t n_values)             \
	{                                                                                          \
		scale(dtype, out, x, w, n_values);                                                 \
	}                                                                                          \
	static float dot_##suffix(const void *a, const void *b, size_t n_values)                   \
	{                                                                                          \
		return dot(dtype, a, b, n_values);                                                 \
	}
KERNELS_OF(M2N_DTYPE_F32, f32)
KERNELS_OF(M2N_DTYPE_BF16, bf16)
KERNELS_OF(M2N_DTYPE_F16, f16)
#undef KERNELS_OF

static float block_amax(const uint16_t *src, size_t n_values)
{
	float amax = 0.0f;

	for (size_t i = 0; i < n_values; i++) {
		float magnitude = fabsf(load_value(M2N_DTYPE_BF16, src, i));

		if (magnitude < INFINITY && magnitude > amax)
			amax = magnitude;
	}
	return amax;
}

static void cast_fp8(uint8_t *dst, float *scales, const uint16_t *src, size_t n_values)
{
	while (n_values > 0) {
		size_t n = n_values < M2N__FP8_BLOCK ? n_values : M2N__FP8_BLOCK;
		float inverse, block_scale = fp8_scale(block_amax(src, n), &inverse);

		memcpy(scales++, &block_scale, sizeof(block_scale));
		for (size_t i = 0; i < n; i++)
			dst[i] = fp8_from_f32(load_value(M2N_DTYPE_BF16, src, i) * inverse);
		dst += n;
		src += n;
		n_values -= n;
	}
}

static void uncast_fp8(uint16_t *dst, const uint8_t *src, const float *scales, size_t n_values)
{
	for (size_t i = 0; i < n_values; i++)
		store_value(M2N_DTYPE_BF16, dst, i,
			fp8_to_f32(src[i]) * load_value(M2N_DTYPE_F32, scales, i / M2N__FP8_BLOCK));
}

const struct m2n__kernels m2n__kernels_scalar = {
	.name = "scalar",
	.copy = copy,
	.stream = copy,
	.scatter = scatter,
	.fence = fence,
	.own = own,
	.wsum = {[M2N_DTYPE_F32] = wsum_f32,
		[M2N_DTYPE_BF16] = wsum_bf16,
		[M2N_DTYPE_F16] = wsum_f16},
	.scale = {[M2N_DTYPE_F32] = scale_f32,
		[M2N_DTYPE_BF16] = scale_bf16,
		[M2N_DTYPE_F16] = scale_f16},
	.dot = {[M2N_DTYPE_F32] = dot_f32, [M2N_DTYPE_BF16] = dot_bf16, [M2N_DTYPE_F16] = dot_f16},
	.cast_fp8 = cast_fp8,
	.uncast_fp8 = uncast_fp8,
};
