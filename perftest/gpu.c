/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's functions, as far as m2n_perf needs them, with the library's errors.
 */
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>

#include "util/error.h"

/* The driver's result as a status of ours. */
static int check(const struct perf_gpu *gpu, m2n__cu_result result, const char *what)
{
	return result == M2N__CU_SUCCESS ? 0 : m2n__cuda_error(gpu->cuda, result, "%s", what);
}

int perf_gpu_of(struct m2n_ctx *ctx, int *ordinal)
{
	char value[64] = "";
	char *end = value;
	int status = m2n_ctx_option(ctx, "CUDA_DEVICE", value, sizeof(value), NULL);

	*ordinal = (int)strtol(value, &end, 10);
	if (status == 0 && (end == value || *end != '\0'))
		status = m2n__error(M2N_ERR_BACKEND,
			"option CUDA_DEVICE is '%s': --memory cuda needs the number of a device",
			value);
	return status;
}

int perf_gpu_open(int ordinal, struct perf_gpu *gpu)
{
	*gpu = (struct perf_gpu){0};
	int status = m2n__cuda_open(ordinal, &gpu->cuda);

	if (status != 0)
		return status;
	gpu->cu = gpu->cuda->driver;
	status = m2n__cuda_enter(gpu->cuda);
	if (status != 0) {
		m2n__cuda_close(gpu->cuda);
		return status;
	}
	status = check(gpu, gpu->cu->stream_create(&gpu->stream, M2N__CU_STREAM_NON_BLOCKING),
		"cuStreamCreate");
	if (status == 0)
		status = perf_gpu_event(gpu, &gpu->begin);
	if (status == 0)
		status = perf_gpu_event(gpu, &gpu->end);
	if (status != 0)
		perf_gpu_close(gpu);
	return status;
}

void perf_gpu_close(struct perf_gpu *gpu)
{
	if (gpu->cuda == NULL)
		return;
	if (gpu->end != NULL)
		gpu->cu->event_destroy(gpu->end);
	if (gpu->begin != NULL)
		gpu->cu->event_destroy(gpu->begin);
	if (gpu->stream != NULL)
		gpu->cu->stream_destroy(gpu->stream);
	m2n__cuda_leave(gpu->cuda);
	m2n__cuda_close(gpu->cuda);
	*gpu = (struct perf_gpu){0};
}

int perf_gpu_alloc(struct perf_gpu *gpu, size_t bytes, void **at)
{
	m2n__cu_ptr address = 0;
	int status = check(gpu, gpu->cu->mem_alloc(&address, bytes > 0 ? bytes : 1), "cuMemAlloc");

	*at = (void *)(uintptr_t)address;
	return status;
}

void perf_gpu_free(struct perf_gpu *gpu, void *at)
{
	if (at != NULL)
		gpu->cu->mem_free((uintptr_t)at);
}

int perf_gpu_upload(struct perf_gpu *gpu, void *to, const void *from, size_t bytes)
{
	return bytes > 0 ? m2n__cuda_write(gpu->cuda, to, from, bytes) : 0;
}

int perf_gpu_download(struct perf_gpu *gpu, void *to, const void *from, size_t bytes)
{
	return bytes > 0 ? m2n__cuda_read(gpu->cuda, to, from, bytes) : 0;
}

int perf_gpu_copy(struct perf_gpu *gpu, void *to, const void *from, size_t bytes)
{
	if (bytes == 0)
		return 0;
	return check(gpu,
		gpu->cu->copy_on_device((uintptr_t)to, (uintptr_t)from, bytes, gpu->stream),
		"cuMemcpyDtoDAsync");
}

int perf_gpu_event(struct perf_gpu *gpu, m2n__cu_event *event)
{
	return check(gpu, gpu->cu->event_create(event, 0), "cuEventCreate");
}

int perf_gpu_record(struct perf_gpu *gpu, m2n__cu_event event)
{
	return check(gpu, gpu->cu->event_record(event, gpu->stream), "cuEventRecord");
}

int perf_gpu_sync(struct perf_gpu *gpu)
{
	return check(gpu, gpu->cu->stream_synchronize(gpu->stream), "cuStreamSynchronize");
}

int perf_gpu_elapsed(struct perf_gpu *gpu, m2n__cu_event from, m2n__cu_event to, double *us)
{
	float ms = 0;
	int status = check(gpu, gpu->cu->event_elapsed(&ms, from, to), "cuEventElapsedTime");

	*us = 1000 * (double)ms;
	return status;
}

int perf_gpu_capture_begin(struct perf_gpu *gpu)
{
	return check(gpu, gpu->cu->stream_begin_capture(gpu->stream, M2N__CU_CAPTURE_MODE_THREAD),
		"cuStreamBeginCapture");
}

int perf_gpu_capture_end(struct perf_gpu *gpu, void **exec)
{
	void *graph = NULL;
	int status =
		check(gpu, gpu->cu->stream_end_capture(gpu->stream, &graph), "cuStreamEndCapture");

	if (status == 0)
		status = check(gpu, gpu->cu->graph_instantiate(exec, graph, 0),
			"cuGraphInstantiateWithFlags");
	if (graph != NULL)
		gpu->cu->graph_destroy(graph);
	return status;
}

void perf_gpu_describe(int ordinal, char *text, size_t bytes)
{
	struct m2n__cuda *cuda = NULL;

	if (m2n__cuda_open(ordinal, &cuda) != 0) {
		snprintf(text, bytes, "none: %s", m2n_error_text());
		return;
	}
	snprintf(text, bytes, "%s, compute capability %d.%d, driver %d.%d", cuda->name, cuda->major,
		cuda->minor, cuda->driver_version / 1000, cuda->driver_version % 1000 / 10);
	m2n__cuda_close(cuda);
}
