/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory. Registered with every device that UCX opened; a key is UCX's packed rkey and the address
 * that its puts name. The digest in front is checked before UCX sees the key.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"
#include "util/error.h"

struct key {
	struct m2n__ucx_seal seal;
	uint64_t base;
	uint64_t bytes;
	uint64_t rkey_bytes;
	/* the packed rkey */
};

int m2n__ucx_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(iface);
	ucp_mem_map_params_t params = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
			      UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
		.address = mem->base,
		.length = mem->bytes,
		.memory_type =
			mem->kind == M2N__MEM_CUDA ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST,
	};
	struct m2n__iface *before;
	struct m2n__ucx_mr *m;
	ucs_status_t status;

	if (mem->kind == M2N__MEM_CUDA && !u->has_cuda)
		return m2n__error(-ENOTSUP,
			"ucx: this UCX was built without CUDA, or UCX_TLS leaves it out: GPU "
			"memory cannot be registered");
	m = calloc(1, sizeof(*m));
	if (!m)
		return m2n__error(-ENOMEM, "ucx: no memory for a registration");
	before = m2n__ucx_lock(u);
	status = m2n__ucx.ucp_mem_map(u->context, &params, &m->memh);
	m2n__ucx_unlock(u, before);
	if (status) {
		free(m);
		return m2n__ucx_error(status,
			"registering memory (a small limit of locked memory, ulimit -l, is the "
			"common reason)");
	}
	m->base = (uintptr_t)mem->base;
	m->mr.iface = iface;
	m->mr.mem = mem;
	*mr = &m->mr;
	return 0;
}

void m2n__ucx_dereg(struct m2n__mr *mr)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(mr->iface);
	struct m2n__ucx_mr *m = (struct m2n__ucx_mr *)mr;
	struct m2n__iface *before = m2n__ucx_lock(u);

	m2n__ucx.ucp_mem_unmap(u->context, m->memh);
	m2n__ucx_unlock(u, before);
	free(m);
}

int m2n__ucx_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(mr->iface);
	struct m2n__ucx_mr *m = (struct m2n__ucx_mr *)mr;
	struct key k = {.base = m->base + offset, .bytes = bytes};
	struct m2n__iface *before = m2n__ucx_lock(u);
	ucs_status_t status;
	size_t rkey_bytes = 0;
	void *rkey;
	int fits;

	status = m2n__ucx.ucp_rkey_pack(u->context, m->memh, &rkey, &rkey_bytes);
	fits = !status && sizeof(k) + rkey_bytes <= *key_bytes;
	if (fits) {
		k.rkey_bytes = rkey_bytes;
		memcpy(key, &k, sizeof(k));
		memcpy((uint8_t *)key + sizeof(k), rkey, rkey_bytes);
		m2n__ucx_sign(key, sizeof(k) + rkey_bytes);
	}
	if (!status)
		m2n__ucx.ucp_rkey_buffer_release(rkey);
	m2n__ucx_unlock(u, before);
	if (status)
		return m2n__ucx_error(status, "packing a key");
	if (!fits)
		return m2n__error(-ENOSPC,
			"ucx: a key of %zu bytes, room for %zu: name fewer devices in "
			"UCX_NET_DEVICES",
			sizeof(k) + rkey_bytes, *key_bytes);
	*key_bytes = sizeof(k) + rkey_bytes;
	return 0;
}

int m2n__ucx_import(
	struct m2n__ep *ep, const void *bytes, size_t key_bytes, struct m2n__rmem **rmem)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before;
	struct m2n__ucx_rmem *r;
	ucs_status_t status;
	struct key key;
	int rc = m2n__ucx_verify(bytes, key_bytes, sizeof(key), "key");

	if (rc)
		return rc;
	memcpy(&key, bytes, sizeof(key));
	if (!key.rkey_bytes || key.rkey_bytes != key_bytes - sizeof(key) ||
		key.bytes > UINT64_MAX - key.base)
		return m2n__error(M2N_ERR_PROTOCOL, "ucx: key with lengths out of range");
	if (!e->ucp_ep)
		return m2n__error(-EINVAL, "ucx: a key before the greeting");
	r = calloc(1, sizeof(*r));
	if (!r)
		return m2n__error(-ENOMEM, "ucx: no memory for a key");
	before = m2n__ucx_lock(u);
	status = m2n__ucx.ucp_ep_rkey_unpack(
		e->ucp_ep, (const uint8_t *)bytes + sizeof(key), &r->rkey);
	m2n__ucx_unlock(u, before);
	if (status) {
		free(r);
		return m2n__ucx_error(status, "reading a key");
	}
	r->next = e->rmems;
	e->rmems = r;
	r->rmem.ep = ep;
	r->rmem.bytes = key.bytes;
	r->base = key.base;
	*rmem = &r->rmem;
	return 0;
}

void m2n__ucx_orphan(struct m2n__ucx_ep *e)
{
	while (e->rmems) {
		struct m2n__ucx_rmem *r = e->rmems;

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
		m2n__ucx.ucp_rkey_destroy(r->rkey);
		m2n__ucx_unlock(u, before);
	}
	free(r);
}
