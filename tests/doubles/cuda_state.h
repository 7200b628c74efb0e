/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the stand-in of libcuda.so.1: what its files share. One lock guards everything;
 * it is not held while work of a stream runs. The functions that the driver exports are declared
 * from the library's own list, m2n_double_<field> under the assembler name of the driver's
 * symbol, so that a signature that differs does not compile.
 */
#ifndef M2N_DOUBLES_CUDA_STATE_H
#define M2N_DOUBLES_CUDA_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/cuda_driver.h"
#include "doubles/cuda_double.h"
#include "doubles/device_kernels.h"

#define EXPORT __attribute__((visibility("default")))
#define MAX_DEVICES 8
/* In the block that every thread has from the start: memory that the loader adds to a thread and
 * frees with it looks like a race to the thread sanitizer. */
#define THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))

#define DECLARE(field, symbol, params) \
	EXPORT m2n__cu_result m2n_double_##field params __asm__(symbol);
M2N__CUDA_DRIVER(DECLARE)
#undef DECLARE

enum fn {
#define FN(field, symbol, params) FN_##field,
	M2N__CUDA_DRIVER(FN)
#undef FN
	N_FUNCTIONS
};

struct settings {
	int n_devices;
	int driver_version;
	uint64_t seed;
	uint64_t delay_us; /* longest delay before an operation */
	uint64_t device_bytes;
};

struct stream;
struct session;

/* The primary context of a device. */
struct context {
	int ordinal;
	unsigned refs;
	struct stream *null_stream; /* created when first used */
	size_t used;
	uint32_t peers; /* bit per device whose memory is enabled */
};

enum work_kind {
	WORK_NOTHING, /* an event */
	WORK_KERNEL,
	WORK_FILL,
	WORK_COPY,
	WORK_AWAIT_VALUE,
	WORK_WRITE_VALUE,
	WORK_GRAPH,
};

enum direction {
	TO_DEVICE,
	TO_HOST,
	ON_DEVICE,
};

/* Something that a stream does; `args` belongs to it. */
struct work {
	enum work_kind kind;
	enum direction direction;
	const struct m2n_double_kernel *kernel;
	void *args;
	unsigned n_blocks, n_threads;
	size_t shared_bytes;
	uint64_t to, from;
	size_t bytes;
	uint64_t value;
	unsigned flags;
	struct exec *exec; /* a reference */
};

/* Work in a stream's queue. Others wait for it: it is counted. */
struct op {
	unsigned refs;
	int done;
	int64_t done_ns;
	struct work work;
	struct op *next;
	struct op **deps;
	unsigned n_deps;
};

/* Nodes of a capture that come next before what is recorded. */
struct deps {
	unsigned *nodes;
	unsigned n;
};

struct stream {
	struct context *context;
	int is_blocking; /* ordered with the NULL stream */
	int is_null;
	int is_ending;
	pthread_cond_t wake;
	struct op *head, *last; /* the queue */
	struct op *tail;        /* the last that was ever queued; a reference */
	uint64_t random;
	struct session *session; /* that captures it */
	unsigned lane;           /* in the session */
	struct deps deps;
	struct stream *next;
};

struct event {
	int has_time;
	struct op *op;       /* of its last record; NULL: none */
	uint64_t session;    /* number of the capture that recorded it last; 0: none */
	struct deps deps;
	struct event *next;
};

struct node {
	struct work work;
	unsigned lane; /* nodes of one lane are in order */
	struct deps deps;
};

struct graph {
	struct node *nodes;
	unsigned n, n_lanes;
	struct graph *next;
};

/* Between begin and end of a capture. */
struct session {
	uint64_t number;
	int mode;
	int is_invalid;
	pthread_t thread;
	struct stream *origin;
	struct graph graph;
	struct session *next;
};

struct exec {
	unsigned refs;
	struct graph graph;
	struct op *last; /* launches of one graph follow each other */
	struct exec *next;
};

/* ---- cuda_core.c ---- */
extern pthread_mutex_t double_lock;
extern struct settings double_settings;
extern struct context double_contexts[MAX_DEVICES];
extern struct m2n_double_counters double_counters; /* under the lock */
extern atomic_int double_was_forked;

/* Counts a call; what it must return before it does anything (negative: success), or 0. */
m2n__cu_result double_enter(enum fn fn);
#define ENTER(field) \
	do { \
		m2n__cu_result early = double_enter(FN_##field); \
		if (early) \
			return early < 0 ? 0 : early; \
	} while (0)
/* The thread's context; NULL: none, or it is no longer alive. */
struct context *double_context(void);
uint64_t double_random(uint64_t *state);
int64_t double_now_ns(void);
/* Takes the lock for a scope's duration. */
static inline int double_scope_begin(void)
{
	pthread_mutex_lock(&double_lock);
	return 0;
}
static inline void double_scope_end(const int *scope)
{
	(void)scope;
	pthread_mutex_unlock(&double_lock);
}
#define LOCKED() \
	__attribute__((cleanup(double_scope_end), unused)) const int scope = double_scope_begin()

/* ---- cuda_memory.c; under the lock ---- */
/* Is [at, at + bytes) inside one block that the device may use? */
int double_is_range(uint64_t at, size_t bytes);
void double_free_blocks(struct context *context);

/* ---- cuda_stream.c; under the lock ---- */
/* The stream of a handle, NULL: no such one. The NULL stream is that of the current context. */
struct stream *double_stream(m2n__cu_stream handle);
/* Queues work (taken) or captures it. */
m2n__cu_result double_submit(struct stream *stream, const struct work *work);
struct op *double_op_get(struct op *op);
void double_op_put(struct op *op);
/* Waits for work that was queued; lets go of the lock meanwhile. */
void double_await(struct op *op);
void double_await_context(struct context *context);
/* Ends the streams of a context once their queues are empty. */
void double_end_streams(struct context *context);
/* A stream's chance of a delay. Without the lock. */
void double_delay(uint64_t *random);
/* Without the lock. */
void double_run(const struct work *work, uint64_t *random);
/* Work was done: whoever waits looks again. */
void double_signal(void);
/* Waits for the next signal. */
void double_wait_signal(void);
extern struct stream *double_streams;
extern unsigned double_n_threads;

/* ---- cuda_graph.c; under the lock ---- */
m2n__cu_result double_capture(struct stream *stream, const struct work *work);
m2n__cu_result double_capture_event(struct stream *stream, struct event *event);
m2n__cu_result double_capture_wait(struct stream *stream, struct event *event);
/* A call that may not be made while somebody captures: spoils the capture. 0: nobody does. */
m2n__cu_result double_unsafe(void);
/* The same for a call that waits for `stream`. */
m2n__cu_result double_unsafe_for(struct stream *stream);
/* The NULL stream would wait for a stream that is captured. */
m2n__cu_result double_unsafe_null(struct context *context);
void double_leave_session(struct stream *stream);
/* Without the lock. */
void double_run_graph(struct exec *exec, uint64_t *random);
void double_exec_put(struct exec *exec);
void double_count(const struct work *work);

#endif
