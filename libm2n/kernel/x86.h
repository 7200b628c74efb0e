/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the AVX2 and the AVX-512 table share: the parts that do not depend on a register's width.
 * Compiled into each of them with its instructions; the includer defines stream(), wsum(),
 * scale() and dot().
 */
#ifndef M2N_KERNEL_X86_H
#define M2N_KERNEL_X86_H

#include <immintrin.h>

#include "kernel/value.h"

#define INLINE static inline __attribute__((always_inline))
#define LINE 64
#define SCATTER_BLOCK 4096 /* bytes of the source that go to each destination in turn */
/*
 * Sums fetch every row this many bytes ahead, into the second-level cache: rows that another
 * process streamed are in memory, and the processor's own prefetcher starts anew in each page
 * of each row. Nearer and farther (256 to 2048 bytes) and into the first level measured slower.
 */
#define AHEAD 512

/* The operands of a weighted sum, as kernel.h has them. */
struct wsum {
	void *out;
	const void *residual;
	const void *const *x;
	const float *w;
	unsigned n;
};

static void stream(void *dst, const void *src, size_t bytes);

INLINE size_t value_bytes(enum m2n_dtype dtype)
{
	return dtype == M2N_DTYPE_F32 ? 4 : 2;
}

INLINE size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* Bytes before the first cache line that begins in dst. */
INLINE size_t head_bytes(const void *dst, size_t bytes)
{
	return min_size(-(uintptr_t)dst & (LINE - 1), bytes);
}

/* At most 64 bytes, by two moves that may overlap. */
INLINE void copy_line(char *d, const char *s, size_t bytes)
{
	if (bytes >= 32) {
		__m256i a = _mm256_loadu_si256((const __m256i *)s);
		__m256i b = _mm256_loadu_si256((const __m256i *)(s + bytes - 32));

		_mm256_storeu_si256((__m256i *)d, a);
		_mm256_storeu_si256((__m256i *)(d + bytes - 32), b);
	} else if (bytes >= 16) {
		__m128i a = _mm_loadu_si128((const __m128i *)s);
		__m128i b = _mm_loadu_si128((const __m128i *)(s + bytes - 16));

		_mm_storeu_si128((__m128i *)d, a);
		_mm_storeu_si128((__m128i *)(d + bytes - 16), b);
	} else if (bytes >= 8) {
		uint64_t a, b;

		memcpy(&a, s, 8);
		memcpy(&b, s + bytes - 8, 8);
		memcpy(d, &a, 8);
		memcpy(d + bytes - 8, &b, 8);
	} else {
		for (size_t i = 0; i < bytes; i++)
			d[i] = s[i];
	}
}

/*
 * The source goes block by block to each destination in turn, so that it is read from memory
 * once and from the first-level cache after that. A destination's blocks begin at its cache
 * lines, wherever the others' do.
 */
static void scatter(void *const *dst, unsigned n_dst, const void *src, size_t bytes)
{
	for (size_t base = 0; base < bytes; base += SCATTER_BLOCK) {
		for (unsigned j = 0; j < n_dst; j++) {
			size_t head = head_bytes(dst[j], bytes);
			size_t begin = base ? base + head : 0;
			size_t end = min_size(base + SCATTER_BLOCK + head, bytes);

			if (begin < end)
				stream((char *)dst[j] + begin, (const char *)src + begin,
					end - begin);
		}
	}
}

/* prefetchw by hand: GCC emits it only for processors it was told about; older ones skip it. */
static void own(const void *at, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += LINE)
		__asm__ volatile("prefetchw %0" : : "m"(*((const char *)at + i)));
}

static void fence(void)
{
	_mm_sfence();
	__asm__ __volatile__("" ::: "memory");
}

INLINE void prefetch(const void *row, size_t begin, size_t end)
{
	for (; begin < end; begin += LINE)
		_mm_prefetch((const char *)row + begin, _MM_HINT_T1);
}

/* The first AHEAD bytes of every row of a sum. */
INLINE void prefetch_rows(const struct wsum *sum, size_t row_bytes)
{
	for (unsigned k = 0; k < sum->n; k++)
		prefetch(sum->x[k], 0, min_size(AHEAD, row_bytes));
}

/* Values before the first cache line of `out`. */
INLINE size_t head_values(enum m2n_dtype dtype, const void *out, size_t n_values)
{
	return min_size(head_bytes(out, LINE) / value_bytes(dtype), n_values);
}

#define KERNELS_OF(dtype, suffix)                                                                  \
	static void wsum_##suffix(void *out, const void *residual, const void *const *x,           \
		const float *w, unsigned n, size_t n_values, int nt)                               \
	{                                                                                          \
		const struct wsum sum = {out, residual, x, w, n};                                  \
		wsum(dtype, &sum, n_values, nt && (uintptr_t)out % value_bytes(dtype) == 0);       \
	}                                                                                          \
	static void scale_##suffix(void *out, const void *x, float w, size_t n_values)             \
	{                                                                                          \
		scale(dtype, out, x, w, n_values);                                                 \
	}                                                                                          \
	static float dot_##suffix(const void *a, const void *b, size_t n_values)                   \
	{                                                                                          \
		return dot(dtype, a, b, n_values);                                                 \
	}

#endif
