/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The importer's side: memory of other processes, mapped once for each device of this process,
 * however many keys lie in it. A mapping outlives the process whose memory it is.
 *
 * To unmap may wait for all that the device has been told to do, and with ranks as threads so for
 * kernels of another rank. So while a device has several ifaces, what nobody uses stays mapped, and
 * is found again, until its process has ended (whose memory is wanted back), too much is idle, or
 * the last iface is closed.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/cuda_ipc/cuda_ipc.h"
#include "util/error.h"

#define MAX_IDLE 64

struct ipc_mapping {
	struct ipc_mapping *next; /* the younger ones first */
	m2n__cu_context context;  /* it is mapped in */
	unsigned n_users;
	uint64_t at, bytes;
	struct ipc_source source;
};

/* A device of this process. */
struct importer {
	struct importer *next;
	m2n__cu_context context;
	unsigned n_ifaces;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ipc_mapping *mappings;
static struct importer *importers;

uint64_t m2n__ipc_mapping_at(const struct ipc_mapping *mapping)
{
	return mapping->at;
}

uint64_t m2n__ipc_mapping_bytes(const struct ipc_mapping *mapping)
{
	return mapping->bytes;
}

static int is_gone(uint32_t pid)
{
	return kill((pid_t)pid, 0) && errno == ESRCH;
}

static int gone(uint32_t pid)
{
	return m2n__error(M2N_ERR_PEER_LOST,
		"cuda_ipc: memory of process %u is gone: it ended or closed its side", pid);
}

static int open_legacy(const struct m2n__cuda *cuda, struct ipc_mapping *m)
{
	const struct ipc_source *s = &m->source;
	m2n__cu_ptr base;
	size_t bytes;
	int rc = cuda->driver->ipc_open(&m->at, s->by.handle, M2N__CU_IPC_LAZY_PEER_ACCESS);

	if (rc && is_gone(s->pid))
		return gone(s->pid);
	if (rc == M2N__CU_PEER_ACCESS_UNSUPPORTED)
		return m2n__cuda_error(cuda, rc,
			"cuda_ipc: device %d cannot reach the device of process %u (nvidia-smi "
			"topo -p2p r shows which can); give ranks devices that can, or another "
			"backend",
			cuda->ordinal, s->pid);
	if (rc)
		return m2n__cuda_error(cuda, rc,
			"cuda_ipc: opening memory of process %u on device %d; ranks must run as "
			"one user in one PID namespace (containers: --pid=host --ipc=host), not in "
			"MIG instances of their own, or give BACKEND without cuda_ipc",
			s->pid, cuda->ordinal);
	/* What is there, not what the key says. */
	m->bytes = s->bytes;
	if (!cuda->driver->mem_range(&base, &bytes, m->at))
		m->bytes = bytes - (m->at - base);
	return 0;
}

static void close_legacy(const struct m2n__cuda *cuda, struct ipc_mapping *m)
{
	(void)cuda->driver->ipc_close(m->at);
}

/* Takes a descriptor out of another process. The descriptor here, or an error. */
static int fetch(uint32_t pid, const struct ipc_segment *segment)
{
	int pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0), fd, rc;
	struct stat st;

	if (pidfd < 0 && (errno == ESRCH || errno == EINVAL))
		return gone(pid);
	fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, (int)segment->fd, 0);
	rc = -errno;
	if (pidfd >= 0)
		close(pidfd);
	if (fd < 0 && rc == -EBADF)
		return gone(pid);
	if (fd < 0)
		return m2n__error(rc,
			"cuda_ipc: cannot take memory out of process %u (%s): ranks must run as "
			"one user in one PID namespace on Linux 5.6 or newer; where Yama is strict "
			"set kernel.yama.ptrace_scope to 0 or 1, in a container allow pidfd_getfd",
			pid, strerrordesc_np(-rc));
	if (fstat(fd, &st) || st.st_ino != segment->inode) {
		close(fd);
		return m2n__error(M2N_ERR_PROTOCOL,
			"cuda_ipc: descriptor %u of process %u is not the memory it was said to be",
			segment->fd, pid);
	}
	return fd;
}

/* One allocation, to where it belongs in the reserved range. */
static int map_segment(
	const struct m2n__cuda *cuda, uint32_t pid, const struct ipc_segment *segment, uint64_t at)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	const struct m2n__cu_access access = {{1, cuda->ordinal}, 3};
	int fd = fetch(pid, segment), rc;
	m2n__cu_handle handle;

	if (fd < 0)
		return fd;
	rc = driver->vmm_import(&handle, (void *)(intptr_t)fd, M2N__CU_HANDLE_FD);
	close(fd);
	if (!rc) {
		rc = driver->vmm_map(at, segment->bytes, 0, handle, 0);
		driver->vmm_release(handle);
	}
	if (rc)
		return m2n__cuda_error(cuda, rc,
			"cuda_ipc: mapping %" PRIu64 " bytes of process %u on device %d",
			segment->bytes, pid, cuda->ordinal);
	rc = driver->vmm_access(at, segment->bytes, &access, 1);
	if (!rc)
		return 0;
	(void)driver->vmm_unmap(at, segment->bytes);
	return m2n__cuda_error(cuda, rc,
		"cuda_ipc: device %d cannot reach memory of process %u (nvidia-smi topo -p2p r "
		"shows which can); give ranks devices that can, or another backend",
		cuda->ordinal, pid);
}

static void unmap_segments(const struct m2n__cuda *cuda, struct ipc_mapping *m, unsigned n)
{
	uint64_t at = m->at;

	for (unsigned i = 0; i < n; i++) {
		(void)cuda->driver->vmm_unmap(at, m->source.by.segment[i].bytes);
		at += m->source.by.segment[i].bytes;
	}
	(void)cuda->driver->vmm_unreserve(m->at, m->bytes);
}

static int open_fds(const struct m2n__cuda *cuda, struct ipc_mapping *m)
{
	const struct ipc_source *s = &m->source;
	uint64_t at;
	unsigned n = 0;
	int rc = cuda->driver->vmm_reserve(&m->at, s->bytes, 0, 0, 0);

	if (rc)
		return m2n__cuda_error(
			cuda, rc, "cuda_ipc: addresses for %" PRIu64 " bytes", s->bytes);
	m->bytes = s->bytes;
	for (at = m->at; !rc && n < s->n_segments; n += !rc) {
		rc = map_segment(cuda, s->pid, &s->by.segment[n], at);
		at += s->by.segment[n].bytes;
	}
	if (rc)
		unmap_segments(cuda, m, n);
	return rc;
}

/* Lengths that a peer made up. */
static int check_source(const struct ipc_source *s)
{
	uint64_t bytes = 0;

	if (s->kind == IPC_KIND_LEGACY)
		return 0;
	if (s->kind != IPC_KIND_FD || s->n_segments < 1 || s->n_segments > IPC_MAX_SEGMENTS)
		return m2n__error(M2N_ERR_PROTOCOL,
			"cuda_ipc: a key of kind %u with %u allocations", s->kind, s->n_segments);
	for (unsigned i = 0; i < s->n_segments; i++)
		if (!s->by.segment[i].bytes ||
			__builtin_add_overflow(bytes, s->by.segment[i].bytes, &bytes))
			bytes = UINT64_MAX;
	if (bytes != s->bytes || bytes > INT64_MAX)
		return m2n__error(M2N_ERR_PROTOCOL,
			"cuda_ipc: a key whose allocations do not add up to %" PRIu64 " bytes",
			s->bytes);
	return 0;
}

/* A new mapping. Under the lock. */
static int open_mapping(
	const struct m2n__cuda *cuda, const struct ipc_source *source, struct ipc_mapping **mapping)
{
	struct ipc_mapping *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return m2n__error(-ENOMEM, "cuda_ipc: no memory for a mapping");
	m->source = *source;
	m->context = cuda->context;
	rc = source->kind == IPC_KIND_FD ? open_fds(cuda, m) : open_legacy(cuda, m);
	if (rc) {
		free(m);
		return rc;
	}
	m->next = mappings;
	mappings = m;
	*mapping = m;
	return 0;
}

int m2n__ipc_mapping_get(
	struct m2n__cuda *cuda, const struct ipc_source *source, struct ipc_mapping **mapping)
{
	struct ipc_mapping *m;
	int rc = check_source(source);

	if (rc)
		return rc;
	pthread_mutex_lock(&lock);
	for (m = mappings; m; m = m->next)
		if (m->context == cuda->context && !memcmp(&m->source, source, sizeof(*source)))
			break;
	if (!m)
		rc = open_mapping(cuda, source, &m);
	if (!rc) {
		m->n_users++;
		*mapping = m;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

static void close_mapping(const struct m2n__cuda *cuda, struct ipc_mapping *m)
{
	struct ipc_mapping **at = &mappings;

	while (*at != m)
		at = &(*at)->next;
	*at = m->next;
	if (m->source.kind == IPC_KIND_FD)
		unmap_segments(cuda, m, m->source.n_segments);
	else
		close_legacy(cuda, m);
	free(m);
}

/* Closes the oldest of what is idle, but for `n_kept`, and all of processes that have ended. */
static void prune(const struct m2n__cuda *cuda, unsigned n_kept)
{
	unsigned n_idle = 0;

	for (struct ipc_mapping *m = mappings, *next; m; m = next) {
		next = m->next;
		if (m->context != cuda->context || m->n_users)
			continue;
		if (n_idle < n_kept && !is_gone(m->source.pid))
			n_idle++;
		else
			close_mapping(cuda, m);
	}
}

static struct importer **find_importer(const struct m2n__cuda *cuda)
{
	struct importer **at = &importers;

	while (*at && (*at)->context != cuda->context)
		at = &(*at)->next;
	return at;
}

void m2n__ipc_mapping_put(struct m2n__cuda *cuda, struct ipc_mapping *m)
{
	const struct importer *i;

	pthread_mutex_lock(&lock);
	i = *find_importer(cuda);
	if (!--m->n_users)
		prune(cuda, i && i->n_ifaces > 1 ? MAX_IDLE : 0);
	pthread_mutex_unlock(&lock);
}

int m2n__ipc_importer_open(const struct m2n__cuda *cuda)
{
	struct importer *i;

	pthread_mutex_lock(&lock);
	i = *find_importer(cuda);
	if (!i) {
		i = calloc(1, sizeof(*i));
		if (i) {
			i->context = cuda->context;
			i->next = importers;
			importers = i;
		}
	}
	if (i)
		i->n_ifaces++;
	pthread_mutex_unlock(&lock);
	return i ? 0 : m2n__error(-ENOMEM, "cuda_ipc: no memory for a device");
}

void m2n__ipc_importer_close(const struct m2n__cuda *cuda)
{
	struct importer **at, *i;
	int mode, rc;

	pthread_mutex_lock(&lock);
	at = find_importer(cuda);
	i = *at;
	if (!--i->n_ifaces) {
		*at = i->next;
		free(i);
		rc = m2n__cuda_enter_relaxed(cuda, &mode);
		prune(cuda, 0);
		if (!rc)
			m2n__cuda_leave_relaxed(cuda, &mode);
	}
	pthread_mutex_unlock(&lock);
}
