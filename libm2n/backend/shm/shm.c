/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks of one host: shared memory. Mapped.
 *
 * Memory is in memfds; a key names process, descriptor and inode, and the peer opens it through
 * /proc/PID/fd, which needs the same user (or ptrace rights) and the same PID namespace but no
 * file system with room. The inode guards against a descriptor that was closed and reused; the
 * seal against shrinking guards against a peer that would make us fault. A slot that is mapped
 * stays valid when its owner dies, so a write to a dead peer is harmless.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/registry.h"
#include "backend/shm/doorbell.h"
#include "util/error.h"

#define HOST_ID_BYTES 64

struct shm_key {
	uint64_t inode;
	uint64_t offset;
	uint64_t bytes;
	uint64_t committed; /* of those bytes, from the start */
	uint32_t pid;
	uint32_t fd;
};

struct shm_blob {
	char host_id[HOST_ID_BYTES];
	struct shm_key doorbell;
};

struct shm_iface {
	struct m2n__iface iface;
	struct m2n__mem *doorbell_mem;
	struct m2n__doorbell *doorbell;
};

struct shm_ep {
	struct m2n__ep ep;
	struct m2n__rmem *doorbell_rmem;
	struct m2n__doorbell *doorbell;
};

struct shm_rmem {
	struct m2n__rmem rmem;
	void *map;
	size_t map_bytes;
};

static int shm_iface_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	struct shm_iface *shm = calloc(1, sizeof(*shm));
	int rc;

	if (!shm)
		return m2n__error(-ENOMEM, "shm: no memory for the iface");
	shm->iface.params = *params;
	rc = m2n__mem_alloc(
		sizeof(*shm->doorbell), sizeof(*shm->doorbell), M2N__HUGE_NO, &shm->doorbell_mem);
	if (rc) {
		free(shm);
		return rc;
	}
	shm->doorbell = shm->doorbell_mem->base;
	*iface = &shm->iface;
	return 0;
}

static void shm_close(struct m2n__iface *iface)
{
	struct shm_iface *shm = (struct shm_iface *)iface;

	m2n__mem_free(shm->doorbell_mem);
	free(shm);
}

static int fill_key(const struct m2n__mem *mem, size_t offset, size_t bytes, struct shm_key *key)
{
	struct stat st;

	if (mem->fd < 0)
		return m2n__error(-ENOTSUP,
			"shm: memory at %p was not allocated by m2n_mem_alloc(): peers cannot map "
			"it",
			mem->base);
	if (fstat(mem->fd, &st))
		return m2n__error(-errno, "shm: fstat of memory: %s", strerrordesc_np(errno));
	memset(key, 0, sizeof(*key));
	key->inode = st.st_ino;
	key->offset = offset;
	key->bytes = bytes;
	key->committed = mem->committed <= offset          ? 0
			 : mem->committed - offset < bytes ? mem->committed - offset
							   : bytes;
	key->pid = (uint32_t)getpid();
	key->fd = (uint32_t)mem->fd;
	return 0;
}

static int shm_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	struct shm_iface *shm = (struct shm_iface *)iface;
	struct shm_blob b;
	int rc;

	if (*bytes < sizeof(b))
		return m2n__error(-ENOSPC, "shm: no room for the address");
	memset(&b, 0, sizeof(b));
	snprintf(b.host_id, sizeof(b.host_id), "%s", iface->params.host_id);
	rc = fill_key(shm->doorbell_mem, 0, shm->doorbell_mem->bytes, &b.doorbell);
	if (rc)
		return rc;
	memcpy(blob, &b, sizeof(b));
	*bytes = sizeof(b);
	return 0;
}

static int shm_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	char mine[HOST_ID_BYTES] = "";

	snprintf(mine, sizeof(mine), "%s", iface->params.host_id);
	return bytes == sizeof(struct shm_blob) && memcmp(blob, mine, sizeof(mine)) == 0;
}

/* Opens the memory that a key names, checked to be what it says. The descriptor, or an error. */
static int open_key(const struct shm_key *key, size_t *page)
{
	char path[64];
	struct stat st;
	int fd, seals;

	snprintf(path, sizeof(path), "/proc/%u/fd/%u", key->pid, key->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return m2n__error(M2N_ERR_PEER_LOST,
			"shm: memory of process %u is gone: it ended or closed its side", key->pid);
	if (fd < 0)
		return m2n__error(-errno,
			"shm: cannot open memory of process %u (%s: %s); ranks must run as one "
			"user "
			"in one PID namespace, or set M2N_HOST_ID apart",
			key->pid, path, strerrordesc_np(errno));
	seals = fcntl(fd, F_GET_SEALS);
	if (fstat(fd, &st) || st.st_ino != key->inode || seals < 0 || !(seals & F_SEAL_SHRINK) ||
		key->offset > (uint64_t)st.st_size ||
		key->bytes > (uint64_t)st.st_size - key->offset || key->committed > key->bytes) {
		close(fd);
		return m2n__error(M2N_ERR_PROTOCOL,
			"shm: descriptor %u of process %u is not the sealed memory it was said to "
			"be",
			key->fd, key->pid);
	}
	*page = (size_t)st.st_blksize; /* of hugetlb memory: the huge page, which mmap() wants */
	return fd;
}

static int shm_import(
	struct m2n__ep *ep, const void *bytes, size_t key_bytes, struct m2n__rmem **rmem)
{
	size_t page = 1, lead;
	struct shm_rmem *r;
	struct shm_key key;
	int fd, rc;

	if (key_bytes != sizeof(key))
		return m2n__error(M2N_ERR_PROTOCOL, "shm: key of %zu bytes, expected %zu",
			key_bytes, sizeof(key));
	memcpy(&key, bytes, sizeof(key));
	r = calloc(1, sizeof(*r));
	if (!r)
		return m2n__error(-ENOMEM, "shm: no memory for a key");
	fd = open_key(&key, &page);
	if (fd < 0) {
		free(r);
		return fd;
	}
	lead = key.offset % page;
	r->map_bytes = (key.bytes + lead + page - 1) / page * page;
	r->map = mmap(NULL, r->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		(off_t)(key.offset - lead));
	rc = -errno;
	close(fd);
	if (r->map == MAP_FAILED) {
		size_t n = r->map_bytes;

		free(r);
		return m2n__error(rc, "shm: cannot map %zu bytes of process %u: %s", n, key.pid,
			strerrordesc_np(-rc));
	}
	/* Best effort: without it the first round takes the page faults. */
	if (key.committed)
		(void)madvise(r->map, key.committed + lead, MADV_POPULATE_WRITE);
	r->rmem.ep = ep;
	r->rmem.ptr = (char *)r->map + lead;
	r->rmem.bytes = key.bytes;
	*rmem = &r->rmem;
	return 0;
}

static void shm_release(struct m2n__rmem *rmem)
{
	struct shm_rmem *r = (struct shm_rmem *)rmem;

	munmap(r->map, r->map_bytes);
	free(r);
}

static int shm_connect(
	struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	struct shm_blob b;
	struct shm_ep *e;
	int rc;

	if (bytes != sizeof(b))
		return m2n__error(M2N_ERR_PROTOCOL, "shm: address of %zu bytes, expected %zu",
			bytes, sizeof(b));
	memcpy(&b, blob, sizeof(b));
	e = calloc(1, sizeof(*e));
	if (!e)
		return m2n__error(-ENOMEM, "shm: no memory for a connection");
	e->ep.iface = iface;
	rc = shm_import(&e->ep, &b.doorbell, sizeof(b.doorbell), &e->doorbell_rmem);
	if (!rc && e->doorbell_rmem->bytes < sizeof(*e->doorbell)) {
		shm_release(e->doorbell_rmem);
		rc = m2n__error(M2N_ERR_PROTOCOL, "shm: doorbell of %zu bytes, expected %zu",
			e->doorbell_rmem->bytes, sizeof(*e->doorbell));
	}
	if (rc) {
		free(e);
		return rc;
	}
	e->doorbell = e->doorbell_rmem->ptr;
	*ep = &e->ep;
	return 0;
}

static void shm_disconnect(struct m2n__ep *ep)
{
	struct shm_ep *e = (struct shm_ep *)ep;

	shm_release(e->doorbell_rmem);
	free(e);
}

static int shm_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	*mr = calloc(1, sizeof(**mr));
	if (!*mr)
		return m2n__error(-ENOMEM, "shm: no memory for a registration");
	(*mr)->iface = iface;
	(*mr)->mem = mem;
	return 0;
}

static void shm_dereg(struct m2n__mr *mr)
{
	free(mr);
}

static int shm_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	struct shm_key k;
	int rc;

	if (*key_bytes < sizeof(k))
		return m2n__error(-ENOSPC, "shm: no room for the key");
	rc = fill_key(mr->mem, offset, bytes, &k);
	if (rc)
		return rc;
	memcpy(key, &k, sizeof(k));
	*key_bytes = sizeof(k);
	return 0;
}

static void shm_notify(struct m2n__ep *ep)
{
	m2n__doorbell_ring(((struct shm_ep *)ep)->doorbell);
}

static void shm_doze(struct m2n__iface *iface, int change)
{
	m2n__doorbell_doze(((struct shm_iface *)iface)->doorbell, change);
}

static uint32_t shm_arm(struct m2n__iface *iface)
{
	return m2n__doorbell_arm(((struct shm_iface *)iface)->doorbell);
}

static void shm_wait(struct m2n__iface *iface, uint32_t ticket, int64_t timeout_ns)
{
	m2n__doorbell_sleep(((struct shm_iface *)iface)->doorbell, ticket, timeout_ns);
}

static void shm_disarm(struct m2n__iface *iface)
{
	m2n__doorbell_disarm(((struct shm_iface *)iface)->doorbell);
}

const struct m2n__backend_ops m2n__backend_shm = {
	.name = "shm",
	.about = "ranks of one host: memfd segments, stores straight into the peer's slots",
	.priority = 90,
	.caps = M2N__CAP_MAPPED | M2N__CAP_HOST_MEMORY | M2N__CAP_SLEEP,
	.open = shm_iface_open,
	.close = shm_close,
	.address = shm_address,
	.reaches = shm_reaches,
	.connect = shm_connect,
	.disconnect = shm_disconnect,
	.reg = shm_reg,
	.dereg = shm_dereg,
	.export_key = shm_export,
	.import_key = shm_import,
	.release_key = shm_release,
	.notify = shm_notify,
	.doze = shm_doze,
	.arm = shm_arm,
	.wait = shm_wait,
	.disarm = shm_disarm,
};
