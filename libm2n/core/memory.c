/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory known to a context: allocation and registration with every opened backend, for users
 * (m2n_mem_*) and for the slots of the library's own links.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "util/error.h"

struct m2n_mem {
	struct m2n_ctx *ctx;
	struct m2n_mem *next;
	struct m2n__shared shared;
};

static void deregister(struct m2n_ctx *ctx, struct m2n__reg *reg)
{
	for (unsigned i = 0; i < ctx->n_backends; i++)
		if (reg->mr[i])
			ctx->backends[i].ops.dereg(reg->mr[i]);
	memset(reg, 0, sizeof(*reg));
}

static int register_all(struct m2n_ctx *ctx, struct m2n__mem *mem, struct m2n__reg *reg)
{
	memset(reg, 0, sizeof(*reg));
	for (unsigned i = 0; i < ctx->n_backends; i++) {
		struct m2n__iface *iface = ctx->backends[i].iface;
		int rc = iface ? iface->ops->reg(iface, mem, &reg->mr[i]) : 0;

		if (rc) {
			reg->mr[i] = NULL;
			deregister(ctx, reg);
			return m2n__error_at(rc, "backend %s", ctx->backends[i].ops.name);
		}
	}
	return 0;
}

int m2n__shared_alloc(struct m2n_ctx *ctx, size_t bytes, size_t commit, struct m2n__shared *s)
{
	int rc =
		m2n__mem_alloc(bytes, commit, (enum m2n__mem_huge)ctx->options.huge_pages, &s->mem);

	if (rc)
		return rc;
	rc = register_all(ctx, s->mem, &s->reg);
	if (rc) {
		m2n__mem_free(s->mem);
		s->mem = NULL;
	}
	return rc;
}

void m2n__shared_free(struct m2n_ctx *ctx, struct m2n__shared *s)
{
	if (!s->mem)
		return;
	deregister(ctx, &s->reg);
	m2n__mem_free(s->mem);
	s->mem = NULL;
}

static void insert(struct m2n_ctx *ctx, struct m2n_mem *mem)
{
	mem->ctx = ctx;
	mem->next = ctx->mems;
	ctx->mems = mem;
}

/* `base` NULL: memory of our own; else the caller's. */
static int add(struct m2n_ctx *ctx, void *base, size_t bytes, const char *call,
	struct m2n_mem **mem_out)
{
	struct m2n_mem *mem = calloc(1, sizeof(*mem));
	struct m2n__shared *shared;
	int rc;

	if (!mem)
		return m2n__error(-ENOMEM, "%s: no memory for the handle", call);
	shared = &mem->shared;
	m2n__ctx_lock(ctx);
	if (!base) {
		rc = m2n__shared_alloc(ctx, bytes, bytes, shared);
	} else {
		rc = m2n__mem_wrap(base, bytes, &shared->mem);
		if (!rc)
			rc = register_all(ctx, shared->mem, &shared->reg);
		if (rc)
			m2n__mem_free(shared->mem);
	}
	if (!rc)
		insert(ctx, mem);
	m2n__ctx_unlock(ctx);
	if (rc) {
		free(mem);
		return rc;
	}
	*mem_out = mem;
	return 0;
}

int m2n_mem_alloc(struct m2n_ctx *ctx, size_t bytes, struct m2n_mem **mem, void **base)
{
	int rc;

	if (!ctx || !mem || !base || !bytes)
		return m2n__error(-EINVAL, "m2n_mem_alloc: %s",
			bytes ? "ctx, mem or base is NULL" : "0 bytes");
	rc = add(ctx, NULL, bytes, "m2n_mem_alloc", mem);
	if (!rc)
		*base = (*mem)->shared.mem->base;
	return rc;
}

int m2n_mem_register(struct m2n_ctx *ctx, void *base, size_t bytes, struct m2n_mem **mem)
{
	if (!ctx || !mem || !base || !bytes)
		return m2n__error(-EINVAL, "m2n_mem_register: %s",
			bytes ? "ctx, mem or base is NULL" : "0 bytes");
	return add(ctx, base, bytes, "m2n_mem_register", mem);
}

void m2n_mem_free(struct m2n_mem *mem)
{
	struct m2n_ctx *ctx;

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
	m2n__shared_free(ctx, &mem->shared);
	m2n__ctx_unlock(ctx);
	free(mem);
}

void m2n_mem_deregister(struct m2n_mem *mem)
{
	m2n_mem_free(mem);
}

void m2n__mems_close(struct m2n_ctx *ctx)
{
	while (ctx->mems) {
		m2n__log(&ctx->log, M2N_LOG_WARN, "context closed with memory still registered");
		m2n_mem_free(ctx->mems);
	}
}
