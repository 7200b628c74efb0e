/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory and pinned host memory. Ours comes from cuMemAlloc(), whose handle for other
 * processes is 64 plain bytes, in whole blocks of the driver's: it hands out blocks, and a peer
 * that maps a small allocation would see its neighbours.
 *
 * What is done here may happen while another thread captures its stream: calls that a capture
 * forbids are made in the relaxed mode, which says that they have nothing to do with it.
 */
#include "mem/cuda.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "mem/cuda_memory.h"
#include "mem/cuda_shared.h"
#include "util/error.h"

#define BLOCK_BYTES ((size_t)2 << 20)
#define PINNED_BYTES ((size_t)4096)
#define WRAPPED_PAGE_BYTES 4096

static m2n__cu_ptr ptr(const void *at)
{
	return (uintptr_t)at;
}

/* ---- our own ---- */

static int no_memory(const struct m2n__cuda *cuda, size_t bytes)
{
	size_t free_bytes = 0, total = 0;

	cuda->driver->mem_info(&free_bytes, &total);
	return m2n__error(-ENOMEM, "no memory for %zu bytes on cuda %d (%s): %zu of %zu bytes are "
		"free; use fewer or smaller channels, or leave more to this process", bytes,
		cuda->ordinal, cuda->name, free_bytes, total);
}

static int zero(const struct m2n__cuda *cuda, m2n__cu_ptr at, size_t bytes)
{
	m2n__cu_result result = cuda->driver->memset_async(at, 0, bytes, cuda->stream);

	if (!result)
		result = cuda->driver->stream_synchronize(cuda->stream);
	return result ? m2n__cuda_error(cuda, result, "zeroing %zu bytes", bytes) : 0;
}

static int alloc_zeroed(struct m2n__cuda *cuda, size_t bytes, void **at)
{
	m2n__cu_result result = m2n__cuda_block_get(cuda, M2N__BLOCK_DEVICE, bytes, at);
	int ret;

	if (result == M2N__CU_OUT_OF_MEMORY)
		return no_memory(cuda, bytes);
	if (result)
		return m2n__cuda_error(cuda, result, "cuMemAlloc of %zu bytes", bytes);
	ret = zero(cuda, ptr(*at), bytes);
	if (ret)
		m2n__cuda_block_put(cuda, M2N__BLOCK_DEVICE, *at);
	return ret;
}

int m2n__mem_alloc_cuda(struct m2n__cuda *cuda, size_t bytes, struct m2n__mem **out)
{
	size_t all = (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
	struct m2n__mem *mem;
	void *at = NULL;
	int mode, ret;

	if (!bytes)
		return m2n__error(-EINVAL, "memory of 0 bytes on cuda %d", cuda->ordinal);
	if (bytes > (size_t)INT64_MAX / 2)
		return m2n__error(-ENOMEM, "no memory for %zu bytes on cuda %d: more than an "
			"address space", bytes, cuda->ordinal);
	mem = malloc(sizeof(*mem));
	if (!mem)
		return m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*mem));
	ret = m2n__cuda_enter_relaxed(cuda, &mode);
	if (!ret) {
		ret = alloc_zeroed(cuda, all, &at);
		m2n__cuda_leave_relaxed(cuda, &mode);
	}
	if (ret) {
		free(mem);
		return ret;
	}
	*mem = (struct m2n__mem){
		.kind = M2N__MEM_CUDA,
		.base = at,
		.bytes = all,
		.committed = all,
		.page_bytes = BLOCK_BYTES,
		.fd = -1,
		.is_ours = 1,
		.cuda = cuda,
	};
	*out = mem;
	return 0;
}

void m2n__mem_release_cuda(struct m2n__mem *mem)
{
	int mode;

	if (!mem->is_ours || m2n__cuda_enter_relaxed(mem->cuda, &mode))
		return;
	m2n__cuda_block_put(mem->cuda, M2N__BLOCK_DEVICE, mem->base);
	m2n__cuda_leave_relaxed(mem->cuda, &mode);
}

void m2n__cuda_trim(struct m2n__cuda *cuda)
{
	int mode;

	if (m2n__cuda_enter_relaxed(cuda, &mode))
		return;
	m2n__cuda_blocks_free(cuda);
	m2n__cuda_leave_relaxed(cuda, &mode);
}

int m2n__cuda_pinned_alloc(struct m2n__cuda *cuda, size_t bytes, void **out)
{
	m2n__cu_ptr device = 0;
	m2n__cu_result result;
	void *at = NULL;
	int mode, ret;
	size_t all;

	if (!bytes)
		return m2n__error(-EINVAL, "pinned memory of 0 bytes");
	ret = m2n__cuda_enter_relaxed(cuda, &mode);
	if (ret)
		return ret;
	all = (bytes + PINNED_BYTES - 1) / PINNED_BYTES * PINNED_BYTES;
	result = all < bytes ? M2N__CU_OUT_OF_MEMORY :
		m2n__cuda_block_get(cuda, M2N__BLOCK_PINNED, all, &at);
	if (result == M2N__CU_OUT_OF_MEMORY)
		ret = m2n__error(-ENOMEM, "no memory for %zu pinned bytes: the driver cannot lock "
			"them; see the limit on memory of this process's control group", bytes);
	else if (result)
		ret = m2n__cuda_error(cuda, result, "cuMemHostAlloc of %zu bytes", bytes);
	if (!ret && (cuda->driver->host_device_ptr(&device, at, 0) || device != ptr(at))) {
		ret = m2n__error(M2N_ERR_BACKEND, "cuda %d: pinned memory has another address on "
			"the device", cuda->ordinal);
		m2n__cuda_block_put(cuda, M2N__BLOCK_PINNED, at);
	}
	m2n__cuda_leave_relaxed(cuda, &mode);
	if (ret)
		return ret;
	memset(at, 0, bytes);
	*out = at;
	return 0;
}

void m2n__cuda_pinned_free(struct m2n__cuda *cuda, void *at)
{
	int mode;

	if (!at || m2n__cuda_enter_relaxed(cuda, &mode))
		return;
	m2n__cuda_block_put(cuda, M2N__BLOCK_PINNED, at);
	m2n__cuda_leave_relaxed(cuda, &mode);
}

/* ---- the user's ---- */

static int pointer_attribute(const struct m2n__cuda *cuda, int attribute, m2n__cu_ptr at)
{
	int value = 0;

	return cuda->driver->pointer_attribute(&value, attribute, at) ? -1 : value;
}

enum m2n__pointer m2n__cuda_pointer(const struct m2n__cuda *cuda, const void *at, int *ordinal)
{
	int type = pointer_attribute(cuda, M2N__CU_PTR_MEMORY_TYPE, ptr(at));
	int owner;

	if (type != 1 && type != 2)
		return M2N__POINTER_HOST;
	owner = pointer_attribute(cuda, M2N__CU_PTR_DEVICE_ORDINAL, ptr(at));
	if (ordinal)
		*ordinal = owner;
	if (type == 1)
		return M2N__POINTER_PINNED;
	return owner == cuda->ordinal ? M2N__POINTER_DEVICE : M2N__POINTER_OTHER;
}

/* Can the host read it? Asks the kernel, which answers instead of a signal. */
static int is_readable(const void *at)
{
	char byte;
	const struct iovec to = {&byte, 1};
	struct iovec from = {NULL, 1};

	memcpy(&from.iov_base, &at, sizeof(at));
	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

static int check_pointer(const struct m2n__cuda *cuda, const void *base)
{
	int ordinal = -1;

	switch (m2n__cuda_pointer(cuda, base, &ordinal)) {
	case M2N__POINTER_PINNED:
		return m2n__error(-EINVAL, "%p is pinned host memory, not memory of cuda %d", base,
			cuda->ordinal);
	case M2N__POINTER_OTHER:
		return m2n__error(-EINVAL, "%p is memory of cuda %d, not of cuda %d", base, ordinal,
			cuda->ordinal);
	case M2N__POINTER_HOST:
		return is_readable(base) ?
			m2n__error(-EINVAL, "%p is host memory, not memory of cuda %d", base,
				cuda->ordinal) :
			m2n__error(-EINVAL, "%p is no memory of cuda %d: it was freed, or never "
				"was", base, cuda->ordinal);
	default:
		break;
	}
	if (pointer_attribute(cuda, M2N__CU_PTR_IS_MANAGED, ptr(base)) == 1)
		return m2n__error(-EINVAL, "%p is managed memory, which moves; cudaMalloc() gives "
			"memory that stays on cuda %d", base, cuda->ordinal);
	return 0;
}

/* Memory that frameworks map piece by piece (VMM) is one range to its user. */
static int check_range(const struct m2n__cuda *cuda, const void *base, size_t bytes)
{
	m2n__cu_ptr at = ptr(base), end_at = at + bytes, first = 0;
	size_t n = 0;

	if (end_at < at)
		return m2n__error(-EINVAL, "memory at %p of %zu bytes", base, bytes);
	while (at < end_at) {
		m2n__cu_result result = cuda->driver->mem_range(&first, &n, at);

		if (result && at == ptr(base))
			return m2n__cuda_error(cuda, result, "cuMemGetAddressRange of %p", base);
		if (result)
			break;
		at = first + n;
		if (pointer_attribute(cuda, M2N__CU_PTR_IS_LEGACY_IPC, first) == 1)
			break;
	}
	if (at < end_at)
		return m2n__error(-EINVAL, "memory at %p of %zu bytes: its allocation on cuda %d "
			"ends after %zu", base, bytes, cuda->ordinal, (size_t)(at - ptr(base)));
	return 0;
}

int m2n__mem_wrap_cuda(struct m2n__cuda *cuda, void *base, size_t bytes, struct m2n__mem **out)
{
	struct m2n__mem *mem;
	int ret;

	if (!base || !bytes)
		return m2n__error(-EINVAL, "memory at %p of %zu bytes on cuda %d", base, bytes,
			cuda->ordinal);
	ret = m2n__cuda_enter(cuda);
	if (ret)
		return ret;
	ret = check_pointer(cuda, base);
	if (!ret)
		ret = check_range(cuda, base, bytes);
	m2n__cuda_leave(cuda);
	if (ret)
		return ret;
	mem = malloc(sizeof(*mem));
	if (!mem)
		return m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*mem));
	*mem = (struct m2n__mem){
		.kind = M2N__MEM_CUDA,
		.base = base,
		.bytes = bytes,
		.committed = bytes,
		.page_bytes = WRAPPED_PAGE_BYTES,
		.fd = -1,
		.cuda = cuda,
	};
	*out = mem;
	return 0;
}

/* ---- control data ---- */

int m2n__cuda_write(struct m2n__cuda *cuda, void *to, const void *from, size_t bytes)
{
	m2n__cu_result result;
	int mode, ret = m2n__cuda_enter_relaxed(cuda, &mode);

	if (ret)
		return ret;
	result = cuda->driver->copy_to_device(ptr(to), from, bytes, cuda->stream);
	if (!result)
		result = cuda->driver->stream_synchronize(cuda->stream);
	m2n__cuda_leave_relaxed(cuda, &mode);
	return result ? m2n__cuda_error(cuda, result, "writing %zu bytes to %p", bytes, to) : 0;
}

int m2n__cuda_read(struct m2n__cuda *cuda, void *to, const void *from, size_t bytes)
{
	m2n__cu_result result;
	int mode, ret = m2n__cuda_enter_relaxed(cuda, &mode);

	if (ret)
		return ret;
	result = cuda->driver->copy_to_host(to, ptr(from), bytes, cuda->stream);
	if (!result)
		result = cuda->driver->stream_synchronize(cuda->stream);
	m2n__cuda_leave_relaxed(cuda, &mode);
	return result ? m2n__cuda_error(cuda, result, "reading %zu bytes from %p", bytes, from) : 0;
}
