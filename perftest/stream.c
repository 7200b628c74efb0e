/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bare loops, one for each width of vector: 64 bytes with AVX-512, 32 with AVX2, else memcpy()
 * and words. Heads and tails that are not aligned go through memcpy().
 */
#include "stream.h"

#include <stdint.h>
#include <string.h>

static void merge_words(char *dst, const void *const *rows, unsigned n, size_t from, size_t bytes)
{
	for (size_t i = from; i < bytes; i++) {
		char all = 0;
		for (unsigned k = 0; k < n; k++)
			all ^= ((const char *)rows[k])[i];
		dst[i] = all;
	}
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx512f"))) static size_t copy_512(char *dst, const char *src, size_t bytes)
{
	size_t i = 0;

	for (; i + 256 <= bytes; i += 256) {
		__m512i a = _mm512_loadu_si512(src + i);
		__m512i b = _mm512_loadu_si512(src + i + 64);
		__m512i c = _mm512_loadu_si512(src + i + 128);
		__m512i d = _mm512_loadu_si512(src + i + 192);
		_mm512_stream_si512((void *)(dst + i), a);
		_mm512_stream_si512((void *)(dst + i + 64), b);
		_mm512_stream_si512((void *)(dst + i + 128), c);
		_mm512_stream_si512((void *)(dst + i + 192), d);
	}
	return i;
}

__attribute__((target("avx2"))) static size_t copy_256(char *dst, const char *src, size_t bytes)
{
	size_t i = 0;

	for (; i + 128 <= bytes; i += 128) {
		__m256i a = _mm256_loadu_si256((const void *)(src + i));
		__m256i b = _mm256_loadu_si256((const void *)(src + i + 32));
		__m256i c = _mm256_loadu_si256((const void *)(src + i + 64));
		__m256i d = _mm256_loadu_si256((const void *)(src + i + 96));
		_mm256_stream_si256((void *)(dst + i), a);
		_mm256_stream_si256((void *)(dst + i + 32), b);
		_mm256_stream_si256((void *)(dst + i + 64), c);
		_mm256_stream_si256((void *)(dst + i + 96), d);
	}
	return i;
}

__attribute__((target("avx512f"))) static size_t merge_512(
	char *dst, const void *const *rows, unsigned n, size_t bytes, bool nt)
{
	size_t i = 0;

	for (; i + 64 <= bytes; i += 64) {
		__m512i all = _mm512_setzero_si512();
		for (unsigned k = 0; k < n; k++)
			all = _mm512_xor_si512(
				all, _mm512_loadu_si512((const char *)rows[k] + i));
		if (nt)
			_mm512_stream_si512((void *)(dst + i), all);
		else
			_mm512_storeu_si512(dst + i, all);
	}
	return i;
}

__attribute__((target("avx2"))) static size_t merge_256(
	char *dst, const void *const *rows, unsigned n, size_t bytes, bool nt)
{
	size_t i = 0;

	for (; i + 32 <= bytes; i += 32) {
		__m256i all = _mm256_setzero_si256();
		for (unsigned k = 0; k < n; k++)
			all = _mm256_xor_si256(all,
				_mm256_loadu_si256((const void *)((const char *)rows[k] + i)));
		if (nt)
			_mm256_stream_si256((void *)(dst + i), all);
		else
			_mm256_storeu_si256((void *)(dst + i), all);
	}
	return i;
}

void perf_stream_copy(void *dst, const void *src, size_t bytes, bool nt)
{
	size_t head = -(uintptr_t)dst & 63;
	size_t done = 0;

	if (!nt || bytes < 512) {
		memcpy(dst, src, bytes);
		return;
	}
	memcpy(dst, src, head);
	if (__builtin_cpu_supports("avx512f"))
		done = copy_512((char *)dst + head, (const char *)src + head, bytes - head);
	else if (__builtin_cpu_supports("avx2"))
		done = copy_256((char *)dst + head, (const char *)src + head, bytes - head);
	done += head;
	memcpy((char *)dst + done, (const char *)src + done, bytes - done);
}

void perf_stream_merge(void *dst, const void *const *rows, unsigned n, size_t bytes, bool nt)
{
	size_t done = 0;

	nt &= ((uintptr_t)dst & 63) == 0;
	if (__builtin_cpu_supports("avx512f"))
		done = merge_512(dst, rows, n, bytes, nt);
	else if (__builtin_cpu_supports("avx2"))
		done = merge_256(dst, rows, n, bytes, nt);
	merge_words(dst, rows, n, done, bytes);
}

void perf_stream_fence(void)
{
	_mm_sfence();
}

#else

void perf_stream_copy(void *dst, const void *src, size_t bytes, bool nt)
{
	(void)nt;
	memcpy(dst, src, bytes);
}

void perf_stream_merge(void *dst, const void *const *rows, unsigned n, size_t bytes, bool nt)
{
	(void)nt;
	merge_words(dst, rows, n, 0, bytes);
}

void perf_stream_fence(void)
{
}

#endif
