/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The exporter's side: what another process opens an allocation by. Memory of cuMemAlloc() has an
 * IPC handle. Memory of cuMemCreate() (PyTorch's expandable segments) has a file descriptor for
 * each allocation that the range crosses, which the importer takes out of this process; they
 * stay open as long as the memory is registered. Memory of a pool (cudaMallocAsync()) has neither.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/cuda_ipc/cuda_ipc.h"
#include "util/error.h"

#define BUFFER_ID 7 /* CU_POINTER_ATTRIBUTE_BUFFER_ID: of an allocation, never used again */

static uint64_t nonce;
static _Atomic uint64_t n_exports;

uint32_t m2n__ipc_pid(void)
{
	return (uint32_t)getpid();
}

static void make_nonce(void)
{
	struct timespec t = {0, 0};

	if (getrandom(&nonce, sizeof(nonce), 0) == (ssize_t)sizeof(nonce))
		return;
	clock_gettime(CLOCK_REALTIME, &t);
	nonce = (uint64_t)t.tv_nsec << 32 ^ (uint64_t)t.tv_sec ^ (uintptr_t)&t;
}

uint64_t m2n__ipc_nonce(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_nonce);
	return nonce;
}

/*
 * Under Yama's mode 1 only a parent takes descriptors out of a process, unless that allows it;
 * other processes of the user, and no one else, then may. Stricter modes are the importer's to
 * complain about.
 */
static void permit_fetch(void)
{
	int fd = open("/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC);
	char mode = '0';

	if (fd < 0)
		return;
	if (read(fd, &mode, 1) == 1 && mode == '1')
		(void)prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	close(fd);
}

static int legacy_source(
	const struct m2n__cuda *cuda, uint64_t base, uint64_t bytes, struct ipc_source *source)
{
	int rc = cuda->driver->ipc_get(&source->by.handle, base);

	if (rc)
		return m2n__cuda_error(cuda, rc,
			"cuda_ipc: memory at %#" PRIx64
			" of device %d (%s) cannot be passed to other processes: virtual machines, "
			"MIG and some containers cannot; give BACKEND without cuda_ipc, or run the "
			"ranks as threads of one process",
			base, cuda->ordinal, cuda->name);
	/* 0 where the driver has none: the handle alone tells then. */
	if (cuda->driver->pointer_attribute(&source->serial, BUFFER_ID, base))
		source->serial = 0;
	source->kind = IPC_KIND_LEGACY;
	source->bytes = bytes;
	return 0;
}

static int check_exportable(const struct m2n__cuda *cuda, uint64_t at)
{
	uint64_t allowed = 0;
	int rc = cuda->driver->pointer_attribute(&allowed, M2N__CU_PTR_ALLOWED_HANDLES, at);

	if (rc)
		return m2n__cuda_error(
			cuda, rc, "cuda_ipc: how memory at %#" PRIx64 " can be passed", at);
	if (!(allowed & M2N__CU_HANDLE_FD))
		return m2n__error(-ENOTSUP,
			"cuda_ipc: memory at %#" PRIx64
			" cannot be passed to other processes: it was made without a handle type "
			"(cuMemCreate() wants POSIX_FILE_DESCRIPTOR) or comes from a pool "
			"(cudaMallocAsync()); use m2n_mem_alloc() or cudaMalloc()",
			at);
	return 0;
}

/* The descriptor of one allocation of cuMemCreate(). */
static int export_segment(
	const struct m2n__cuda *cuda, uint64_t base, uint64_t bytes, struct ipc_segment *segment)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	m2n__cu_handle handle;
	struct stat st;
	int fd = -1, rc = check_exportable(cuda, base);

	if (rc)
		return rc;
	rc = driver->vmm_retain(&handle, (void *)(uintptr_t)base);
	if (!rc) {
		rc = driver->vmm_export(&fd, handle, M2N__CU_HANDLE_FD, 0);
		driver->vmm_release(handle);
	}
	if (rc)
		return m2n__cuda_error(cuda, rc,
			"cuda_ipc: a file descriptor for memory at %#" PRIx64
			" (ulimit -n is the common reason)",
			base);
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (fstat(fd, &st)) {
		rc = -errno;
		close(fd);
		return m2n__error(
			rc, "cuda_ipc: fstat of exported memory: %s", strerrordesc_np(-rc));
	}
	segment->bytes = bytes;
	segment->inode = st.st_ino;
	segment->fd = (uint32_t)fd;
	return 0;
}

/* From the first allocation, at `base`, to the one that the last byte lies in. */
static int fd_source(
	const struct m2n__cuda *cuda, uint64_t base, uint64_t end, struct ipc_source *source)
{
	uint64_t at = base, n = 0;
	int is_legacy, rc = 0;

	source->kind = IPC_KIND_FD;
	source->serial = atomic_fetch_add_explicit(&n_exports, 1, memory_order_relaxed) + 1;
	while (!rc && at < end) {
		if (source->n_segments == IPC_MAX_SEGMENTS)
			rc = m2n__error(-ENOTSUP,
				"cuda_ipc: memory at %#" PRIx64
				" is made of more than %d allocations; use m2n_mem_alloc() or "
				"cudaMalloc()",
				base, IPC_MAX_SEGMENTS);
		if (!rc)
			rc = m2n__ipc_allocation(cuda, at, &at, &n, &is_legacy);
		if (!rc)
			rc = export_segment(cuda, at, n, &source->by.segment[source->n_segments]);
		if (rc)
			break;
		source->n_segments++;
		source->bytes += n;
		at += n;
	}
	if (rc)
		m2n__ipc_source_clear(source);
	else
		permit_fetch();
	return rc;
}

int m2n__ipc_source_make(const struct m2n__cuda *cuda, uint64_t at, uint64_t bytes, uint64_t *base,
	struct ipc_source *source)
{
	uint64_t n;
	int is_legacy, rc = m2n__ipc_allocation(cuda, at, base, &n, &is_legacy);

	if (rc)
		return rc;
	memset(source, 0, sizeof(*source));
	source->pid = m2n__ipc_pid();
	source->nonce = m2n__ipc_nonce();
	return is_legacy ? legacy_source(cuda, *base, n, source)
			 : fd_source(cuda, *base, at + bytes, source);
}

void m2n__ipc_source_clear(struct ipc_source *source)
{
	for (unsigned i = 0; source->kind == IPC_KIND_FD && i < source->n_segments; i++)
		close((int)source->by.segment[i].fd);
	source->n_segments = 0;
	source->kind = 0;
}
