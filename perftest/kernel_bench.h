/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times every kernel of every table that runs here, over a set of row sizes, next to a yardstick
 * that moves the same bytes in the same run. Links the library's internals.
 */
#ifndef M2N_PERF_KERNEL_BENCH_H
#define M2N_PERF_KERNEL_BENCH_H

#include <stddef.h>

struct kernel_case {
	const char *kernel;  /* "stream", "wsum bf16", ... */
	const char *table;   /* "scalar", "avx2", "avx512" */
	size_t row_bytes;    /* of a row as the kernel reads it */
	unsigned n;          /* destinations of a scatter, rows of a sum; otherwise 1 */
	double ns;           /* per call, median over the iterations */
	double gbps;         /* bytes written (copies), read and written (the rest), per ns */
	double ratio;        /* the yardstick's time / this one: above 1 is ahead */
	double ratio_scalar; /* the scalar table's time / this one */
};

/*
 * Copies are measured against memcpy(), the rest against a loop that reads the same bytes and
 * writes the same bytes without arithmetic. "copy" works on one hot row, all others on source
 * rows of 1.8 MB in turn and three slots of eight times that, as a round does.
 * Calls `emit` once for each case; `iterations` passes over the rows are made for each.
 * Returns 0 or -ENOMEM.
 */
int kernel_bench_run(void (*emit)(void *arg, const struct kernel_case *c), void *arg,
	int iterations);

#endif
