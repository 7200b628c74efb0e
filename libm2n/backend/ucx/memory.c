/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory. Registered with every device that UCX opened; a key has the name and offset that messages
 * use, and for direct puts UCX's packed rkey and the address that it knows. The digest in front
 * is checked before UCX sees the rkey.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/common/gpu_flush.h"
#include "backend/ucx/ucx.h"
#include "util/error.h"

struct key {
	struct m2n__ucx_seal seal;
	uint64_t base;   /* address */
	uint64_t region; /* name, for messages */
	uint64_t offset; /* in the region */
	uint64_t bytes;
	uint32_t kind; /* enum m2n__mem_kind */
	uint32_t rkey_bytes;
	/* the packed rkey */
};

ucs_memory_type_t m2n__ucx_memory_type(const struct m2n__mem *mem)
{
	return mem->kind == M2N__MEM_CUDA ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
}

int m2n__ucx_no_device(void)
{
	return m2n__error(-ENOTSUP,
		"ucx: no transport to this peer reaches GPU memory: look at UCX_TLS (rc, dc or "
		"cuda_ipc with cuda_copy) and at ucx_info -d");
}

static int prepare_device(const struct m2n__ucx_iface *u, const struct m2n__mem *mem)
{
	const struct m2n__cuda *cuda = mem->cuda ? mem->cuda : u->iface.params.cuda;

	if (!u->has_cuda)
		return m2n__error(-ENOTSUP,
			"ucx: this UCX was built without CUDA, or UCX_TLS leaves it out: GPU "
			"memory cannot be registered; ucx_info -d shows cuda_copy where it can");
	if (cuda)
		m2n__gpu_order_copies(cuda, mem);
	return 0;
}

int m2n__ucx_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(iface);
	ucp_mem_map_params_t params = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
			      UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
		.address = mem->base,
		.length = mem->bytes,
		.memory_type = m2n__ucx_memory_type(mem),
	};
	struct m2n__iface *before;
	struct m2n__ucx_mr *m;
	ucs_status_t status;
	int rc;

	rc = mem->kind == M2N__MEM_CUDA ? prepare_device(u, mem) : 0;
	if (rc)
		return rc;
	m = calloc(1, sizeof(*m));
	if (!m)
		return m2n__error(-ENOMEM, "ucx: no memory for a registration");
	m->base = (uintptr_t)mem->base;
	m->mr.iface = iface;
	m->mr.mem = mem;
	before = m2n__ucx_lock(u);
	status = m2n__ucx.ucp_mem_map(u->context, &params, &m->memh);
	if (status)
		rc = m2n__ucx_error(status,
			mem->kind == M2N__MEM_CUDA
				? "registering GPU memory (is nvidia-peermem loaded, or dma-buf "
				  "there? see UCX_IB_GPU_DIRECT_RDMA)"
				: "registering memory (a small limit of locked memory, ulimit -l, "
				  "is the common reason)");
	else
		rc = m2n__ucx_table_add(&u->regions, m, &m->region);
	if (rc && !status)
		m2n__ucx.ucp_mem_unmap(u->context, m->memh);
	m2n__ucx_unlock(u, before);
	if (rc)
		free(m);
	else
		*mr = &m->mr;
	return rc;
}

void m2n__ucx_dereg(struct m2n__mr *mr)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(mr->iface);
	struct m2n__ucx_mr *m = (struct m2n__ucx_mr *)mr;
	struct m2n__iface *before = m2n__ucx_lock(u);

	m2n__ucx_table_remove(&u->regions, m->region);
	m2n__ucx.ucp_mem_unmap(u->context, m->memh);
	m2n__ucx_unlock(u, before);
	free(m);
}

/* Under the lock. */
static int pack_key(struct m2n__ucx_iface *u, const struct m2n__ucx_mr *m, struct key *k,
	uint8_t *key, size_t *key_bytes)
{
	ucs_status_t status;
	size_t rkey_bytes = 0, all;
	void *rkey;

	status = m2n__ucx.ucp_rkey_pack(u->context, m->memh, &rkey, &rkey_bytes);
	if (status)
		return m2n__ucx_error(status, "packing a key");
	all = sizeof(*k) + rkey_bytes;
	if (all <= *key_bytes) {
		k->rkey_bytes = (uint32_t)rkey_bytes;
		memcpy(key, k, sizeof(*k));
		memcpy(key + sizeof(*k), rkey, rkey_bytes);
		m2n__ucx_sign(key, all);
	}
	m2n__ucx.ucp_rkey_buffer_release(rkey);
	if (all > *key_bytes)
		return m2n__error(-ENOSPC,
			"ucx: a key of %zu bytes, room for %zu: name fewer devices in "
			"UCX_NET_DEVICES",
			all, *key_bytes);
	*key_bytes = all;
	return 0;
}

int m2n__ucx_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(mr->iface);
	struct m2n__ucx_mr *m = (struct m2n__ucx_mr *)mr;
	struct m2n__iface *before = m2n__ucx_lock(u);
	int rc = u->is_native && mr->mem->kind == M2N__MEM_HOST ? m2n__ucx_make_native(u, m) : 0;
	struct key k = {.base = m->base + offset,
		.region = m->region,
		.offset = offset,
		.bytes = bytes,
		.kind = mr->mem->kind};

	if (!rc)
		rc = pack_key(u, m, &k, key, key_bytes);
	m2n__ucx_unlock(u, before);
	return rc;
}

static int check_key(const struct m2n__ucx_ep *e, const struct key *key, size_t key_bytes)
{
	if (!key->rkey_bytes || key->rkey_bytes != key_bytes - sizeof(*key) ||
		key->bytes > UINT64_MAX - key->base || key->bytes > UINT64_MAX - key->offset)
		return m2n__error(M2N_ERR_PROTOCOL, "ucx: key with lengths out of range");
	if (!e->ucp_ep)
		return m2n__error(-EINVAL, "ucx: a key before the greeting");
	if (key->kind == M2N__MEM_CUDA && !e->is_direct)
		return m2n__ucx_no_device();
	return 0;
}

int m2n__ucx_import(
	struct m2n__ep *ep, const void *bytes, size_t key_bytes, struct m2n__rmem **rmem)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	ucs_status_t status = UCS_OK;
	struct m2n__iface *before;
	struct m2n__ucx_rmem *r;
	void *ptr = NULL;
	struct key key;
	int rc = m2n__ucx_verify(bytes, key_bytes, sizeof(key), "key");

	if (rc)
		return rc;
	memcpy(&key, bytes, sizeof(key));
	rc = check_key(e, &key, key_bytes);
	if (rc)
		return rc;
	r = calloc(1, sizeof(*r));
	if (!r)
		return m2n__error(-ENOMEM, "ucx: no memory for a key");
	before = m2n__ucx_lock(u);
	if (e->is_direct)
		status = m2n__ucx.ucp_ep_rkey_unpack(
			e->ucp_ep, (const uint8_t *)bytes + sizeof(key), &r->rkey);
	/* Stores of the processor are for host memory. */
	if (e->signals && !status && key.kind == M2N__MEM_HOST)
		status = m2n__ucx.ucp_rkey_ptr(r->rkey, key.base, &ptr);
	m2n__ucx_unlock(u, before);
	if (status) {
		free(r);
		return m2n__ucx_error(status, "reading a key");
	}
	r->next = e->rmems;
	e->rmems = r;
	r->rmem.ep = ep;
	r->rmem.bytes = key.bytes;
	r->base = e->is_direct ? key.base : key.offset;
	r->region = key.region;
	r->ptr = ptr;
	*rmem = &r->rmem;
	return 0;
}

void m2n__ucx_orphan(struct m2n__ucx_ep *e)
{
	while (e->rmems) {
		struct m2n__ucx_rmem *r = e->rmems;

		if (r->rkey)
			m2n__ucx.ucp_rkey_destroy(r->rkey);
		r->rmem.ep = NULL;
		e->rmems = r->next;
	}
}

void m2n__ucx_release(struct m2n__rmem *rmem)
{
	struct m2n__ucx_rmem *r = (struct m2n__ucx_rmem *)rmem, **at;

	if (rmem->ep) {
		struct m2n__ucx_iface *u = m2n__ucx_iface(rmem->ep->iface);
		struct m2n__iface *before = m2n__ucx_lock(u);

		for (at = &m2n__ucx_ep(rmem->ep)->rmems; *at != r; at = &(*at)->next)
			;
		*at = r->next;
		if (r->rkey)
			m2n__ucx.ucp_rkey_destroy(r->rkey);
		m2n__ucx_unlock(u, before);
	}
	free(r);
}
