/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CUDA devices: opening, the driver's results as ours, kernels. The primary context is the one
 * that the CUDA runtime and every framework use, so that their addresses and streams are valid
 * here; it is kept alive as long as the device is open.
 *
 * The code of kernels is loaded with the image: the driver would do it at the first launch, and
 * loading while another kernel waits for a peer may wait for that kernel.
 */
#include "mem/cuda.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem/cuda_shared.h"
#include "util/error.h"

#define DMA_BUF_ORDERED 100 /* CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER */

/* Without nvcc there is no image, but a driver may have kernels all the same: the tests' stand-in
 * does. Others get a module without any. */
static const char no_image[] = ".version 7.0\n.target sm_80\n.address_size 64\n";

static int status_of(m2n__cu_result result)
{
	switch (result) {
	case M2N__CU_OUT_OF_MEMORY:
		return -ENOMEM;
	case M2N__CU_INVALID_VALUE:
	case M2N__CU_INVALID_DEVICE:
	case M2N__CU_INVALID_HANDLE:
	case M2N__CU_ILLEGAL_STATE:
	case M2N__CU_CAPTURE_UNSUPPORTED:
	case M2N__CU_CAPTURE_INVALIDATED:
	case M2N__CU_CAPTURE_MERGE:
	case M2N__CU_CAPTURE_UNMATCHED:
	case M2N__CU_CAPTURE_UNJOINED:
	case M2N__CU_CAPTURE_ISOLATION:
	case M2N__CU_CAPTURE_IMPLICIT:
	case M2N__CU_CAPTURED_EVENT:
	case M2N__CU_CAPTURE_WRONG_THREAD:
		return -EINVAL;
	case M2N__CU_NOT_SUPPORTED:
		return -ENOTSUP;
	default:
		return M2N_ERR_BACKEND;
	}
}

int m2n__cuda_error(const struct m2n__cuda *cuda, m2n__cu_result result, const char *what, ...)
{
	const char *name = NULL, *text = NULL;
	char where[256];
	va_list args;

	va_start(args, what);
	vsnprintf(where, sizeof(where), what, args);
	va_end(args);
	cuda->driver->error_name(result, &name);
	cuda->driver->error_string(result, &text);
	if (!name)
		return m2n__error(status_of(result), "cuda %d: %s: result %d of the driver",
			cuda->ordinal, where, result);
	return m2n__error(status_of(result), "cuda %d: %s: %s (%s)", cuda->ordinal, where, name,
		text ? text : "?");
}

int m2n__cuda_enter(const struct m2n__cuda *cuda)
{
	m2n__cu_result result = cuda->driver->ctx_push(cuda->context);

	return result ? m2n__cuda_error(cuda, result, "making the context current") : 0;
}

void m2n__cuda_leave(const struct m2n__cuda *cuda)
{
	m2n__cu_context context;

	cuda->driver->ctx_pop(&context);
}

int m2n__cuda_enter_relaxed(const struct m2n__cuda *cuda, int *mode)
{
	int rc = m2n__cuda_enter(cuda);

	*mode = M2N__CU_CAPTURE_MODE_RELAXED;
	if (!rc)
		cuda->driver->capture_mode(mode);
	return rc;
}

void m2n__cuda_leave_relaxed(const struct m2n__cuda *cuda, int *mode)
{
	cuda->driver->capture_mode(mode);
	m2n__cuda_leave(cuda);
}

/* 0 also for what an older driver does not know. */
static int attribute(const struct m2n__cuda *cuda, int number)
{
	int value = 0;

	return cuda->driver->device_attribute(&value, number, cuda->device) ? 0 : value;
}

static int find_device(struct m2n__cuda *cuda, int ordinal)
{
	m2n__cu_result result;
	int n = 0;

	result = cuda->driver->device_count(&n);
	if (result)
		return m2n__cuda_error(cuda, result, "cuDeviceGetCount");
	if (ordinal < 0 || ordinal >= n)
		return m2n__error(-EINVAL, "cuda: no device %d: there are %d, numbered from 0",
			ordinal, n);
	result = cuda->driver->device_get(&cuda->device, ordinal);
	return result ? m2n__cuda_error(cuda, result, "cuDeviceGet") : 0;
}

static int query_device(struct m2n__cuda *cuda)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	m2n__cu_result result = driver->device_name(cuda->name, sizeof(cuda->name), cuda->device);

	if (!result)
		result = driver->device_uuid(&cuda->uuid, cuda->device);
	if (!result)
		result = driver->driver_version(&cuda->driver_version);
	if (result)
		return m2n__cuda_error(cuda, result, "looking at the device");
	cuda->name[sizeof(cuda->name) - 1] = '\0';
	cuda->major = attribute(cuda, M2N__CU_DEV_MAJOR);
	cuda->minor = attribute(cuda, M2N__CU_DEV_MINOR);
	cuda->n_multiprocessors = attribute(cuda, M2N__CU_DEV_MULTIPROCESSORS);
	cuda->has_fd_handles = attribute(cuda, M2N__CU_DEV_VMM) &&
		attribute(cuda, M2N__CU_DEV_HANDLE_FD);
	cuda->has_dma_buf = driver->range_handle && attribute(cuda, M2N__CU_DEV_DMA_BUF);
	cuda->needs_flush = attribute(cuda, M2N__CU_DEV_GPU_DIRECT_ORDERING) < DMA_BUF_ORDERED;
	cuda->can_flush = driver->flush_rdma_writes &&
		(attribute(cuda, M2N__CU_DEV_GPU_DIRECT_FLUSH) & 1);
	if (!attribute(cuda, M2N__CU_DEV_UNIFIED_ADDRESSING) ||
		!attribute(cuda, M2N__CU_DEV_CAN_MAP_HOST_MEMORY))
		return m2n__error(M2N_ERR_BACKEND, "cuda %d: %s has no unified addressing",
			cuda->ordinal, cuda->name);
	return 0;
}

static int open_context(struct m2n__cuda *cuda)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	m2n__cu_result result = driver->primary_retain(&cuda->context, cuda->device);
	int ret;

	if (result)
		return m2n__cuda_error(cuda, result, "cuDevicePrimaryCtxRetain");
	ret = m2n__cuda_share(cuda);
	if (ret)
		goto release;
	ret = m2n__cuda_enter(cuda);
	if (ret)
		goto unshare;
	result = driver->stream_create(&cuda->stream, M2N__CU_STREAM_NON_BLOCKING);
	m2n__cuda_leave(cuda);
	if (!result)
		return 0;
	ret = m2n__cuda_error(cuda, result, "cuStreamCreate");
unshare:
	m2n__cuda_unshare(cuda);
release:
	driver->primary_release(cuda->device);
	return ret;
}

int m2n__cuda_open(int ordinal, struct m2n__cuda **out)
{
	const struct m2n__cuda_driver *driver;
	struct m2n__cuda *cuda;
	int ret = m2n__cuda_driver(&driver);

	if (ret)
		return ret;
	cuda = calloc(1, sizeof(*cuda));
	if (!cuda)
		return m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*cuda));
	cuda->driver = driver;
	cuda->ordinal = ordinal;
	ret = find_device(cuda, ordinal);
	if (!ret)
		ret = query_device(cuda);
	if (!ret)
		ret = open_context(cuda);
	if (ret) {
		free(cuda);
		return ret;
	}
	*out = cuda;
	return 0;
}

void m2n__cuda_close(struct m2n__cuda *cuda)
{
	int mode = M2N__CU_CAPTURE_MODE_RELAXED, entered;

	if (!cuda)
		return;
	entered = !m2n__cuda_enter(cuda);
	if (entered)
		cuda->driver->stream_destroy(cuda->stream);
	cuda->driver->capture_mode(&mode);
	m2n__cuda_unshare(cuda);
	cuda->driver->capture_mode(&mode);
	if (entered)
		m2n__cuda_leave(cuda);
	cuda->driver->primary_release(cuda->device);
	free(cuda);
}

static int no_kernels(const struct m2n__cuda *cuda)
{
	return m2n__error(M2N_ERR_BACKEND, "cuda %d: no kernels: this libm2n was built without "
		"nvcc; install the CUDA toolkit and build again", cuda->ordinal);
}

static int load_error(const struct m2n__cuda *cuda, m2n__cu_result result)
{
	if (result == M2N__CU_NO_BINARY_FOR_GPU || result == M2N__CU_UNSUPPORTED_PTX)
		return m2n__cuda_error(cuda, result, "no kernels of this libm2n for %s, compute "
			"capability %d.%d, with a driver for CUDA %d.%d", cuda->name, cuda->major,
			cuda->minor, cuda->driver_version / 1000,
			cuda->driver_version % 1000 / 10);
	return m2n__cuda_error(cuda, result, "cuModuleLoadData");
}

/* Looks a kernel up, and has its code loaded now: by the call for it, or by one that needs it. */
static m2n__cu_result get_kernel(const struct m2n__cuda *cuda, const char *name,
	m2n__cu_function *kernel)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	m2n__cu_result result = driver->module_function(kernel, cuda->module, name);
	int n;

	if (!result && driver->func_load)
		result = driver->func_load(*kernel);
	if (!result)
		result = driver->func_attribute(&n, M2N__CU_FUNC_REGISTERS, *kernel);
	return result;
}

static int load(struct m2n__cuda *cuda, const void *image, const char *const *names)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	m2n__cu_result result = driver->module_load(&cuda->module, image ? image : no_image);
	int ret = 0;

	if (result) {
		cuda->module = NULL;
		return image ? load_error(cuda, result) : no_kernels(cuda);
	}
	for (unsigned i = 0; names[i] && !ret; i++) {
		if (i == M2N__CUDA_MAX_KERNELS) {
			ret = m2n__error(-EINVAL, "cuda: more than %d kernels", i);
			break;
		}
		result = get_kernel(cuda, names[i], &cuda->kernels[i]);
		if (result)
			ret = image ? m2n__cuda_error(cuda, result, "kernel %s", names[i]) :
				no_kernels(cuda);
	}
	if (!ret)
		return 0;
	driver->module_unload(cuda->module);
	cuda->module = NULL;
	memset(cuda->kernels, 0, sizeof(cuda->kernels));
	return ret;
}

int m2n__cuda_load(struct m2n__cuda *cuda, const void *image, const char *const *names)
{
	int mode = M2N__CU_CAPTURE_MODE_RELAXED, ret = m2n__cuda_enter(cuda);

	if (ret)
		return ret;
	cuda->driver->capture_mode(&mode);
	ret = m2n__cuda_shared_load(cuda, image, names, load);
	cuda->driver->capture_mode(&mode);
	m2n__cuda_leave(cuda);
	return ret;
}

int m2n__cuda_launch(const struct m2n__cuda *cuda, unsigned kernel, unsigned n_blocks,
	unsigned n_threads, size_t shared_bytes, void *stream, const void *args)
{
	void *params[1];
	m2n__cu_result result;

	if (kernel >= M2N__CUDA_MAX_KERNELS || !cuda->kernels[kernel])
		return m2n__error(-EINVAL, "cuda %d: no kernel %u is loaded", cuda->ordinal,
			kernel);
	memcpy(params, &args, sizeof(args));
	result = cuda->driver->launch(cuda->kernels[kernel], n_blocks, 1, 1, n_threads, 1, 1,
		(unsigned)shared_bytes, stream, params, NULL);
	if (result)
		return m2n__cuda_error(cuda, result, "launch of kernel %u, %u blocks of %u threads",
			kernel, n_blocks, n_threads);
	return 0;
}
