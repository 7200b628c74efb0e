/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe in CUDA memory: the calls of a round queued on one stream, or launched as one graph. A
 * sample is from the first call until the stream is done; beside it the time on the device, by
 * events, and the time that the calls themselves take.
 */
#ifndef PERF_MOE_GPU_H
#define PERF_MOE_GPU_H

#include "gpu.h"
#include "moe_check.h"

enum moe_gpu_case {
	MOE_GPU_ROUND_TRIP = 0, /* on the host's clock */
	MOE_GPU_DEVICE,         /* the same between two events */
	MOE_GPU_HOST,           /* in the calls; with --graph in the launch */
	MOE_GPU_PLAN,           /* m2n_plan_route() between two events */
	MOE_GPU_N_CASES,
};

struct moe_nccl;

struct moe_gpu {
	struct moe *moe;
	struct perf_gpu gpu;
	int32_t *ids;                          /* device [max_tokens, top_k] */
	float *weights;                        /* device [max_tokens, top_k] */
	char *rows, *out;                      /* device, source */
	char *outputs;                         /* device, expert */
	const void *batch_rows, *batch_scales; /* device, of the last batch */
	void *exec;                /* a round as a graph; NULL: none yet, or not wanted */
	uint32_t variant;          /* in ids and weights */
	char *copy_from, *copy_to; /* memcpy yardstick: device [copy_bytes] */
	uint64_t copy_bytes;
	struct moe_nccl *nccl;
};

void moe_gpu_body(struct perf_rank *rank);

/* Puts a variant's ids and weights on the device and routes it; waits. */
void moe_gpu_route(struct moe_gpu *g, uint32_t variant, int64_t iter);
/* Queues this rank's calls of a round, or launches the graph. `look`: wait for the batch. */
void moe_gpu_round(struct moe_gpu *g, bool look);
/* Waits for the stream, and asks what went wrong. */
void moe_gpu_finish(struct moe_gpu *g);
/* One round of every variant in which all data are checked, by way of copies on the host. */
void moe_gpu_check(struct moe_gpu *g, unsigned generation);

/*
 * Bytes that a rank reads and writes in a round of a variant at the least: rows to the experts,
 * outputs to the sinks, their sums. `unpack`: also what makes batches expert-major.
 */
uint64_t moe_gpu_moved(const struct perf_args *args, const struct perf_routing *routing,
	uint32_t variant, int source, int expert, bool unpack);

/*
 * The same exchange by grouped ncclSend and ncclRecv of rows that lie ready. usable: may NCCL run
 * here? Before the ranks start; sets what it needs, and job->nccl_how: its version and that, or why
 * not.
 */
bool moe_nccl_usable(struct perf_job *job);
size_t moe_nccl_extra_bytes(void);
void moe_nccl_open(struct moe_gpu *g);
void moe_nccl_step(struct moe_gpu *g, uint32_t variant);
void moe_nccl_close(struct moe_gpu *g);

#endif
