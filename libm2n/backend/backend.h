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
 *               visible there, adds one to a word of the *peer's signal table*. Puts to one peer
 *               may complete in any order (several QPs, several NICs, adaptive routing), so a
 *               receiver only ever counts signals; it never infers one put from another.
 *
 * The signal table is an array of 64-bit words in registered memory of the iface that receives;
 * core hands out ranges of it (m2n__signal_alloc()) and tells peers the index.
 *
 * How each backend fits (settled before the table was):
 *   self      mapped, the pointer is the address.
 *   shm       mapped, key = (pid, fd, offset, inode) of a sealed memfd. notify/arm/wait: a futex
 *             in a page that peers map.
 *   cuda_ipc  mapped on the device: reg = cuMemGetAddressRange, key = CUDA IPC handle or a VMM
 *             file descriptor, ptr is a device pointer that kernels store to. Signal words live in
 *             device memory. mem.kind tells host from device.
 *   verbs     messaging. connect: RC QPs, by librdmacm or by the address blob through the
 *             bootstrap. put: RDMA writes, the last with the signal's index as immediate; the
 *             receiver's progress() adds one to the table's word. Rails and QPs per peer are
 *             inside the ep: a put that is split is counted inside the backend, one signal leaves.
 *             mr and key hold one lkey/rkey per NIC. event fd: the completion channel.
 *   ucx       messaging. put: ucp_put_nbx pieces packed into a contiguous registered buffer where
 *             UCX has no gather list, ucp_worker_fence, then an 8-byte atomic add on the word
 *             (address = table + 8 * index; the table's key is in the address blob).
 *   nccl      messaging. connect: nothing per peer; put() queues, progress() turns what is queued
 *             into one ncclGroupStart/End per peer set, sizes over control frames (`control`
 *             in the iface params); put/signal windows from 2.30.7 on map one to one.
 *   fault     an interposer over any of these; hides the mapping, so that shm is driven as a
 *             messaging backend, and drops, delays, reorders, truncates, fails.
 *
 * Threads: open/close/connect/disconnect/reg/dereg/import/release run under the context's lock.
 * put/flush to one ep, and progress, may be called from several threads: a backend that is not
 * safe for that locks inside (mapped backends need nothing).
 *
 * Errors: 0 or a negative code, with the cause and the vendor's words in the error text.
 * -EAGAIN from put: nothing was queued, call progress() and try again.
 */
#ifndef M2N_BACKEND_H
#define M2N_BACKEND_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <m2n/types.h>

#include "mem/mem.h"

#define M2N__KEY_BYTES 128     /* of one exported key at most */
#define M2N__ADDRESS_BYTES 512 /* of one iface's address blob at most */
#define M2N__SIGNAL_NONE UINT32_MAX

enum m2n__caps {
	M2N__CAP_MAPPED = 1 << 0,
	M2N__CAP_HOST_MEMORY = 1 << 1,
	M2N__CAP_CUDA_MEMORY = 1 << 2,
	M2N__CAP_SLEEP = 1 << 3, /* arm/wait sleep; without it a waiter yields */
};

struct m2n__backend_ops;
struct m2n__options;

/* What open() is given; borrowed until close(). */
struct m2n__iface_params {
	const struct m2n__options *options;
	const char *host_id;               /* equal on ranks of one host */
	_Atomic uint64_t *signals;         /* the context's signal table [n_signals] */
	const struct m2n__mem *signal_mem; /* the memory it lies in */
	uint32_t n_signals;
};

struct m2n__iface {
	const struct m2n__backend_ops *ops;
	struct m2n__iface_params params;
	size_t max_iov;   /* pieces per put */
	size_t max_bytes; /* per put */
	int needs_mr;     /* pieces of a put must be registered */
};

struct m2n__ep {
	const struct m2n__backend_ops *ops;
	struct m2n__iface *iface;
};

struct m2n__mr {
	struct m2n__iface *iface;
	const struct m2n__mem *mem;
};

struct m2n__rmem {
	struct m2n__ep *ep;
	void *ptr; /* mapped: local address of the peer's memory; NULL: messaging */
	size_t bytes;
};

struct m2n__put {
	const struct m2n_iov *iov; /* joined in order */
	struct m2n__mr *const *mr; /* [n_iov], only when the iface needs them */
	size_t n_iov;
	struct m2n__rmem *rmem;
	size_t offset;   /* in rmem */
	uint32_t signal; /* index in the peer's signal table, or M2N__SIGNAL_NONE */
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
	/* The blob that a peer needs to connect. *bytes: room, then size. */
	int (*address)(struct m2n__iface *iface, void *blob, size_t *bytes);
	/* May a peer with this blob be reached? 1 or 0; must agree on both sides. */
	int (*reaches)(struct m2n__iface *iface, const void *blob, size_t bytes);

	int (*connect)(
		struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep);
	void (*disconnect)(struct m2n__ep *ep);

	int (*reg)(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr);
	void (*dereg)(struct m2n__mr *mr);
	/* Key for bytes [offset, offset + bytes) of mr's memory. *key_bytes: room, then size. */
	int (*export_key)(
		struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes);
	int (*import_key)(
		struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem);
	void (*release_key)(struct m2n__rmem *rmem);

	/* Messaging only. The gather list is borrowed for the call, its bytes until flush(). */
	int (*put)(struct m2n__ep *ep, const struct m2n__put *put);
	/* 0: no put to this peer is under way, their bytes may be reused; -EAGAIN: not yet. */
	int (*flush)(struct m2n__ep *ep);

	/* Number of events seen, or a negative code for a failure of the whole iface. */
	int (*progress)(struct m2n__iface *iface);
	/* 0, or why this peer is lost as far as the backend knows (link error, retries spent). */
	int (*check)(struct m2n__ep *ep);

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
