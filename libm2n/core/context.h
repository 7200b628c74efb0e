/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of a context: options, log, kernels, opened backends, the signal table, and the lock
 * of the control plane. The data path reads fields that never change after open and takes no
 * lock; control connections, links and registrations are handled under `lock`.
 */
#ifndef M2N_CORE_CONTEXT_H
#define M2N_CORE_CONTEXT_H

#include <pthread.h>
#include <stdatomic.h>

#include <m2n/context.h>
#include <m2n/memory.h>

#include "backend/backend.h"
#include "core/log.h"
#include "core/option.h"
#include "kernel/kernel.h"

#define M2N__CACHE_LINE 64

struct m2n__backend {
	struct m2n__backend_ops ops; /* resolved */
	struct m2n__iface *iface;    /* NULL: not usable */
	int started;                 /* a peer was connected: it knows all memory */
	char reason[512];
};

struct m2n__signal_range { /* a range that was given back */
	uint32_t first;
	uint32_t n;
};

struct m2n__notice;

struct m2n_ctx {
	struct m2n__options options;
	struct m2n__log log;
	const struct m2n__kernels *kernels;
	char host_id[64];
	pthread_mutex_t lock; /* recursive */
	struct m2n__backend backends[M2N__MAX_BACKENDS];
	unsigned n_backends;
	/* Of the backends that were started; they only grow. */
	struct m2n__iface *polled[M2N__MAX_BACKENDS]; /* those that are not mapped */
	atomic_uint n_polled;
	_Atomic(struct m2n__iface *) sleeper; /* whose arm/wait waits use; NULL: yield only */
	atomic_int others_come;               /* signals that the sleeper does not see */
	atomic_int needs_mr; /* one of them sends only from registered memory */
	struct m2n__mem *signal_mem;
	_Atomic uint64_t *signals;
	uint32_t n_signals_used;
	struct m2n__signal_range *free_signals;
	uint32_t n_free_signals;
	struct m2n_group *groups; /* linked list, under lock */
	struct m2n_mem *mems;
	struct m2n__grave *graves; /* of groups that were left: peers may still write to them */
	struct m2n__known *known; /* all memory that backends register, under lock */
	_Atomic(struct m2n__mem_table *) mem_table;
	struct m2n__cuda *cuda; /* the context's device; NULL: none, for cuda_reason */
	char cuda_reason[512];
	struct m2n__gpu_thread *gpu_thread; /* runs while there are channels in CUDA memory */
	struct m2n_channel *exact; /* channels with exact placement, under lock */
	atomic_uint n_owing;       /* links that owe credits: core/credit.c */
	atomic_uint n_ungranted;   /* rounds of theirs whose rows wait for a grant */
	pthread_mutex_t notice_lock; /* of the queue; nothing is locked under it */
	struct m2n__notice *notices, **notices_end;
	atomic_uint n_notices;
	atomic_int notices_matter; /* a backend whose data waits for them was started */
	uint64_t n_eps;            /* connections so far, under lock */
	_Atomic int64_t last_poll_ns;
	_Atomic int64_t spin_ns;   /* the option, or 0 when ranks outnumber cores */
	atomic_uint n_local_peers; /* processes on this host that are connected, with this one */
};

/* A range of n words of the signal table, all zero. -ENOMEM names option SIGNALS. Under lock. */
int m2n__signal_alloc(struct m2n_ctx *ctx, uint32_t n, uint32_t *first);
void m2n__signal_free(struct m2n_ctx *ctx, uint32_t first, uint32_t n);

/* Looks at control connections and messaging backends; events seen. Takes the lock if it can. */
int m2n__ctx_poll(struct m2n_ctx *ctx);
/* The same when the last look is older than a millisecond. */
int m2n__ctx_poll_sometimes(struct m2n_ctx *ctx, int64_t now_ns);

/* Sends the rows of all channels whose grants came. Any wait does: peers may depend on them. */
void m2n__grants_send(struct m2n_ctx *ctx);

static inline void m2n__grants_poll(struct m2n_ctx *ctx)
{
	if (atomic_load_explicit(&ctx->n_ungranted, memory_order_relaxed))
		m2n__grants_send(ctx);
}

/* Queues a notice of a backend (struct m2n__iface_params, `say`). */
int m2n__notice_say(void *ctx, struct m2n__ep *ep, const void *bytes, size_t n);
/* Sends what is queued, if the lock is free. */
void m2n__notices_send(struct m2n_ctx *ctx);

/* Moves what messaging backends have. On the data path: no lock. */
static inline int m2n__ctx_progress(struct m2n_ctx *ctx)
{
	/* A6: pairs with R6 in m2n__backend_started(). */
	unsigned n = atomic_load_explicit(&ctx->n_polled, memory_order_acquire);
	int events = 0;

	for (unsigned i = 0; i < n; i++)
		events += ctx->polled[i]->ops->progress(ctx->polled[i]);
	if (atomic_load_explicit(&ctx->n_notices, memory_order_relaxed))
		m2n__notices_send(ctx);
	return events;
}

static inline int m2n__ctx_is_messaging(struct m2n_ctx *ctx)
{
	return atomic_load_explicit(&ctx->n_polled, memory_order_relaxed) != 0;
}

/*
 * The first connection of a backend: pages for what it needs before, and after it all memory of
 * the context is registered with it. 0 or the error of a registration. Under lock.
 */
int m2n__backend_start(struct m2n_ctx *ctx, unsigned index);
int m2n__backend_started(struct m2n_ctx *ctx, unsigned index);

/* Memory of the library's own that peers shall reach, or rows are sent from: alloc + register. */
struct m2n__shared {
	struct m2n__mem *mem;
	const struct m2n__reg *reg;
};
int m2n__shared_alloc(struct m2n_ctx *ctx, size_t bytes, size_t commit, struct m2n__shared *s);
/* The same of a kind of memory; CUDA memory is all there at once. */
int m2n__shared_alloc_on(struct m2n_ctx *ctx, enum m2n__mem_kind kind, size_t bytes, size_t commit,
	struct m2n__shared *s);
/* For bytes on their way out only: no peer reaches it. Takes the lock. */
int m2n__staging_alloc(struct m2n_ctx *ctx, size_t bytes, struct m2n__shared *s);
void m2n__shared_free(struct m2n_ctx *ctx, struct m2n__shared *s);

/* The registrations of the caller's memory that holds these bytes; NULL: none. No lock. */
const struct m2n__reg *m2n__mem_find(struct m2n_ctx *ctx, const void *base, size_t bytes);

/* Frees what users left registered; with a warning each. */
void m2n__mems_close(struct m2n_ctx *ctx);

int m2n__ctx_lock(struct m2n_ctx *ctx);
void m2n__ctx_unlock(struct m2n_ctx *ctx);

/*
 * Checks a params struct against what this library knows: same size, or shorter (tail zero-filled
 * in `copy` from `init`), or longer with a zero tail. 0 or -EINVAL naming the struct.
 */
int m2n__params_read(
	void *copy, size_t copy_bytes, const void *init, const void *params, const char *what);
/* The same for calls of the data path: params themselves when the size is ours, else the copy. */
static inline const void *m2n__params(
	void *copy, size_t copy_bytes, const void *init, const void *params, const char *what)
{
	if (params && *(const size_t *)params == copy_bytes)
		return params;
	return m2n__params_read(copy, copy_bytes, init, params, what) ? NULL : copy;
}

#endif
