/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bare loops for the yardsticks: copies and sums without protocol or conversion, with ordinary
 * or non-temporal stores. They owe nothing to the library's kernels.
 */
#ifndef PERF_STREAM_H
#define PERF_STREAM_H

#include <stdbool.h>
#include <stddef.h>

/* Copies with memcpy(), or with non-temporal stores where the processor and alignment allow. */
void perf_stream_copy(void *dst, const void *src, size_t bytes, bool nt);
/* Reads n rows and writes their exclusive or: the traffic of a sum, none of its arithmetic. */
void perf_stream_merge(void *dst, const void *const *rows, unsigned n, size_t bytes, bool nt);
/* Non-temporal stores so far are seen before later stores. */
void perf_stream_fence(void);

static inline void perf_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

#endif
