/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of a channel in CUDA memory. Its exchanges, links, maps and failures are those of
 * host channels; slots and regions lie in device memory, and the four calls of a round launch the
 * kernels of kernel/gpu.h instead of moving bytes themselves.
 *
 *   gpu_channel.c   memory, maps, creation and destruction
 *   gpu_link.c      device tables of links, kept true as links come and go
 *   gpu_plan.c      plans on the device
 *   gpu_round.c     the four calls: checks, order of streams, launches
 *   gpu_wait.c      what the host asks: plan, batch, what went wrong
 *   gpu_progress.c  the thread that watches peers and moves what messaging peers send and get
 *
 * A channel has two sides, source (with its sink) and expert; each is one thread's. A side's work
 * is ordered by the streams it is queued on; where the caller changes streams, an event orders
 * the new one after the old one.
 */
#ifndef M2N_CORE_GPU_H
#define M2N_CORE_GPU_H

#include <m2n/gpu.h>

#include "core/channel.h"
#include "kernel/gpu.h"
#include "mem/cuda.h"

/* Device addresses are numbers in what kernels read. */
static inline uint64_t m2n__gpu_address(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

/* The links of one exchange: tables on the device, and what they hold now. Under the lock. */
struct m2n__gpu_links {
	struct m2n_exchange *x;
	struct m2n__gpu *gpu;
	struct m2n__gpu_tx *tx_table; /* device [n_tx] */
	struct m2n__gpu_rx *rx_table; /* device [n_rx] */
	struct m2n__gpu_tx *tx;       /* [n_tx] what is in the table */
	struct m2n__gpu_rx *rx;       /* [n_rx] */
	_Atomic uint32_t *alive;      /* pinned [n_rx] */
	struct m2n__gpu_post *posts;  /* pinned [n_tx, n_slots] */
	uint64_t *posted;             /* [n_tx, n_slots] those that were sent */
	_Atomic uint64_t *arrived;    /* pinned [n_rx, 2 * n_slots] */
	uint64_t *seen;               /* device [n_rx, 2 * n_slots] */
	uint64_t *zeros;              /* [2 * n_slots] */
	struct m2n__gpu_count *tx_counts, *rx_counts; /* device [n_tx], [n_rx] */
	atomic_int is_messaging;      /* one of them is, or was */
};

/* One side of the channel: its order on streams. */
struct m2n__gpu_side {
	m2n__cu_stream stream; /* of the last call */
	m2n__cu_event event;   /* behind its work; recorded unless that was captured */
	atomic_int has_work;   /* the event was recorded */
	atomic_int in_call;    /* work may be on the stream with no event behind it yet */
};

enum { M2N__GPU_REPORT_SEND = 0, M2N__GPU_REPORT_RECV, M2N__GPU_REPORT_REPLY,
	M2N__GPU_REPORT_COMBINE, M2N__GPU_N_REPORTS };

struct m2n__gpu_map_use {
	struct m2n__gpu_map_use *next;
	struct m2n_map *map; /* a reference */
	struct m2n__gpu_map dev;
	struct m2n__mem *mem;
};

struct m2n__gpu {
	struct m2n_channel *ch;
	struct m2n__cuda *cuda;
	struct m2n__gpu *next; /* of the progress thread's */
	struct m2n__gpu_shape shape;
	struct m2n__gpu_links dispatch, reply;
	struct m2n__gpu_side source, expert;
	_Atomic(struct m2n__gpu_map_use *) maps; /* all that were ever in force */
	struct m2n__mem *device;      /* tables, rounds, batches' arrays */
	struct m2n__mem *rows;        /* [depth] batches' rows and scales, expert-major */
	void *pinned;
	/* in those */
	struct m2n__gpu_rounds *rounds;
	uint32_t *places;
	uint64_t *part, *answered;
	_Atomic uint32_t *held; /* pinned [2 * depth] region slots that lost ranks may write to */
	struct m2n__gpu_report *reports; /* pinned [N_REPORTS] */
	struct m2n__gpu_batch *batches;  /* host [depth]: addresses */
	uint64_t *batch_ticket;          /* [depth] of the last call */
	uint32_t max_batch_rows;
	_Atomic uint64_t ticket;
	uint64_t report_seen[M2N__GPU_N_REPORTS]; /* by m2n_channel_check() */
	uint64_t report_acted[M2N__GPU_N_REPORTS]; /* by the progress thread */
};

/* A plan's part on the device. */
struct m2n__gpu_plan_part {
	struct m2n__gpu *gpu; /* its channel's: must be there when it routes */
	struct m2n__cuda *cuda;
	struct m2n__gpu_plan dev;
	struct m2n__mem *mem;
	struct m2n__gpu_summary *summary; /* pinned */
	uint64_t ticket;                  /* of the last routing */
	uint32_t n_tokens;
	int is_read; /* the host's plan holds what the summary says */
};

/* core/gpu_channel.c */
/* The context's device, with kernels loaded. 0 or M2N_ERR_BACKEND: why there is none. */
int m2n__gpu_device(struct m2n_ctx *ctx, struct m2n__cuda **cuda);
/* May this channel lie in CUDA memory? 0, -ENOTSUP or -EINVAL. Before its exchanges open. */
int m2n__gpu_check(struct m2n_channel *ch);
/* After its exchanges were opened, before they connect. */
int m2n__gpu_open(struct m2n_channel *ch);
/* The rounds that the device counts from: the host's. Between calls. */
int m2n__gpu_start(struct m2n__gpu *gpu);
/* Work of this rank is over or given up; peers may still write. Before the exchanges close. */
void m2n__gpu_stop(struct m2n_channel *ch);
void m2n__gpu_close(struct m2n_channel *ch);
size_t m2n__gpu_batch_bytes(const struct m2n_channel *ch);
/* The map on the device. 0 or -ENOMEM. Under lock. */
int m2n__gpu_map_add(struct m2n__gpu *gpu, struct m2n_map *map);
const struct m2n__gpu_map *m2n__gpu_map(const struct m2n__gpu *gpu, const struct m2n_map *map);

/* core/gpu_link.c. Under lock. */
/* What passed over a link so far: number `i` of tx or rx. */
int m2n__gpu_count(struct m2n__gpu_links *links, int is_tx, size_t i,
	struct m2n_counters *counters);
int m2n__gpu_links_changed(struct m2n__gpu_links *links);
/* Is work queued that may write to peers? Then no connection is given up. */
int m2n__gpu_is_busy(const struct m2n__gpu *gpu);

/* core/gpu_plan.c */
int m2n__gpu_plan_create(struct m2n__gpu *gpu, struct m2n_plan *plan);
void m2n__gpu_plan_destroy(struct m2n__gpu_plan_part *part);
int m2n__gpu_plan_route(
	struct m2n__gpu *gpu, struct m2n_plan *plan, const struct m2n_route_params *p);

/* core/gpu_round.c */
int m2n__gpu_dispatch_send(struct m2n__gpu *gpu, const struct m2n_dispatch_send_params *p);
int m2n__gpu_dispatch_recv(struct m2n__gpu *gpu, const struct m2n_dispatch_recv_params *p,
	const struct m2n_batch **batch);
int m2n__gpu_combine_send(struct m2n__gpu *gpu, const struct m2n_combine_send_params *p,
	struct m2n__batch *b, uint32_t index);
int m2n__gpu_combine_recv(struct m2n__gpu *gpu, const struct m2n_combine_recv_params *p);
int m2n__gpu_combine_backward(struct m2n__gpu *gpu,
	const struct m2n_dispatch_send_params *dispatch, const void *replies, float *grad);
/* An address must be this device's memory: what, where and the remedy. 0 or -EINVAL. */
int m2n__gpu_check_pointer(const struct m2n__gpu *gpu, const char *what, const void *at);
/* A report that is newer than *seen, whole; 0: there is none. */
int m2n__gpu_read_report(
	struct m2n__gpu *gpu, unsigned which, uint64_t *seen, struct m2n__gpu_report *report);
/* Begins and ends a call of a side on a stream. begin: inside the device's context after it. */
int m2n__gpu_begin(struct m2n__gpu *gpu, struct m2n__gpu_side *side, void *stream);
void m2n__gpu_end(struct m2n__gpu *gpu, struct m2n__gpu_side *side, void *stream);
/* Launches with the geometry of kernel/gpu.h for n tokens or rows. */
int m2n__gpu_launch(struct m2n__gpu *gpu, enum m2n__gpu_kernel kernel, uint32_t n, void *stream,
	const void *args);

/* core/gpu_progress.c */
int m2n__gpu_progress_add(struct m2n__gpu *gpu);
void m2n__gpu_progress_remove(struct m2n__gpu *gpu);
/* Ends the thread: the context is being closed. */
void m2n__gpu_progress_stop(struct m2n_ctx *ctx);

#endif
