/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory known to a context: for users (m2n_mem_*) and for the slots and staging of the library's
 * own links. A backend registers all of it when its first peer is connected, and what comes later
 * when it comes: memory is pinned for a network that is used, not for one that could be.
 *
 * Rounds look up the registrations of the caller's rows without a lock, in a table whose entries
 * are read twice: an entry that changed in between is read again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "mem/cuda.h"
#include "util/error.h"

struct m2n__known {
	struct m2n__reg reg; /* what the outside holds a pointer to */
	struct m2n__mem *mem;
	struct m2n__known *next;
};

struct table_entry {
	_Atomic uint64_t turn; /* odd: being changed */
	_Atomic uintptr_t base;
	_Atomic size_t bytes; /* 0: free */
	_Atomic(const struct m2n__reg *) reg;
};

struct m2n__mem_table {
	struct m2n__mem_table *older; /* may still be read; freed with the context */
	size_t room;
	_Atomic size_t n;
	struct table_entry entries[];
};

struct m2n_mem {
	struct m2n_ctx *ctx;
	struct m2n_mem *next;
	struct m2n__shared shared;
};

const struct m2n__reg *m2n__mem_find(struct m2n_ctx *ctx, const void *base, size_t bytes)
{
	struct m2n__mem_table *table = atomic_load_explicit(&ctx->mem_table, memory_order_acquire);
	size_t n = table ? atomic_load_explicit(&table->n, memory_order_acquire) : 0;
	uintptr_t at = (uintptr_t)base;

	for (size_t i = 0; i < n; i++) {
		struct table_entry *e = &table->entries[i];
		uint64_t turn = atomic_load_explicit(&e->turn, memory_order_acquire);
		uintptr_t from = atomic_load_explicit(&e->base, memory_order_acquire);
		size_t size = atomic_load_explicit(&e->bytes, memory_order_acquire);
		const struct m2n__reg *reg = atomic_load_explicit(&e->reg, memory_order_acquire);

		if (turn & 1 || turn != atomic_load_explicit(&e->turn, memory_order_acquire)) {
			i--;
			continue;
		}
		if (at - from < size && bytes <= size - (at - from))
			return reg;
	}
	return NULL;
}

static void set_entry(struct table_entry *e, const void *base, size_t bytes,
	const struct m2n__reg *reg)
{
	uint64_t turn = atomic_load_explicit(&e->turn, memory_order_relaxed);

	atomic_store_explicit(&e->turn, turn + 1, memory_order_seq_cst);
	atomic_store_explicit(&e->base, (uintptr_t)base, memory_order_seq_cst);
	atomic_store_explicit(&e->bytes, bytes, memory_order_seq_cst);
	atomic_store_explicit(&e->reg, reg, memory_order_seq_cst);
	atomic_store_explicit(&e->turn, turn + 2, memory_order_seq_cst);
}

/* A table with twice the room, and what the last one held. */
static int grow_table(struct m2n_ctx *ctx)
{
	struct m2n__mem_table *old = atomic_load_explicit(&ctx->mem_table, memory_order_relaxed);
	size_t n = old ? atomic_load_explicit(&old->n, memory_order_relaxed) : 0;
	size_t room = old ? 2 * old->room : 16;
	struct m2n__mem_table *table = calloc(1, sizeof(*table) + room * sizeof(table->entries[0]));

	if (!table)
		return m2n__error(-ENOMEM, "no memory for a table of %zu registrations", room);
	for (size_t i = 0; i < n; i++)
		set_entry(&table->entries[i],
			(const void *)atomic_load_explicit(
				&old->entries[i].base, memory_order_relaxed),
			atomic_load_explicit(&old->entries[i].bytes, memory_order_relaxed),
			atomic_load_explicit(&old->entries[i].reg, memory_order_relaxed));
	table->older = old;
	table->room = room;
	atomic_store_explicit(&table->n, n, memory_order_relaxed);
	atomic_store_explicit(&ctx->mem_table, table, memory_order_release);
	return 0;
}

static int add_to_table(struct m2n_ctx *ctx, const struct m2n__shared *s)
{
	struct m2n__mem_table *table = atomic_load_explicit(&ctx->mem_table, memory_order_relaxed);
	size_t n = table ? atomic_load_explicit(&table->n, memory_order_relaxed) : 0, i = 0;

	while (i < n && atomic_load_explicit(&table->entries[i].bytes, memory_order_relaxed))
		i++;
	if (!table || i == table->room) {
		int rc = grow_table(ctx);

		if (rc)
			return rc;
		table = atomic_load_explicit(&ctx->mem_table, memory_order_relaxed);
	}
	set_entry(&table->entries[i], s->mem->base, s->mem->bytes, s->reg);
	if (i == n)
		atomic_store_explicit(&table->n, n + 1, memory_order_release);
	return 0;
}

static void remove_from_table(struct m2n_ctx *ctx, const struct m2n__shared *s)
{
	struct m2n__mem_table *table = atomic_load_explicit(&ctx->mem_table, memory_order_relaxed);
	size_t n = table ? atomic_load_explicit(&table->n, memory_order_relaxed) : 0;

	for (size_t i = 0; i < n; i++)
		if (atomic_load_explicit(&table->entries[i].reg, memory_order_relaxed) == s->reg)
			set_entry(&table->entries[i], NULL, 0, NULL);
}

/* Memory of a kind that a backend does not carry is not for it. */
static int is_for(const struct m2n__backend *b, const struct m2n__mem *mem)
{
	return (b->ops.caps & (mem->kind == M2N__MEM_CUDA ? M2N__CAP_CUDA_MEMORY
							   : M2N__CAP_HOST_MEMORY)) != 0;
}

static int register_with(struct m2n_ctx *ctx, unsigned i, struct m2n__known *known)
{
	struct m2n__iface *iface = ctx->backends[i].iface;
	struct m2n__mr *mr = NULL;
	int rc = iface->ops->reg(iface, known->mem, &mr);

	if (rc)
		m2n__error_at(rc, "backend %s", ctx->backends[i].ops.name);
	if (rc && known->mem->kind == M2N__MEM_CUDA) {
		/* perhaps none of this backend's peers wants it: the link that does will say so */
		m2n__log(&ctx->log, M2N_LOG_DEBUG, "%s", m2n_error_text());
		return 0;
	}
	known->reg.mr[i] = mr;
	return rc;
}

static void forget(struct m2n_ctx *ctx, const struct m2n__reg *reg)
{
	for (struct m2n__known **at = &ctx->known; *at; at = &(*at)->next) {
		struct m2n__known *known = *at;

		if (&known->reg != reg)
			continue;
		*at = known->next;
		for (unsigned i = 0; i < ctx->n_backends; i++)
			if (known->reg.mr[i])
				ctx->backends[i].ops.dereg(known->reg.mr[i]);
		free(known);
		return;
	}
}

/* Registers memory with every backend that is in use. */
static int learn(struct m2n_ctx *ctx, struct m2n__shared *s)
{
	struct m2n__known *known = calloc(1, sizeof(*known));
	int rc = 0;

	if (!known)
		return m2n__error(-ENOMEM, "no memory for a registration");
	known->mem = s->mem;
	known->next = ctx->known;
	ctx->known = known;
	for (unsigned i = 0; i < ctx->n_backends && !rc; i++)
		if (ctx->backends[i].started && is_for(&ctx->backends[i], s->mem))
			rc = register_with(ctx, i, known);
	if (rc) {
		forget(ctx, &known->reg);
		return rc;
	}
	s->reg = &known->reg;
	return 0;
}

int m2n__backend_start(struct m2n_ctx *ctx, unsigned index)
{
	if (ctx->backends[index].ops.caps & M2N__CAP_MAPPED)
		return 0;
	return m2n__mem_commit(ctx->signal_mem, 0, ctx->signal_mem->bytes);
}

int m2n__backend_started(struct m2n_ctx *ctx, unsigned index)
{
	struct m2n__backend *b = &ctx->backends[index];
	unsigned n = atomic_load_explicit(&ctx->n_polled, memory_order_relaxed);
	int is_mapped = (b->ops.caps & M2N__CAP_MAPPED) != 0;

	if (b->started)
		return 0;
	for (struct m2n__known *known = ctx->known; known; known = known->next) {
		int rc = known->reg.mr[index] || !is_for(b, known->mem)
				 ? 0
				 : register_with(ctx, index, known);

		if (rc)
			return rc;
	}
	b->started = 1;
	ctx->needs_mr |= b->iface->needs_mr;
	if (!is_mapped) {
		ctx->polled[n] = b->iface;
		/* R6: the iface before its number, pairs with A6. */
		atomic_store_explicit(&ctx->n_polled, n + 1, memory_order_release);
	}
	if (ctx->sleeper && !is_mapped)
		ctx->others_come = 1;
	if (b->ops.caps & M2N__CAP_SLEEP && (!ctx->sleeper || is_mapped)) {
		/* A mapped peer's signal wakes only who sleeps on the mapped backend. */
		ctx->others_come |= n > 0 || ctx->sleeper;
		atomic_store_explicit(&ctx->sleeper, b->iface, memory_order_release);
	}
	return 0;
}

static int no_device(const struct m2n_ctx *ctx, const char *what)
{
	return m2n__error(M2N_ERR_BACKEND, "%s: %s", what, ctx->cuda_reason);
}

int m2n__shared_alloc_on(struct m2n_ctx *ctx, enum m2n__mem_kind kind, size_t bytes, size_t commit,
	struct m2n__shared *s)
{
	int rc;

	if (kind == M2N__MEM_CUDA)
		rc = ctx->cuda ? m2n__mem_alloc_cuda(ctx->cuda, bytes, &s->mem)
			       : no_device(ctx, "memory on a device");
	else
		rc = m2n__mem_alloc(
			bytes, commit, (enum m2n__mem_huge)ctx->options.huge_pages, &s->mem);
	if (rc)
		return rc;
	rc = learn(ctx, s);
	if (rc) {
		m2n__mem_free(s->mem);
		s->mem = NULL;
	}
	return rc;
}

int m2n__shared_alloc(struct m2n_ctx *ctx, size_t bytes, size_t commit, struct m2n__shared *s)
{
	return m2n__shared_alloc_on(ctx, M2N__MEM_HOST, bytes, commit, s);
}

int m2n__staging_alloc(struct m2n_ctx *ctx, size_t bytes, struct m2n__shared *s)
{
	int rc;

	m2n__ctx_lock(ctx);
	rc = m2n__mem_alloc_private(bytes, &s->mem);
	if (!rc)
		rc = learn(ctx, s);
	if (rc) {
		m2n__mem_free(s->mem);
		s->mem = NULL;
	}
	m2n__ctx_unlock(ctx);
	return rc;
}

void m2n__shared_free(struct m2n_ctx *ctx, struct m2n__shared *s)
{
	if (!s->mem)
		return;
	forget(ctx, s->reg);
	m2n__mem_free(s->mem);
	s->mem = NULL;
}

/* The caller's memory: host or device, told by the address. */
static int wrap(struct m2n_ctx *ctx, void *base, size_t bytes, struct m2n__mem **mem)
{
	int other;
	enum m2n__pointer is =
		ctx->cuda ? m2n__cuda_pointer(ctx->cuda, base, &other) : M2N__POINTER_HOST;

	if (is == M2N__POINTER_DEVICE || is == M2N__POINTER_OTHER)
		return m2n__mem_wrap_cuda(ctx->cuda, base, bytes, mem);
	return m2n__mem_wrap(base, bytes, mem);
}

/* `base` NULL: memory of our own, of `kind`; else the caller's. */
static int add(struct m2n_ctx *ctx, enum m2n__mem_kind kind, void *base, size_t bytes,
	const char *call, struct m2n_mem **mem_out)
{
	struct m2n_mem *mem = calloc(1, sizeof(*mem));
	struct m2n__shared *shared;
	int rc;

	if (!mem)
		return m2n__error(-ENOMEM, "%s: no memory for the handle", call);
	shared = &mem->shared;
	m2n__ctx_lock(ctx);
	if (!base) {
		rc = m2n__shared_alloc_on(ctx, kind, bytes, bytes, shared);
	} else {
		rc = wrap(ctx, base, bytes, &shared->mem);
		if (!rc)
			rc = learn(ctx, shared);
		if (rc)
			m2n__mem_free(shared->mem);
	}
	if (!rc) {
		rc = add_to_table(ctx, shared);
		if (rc)
			m2n__shared_free(ctx, shared);
	}
	if (!rc) {
		mem->ctx = ctx;
		mem->next = ctx->mems;
		ctx->mems = mem;
		*mem_out = mem;
	}
	m2n__ctx_unlock(ctx);
	if (rc)
		free(mem);
	return rc;
}

int m2n_mem_alloc(struct m2n_ctx *ctx, size_t bytes, struct m2n_mem **mem, void **base)
{
	return m2n_mem_alloc_on(ctx, M2N_MEMORY_HOST, bytes, mem, base);
}

int m2n_mem_alloc_on(struct m2n_ctx *ctx, enum m2n_memory memory, size_t bytes,
	struct m2n_mem **mem, void **base)
{
	int rc;

	if (!ctx || !mem || !base || !bytes)
		return m2n__error(-EINVAL, "m2n_mem_alloc: %s",
			bytes ? "ctx, mem or base is NULL" : "0 bytes");
	if ((unsigned)memory > M2N_MEMORY_CUDA)
		return m2n__error(-EINVAL, "m2n_mem_alloc_on: memory is %u, accepted: HOST, CUDA",
			(unsigned)memory);
	rc = add(ctx, memory == M2N_MEMORY_CUDA ? M2N__MEM_CUDA : M2N__MEM_HOST, NULL, bytes,
		"m2n_mem_alloc", mem);
	if (!rc)
		*base = (*mem)->shared.mem->base;
	return rc;
}

int m2n_mem_register(struct m2n_ctx *ctx, void *base, size_t bytes, struct m2n_mem **mem)
{
	if (!ctx || !mem || !base || !bytes)
		return m2n__error(-EINVAL, "m2n_mem_register: %s",
			bytes ? "ctx, mem or base is NULL" : "0 bytes");
	return add(ctx, M2N__MEM_HOST, base, bytes, "m2n_mem_register", mem);
}

void m2n_mem_free(struct m2n_mem *mem)
{
	struct m2n_ctx *ctx;
	int is_cuda;

	if (!mem)
		return;
	ctx = mem->ctx;
	m2n__ctx_lock(ctx);
	for (struct m2n_mem **at = &ctx->mems; *at; at = &(*at)->next) {
		if (*at == mem) {
			*at = mem->next;
			break;
		}
	}
	remove_from_table(ctx, &mem->shared);
	is_cuda = mem->shared.mem->kind == M2N__MEM_CUDA;
	m2n__shared_free(ctx, &mem->shared);
	m2n__ctx_unlock(ctx);
	if (is_cuda) /* not under the lock: what it waits for may need us */
		m2n__cuda_trim(ctx->cuda);
	free(mem);
}

void m2n_mem_deregister(struct m2n_mem *mem)
{
	m2n_mem_free(mem);
}

void m2n__mems_close(struct m2n_ctx *ctx)
{
	struct m2n__mem_table *table = atomic_load_explicit(&ctx->mem_table, memory_order_relaxed);

	while (ctx->mems) {
		m2n__log(&ctx->log, M2N_LOG_WARN, "context closed with memory still registered");
		m2n_mem_free(ctx->mems);
	}
	while (table) {
		struct m2n__mem_table *older = table->older;

		free(table);
		table = older;
	}
}
