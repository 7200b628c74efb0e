/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tests by name: what each prepares before its ranks start, and the cases it makes of their
 * stamps after.
 */
#ifndef PERF_TESTS_H
#define PERF_TESTS_H

#include "cases.h"

struct perf_test_ops {
	/* Fills the job: dims, series, body, routing, shared memory. False: `text` says why not. */
	bool (*prepare)(struct perf_job *job, char *text, size_t text_bytes);
	/* Fills report->cases, allocated with malloc(). False: no memory. */
	bool (*cases)(const struct perf_job *job, struct perf_report *report);
};

extern const struct perf_test_ops perf_bw_ops;
extern const struct perf_test_ops perf_lat_ops;
extern const struct perf_test_ops perf_moe_ops;
extern const struct perf_test_ops perf_moe_gpu_ops; /* in CUDA memory */
extern const struct perf_test_ops perf_init_ops;

/* Kernels need no ranks: measures and reports at once, returns the exit status. */
int perf_kernel_run(const struct perf_args *args, FILE *file);
int perf_kernel_gpu_run(const struct perf_args *args, FILE *file); /* in CUDA memory */

/* Message sizes of --sizes: A, 2A, 4A ... and B. */
size_t perf_sizes(const struct perf_args *args, uint64_t *sizes, size_t max);
#define PERF_MAX_SIZES 64

#endif
