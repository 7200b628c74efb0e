/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the UCX backend share. One UCX context and one worker for each iface, made by
 * its first connection; one UCX endpoint for each connection. UCX is told that calls come one at
 * a time, and `lock` sees to it. Callbacks run inside progress, put and close, under the lock.
 */
#ifndef M2N_BACKEND_UCX_UCX_H
#define M2N_BACKEND_UCX_UCX_H

#include <pthread.h>
#include <stdatomic.h>

#include "backend/ucx/lib.h"

#define M2N__UCX_MAX_IN_FLIGHT 256 /* requests of one connection that are not complete */
#define M2N__UCX_N_BOUNCES 128
#define M2N__UCX_BOUNCE_BYTES 8192

/* Bytes of ours on their way: a signal's value, or small pieces made one. */
struct m2n__ucx_bounce {
	struct m2n__ucx_bounce *next; /* while it is free */
	struct m2n__ucx_ep *ep;       /* while it is on its way */
	uint64_t bytes[M2N__UCX_BOUNCE_BYTES / sizeof(uint64_t)];
};

struct m2n__ucx_iface {
	struct m2n__iface iface;
	pthread_mutex_t lock;
	ucp_context_h context; /* NULL until the first connection */
	ucp_worker_h worker;
	int has_cuda;
	struct m2n__mr *signal_mr;
	struct m2n__ucx_bounce *bounces; /* [M2N__UCX_N_BOUNCES] */
	struct m2n__ucx_bounce *free_bounces;
};

struct m2n__ucx_ep {
	struct m2n__ep ep;
	ucp_ep_h ucp_ep; /* NULL before meet() */
	ucp_rkey_h signal_rkey;
	uint64_t signal_base; /* of the peer's table */
	uint32_t n_signals;
	uint32_t n_in_flight;        /* puts that are not complete here */
	int is_flushing, is_closing; /* such a request is under way */
	uint64_t n_posted;           /* puts so far */
	uint64_t n_flush;            /* of them, those that the flush under way waits for */
	uint64_t n_arrived;          /* of them, those that a flush found to be at the peer */
	struct m2n__ucx_rmem *rmems; /* keys of this connection */
	atomic_int status;           /* ucs_status_t of the first failure; UCS_OK: none */
};

struct m2n__ucx_mr {
	struct m2n__mr mr;
	ucp_mem_h memh;
	uintptr_t base; /* what UCX knows the memory by */
};

struct m2n__ucx_rmem {
	struct m2n__rmem rmem;
	struct m2n__ucx_rmem *next; /* of the connection */
	ucp_rkey_h rkey;
	uint64_t base;
};

/* What connect() and meet() take from a peer starts with this. */
struct m2n__ucx_seal {
	uint32_t digest; /* FNV-1a of all that follows */
	uint32_t magic;
};

void m2n__ucx_sign(void *blob, size_t bytes);
/* 0, or M2N_ERR_PROTOCOL: bits were lost, and UCX's parsers trust what they are given. */
int m2n__ucx_verify(const void *blob, size_t bytes, size_t least, const char *what);

static inline struct m2n__ucx_iface *m2n__ucx_iface(struct m2n__iface *iface)
{
	return (struct m2n__ucx_iface *)iface;
}

static inline struct m2n__ucx_ep *m2n__ucx_ep(struct m2n__ep *ep)
{
	return (struct m2n__ucx_ep *)ep;
}

/* iface.c. Locks the worker; UCX's log lines are the iface's until unlock. */
struct m2n__iface *m2n__ucx_lock(struct m2n__ucx_iface *u);
void m2n__ucx_unlock(struct m2n__ucx_iface *u, struct m2n__iface *before);
/* Makes context and worker, once. */
int m2n__ucx_start(struct m2n__ucx_iface *u);
int m2n__ucx_progress(struct m2n__iface *iface);

/* ep.c */
int m2n__ucx_connect(struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep);
int m2n__ucx_greeting(struct m2n__ep *ep, void *greeting, size_t *bytes);
int m2n__ucx_meet(struct m2n__ep *ep, const void *greeting, size_t bytes);
int m2n__ucx_ready(struct m2n__ep *ep);
void m2n__ucx_disconnect(struct m2n__ep *ep);
int m2n__ucx_check(struct m2n__ep *ep);
/* The connection failed: check() says so from now on. Under the lock. */
void m2n__ucx_break(struct m2n__ucx_ep *e, ucs_status_t status);

/* memory.c */
int m2n__ucx_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr);
void m2n__ucx_dereg(struct m2n__mr *mr);
int m2n__ucx_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes);
int m2n__ucx_import(struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem);
void m2n__ucx_release(struct m2n__rmem *rmem);
/* The connection ends before its keys are released. Under the lock. */
void m2n__ucx_orphan(struct m2n__ucx_ep *e);

/* put.c */
int m2n__ucx_put(struct m2n__ep *ep, struct m2n__put *put);
int m2n__ucx_flush(struct m2n__ep *ep);
int m2n__ucx_arrived(struct m2n__ep *ep);

#endif
