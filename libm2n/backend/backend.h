/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backend contract: moving bytes between ranks. A backend knows no token, expert or dtype.
 *
 * A backend is a const table of operations. One context opens it once: the *iface*. A connected
 * peer is an *ep*. Local memory is registered (*mr*), described to a peer by a key of plain
 * bytes, and imported there (*rmem*). There are two ways to move data:
 *
 *   mapped      (M2N__CAP_MAPPED) rmem.ptr is a pointer that the caller stores to: rows by the
 *               row kernel, the signal by a release store to a word in the slot's head. put is
 *               never called. notify() wakes a peer that sleeps.
 *   messaging   put() writes a gather list to an offset of an rmem and, after all its bytes are
 *               visible there, adds to a word of the *peer's signal table*: one, or for a list
 *               that it split over paths (QPs, NICs) one for each path; it says how much. Puts to
 *               one peer may complete in any order (adaptive routing), so a receiver only ever
 *               counts signals; it never infers one put from another.
 *
 * The signal table is an array of 64-bit words of the context that receives; core hands out
 * ranges of it (m2n__signal_alloc()) and tells peers the index. Each word has one sender.
 *
 * Coming up: address() gives a blob that every peer can read in the store; reaches() and connect()
 * take the peer's. A backend with M2N__CAP_GREETS has more to agree on for each connection (queue
 * pairs, worker addresses): core carries greeting() of each side to meet() of the other over the
 * control connection, then asks ready(). Nobody puts before the peer is ready: the keys that a
 * put needs follow later on the control connection. What costs is done by the first connect(),
 * not by open(): most contexts open more backends than they use. Memory is registered, and
 * progress() called, from the first connect() on.
 *
 * How each backend fits:
 *   self      mapped, the pointer is the address.
 *   shm       mapped, key = (pid, fd, offset, inode) of a sealed memfd. notify/arm/wait: a futex
 *             in a page that peers map.
 *   cuda_ipc  mapped, host memory by an iface of shm inside. Device memory: key = CUDA IPC handle,
 *             or VMM file descriptors that the importer fetches; the pointer itself within one
 *             process. ptr is a device pointer that kernels store to; signal words lie in device
 *             memory. mem.kind tells host from device.
 *   verbs     messaging. greeting: the numbers of the RC QPs, or where librdmacm shall connect.
 *             put: RDMA writes, the last on each QP with the signal's index as immediate; the
 *             receiver's progress() adds one to the table's word. Rails and QPs per peer are
 *             inside the ep. mr and key hold one lkey/rkey per NIC. arm/wait: completion channel.
 *   ucx       messaging. greeting: the worker's address. put: ucp_put_nbx of each piece,
 *             ucp_worker_fence, then the signal (the key of the table is in the greeting).
 *   nccl      messaging. greeting: the id of a communicator of two for what this side sends. put()
 *             queues, progress() makes one group of sends of what is queued; a notice tells the
 *             receiver where to post the matching receives.
 *   fault     an interposer over any mapped one; hides the mapping, so that shm is driven as a
 *             messaging backend, and drops, delays, reorders, truncates, fails.
 *
 * Threads: open/close/connect/greeting/meet/ready/hear/disconnect/reg/dereg/import/release run
 * under the context's lock. put/flush/arrived of one ep, and progress, may be called from several
 * threads: a backend that is not safe for that locks inside (mapped backends need nothing).
 *
 * Errors: 0 or a negative code, with the cause and the vendor's words in the error text.
 */
#ifndef M2N_BACKEND_H
#define M2N_BACKEND_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <m2n/log.h>
#include <m2n/types.h>

#include "mem/mem.h"

#define M2N__KEY_BYTES 512       /* of one exported key at most */
#define M2N__ADDRESS_BYTES 1024  /* of one iface's address blob at most */
#define M2N__GREETING_BYTES 8192 /* of one connection's greeting at most */
#define M2N__MAX_BACKENDS 8
#define M2N__NOTICE_BYTES 4096 /* of one notice at most */
#define M2N__SIGNAL_NONE UINT32_MAX

enum m2n__caps {
	M2N__CAP_MAPPED = 1 << 0,
	M2N__CAP_HOST_MEMORY = 1 << 1,
	M2N__CAP_CUDA_MEMORY = 1 << 2,
	M2N__CAP_SLEEP = 1 << 3,  /* arm/wait sleep; without it a waiter yields */
	M2N__CAP_GREETS = 1 << 4, /* connections need greetings to become ready */
	M2N__CAP_NOTICES = 1 << 5, /* data waits for notices: waits look for them all the time */
};

struct m2n__backend_ops;
struct m2n__cuda;
struct m2n__ep;
struct m2n__kernels;
struct m2n__options;

/* What open() is given; borrowed until close(). */
struct m2n__iface_params {
	const struct m2n__options *options;
	m2n_log_fn log; /* lines for the context's log; never NULL */
	void *log_arg;
	const char *host_id;         /* equal on ranks of one host */
	_Atomic uint64_t *signals;   /* the context's signal table [n_signals] */
	struct m2n__mem *signal_mem; /* the memory it lies in; has pages from connect() on */
	uint32_t n_signals;
	struct m2n__cuda *cuda; /* the context's device; NULL: it has none */
	const struct m2n__kernels *kernels; /* the context's */
	unsigned index; /* of this backend in struct m2n__reg */
	/*
	 * Sends a notice to the peer's hear(), in order, over the control connection that the ep
	 * came up on; none is delivered to another one. From any thread, with the backend's own
	 * locks held: it is queued, and leaves with the next progress of core. 0, -ENOMEM, or
	 * -EINVAL: longer than M2N__NOTICE_BYTES.
	 */
	int (*say)(void *arg, struct m2n__ep *ep, const void *bytes, size_t n);
	void *say_arg;
};

struct m2n__iface {
	const struct m2n__backend_ops *ops;
	struct m2n__iface_params params;
	size_t max_iov;    /* pieces of a put that raises its signal once */
	size_t max_bytes;  /* bytes of such a put */
	size_t max_inline; /* puts up to here need no registered pieces */
	int needs_mr;      /* longer ones do */
	atomic_uint n_broken; /* grows with every connection that breaks: check() tells which */
};

struct m2n__ep {
	const struct m2n__backend_ops *ops;
	struct m2n__iface *iface;
	void *owner; /* core's: whom the connection is with */
	uint64_t serial; /* core's: no two are equal */
	/*
	 * Puts of up to so many bytes, from pieces without registration and without a signal, show
	 * in the peer's memory by themselves, soon and in any order of their bytes; 0: they do not,
	 * and the peer sends none either. They wake nobody. Known when the peer is ready.
	 */
	size_t max_sealed;
};

struct m2n__mr {
	struct m2n__iface *iface;
	const struct m2n__mem *mem;
};

/* The registrations of one memory, by backend index; NULL: not registered there. */
struct m2n__reg {
	struct m2n__mr *mr[M2N__MAX_BACKENDS];
};

struct m2n__rmem {
	struct m2n__ep *ep; /* may be disconnected before the key is released */
	const struct m2n__backend_ops *ops;
	void *ptr; /* mapped: local address of the peer's memory; NULL: messaging */
	size_t bytes;
};

struct m2n__piece {
	const void *base;
	size_t bytes;
	const struct m2n__reg *reg; /* of the memory it lies in; NULL: none */
};

struct m2n__put {
	const struct m2n__piece *pieces; /* joined in order */
	size_t n_pieces;
	struct m2n__rmem *rmem;
	size_t offset;      /* in rmem */
	uint32_t signal;    /* index in the peer's signal table, or M2N__SIGNAL_NONE */
	uint64_t raised;    /* that word now, or soon: all that was added for this link before */
	uint32_t n_signals; /* out: what is added to that word in all */
	uint32_t n_posted;  /* out: transfers that it took */
	/* The backend's place in a list that did not fit at once; zero before the first call. */
	size_t next_piece, next_byte, next_offset;
	uint32_t next_path;
};

struct m2n__backend_ops {
	const char *name;
	const char *about;
	int priority; /* auto: the highest that reaches the peer wins */
	uint32_t caps;

	/* Can it be used on this machine? 0, or an error with the reason and the remedy. */
	int (*probe)(const struct m2n__options *options);
	int (*open)(const struct m2n__iface_params *params, struct m2n__iface **iface);
	void (*close)(struct m2n__iface *iface);
	/* What a peer needs to connect. *bytes: room, then size. */
	int (*address)(struct m2n__iface *iface, void *blob, size_t *bytes);
	/* May a peer with this blob be reached? 1 or 0; must agree on both sides. */
	int (*reaches)(struct m2n__iface *iface, const void *blob, size_t bytes);

	int (*connect)(
		struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep);
	/* M2N__CAP_GREETS: what the peer's meet() needs. *bytes: room, then size. */
	int (*greeting)(struct m2n__ep *ep, void *greeting, size_t *bytes);
	int (*meet)(struct m2n__ep *ep, const void *greeting, size_t bytes);
	/* 0: the peer may put to us and we to it; -EAGAIN: not yet; else why it cannot be. */
	int (*ready)(struct m2n__ep *ep);
	/* A notice of the peer, from meet() on; may come before ready() was 0. Under core's lock.
	 * An error is the peer's: it broke the protocol and is lost. */
	int (*hear)(struct m2n__ep *ep, const void *bytes, size_t n);
	/* Also of a connection that never was ready, or broke. Nothing moves on it afterwards. */
	void (*disconnect)(struct m2n__ep *ep);

	int (*reg)(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr);
	void (*dereg)(struct m2n__mr *mr);
	/* Key for bytes [offset, offset + bytes) of mr's memory. *key_bytes: room, then size. */
	int (*export_key)(
		struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes);
	int (*import_key)(
		struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem);
	void (*release_key)(struct m2n__rmem *rmem);

	/*
	 * Messaging only. The list is borrowed for the call, its bytes until flush(). A list of at
	 * most max_iov pieces and max_bytes raises its signal once; a longer one n_signals times.
	 * -EAGAIN: the rest had no room: call progress() and put() again with the same struct.
	 */
	int (*put)(struct m2n__ep *ep, struct m2n__put *put);
	/* 0: the bytes of all puts to this peer may be reused; -EAGAIN: not yet. */
	int (*flush)(struct m2n__ep *ep);
	/* 0: all puts have arrived at the peer; -EAGAIN: not yet. It may take the peer's progress()
	 * to know, so nobody waits for it but at the end of a link. Missing: as flush(). */
	int (*arrived)(struct m2n__ep *ep);

	/* Number of events seen, or a negative code for a failure of the whole iface. */
	int (*progress)(struct m2n__iface *iface);
	/* 0, or why this peer is lost as far as the backend knows (link error, retries spent).
	 * n_broken of the iface grows when it has begun to say so. */
	int (*check)(struct m2n__ep *ep);

	/*
	 * What this backend wrote to GPU memory and has told by signals is seen by kernels that
	 * start after. Any thread. Missing: it always is. -ENOTSUP: there is no way to see to it.
	 */
	int (*flush_device)(struct m2n__iface *iface);

	/* Wakes the peer if it sleeps; after signals were stored. Cheap when it does not. */
	void (*notify)(struct m2n__ep *ep);
	/* One waiter more (1) or less (-1) that may sleep soon: notify() looks for sleepers only
	 * while there are any. To be called well before arm(): notify() has no fence before it. */
	void (*doze)(struct m2n__iface *iface, int change);
	/* arm; look once more whether what is waited for came; wait (until notified or the time is
	 * over); disarm. The ticket of arm() closes the gap between look and wait. */
	uint32_t (*arm)(struct m2n__iface *iface);
	void (*wait)(struct m2n__iface *iface, uint32_t ticket, int64_t timeout_ns);
	void (*disarm)(struct m2n__iface *iface);
};

/* All tables of this build, in no order, NULL at the end. */
extern const struct m2n__backend_ops *const m2n__backends[];

/*
 * The table with every missing operation filled by a stand-in that returns -ENOTSUP or does
 * nothing; `storage` holds it. Callers never test for NULL.
 */
const struct m2n__backend_ops *m2n__backend_resolve(
	const struct m2n__backend_ops *ops, struct m2n__backend_ops *storage);

#endif
