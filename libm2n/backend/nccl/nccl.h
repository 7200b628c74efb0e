/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the NCCL backend share. NCCL has no put: a send completes only with the
 * receive that matches it. So each connection has two *lanes*, one for each direction, and each
 * lane a communicator of two ranks (0 sends, 1 receives) and a stream of its own: what one side
 * sends never waits for what it receives, and a lost peer is two communicators that are aborted
 * while all others go on.
 *
 * Puts are gathered into a *batch*; progress() makes one NCCL group of it. When NCCL has queued
 * the group on the stream, a notice tells the receiver, for each put, which memory, where in it,
 * how many bytes in each piece and which signal; the receiver checks it, queues the matching
 * receives, and when they are done raises the signals and says so (an acknowledgement: the sender
 * may then use the batch again).
 *
 * Receives are queued only after their sends. Kernels of NCCL wait on the device, and kernels of
 * different streams can be kept in order there; as each receive is younger than its send, no
 * ring of such waits closes. NCCL joins two ranks when they first send and receive, for which it
 * wants both at once: so each lane is *warmed* by one small message before the peer is ready,
 * from the lower to the higher side first.
 *
 * No call of NCCL blocks: communicators are made non-blocking, and one whose last call is still
 * in progress is asked again by the next progress(). But ncclCommAbort() does: when it has made
 * its kernels leave, it frees device memory, for which CUDA waits for all that is on the device,
 * also for kernels that wait for another lost peer. So each abort has a thread for its duration.
 */
#ifndef M2N_BACKEND_NCCL_NCCL_H
#define M2N_BACKEND_NCCL_NCCL_H

#include <pthread.h>
#include <stdatomic.h>

#include "backend/backend.h"
#include "backend/nccl/lib.h"
#include "mem/cuda.h"

#define M2N__NCCL_BATCHES 8  /* of one lane that are not acknowledged */
#define M2N__NCCL_PIECES 128 /* sends of one batch */
#define M2N__NCCL_PUTS 64    /* of one batch */
#define M2N__NCCL_IOV 32     /* pieces of a put that raises its signal once */
#define M2N__NCCL_WARM_BYTES 16

struct m2n__nccl_piece {
	uint8_t *at;
	uint8_t *to; /* only to ourselves */
	size_t bytes;
};

struct m2n__nccl_batch {
	m2n__cu_event event;
	unsigned n_pieces, n_puts;
	struct m2n__nccl_piece pieces[M2N__NCCL_PIECES];
	uint32_t signals[M2N__NCCL_PUTS]; /* what a receiver raises */
	size_t notice_bytes;              /* what a sender says */
	uint8_t notice[M2N__NOTICE_BYTES];
};

enum m2n__nccl_state {
	M2N__NCCL_CLOSED = 0,
	M2N__NCCL_OPENING,   /* the communicator is being made */
	M2N__NCCL_OPEN,      /* a group may begin */
	M2N__NCCL_LAUNCHING, /* NCCL is queueing a group on the stream */
};

/* Batches are numbered from 0, which warms; each count is of batches that came that far. */
struct m2n__nccl_lane {
	struct m2n__nccl_ep *ep;
	int is_sender;
	enum m2n__nccl_state state;
	void *comm; /* NULL before meet(), and to ourselves */
	m2n__cu_stream stream;
	uint64_t n_queued;   /* whole */
	uint64_t n_launched; /* on the stream */
	uint64_t n_done;
	uint64_t n_acked; /* sender: as the receiver said */
	int is_gathering; /* sender: batch n_queued takes puts */
	struct m2n__nccl_batch *batches; /* [M2N__NCCL_BATCHES] */
};

struct m2n__nccl_iface {
	struct m2n__iface iface;
	struct m2n__cuda *cuda;
	uint64_t id; /* random: tells ourselves from others, and who warms first */
	pthread_mutex_t lock;
	struct m2n__nccl_ep *eps;
	struct m2n__nccl_mr *mrs;
	uint64_t n_regions;
	pthread_mutex_t enders_lock; /* nothing is locked under it */
	struct m2n__nccl_ender *enders; /* aborts under way */
	m2n__cu_ptr warm;     /* device memory: what warming sends, and what it receives */
	atomic_uint n_active; /* connections that need progress */
};

struct m2n__nccl_ep {
	struct m2n__ep ep;
	struct m2n__nccl_ep *next;
	struct m2n__nccl_lane out, in;
	struct m2n__nccl_id id; /* of the communicator that we send on */
	int has_met, is_ready;
	int is_self; /* both ends are this iface: copies */
	int is_same_gpu;
	int warms_out_first;
	int is_active; /* counted in the iface's n_active */
	int status;    /* why it broke, 0: it did not */
	char reason[400];
};

struct m2n__nccl_mr {
	struct m2n__mr mr;
	struct m2n__nccl_mr *next;
	uint64_t region;    /* what peers name it by */
	size_t from, until; /* what was exported of it; nothing else is written to */
};

struct m2n__nccl_rmem {
	struct m2n__rmem rmem;
	uint64_t region, base;
};

static inline struct m2n__nccl_iface *m2n__nccl_iface(struct m2n__iface *iface)
{
	return (struct m2n__nccl_iface *)iface;
}

static inline struct m2n__nccl_ep *m2n__nccl_ep(struct m2n__ep *ep)
{
	return (struct m2n__nccl_ep *)ep;
}

static inline struct m2n__nccl_batch *m2n__nccl_batch(
	const struct m2n__nccl_lane *lane, uint64_t number)
{
	return &lane->batches[number % M2N__NCCL_BATCHES];
}

/* lane.c. Inside the device's context; all but open and close under the iface's lock. */
/* Begins to make the communicator. Without `id`: to ourselves. 0 or an error. */
int m2n__nccl_lane_open(struct m2n__nccl_lane *lane, const struct m2n__nccl_id *id);
/* Aborts what is under way: two steps, so that both lanes of a connection leave at once. */
void m2n__nccl_lane_abort(struct m2n__nccl_lane *lane);
/* Waits until nothing writes any more, and frees. */
void m2n__nccl_lane_close(struct m2n__nccl_lane *lane);
/* Queues the batch that warms the lane, once. */
void m2n__nccl_lane_warm(struct m2n__nccl_lane *lane);
/* A sender's batch that takes a put of n pieces; NULL: no room until others are acknowledged. */
struct m2n__nccl_batch *m2n__nccl_gather(struct m2n__nccl_lane *lane, size_t n);
/* Does a put wait in the batch that is gathered? */
static inline int m2n__nccl_is_gathered(const struct m2n__nccl_lane *lane)
{
	return lane->is_gathering && m2n__nccl_batch(lane, lane->n_queued)->n_puts > 0;
}
/* Moves what can be moved; number of events, or why the lane broke. */
int m2n__nccl_lane_progress(struct m2n__nccl_lane *lane);

/* abort.c. Aborts a communicator in a thread of its own. */
void m2n__nccl_abort(struct m2n__nccl_iface *u, void *comm);
/* Waits for aborts: those that are over, or with `all` all. */
void m2n__nccl_reap(struct m2n__nccl_iface *u, int all);

/* ep.c */
int m2n__nccl_connect(
	struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep);
int m2n__nccl_greeting(struct m2n__ep *ep, void *greeting, size_t *bytes);
int m2n__nccl_meet(struct m2n__ep *ep, const void *greeting, size_t bytes);
int m2n__nccl_ready(struct m2n__ep *ep);
void m2n__nccl_disconnect(struct m2n__ep *ep);
int m2n__nccl_check(struct m2n__ep *ep);
/* The connection failed, for the reason in the error text. Under the lock. */
void m2n__nccl_break(struct m2n__nccl_ep *e, int status);
/* Does the connection need progress? Under the lock. */
void m2n__nccl_look(struct m2n__nccl_ep *e);
/* Goes on with both lanes, and with becoming ready. Events. Under the lock, in the context. */
int m2n__nccl_ep_progress(struct m2n__nccl_ep *e);

/* memory.c */
int m2n__nccl_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr);
void m2n__nccl_dereg(struct m2n__mr *mr);
int m2n__nccl_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes);
int m2n__nccl_import(
	struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem);
void m2n__nccl_release(struct m2n__rmem *rmem);
/* Where bytes of a peer's go: an address in memory that was exported, or NULL. Under the lock. */
uint8_t *m2n__nccl_place(
	struct m2n__nccl_iface *u, uint64_t region, uint64_t offset, uint64_t bytes);
/* Everything that a peer gives starts with this. */
struct m2n__nccl_seal {
	uint32_t digest; /* FNV-1a of all that follows */
	uint32_t magic;
};
void m2n__nccl_sign(void *blob, size_t bytes);
/* 0, or M2N_ERR_PROTOCOL: damaged, or not of `bytes`. */
int m2n__nccl_verify(const void *blob, size_t bytes, size_t expected, const char *what);

/* put.c */
int m2n__nccl_put(struct m2n__ep *ep, struct m2n__put *put);
int m2n__nccl_flush(struct m2n__ep *ep);
int m2n__nccl_arrived(struct m2n__ep *ep);

/* notice.c. Under the lock. */
/* The head of a batch's notice, before any put. */
void m2n__nccl_notice_begin(struct m2n__nccl_batch *batch);
/* Is there room for a put of so many pieces? */
int m2n__nccl_notice_fits(const struct m2n__nccl_batch *batch, size_t n_pieces);
/* Adds a put whose pieces are the batch's from `first` on. */
void m2n__nccl_notice_add(struct m2n__nccl_batch *batch, uint64_t region, uint64_t offset,
	uint32_t signal, unsigned first);
/* Tells the receiver that batch `number` is on the stream. 0 or -ENOMEM. */
int m2n__nccl_say_batch(struct m2n__nccl_lane *lane, uint64_t number);
/* Tells the sender how many batches are done. 0 or -ENOMEM. */
int m2n__nccl_say_done(struct m2n__nccl_lane *lane);
int m2n__nccl_hear(struct m2n__ep *ep, const void *bytes, size_t n);

#endif
