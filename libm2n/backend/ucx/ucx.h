/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the UCX backend share. One UCX context and one worker for each iface, made by
 * its first connection; one UCX endpoint for each connection. UCX is told that calls come one at
 * a time, and `lock` sees to it. Callbacks run inside progress, put and close, under the lock.
 *
 * Data moves in one of two ways, which the sender settles for a connection when it is met:
 *
 *   direct    UCX reaches the peer's memory: ucp_put_nbx() of each piece, a fence, and a put of
 *             the signal word's new value. Where UCX has the memory mapped, pieces up to
 *             M2N_UCX_STORE and their signal are plain stores.
 *   messages  it does not (TCP; memory that UCX did not allocate, through posix and sysv). Then
 *             UCX would emulate puts, without a check of the address, and its emulation ends the
 *             process when a put comes from a peer whose endpoint has failed. So we send active
 *             messages ourselves: the receiver checks each, copies it and raises the signal.
 */
#ifndef M2N_BACKEND_UCX_UCX_H
#define M2N_BACKEND_UCX_UCX_H

#include <pthread.h>
#include <stdatomic.h>

#include "backend/ucx/lib.h"
#include "backend/ucx/table.h"

#define M2N__UCX_NOTES 64           /* requests of one connection that are not complete */
#define M2N__UCX_PIECES 16          /* of one message */
#define M2N__UCX_MESSAGE_BYTES 8064 /* fits with its heads into a segment of tcp, posix, sysv */

/* In front of a message. */
struct m2n__ucx_head {
	uint64_t token;  /* of the connection, from the receiver's greeting */
	uint64_t region; /* of the memory, from its key */
	uint64_t offset; /* in it */
	uint32_t bytes;
	uint32_t signal;
};

/* What UCX reads while a request is under way, besides the caller's bytes. */
struct m2n__ucx_note {
	struct m2n__ucx_note *next; /* while it is free */
	struct m2n__ucx_ep *ep;
	uint64_t raised;
	struct m2n__ucx_head head;
	ucp_dt_iov_t iov[M2N__UCX_PIECES];
};

struct m2n__gpu_flush;

struct m2n__ucx_iface {
	struct m2n__iface iface;
	pthread_mutex_t lock;
	ucp_context_h context; /* NULL until the first connection */
	ucp_worker_h worker;
	int has_cuda;
	struct m2n__gpu_flush *gpu_flush; /* NULL until the first flush */
	int is_native; /* memory that peers write to is made UCX's own, so that they reach it */
	struct m2n__mr *signal_mr;
	atomic_uint n_busy; /* connections that need progress for more than an end of theirs */
	atomic_uint n_idle; /* calls of progress without any of those */
	struct m2n__ucx_table regions; /* struct m2n__ucx_mr */
	struct m2n__ucx_table tokens;  /* struct m2n__ucx_ep */
};

struct m2n__ucx_ep {
	struct m2n__ep ep;
	ucp_ep_h ucp_ep; /* NULL before meet() */
	uint64_t token;  /* that the peer's messages carry */
	int is_direct;
	int is_busy;               /* counted in the iface's n_busy */
	int is_greeted;            /* the peer's hello came */
	ucp_rkey_h signal_rkey;    /* direct */
	_Atomic uint64_t *signals; /* direct, where the peer's memory is mapped here */
	uint64_t signal_base;      /* direct: of the peer's table */
	uint64_t peer_token;       /* messages */
	uint32_t n_signals;
	_Atomic uint32_t n_in_flight;          /* requests that are not complete here */
	int is_flushing, is_closing;           /* such a request is under way */
	uint64_t n_posted, n_flush, n_arrived; /* direct puts: all, asked for, known to be there */
	struct m2n__ucx_note *notes;           /* [M2N__UCX_NOTES] */
	struct m2n__ucx_note *free_notes;
	struct m2n__ucx_rmem *rmems; /* keys of this connection */
	atomic_int status;           /* ucs_status_t of the first failure; UCS_OK: none */
};

struct m2n__ucx_mr {
	struct m2n__mr mr;
	ucp_mem_h memh;
	uintptr_t base;  /* what UCX knows the memory by */
	uint64_t region; /* what messages name it by */
	int is_native;
};

struct m2n__ucx_rmem {
	struct m2n__rmem rmem;
	struct m2n__ucx_rmem *next; /* of the connection */
	ucp_rkey_h rkey;            /* direct */
	uint64_t base;              /* direct: address; messages: offset in the region */
	uint64_t region;
	uint8_t *ptr; /* direct, where it is mapped here */
};

/* Everything that a peer gave starts with this. */
struct m2n__ucx_seal {
	uint32_t digest; /* FNV-1a of all that follows */
	uint32_t magic;
};

/* seal.c */
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

/* What UCX calls the kind of a memory. */
ucs_memory_type_t m2n__ucx_memory_type(const struct m2n__mem *mem);
/* -ENOTSUP: the peer takes messages only, and GPU memory does not go by those. */
int m2n__ucx_no_device(void);

/* native.c. Puts memory of UCX's own in place of a registration's, if UCX can reach that better. */
int m2n__ucx_make_native(struct m2n__ucx_iface *u, struct m2n__ucx_mr *m);

/* put.c */
int m2n__ucx_put(struct m2n__ep *ep, struct m2n__put *put);
int m2n__ucx_flush(struct m2n__ep *ep);
int m2n__ucx_arrived(struct m2n__ep *ep);
/* What UCX returned for an operation that has the first free note. 0, or M2N_ERR_PEER_LOST. */
int m2n__ucx_posted(
	struct m2n__ucx_ep *e, struct m2n__ucx_note *note, ucs_status_ptr_t request);
/* A request is complete: its note is free again. A callback of UCX. */
void m2n__ucx_done(void *request, ucs_status_t status, void *note);

/* message.c. Goes on with a list where the last call ended; -EAGAIN: no room. Under the lock. */
int m2n__ucx_send(struct m2n__ucx_ep *e, struct m2n__put *put);
int m2n__ucx_listen(struct m2n__ucx_iface *u);
/* What the peer must have before it is ready. Under the lock. */
int m2n__ucx_hello(struct m2n__ucx_ep *e);

#endif
