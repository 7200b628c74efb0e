/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Through posix and sysv UCX reaches only memory that it allocated itself. Where UCX is the only
 * backend of the context, memory that peers write to is therefore made UCX's: it allocates a
 * shared segment, and a second mapping of that takes the place of our memfd, at the same
 * addresses. Each mapping has its own end: UCX unmaps its own when the memory is deregistered,
 * and ours goes with the memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"
#include "util/error.h"

/* A segment of UCX's. NULL: not to be had. */
static void *allocate(struct m2n__ucx_iface *u, size_t bytes, ucp_mem_h *memh)
{
	ucp_mem_map_params_t params = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS,
		.length = bytes,
		.flags = UCP_MEM_MAP_ALLOCATE,
	};
	ucp_mem_attr_t attr = {.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS};

	if (m2n__ucx.ucp_mem_map(u->context, &params, memh))
		return NULL;
	if (m2n__ucx.ucp_mem_query(*memh, &attr) == UCS_OK)
		return attr.address;
	m2n__ucx.ucp_mem_unmap(u->context, *memh);
	return NULL;
}

/*
 * A second mapping of a segment takes the place of the memory's own. By the system call: UCX hooks
 * mremap(), and its hook drops the address. mmap() goes through UCX's hook on purpose: devices
 * forget what they knew of the old pages.
 */
static int map_twice(const struct m2n__mem *mem, void *segment)
{
	/* Of a length of 0, a shared mapping is doubled; a private one refuses. */
	void *copy = (void *)syscall(SYS_mremap, segment, 0, mem->bytes, MREMAP_MAYMOVE, 0);

	if (copy == MAP_FAILED)
		return m2n__error(-ENOTSUP, "ucx: memory of UCX's cannot be mapped twice");
	memcpy(segment, mem->base, mem->committed);
	if (mmap(mem->base, mem->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		    0) == mem->base &&
		(void *)syscall(SYS_mremap, copy, mem->bytes, mem->bytes,
			MREMAP_MAYMOVE | MREMAP_FIXED, mem->base) == mem->base)
		return 0;
	munmap(copy, mem->bytes);
	(void)mmap(
		mem->base, mem->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, mem->fd, 0);
	return m2n__error(-ENOMEM, "ucx: %zu bytes cannot be mapped", mem->bytes);
}

int m2n__ucx_make_native(struct m2n__ucx_iface *u, struct m2n__ucx_mr *m)
{
	const struct m2n__mem *mem = m->mr.mem;
	ucp_mem_h memh = NULL;
	void *segment;
	int rc;

	if (m->is_native)
		return 0;
	segment = mem->fd < 0 ? NULL : allocate(u, mem->bytes, &memh);
	if (!segment)
		return m2n__error(-ENOMEM,
			"ucx: no %zu bytes of shared memory to be had from UCX (is /dev/shm full?)",
			mem->bytes);
	rc = map_twice(mem, segment);
	if (rc) {
		m2n__ucx.ucp_mem_unmap(u->context, memh);
		return rc;
	}
	/* Nobody needs the pages of the memfd any more. */
	(void)fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)mem->bytes);
	m2n__ucx.ucp_mem_unmap(u->context, m->memh);
	m->memh = memh;
	m->base = (uintptr_t)segment;
	m->is_native = 1;
	return 0;
}
