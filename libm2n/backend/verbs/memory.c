/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registration: one memory region on every rail. A key is the address and one remote key for each
 * rail. All of a memory is registered, also what has no pages yet: the device pins it, which
 * gives it pages.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

#define KEY_MAGIC 0x4b56324dU /* "M2VK" */

int m2n__verbs_access(const struct verbs_iface *v)
{
	return IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
	       (v->options->verbs_relaxed_ordering ? IBV_ACCESS_RELAXED_ORDERING : 0);
}

static int refuse(const struct verbs_rail *rail, const struct m2n__mem *mem, int rc)
{
	struct rlimit limit = {0, 0};
	const char *device = rail->ctx->device->name;

	getrlimit(RLIMIT_MEMLOCK, &limit);
	if ((rc == ENOMEM || rc == EPERM || rc == EAGAIN) && limit.rlim_cur != RLIM_INFINITY)
		return m2n__error(-ENOMEM,
			"verbs: %s: the locked-memory limit is %" PRIu64
			" bytes, this registration "
			"alone needs %zu: raise `ulimit -l` (systemd: LimitMEMLOCK, limits.conf: "
			"memlock) or give the container the capability IPC_LOCK",
			device, (uint64_t)limit.rlim_cur, mem->bytes);
	if (rc == ENOMEM)
		return m2n__error(-ENOMEM,
			"verbs: %s: %zu bytes at %p cannot be registered: no memory, or the "
			"device's "
			"table of memory regions is full",
			device, mem->bytes, mem->base);
	if (rc == EFAULT)
		return m2n__error(-EFAULT,
			"verbs: %s: %zu bytes at %p cannot be registered: not all of it is mapped "
			"for writing, or it is memory that cannot be pinned (files, DAX, a "
			"device's)",
			device, mem->bytes, mem->base);
	return m2n__error(-rc, "verbs: %s: %zu bytes at %p cannot be registered: %s", device,
		mem->bytes, mem->base, strerrordesc_np(rc));
}

/* Rows to send may lie in memory that is only for reading; nobody may write there. */
static struct ibv_mr *register_host(struct verbs_iface *v, struct verbs_rail *rail,
	const struct m2n__mem *mem, int *is_read_only)
{
	uint64_t address = (uint64_t)(uintptr_t)mem->base;
	unsigned access = *is_read_only ? 0 : (unsigned)m2n__verbs_access(v);
	struct ibv_mr *mr = m2n__ibv.reg_mr_iova2(rail->pd, mem->base, mem->bytes, address, access);

	if (mr || errno != EFAULT || *is_read_only)
		return mr;
	*is_read_only = 1;
	return m2n__ibv.reg_mr_iova2(rail->pd, mem->base, mem->bytes, address, 0);
}

static int register_rails(struct verbs_iface *v, const struct m2n__mem *mem, struct verbs_mr *m)
{
	for (unsigned i = 0; i < v->n_rails; i++) {
		struct verbs_rail *rail = &v->rails[i];

		m->rail[i] = register_host(v, rail, mem, &m->is_read_only);
		if (!m->rail[i])
			return refuse(rail, mem, errno);
	}
	return 0;
}

int m2n__verbs_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;
	struct verbs_mr *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return m2n__error(-ENOMEM, "verbs: no memory for a registration");
	m->mr.iface = iface;
	m->mr.mem = mem;
	m->is_device = mem->kind == M2N__MEM_CUDA;
	rc = m->is_device ? m2n__verbs_reg_device(v, mem, m2n__verbs_access(v), m)
			  : register_rails(v, mem, m);
	if (rc) {
		m2n__verbs_dereg(&m->mr);
		return rc;
	}
	*mr = &m->mr;
	return 0;
}

void m2n__verbs_dereg(struct m2n__mr *mr)
{
	struct verbs_mr *m = (struct verbs_mr *)mr;

	for (unsigned i = 0; i < VERBS_MAX_RAILS; i++)
		if (m->rail[i])
			m2n__ibv.dereg_mr(m->rail[i]);
	free(m);
}

int m2n__verbs_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	struct verbs_mr *m = (struct verbs_mr *)mr;
	struct verbs_iface *v = (struct verbs_iface *)mr->iface;
	struct verbs_key k;

	if (*key_bytes < sizeof(k))
		return m2n__error(-ENOSPC, "verbs: no room for the key");
	if (m->is_read_only)
		return m2n__error(-EACCES,
			"verbs: memory at %p is mapped for reading only: no peer can write to it",
			mr->mem->base);
	memset(&k, 0, sizeof(k));
	k.magic = KEY_MAGIC;
	k.address = (uint64_t)(uintptr_t)mr->mem->base + offset;
	k.bytes = bytes;
	k.n_rails = v->n_rails;
	for (unsigned i = 0; i < v->n_rails; i++)
		k.rkey[i] = m->rail[i]->rkey;
	memcpy(key, &k, sizeof(k));
	*key_bytes = sizeof(k);
	return 0;
}

int m2n__verbs_import(
	struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	struct verbs_rmem *r;
	struct verbs_key k;

	if (key_bytes != sizeof(k))
		return m2n__error(M2N_ERR_PROTOCOL, "verbs: key of %zu bytes, expected %zu",
			key_bytes, sizeof(k));
	memcpy(&k, key, sizeof(k));
	if (k.magic != KEY_MAGIC || k.n_rails != e->peer.n_rails ||
		k.bytes > UINT64_MAX - k.address || k.bytes > SIZE_MAX / 2)
		return m2n__error(M2N_ERR_PROTOCOL,
			"verbs: a key for %" PRIu64 " bytes on %u rails does not fit the peer",
			k.bytes, k.n_rails);
	r = calloc(1, sizeof(*r));
	if (!r)
		return m2n__error(-ENOMEM, "verbs: no memory for a key");
	r->rmem.ep = ep;
	r->rmem.bytes = (size_t)k.bytes;
	r->address = k.address;
	memcpy(r->rkey, k.rkey, sizeof(r->rkey));
	*rmem = &r->rmem;
	return 0;
}

void m2n__verbs_release(struct m2n__rmem *rmem)
{
	free(rmem);
}
