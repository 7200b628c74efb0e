/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which flush a device has is settled once, cheapest first. GDRCopy's library maps some device
 * memory for the processor; it is opened at run time, and only where the driver has no call.
 *
 * Source: CUDA Driver API reference, cuFlushGPUDirectRDMAWrites(); GDRCopy's gdrapi.h, 2.x.
 */
#include "backend/common/gpu_flush.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "backend/common/dlib.h"
#include "util/error.h"

#define GPU_PAGE ((size_t)65536) /* what GDRCopy pins */

struct gdr_handle {
	unsigned long h;
};

struct gdr_lib {
	void *(*open)(void);
	int (*close)(void *gdr);
	int (*pin)(void *gdr, unsigned long at, size_t bytes, uint64_t token, uint32_t space,
		struct gdr_handle *handle);
	int (*unpin)(void *gdr, struct gdr_handle handle);
	int (*map)(void *gdr, struct gdr_handle handle, void **at, size_t bytes);
	int (*unmap)(void *gdr, struct gdr_handle handle, void *at, size_t bytes);
};

static const struct m2n__symbol gdr_symbols[] = {
	{"gdr_open", offsetof(struct gdr_lib, open)},
	{"gdr_close", offsetof(struct gdr_lib, close)},
	{"gdr_pin_buffer", offsetof(struct gdr_lib, pin)},
	{"gdr_unpin_buffer", offsetof(struct gdr_lib, unpin)},
	{"gdr_map", offsetof(struct gdr_lib, map)},
	{"gdr_unmap", offsetof(struct gdr_lib, unmap)},
};

enum kind {
	KIND_NONE,
	KIND_DRIVER,
	KIND_GDR,
};

struct m2n__gpu_flush {
	enum kind kind;
	struct m2n__cuda *cuda;
	struct m2n__mem *mem; /* GDRCopy: two pages, one of them whole */
	void *gdr;
	struct gdr_handle handle;
	void *map;
};

static struct gdr_lib gdr_lib;

static int load_gdr(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static int is_loaded;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!is_loaded)
		rc = m2n__dlib_open("libgdrapi.so.2", "GDRCopy", gdr_symbols,
			sizeof(gdr_symbols) / sizeof(gdr_symbols[0]), &gdr_lib);
	is_loaded |= !rc;
	pthread_mutex_unlock(&lock);
	return rc;
}

static void close_gdr(struct m2n__gpu_flush *f)
{
	if (f->map)
		gdr_lib.unmap(f->gdr, f->handle, f->map, GPU_PAGE);
	if (f->handle.h)
		gdr_lib.unpin(f->gdr, f->handle);
	if (f->gdr)
		gdr_lib.close(f->gdr);
	m2n__mem_free(f->mem);
}

static int open_gdr(struct m2n__gpu_flush *f)
{
	uintptr_t at;
	int rc = load_gdr();

	if (!rc)
		rc = m2n__mem_alloc_cuda(f->cuda, 2 * GPU_PAGE, &f->mem);
	if (rc)
		return rc;
	at = ((uintptr_t)f->mem->base + GPU_PAGE - 1) / GPU_PAGE * GPU_PAGE;
	f->gdr = gdr_lib.open();
	if (!f->gdr)
		rc = m2n__error(-ENOTSUP, "gdr_open: is the module gdrdrv loaded?");
	if (!rc && gdr_lib.pin(f->gdr, at, GPU_PAGE, 0, 0, &f->handle))
		rc = m2n__error(-ENOTSUP, "gdr_pin_buffer failed");
	if (!rc && gdr_lib.map(f->gdr, f->handle, &f->map, GPU_PAGE))
		rc = m2n__error(-ENOTSUP, "gdr_map failed");
	if (!rc)
		f->kind = KIND_GDR;
	else
		close_gdr(f);
	return rc;
}

static int choose(struct m2n__gpu_flush *f)
{
	const struct m2n__cuda *cuda = f->cuda;
	int rc;

	f->kind = cuda->needs_flush ? KIND_DRIVER : KIND_NONE;
	if (!cuda->needs_flush || cuda->can_flush)
		return 0;
	rc = open_gdr(f);
	return rc ? m2n__error_at(-ENOTSUP,
			    "device %d (%s) does not order a NIC's writes by itself, its driver "
			    "has no call to flush them (from 11.3 on), and GDRCopy is not usable",
			    cuda->ordinal, cuda->name)
		  : 0;
}

int m2n__gpu_flush_open(struct m2n__cuda *cuda, struct m2n__gpu_flush **flush)
{
	struct m2n__gpu_flush *f = calloc(1, sizeof(*f));
	int rc;

	if (!f)
		return m2n__error(-ENOMEM, "no memory for the flush of a device");
	f->cuda = cuda;
	rc = choose(f);
	if (rc) {
		free(f);
		return rc;
	}
	*flush = f;
	return 0;
}

void m2n__gpu_flush_close(struct m2n__gpu_flush *flush)
{
	if (!flush)
		return;
	if (flush->kind == KIND_GDR)
		close_gdr(flush);
	free(flush);
}

static int flush_by_driver(const struct m2n__cuda *cuda)
{
	int rc = m2n__cuda_enter(cuda), status;

	if (rc)
		return rc;
	status = cuda->driver->flush_rdma_writes(
		M2N__CU_FLUSH_TARGET_CURRENT_CTX, M2N__CU_FLUSH_TO_OWNER);
	m2n__cuda_leave(cuda);
	return status ? m2n__cuda_error(cuda, status, "flushing a NIC's writes to device %d (%s)",
				cuda->ordinal, cuda->name)
		      : 0;
}

int m2n__gpu_flush(struct m2n__gpu_flush *flush)
{
	if (flush->kind == KIND_DRIVER)
		return flush_by_driver(flush->cuda);
	if (flush->kind == KIND_GDR)
		(void)__atomic_load_n((volatile uint32_t *)flush->map, __ATOMIC_SEQ_CST);
	return 0;
}

const char *m2n__gpu_flush_name(const struct m2n__gpu_flush *flush)
{
	static const char *const names[] = {"none", "driver", "GDRCopy"};

	return names[flush->kind];
}

void m2n__gpu_order_copies(const struct m2n__cuda *cuda, const struct m2n__mem *mem)
{
	const unsigned on = 1;

	if (m2n__cuda_enter(cuda))
		return;
	(void)cuda->driver->pointer_set_attribute(
		&on, M2N__CU_PTR_SYNC_MEMOPS, (uintptr_t)mem->base);
	m2n__cuda_leave(cuda);
}
