/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory. NCCL needs no registration to send and receive; what is kept here are names of memory
 * and what was exported of it, for the receiver to check what a peer asks for. Host memory may be
 * registered, as a context tells a backend of all its memory, but is never exported.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/nccl/nccl.h"
#include "util/error.h"
#include "util/fnv.h"

#define MAGIC UINT32_C(0x314e326d) /* "m2N1" as little-endian bytes */

struct key {
	struct m2n__nccl_seal seal;
	uint64_t region;
	uint64_t base; /* in the region */
	uint64_t bytes;
};

void m2n__nccl_sign(void *blob, size_t bytes)
{
	struct m2n__nccl_seal seal = {0, MAGIC};
	uint8_t *at = blob;

	memcpy(at, &seal, sizeof(seal));
	seal.digest = m2n__fnv_bytes(
		M2N__FNV_START, at + sizeof(seal.digest), bytes - sizeof(seal.digest));
	memcpy(at, &seal, sizeof(seal));
}

int m2n__nccl_verify(const void *blob, size_t bytes, size_t expected, const char *what)
{
	struct m2n__nccl_seal seal;
	const uint8_t *at = blob;

	if (bytes != expected)
		return m2n__error(M2N_ERR_PROTOCOL, "nccl: %s of %zu bytes, expected %zu", what,
			bytes, expected);
	memcpy(&seal, at, sizeof(seal));
	if (seal.magic != MAGIC ||
		seal.digest != m2n__fnv_bytes(M2N__FNV_START, at + sizeof(seal.digest),
				       bytes - sizeof(seal.digest)))
		return m2n__error(
			M2N_ERR_PROTOCOL, "nccl: %s is damaged, or of another version", what);
	return 0;
}

int m2n__nccl_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(iface);
	struct m2n__nccl_mr *m = calloc(1, sizeof(*m));

	if (!m)
		return m2n__error(-ENOMEM, "nccl: no memory for a registration");
	m->mr.iface = iface;
	m->mr.mem = mem;
	pthread_mutex_lock(&u->lock);
	m->region = ++u->n_regions;
	m->next = u->mrs;
	u->mrs = m;
	pthread_mutex_unlock(&u->lock);
	*mr = &m->mr;
	return 0;
}

/*
 * Memory goes while a peer still writes to it, which had said that it was done: that connection
 * ends here and now.
 */
static void leave(struct m2n__nccl_ep *e, const struct m2n__mem *mem)
{
	const struct m2n__nccl_iface *u = m2n__nccl_iface(e->ep.iface);
	uintptr_t base = (uintptr_t)mem->base;
	int is_used = 0, mode;

	for (uint64_t i = e->in.n_done; i < e->in.n_queued; i++) {
		const struct m2n__nccl_batch *batch = m2n__nccl_batch(&e->in, i);

		for (unsigned k = 0; k < batch->n_pieces; k++)
			is_used |= (uintptr_t)batch->pieces[k].at - base < mem->bytes;
	}
	if (!is_used || m2n__cuda_enter_relaxed(u->cuda, &mode))
		return;
	m2n__nccl_break(e, m2n__error(M2N_ERR_PROTOCOL,
				   "nccl: the peer writes to memory that it needs no more"));
	m2n__nccl_lane_abort(&e->in);
	m2n__nccl_lane_close(&e->in);
	m2n__cuda_leave_relaxed(u->cuda, &mode);
}

void m2n__nccl_dereg(struct m2n__mr *mr)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(mr->iface);
	struct m2n__nccl_mr *m = (struct m2n__nccl_mr *)mr, **at;

	pthread_mutex_lock(&u->lock);
	for (at = &u->mrs; *at; at = &(*at)->next) {
		if (*at == m) {
			*at = m->next;
			break;
		}
	}
	for (struct m2n__nccl_ep *e = u->eps; e; e = e->next)
		leave(e, mr->mem);
	pthread_mutex_unlock(&u->lock);
	free(m);
}

int m2n__nccl_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(mr->iface);
	struct m2n__nccl_mr *m = (struct m2n__nccl_mr *)mr;
	struct key k = {.region = m->region, .base = offset, .bytes = bytes};

	if (mr->mem->kind != M2N__MEM_CUDA)
		return m2n__error(-ENOTSUP,
			"nccl: host memory: this backend moves CUDA memory only, name another one "
			"beside it (BACKEND=shm,nccl)");
	if (offset > mr->mem->bytes || bytes > mr->mem->bytes - offset)
		return m2n__error(-EINVAL, "nccl: %zu bytes at %zu of memory of %zu", bytes, offset,
			mr->mem->bytes);
	if (*key_bytes < sizeof(k))
		return m2n__error(-ENOSPC, "nccl: no room for a key of %zu bytes", sizeof(k));
	pthread_mutex_lock(&u->lock);
	if (m->until == m->from) {
		m->from = offset;
		m->until = offset + bytes;
	}
	m->from = offset < m->from ? offset : m->from;
	m->until = offset + bytes > m->until ? offset + bytes : m->until;
	pthread_mutex_unlock(&u->lock);
	m2n__nccl_sign(&k, sizeof(k));
	memcpy(key, &k, sizeof(k));
	*key_bytes = sizeof(k);
	return 0;
}

int m2n__nccl_import(struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem)
{
	struct m2n__nccl_rmem *r;
	struct key k;
	int rc = m2n__nccl_verify(key, key_bytes, sizeof(k), "key");

	if (rc)
		return rc;
	memcpy(&k, key, sizeof(k));
	if (k.bytes > SIZE_MAX / 2 || k.base > SIZE_MAX / 2)
		return m2n__error(M2N_ERR_PROTOCOL, "nccl: key with lengths out of range");
	r = calloc(1, sizeof(*r));
	if (!r)
		return m2n__error(-ENOMEM, "nccl: no memory for a key");
	r->rmem.ep = ep;
	r->rmem.bytes = k.bytes;
	r->region = k.region;
	r->base = k.base;
	*rmem = &r->rmem;
	return 0;
}

void m2n__nccl_release(struct m2n__rmem *rmem)
{
	free(rmem);
}

uint8_t *m2n__nccl_place(
	struct m2n__nccl_iface *u, uint64_t region, uint64_t offset, uint64_t bytes)
{
	for (const struct m2n__nccl_mr *m = u->mrs; m; m = m->next)
		if (m->region == region)
			return offset >= m->from && offset <= m->until && bytes <= m->until - offset
				       ? (uint8_t *)m->mr.mem->base + offset
				       : NULL;
	return NULL;
}
