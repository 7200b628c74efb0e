/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the stand-in of libnccl.so.2: communicators between processes (or threads) of one
 * host over Unix sockets, one for each direction of each pair of ranks. It runs on the streams of
 * whatever libcuda.so.1 is loaded: a group is three operations of a stream, "store n to `started`",
 * "wait until `finished` is n" and "store n to `left`"; between the first two a thread of the
 * communicator moves the bytes.
 *
 * As in NCCL: the operations of a group progress together; operations to one peer are matched in
 * order; groups of a communicator run in stream order; a pair is joined by its first send and
 * receive, before either is on its stream, and both must be called for it; a send that the
 * receiver has not asked for may or may not complete (here: every second small one does); a
 * communicator whose call is in progress takes no other call; what waits for a lost or aborted
 * peer stays on the device until the communicator is aborted.
 *
 * Stricter: unequal sizes, memory that is not the device's, two streams in one group are errors.
 */
#ifndef M2N_DOUBLES_NCCL_STATE_H
#define M2N_DOUBLES_NCCL_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/nccl/lib.h"
#include "doubles/nccl_double.h"
#include "mem/cuda_driver.h"

#define EXPORT __attribute__((visibility("default")))
#define MAX_RANKS 16
#define MAX_OPS 2048 /* of one group, as in NCCL */
#define TEXT_BYTES 96
/* Thread-sanitizer takes the loader's own freeing of other models' variables for a race. */
#define THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))

#define DECLARE(result, name, params) EXPORT result name params;
M2N__NCCL_FUNCTIONS(DECLARE)
#undef DECLARE
EXPORT int ncclCommInitRank(void **comm, int n_ranks, struct m2n__nccl_id id, int rank);
EXPORT int ncclCommDestroy(void *comm);
EXPORT int ncclCommFinalize(void *comm);
EXPORT int ncclCommCount(const void *comm, int *count);
EXPORT int ncclCommUserRank(const void *comm, int *rank);

enum {
	NCCL_CUDA_ERROR = 1,
	NCCL_INTERNAL_ERROR = 3,
	NCCL_INVALID_ARGUMENT = 4,
	NCCL_INVALID_USAGE = 5,
};

/* One direction between this rank and another. */
struct wire {
	int fd;
	int is_joined;
	uint64_t n_begun; /* transfers */
	uint64_t n_acked; /* sender: those that the receiver has */
};

struct op {
	int is_send, peer, step;
	uint8_t *at;
	size_t bytes, moved;
	uint64_t number; /* on its wire */
	void *stream;
};

struct group {
	struct group *next;
	unsigned n_ops;
	struct op *ops;
};

struct comm {
	int n_ranks, rank, is_blocking;
	m2n__cu_context context;
	struct m2n__cu_uuid uuid;
	struct m2n__nccl_id id;
	struct wire wires[MAX_RANKS][2]; /* [peer][0]: to it, [peer][1]: from it */
	atomic_int is_aborted;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	int async; /* the state, under the lock */
	char text[TEXT_BYTES];
	int has_job;
	pthread_t job; /* the call that is in progress */
	struct group *job_group;
	int has_mover;
	pthread_t mover;
	struct group *groups, **groups_end; /* on the stream, in order; under the lock */
	_Atomic uint64_t *words;            /* pinned: started, finished, left */
	uint64_t n_groups;
};
enum { STARTED, FINISHED, LEFT, N_WORDS };

/* nccl_comm.c */
/* The driver's functions that are used; NULL: no driver. */
const struct m2n__cuda_driver *nccl_driver(void);
/* A result with words: they are the communicator's, or the thread's when it is NULL. */
int nccl_fail(struct comm *comm, int result, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* The communicator's state is now this, unless it is broken already. */
void nccl_settle(struct comm *comm, int result);
/* Starts a call that goes on in a thread; a blocking one is waited for. NCCL's result. */
int nccl_start_job(struct comm *comm, void *(*run)(void *comm));
extern struct m2n_double_nccl_counters nccl_counters;
extern pthread_mutex_t nccl_lock; /* of counters and of what is to fail */

/* nccl_wire.c */
/* Connects all ranks. NCCL's result, with words. */
int nccl_wires_open(struct comm *comm);
void nccl_wires_close(struct comm *comm);
/* Reads or writes all; 0, or NCCL's result: the peer is gone, or the communicator was aborted. */
int nccl_read(struct comm *comm, int fd, void *bytes, size_t n);
int nccl_write(struct comm *comm, int fd, const void *bytes, size_t n);

/* nccl_group.c */
void *nccl_move(void *comm); /* the thread that moves bytes */
void nccl_group_free(struct group *group);

#endif
