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

#define M2N__MAX_BACKENDS 8
#define M2N__CACHE_LINE 64

struct m2n__backend {
	struct m2n__backend_ops ops; /* resolved */
	struct m2n__iface *iface;    /* NULL: not usable */
	char reason[160];
};

struct m2n__signal_range { /* a range that was given back */
	uint32_t first;
	uint32_t n;
};

struct m2n_ctx {
	struct m2n__options options;
	struct m2n__log log;
	const struct m2n__kernels *kernels;
	char host_id[64];
	pthread_mutex_t lock; /* recursive */
	struct m2n__backend backends[M2N__MAX_BACKENDS];
	unsigned n_backends;
	struct m2n__iface *polled[M2N__MAX_BACKENDS]; /* those that are not mapped */
	unsigned n_polled;
	struct m2n__iface *sleeper; /* whose arm/wait waits use; NULL: yield only */
	struct m2n__mem *signal_mem;
	_Atomic uint64_t *signals;
	uint32_t n_signals_used;
	struct m2n__signal_range *free_signals;
	uint32_t n_free_signals;
	struct m2n_group *groups; /* linked list, under lock */
	struct m2n_mem *mems;
	struct m2n_channel *exact; /* channels with exact placement, under lock */
	atomic_uint n_ungranted;   /* rounds of theirs whose rows wait for a grant */
	_Atomic int64_t last_poll_ns;
	int64_t spin_ns;           /* the option, or 0 when ranks outnumber cores */
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
void m2n__grants_poll(struct m2n_ctx *ctx);

/* Registrations of one memory with the backends of a context. */
struct m2n__reg {
	struct m2n__mr *mr[M2N__MAX_BACKENDS]; /* by backend index; NULL: not registered there */
};
/* Memory of the library's own that peers shall reach: alloc + register. */
struct m2n__shared {
	struct m2n__mem *mem;
	struct m2n__reg reg;
};
int m2n__shared_alloc(struct m2n_ctx *ctx, size_t bytes, size_t commit, struct m2n__shared *s);
void m2n__shared_free(struct m2n_ctx *ctx, struct m2n__shared *s);

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
