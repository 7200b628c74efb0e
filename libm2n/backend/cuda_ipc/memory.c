/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registration and keys. Host memory is passed on. Device memory needs no registration; what is
 * given is checked here, where the caller can still be told, and becomes passable to others when
 * it is first exported.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda_ipc/cuda_ipc.h"
#include "util/error.h"

static struct m2n__cuda *cuda_of(struct m2n__iface *iface)
{
	return iface->params.cuda;
}

/* Is it memory of the device that it is said to be of? */
static int check_device(const struct m2n__cuda *cuda, const struct m2n__mem *mem)
{
	enum m2n__pointer pointer;
	int ordinal = -1;

	if (mem->cuda && mem->cuda->ordinal != cuda->ordinal)
		return m2n__error(-EINVAL,
			"cuda_ipc: memory at %p is of device %d, the context's device is %d",
			mem->base, mem->cuda->ordinal, cuda->ordinal);
	pointer = m2n__cuda_pointer(cuda, mem->base, &ordinal);
	if (pointer == M2N__POINTER_DEVICE)
		return 0;
	if (pointer == M2N__POINTER_OTHER)
		return m2n__error(-EINVAL,
			"cuda_ipc: memory at %p is of device %d, the context's device is %d",
			mem->base, ordinal, cuda->ordinal);
	return m2n__error(-EINVAL, "cuda_ipc: %p was given as device memory, but it is %s",
		mem->base,
		pointer == M2N__POINTER_PINNED
			? "pinned host memory: give it as host memory"
			: "no memory that CUDA knows: it was freed, or it is host memory");
}

/* The reverse: a kernel of the processor would die on a device address. */
static int check_host(const struct m2n__cuda *cuda, const struct m2n__mem *mem)
{
	enum m2n__pointer pointer;

	if (mem->fd >= 0 || mem->is_private)
		return 0;
	pointer = m2n__cuda_pointer(cuda, mem->base, NULL);
	if (pointer != M2N__POINTER_DEVICE && pointer != M2N__POINTER_OTHER)
		return 0;
	return m2n__error(-EINVAL,
		"cuda_ipc: %p was given as host memory, but it is memory of a CUDA device",
		mem->base);
}

static int reg_device(const struct m2n__cuda *cuda, const struct m2n__mem *mem)
{
	int rc = check_device(cuda, mem), mode;

	if (!rc)
		rc = m2n__cuda_enter_relaxed(cuda, &mode);
	if (rc)
		return rc;
	rc = m2n__ipc_check_range(cuda, (uintptr_t)mem->base, mem->bytes);
	m2n__cuda_leave_relaxed(cuda, &mode);
	return rc;
}

int m2n__ipc_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	struct ipc_iface *ipc = (struct ipc_iface *)iface;
	struct ipc_mr *m;
	int rc;

	m = calloc(1, sizeof(*m));
	if (!m)
		return m2n__error(-ENOMEM, "cuda_ipc: no memory for a registration");
	m->mr.iface = iface;
	m->mr.mem = mem;
	if (mem->kind == M2N__MEM_CUDA)
		rc = reg_device(cuda_of(iface), mem);
	else
		rc = check_host(cuda_of(iface), mem);
	if (!rc && mem->kind == M2N__MEM_HOST)
		rc = m2n__ipc_host->reg(ipc->host, mem, &m->host);
	if (rc) {
		free(m);
		return rc;
	}
	*mr = &m->mr;
	return 0;
}

void m2n__ipc_dereg(struct m2n__mr *mr)
{
	struct ipc_mr *m = (struct ipc_mr *)mr;

	if (m->host)
		m2n__ipc_host->dereg(m->host);
	m2n__ipc_source_clear(&m->source);
	free(m);
}

static int export_host(
	const struct ipc_mr *m, size_t offset, size_t bytes, uint8_t *key, size_t *key_bytes)
{
	const struct ipc_key_head head = {IPC_KEY_MAGIC, IPC_KIND_HOST};
	size_t room = *key_bytes < sizeof(head) ? 0 : *key_bytes - sizeof(head);
	int rc;

	if (!room)
		return m2n__error(-ENOSPC, "cuda_ipc: no room for the key");
	rc = m2n__ipc_host->export_key(m->host, offset, bytes, key + sizeof(head), &room);
	if (rc)
		return rc;
	memcpy(key, &head, sizeof(head));
	*key_bytes = sizeof(head) + room;
	return 0;
}

/* The source of all of the memory, once. */
static int make_source(const struct m2n__cuda *cuda, struct ipc_mr *m)
{
	int rc, mode;

	if (m->is_exported)
		return 0;
	rc = m2n__cuda_enter_relaxed(cuda, &mode);
	if (rc)
		return rc;
	rc = m2n__ipc_source_make(
		cuda, (uintptr_t)m->mr.mem->base, m->mr.mem->bytes, &m->base, &m->source);
	m2n__cuda_leave_relaxed(cuda, &mode);
	m->is_exported = !rc;
	return rc;
}

int m2n__ipc_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	const struct m2n__cuda *cuda = cuda_of(mr->iface);
	struct ipc_mr *m = (struct ipc_mr *)mr;
	struct ipc_key k;
	int rc;

	if (m->host)
		return export_host(m, offset, bytes, key, key_bytes);
	if (*key_bytes < sizeof(k))
		return m2n__error(-ENOSPC, "cuda_ipc: no room for the key");
	if (offset > mr->mem->bytes || bytes > mr->mem->bytes - offset)
		return m2n__error(-EINVAL, "cuda_ipc: %zu bytes at %zu of memory of %zu", bytes,
			offset, mr->mem->bytes);
	rc = make_source(cuda, m);
	if (rc)
		return rc;
	memset(&k, 0, sizeof(k));
	k.head.magic = IPC_KEY_MAGIC;
	k.head.kind = m->source.kind;
	k.address = (uintptr_t)mr->mem->base + offset;
	k.bytes = bytes;
	k.offset = k.address - m->base;
	k.device = cuda->uuid;
	k.source = m->source;
	memcpy(key, &k, sizeof(k));
	*key_bytes = sizeof(k);
	return 0;
}

static int import_host(struct m2n__ep *ep, const uint8_t *key, size_t key_bytes, struct ipc_rmem *r)
{
	size_t head_bytes = sizeof(struct ipc_key_head);
	int rc = m2n__ipc_host->import_key(
		((struct ipc_ep *)ep)->host, key + head_bytes, key_bytes - head_bytes, &r->host);

	if (rc)
		return rc;
	r->rmem.ptr = r->host->ptr;
	r->rmem.bytes = r->host->bytes;
	return 0;
}

/* Memory of this process, of another context or our own. Inside m2n__cuda_enter_relaxed(). */
static int import_own(const struct m2n__cuda *cuda, const struct ipc_key *k, struct ipc_rmem *r)
{
	void *at = (void *)(uintptr_t)k->address;
	int ordinal = -1, rc;

	if (m2n__cuda_pointer(cuda, at, &ordinal) < M2N__POINTER_DEVICE)
		return m2n__error(M2N_ERR_PROTOCOL,
			"cuda_ipc: a key for %p of this process, which is no device memory", at);
	rc = m2n__ipc_check_range(cuda, k->address, k->bytes);
	if (!rc)
		rc = m2n__ipc_reach(cuda, ordinal, k->address, k->bytes);
	if (rc)
		return rc;
	r->rmem.ptr = at;
	r->rmem.bytes = k->bytes;
	return 0;
}

static int import_other(struct m2n__cuda *cuda, const struct ipc_key *k, struct ipc_rmem *r)
{
	uint64_t room;
	int rc = m2n__ipc_mapping_get(cuda, &k->source, &r->mapping);

	if (rc)
		return rc;
	room = m2n__ipc_mapping_bytes(r->mapping);
	if (k->offset > room || k->bytes > room - k->offset) {
		m2n__ipc_mapping_put(cuda, r->mapping);
		return m2n__error(M2N_ERR_PROTOCOL,
			"cuda_ipc: a key for %" PRIu64 " bytes at %" PRIu64 " of memory of process "
			"%u that has %" PRIu64,
			k->bytes, k->offset, k->source.pid, room);
	}
	r->rmem.ptr = (void *)(uintptr_t)(m2n__ipc_mapping_at(r->mapping) + k->offset);
	r->rmem.bytes = k->bytes;
	return 0;
}

static int import_device(struct ipc_iface *ipc, const struct ipc_key *k, struct ipc_rmem *r)
{
	struct m2n__cuda *cuda = cuda_of(&ipc->iface);
	int rc, mode;

	if (k->head.kind != k->source.kind || k->bytes > SIZE_MAX / 2)
		return m2n__error(M2N_ERR_PROTOCOL,
			"cuda_ipc: a key of kinds %u and %u for %" PRIu64 " bytes", k->head.kind,
			k->source.kind, k->bytes);
	if (m2n__ipc_devices_ordinal(&ipc->devices, &k->device) < 0)
		return m2n__error(M2N_ERR_BACKEND,
			"cuda_ipc: device %d reaches no device with the UUID of process %u's: give "
			"every rank of a host all its devices (CUDA_VISIBLE_DEVICES), and devices "
			"that reach each other (nvidia-smi topo -p2p r)",
			cuda->ordinal, k->source.pid);
	rc = m2n__cuda_enter_relaxed(cuda, &mode);
	if (rc)
		return rc;
	if (k->source.pid == m2n__ipc_pid() && k->source.nonce == m2n__ipc_nonce())
		rc = import_own(cuda, k, r);
	else
		rc = import_other(cuda, k, r);
	m2n__cuda_leave_relaxed(cuda, &mode);
	return rc;
}

int m2n__ipc_import(struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem)
{
	struct ipc_iface *ipc = (struct ipc_iface *)ep->iface;
	struct ipc_key k = {.head = {0, 0}};
	struct ipc_rmem *r;
	int rc;

	if (key_bytes >= sizeof(k.head))
		memcpy(&k, key, key_bytes < sizeof(k) ? sizeof(k.head) : sizeof(k));
	if (k.head.magic != IPC_KEY_MAGIC ||
		(k.head.kind != IPC_KIND_HOST && key_bytes != sizeof(k)))
		return m2n__error(M2N_ERR_PROTOCOL, "cuda_ipc: a key of %zu bytes and kind %u",
			key_bytes, k.head.kind);
	r = calloc(1, sizeof(*r));
	if (!r)
		return m2n__error(-ENOMEM, "cuda_ipc: no memory for a key");
	r->rmem.ep = ep;
	r->cuda = cuda_of(ep->iface);
	if (k.head.kind == IPC_KIND_HOST)
		rc = import_host(ep, key, key_bytes, r);
	else
		rc = import_device(ipc, &k, r);
	if (rc) {
		free(r);
		return rc;
	}
	*rmem = &r->rmem;
	return 0;
}

void m2n__ipc_release(struct m2n__rmem *rmem)
{
	struct ipc_rmem *r = (struct ipc_rmem *)rmem;

	if (r->host)
		m2n__ipc_host->release_key(r->host);
	if (r->mapping) {
		/* Of a device that broke for good the driver forgets everything by itself. */
		int mode, rc = m2n__cuda_enter_relaxed(r->cuda, &mode);

		m2n__ipc_mapping_put(r->cuda, r->mapping);
		if (!rc)
			m2n__cuda_leave_relaxed(r->cuda, &mode);
	}
	free(r);
}
