/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels: move, cast and reduce the bytes of rows inside one address space.
 *
 * One table of functions per instruction set (scalar, avx2, avx512), picked once at run time by
 * what the processor has. The scalar table is the reference: every other table must give the
 * same bits, which holds because sums use fused multiply-add in a fixed order (k ascending, one
 * fp32 accumulator per value) and casts round to nearest even. NaN stays NaN (quiet), payload
 * bits are not compared. Rows have any size and any alignment. Buffers never overlap.
 */
#ifndef M2N_KERNEL_H
#define M2N_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/types.h>

#define M2N__N_DTYPES 3
#define M2N__FP8_BLOCK 128 /* values per fp8 scale */

struct m2n__kernels {
	const char *name;

	/* dst = src, through the caches. For small rows. */
	void (*copy)(void *dst, const void *src, size_t bytes);
	/*
	 * dst = src with non-temporal stores where alignment allows (heads and tails may be
	 * ordinary). The caller fences with `fence` before it publishes.
	 */
	void (*stream)(void *dst, const void *src, size_t bytes);
	/* dst[0..n_dst) = src: the source is read once. Non-temporal like stream(). */
	void (*scatter)(void *const *dst, unsigned n_dst, const void *src, size_t bytes);
	/* Orders all earlier stores of this thread, non-temporal ones too, before later ones. */
	void (*fence)(void);
	/*
	 * Asks for the lines of a buffer that will be written soon, so that the stores need not
	 * wait for another core to give them up. A hint; does not block.
	 */
	void (*own)(const void *at, size_t bytes);

	/*
	 * out[i] = (residual ? residual[i] : 0) + sum_k w[k] * x[k][i], k ascending, fp32
	 * accumulation with fused multiply-add, one rounding to the dtype at the end.
	 * `nt` asks for non-temporal stores of out. n may be 0 (out = residual or 0).
	 * x: [n] pointers to rows of n_values of the dtype. w: [n] f32, NULL = all ones.
	 */
	void (*wsum[M2N__N_DTYPES])(void *out, const void *residual, const void *const *x,
		const float *w, unsigned n, size_t n_values, int nt);
	/* out[i] = round(w * x[i]); the row of a weighted dispatch (backward of combine). */
	void (*scale[M2N__N_DTYPES])(void *out, const void *x, float w, size_t n_values);
	/* sum_i a[i]*b[i] in fp32: 16 partial sums (value i goes to partial i % 16, fused), then
	 * partials added pairwise: p[j] += p[j+8], then +4, +2, +1. The same on every table. */
	float (*dot[M2N__N_DTYPES])(const void *a, const void *b, size_t n_values);

	/*
	 * bf16 -> fp8 e4m3 (no infinities, largest 448) with one f32 scale per block of 128 values
	 * (the last block may be short): scale = amax/448 (1 when amax is 0), q = rne(x / scale)
	 * computed as x * (448/amax) in fp32, saturated to +-448; NaN -> 0x7f.
	 * amax is over the finite values, so that an infinity saturates and spoils no other value;
	 * it is raised to 2^-117 where it is smaller and not 0, so that 448/amax is finite.
	 * dst: [n_values], scales: [ceil(n_values/128)].
	 */
	void (*cast_fp8)(uint8_t *dst, float *scales, const uint16_t *src, size_t n_values);
	/* fp8 + scales -> bf16 (rne). */
	void (*uncast_fp8)(uint16_t *dst, const uint8_t *src, const float *scales, size_t n_values);
};

/*
 * The fastest table that this processor can run, or the one named ("scalar", "avx2", "avx512");
 * NULL when the named one is unknown or the processor lacks it. Thread-safe; constant.
 */
const struct m2n__kernels *m2n__kernels_select(const char *name);
/* Tables by index, for tests and m2n_info; NULL past the end. `*usable`: whether it runs here. */
const struct m2n__kernels *m2n__kernels_at(unsigned index, int *usable);
/* Bytes of one value. */
size_t m2n__dtype_bytes(enum m2n_dtype dtype);
const char *m2n__dtype_name(enum m2n_dtype dtype);

#endif
