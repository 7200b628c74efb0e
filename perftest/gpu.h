/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One GPU of one thread of m2n_perf: a stream to measure on, two events around what is timed,
 * plain device memory. The device is the thread's own current one from open to close, so that the
 * driver's functions can be called as they are.
 *
 * Functions that can fail return 0 or a status of the library with m2n_error_text().
 */
#ifndef PERF_GPU_H
#define PERF_GPU_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/context.h>

#include "mem/cuda.h"

struct perf_gpu {
	struct m2n__cuda *cuda;
	const struct m2n__cuda_driver *cu;
	m2n__cu_stream stream;
	m2n__cu_event begin, end;
};

/* The device of a context: the environment may have had another word than the command line. */
int perf_gpu_of(struct m2n_ctx *ctx, int *ordinal);
int perf_gpu_open(int ordinal, struct perf_gpu *gpu);
void perf_gpu_close(struct perf_gpu *gpu);

/* Device memory, at least one byte of it; what is in it is not told. */
int perf_gpu_alloc(struct perf_gpu *gpu, size_t bytes, void **at);
void perf_gpu_free(struct perf_gpu *gpu, void *at); /* NULL is allowed */
/* Between host and device; waits. 0 bytes are allowed. */
int perf_gpu_upload(struct perf_gpu *gpu, void *to, const void *from, size_t bytes);
int perf_gpu_download(struct perf_gpu *gpu, void *to, const void *from, size_t bytes);

/* Queues a copy on the device. */
int perf_gpu_copy(struct perf_gpu *gpu, void *to, const void *from, size_t bytes);
int perf_gpu_event(struct perf_gpu *gpu, m2n__cu_event *event);
int perf_gpu_record(struct perf_gpu *gpu, m2n__cu_event event);
int perf_gpu_sync(struct perf_gpu *gpu);
/* Between two events that are over. */
int perf_gpu_elapsed(struct perf_gpu *gpu, m2n__cu_event from, m2n__cu_event to, double *us);

/* What is queued between the two becomes a graph. */
int perf_gpu_capture_begin(struct perf_gpu *gpu);
int perf_gpu_capture_end(struct perf_gpu *gpu, void **exec);

/* For reports: "NVIDIA H200, compute capability 9.0, driver 13.0"; or why there is none. */
void perf_gpu_describe(int ordinal, char *text, size_t bytes);

#endif
