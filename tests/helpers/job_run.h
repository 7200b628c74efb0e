/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rank's part of a logical job, by the public API: creates the channel, routes, dispatches,
 * plays the experts, combines, and checks everything it sees against helpers/job.h. The steps are
 * separate calls, so that fault tests can put deaths between them; job_main() is the plain
 * sequence of all rounds and copies the outputs to the shared memory.
 */
#ifndef TESTS_JOB_RUN_H
#define TESTS_JOB_RUN_H

#include "helpers/job.h"
#include "helpers/ranks.h"

#define JOB_MAX_DEPTH 64

/* Buffers of one round in flight at a source. */
struct job_flight {
	uint32_t round;
	struct m2n_plan *plan;
	int32_t *ids;
	float *weights;
	uint8_t *rows;
	uint8_t *scales;
	uint8_t *residual;
	uint8_t *out; /* guarded */
	uint8_t *missing;
	struct m2n_mem *rows_mem, *scales_mem; /* job->registered */
};

struct job_device;

struct job_rank {
	const struct job *job;
	struct m2n_ctx *ctx;
	struct m2n_channel *channel;
	int source; /* indexes, -1: not in the list */
	int expert;
	int tolerant; /* peers may be lost: check what came, count what did not */
	uint64_t dead; /* tolerant: bitmap of expert ranks whose rows may be absent */
	uint32_t n_tokens;
	uint64_t n_missing; /* replies that did not come, over all rounds */
	uint64_t n_dropped;
	struct job_flight flight[JOB_MAX_DEPTH];
	const struct m2n_batch *held[JOB_MAX_DEPTH];
	int64_t timeout_ns;
	enum m2n_memory memory; /* the rank's */
	struct job_device *device; /* CUDA memory: helpers/job_device.h */
};

/* Fills params and the lists that they point to. lists: [2][JOB_MAX_RANKS]. */
void job_channel_params(
	const struct job *job, int lists[2][JOB_MAX_RANKS], struct m2n_channel_params *params);
int job_make_map(const struct job *job, enum job_map kind, struct m2n_map **map);

/* Results as of the calls they make; what is wrong in the data fails the rank. */
int job_open(struct job_rank *jr, struct rank *rank, const struct job *job);
void job_close(struct job_rank *jr);
int job_route(struct job_rank *jr, uint32_t round);
int job_send(struct job_rank *jr, uint32_t round); /* route, dispatch_send */
int job_recv_batch(struct job_rank *jr, const struct m2n_batch **batch);
int job_answer(struct job_rank *jr, const struct m2n_batch *batch);
int job_serve(struct job_rank *jr); /* the two above */
int job_combine(struct job_rank *jr, uint32_t round);

/* The experts' outputs of a batch in host memory. */
void job_compute(
	const struct job *job, const struct m2n_batch *batch, uint8_t *rows, size_t stride);

/* All rounds of a rank, whatever its roles; every call must return 0. */
void job_rounds(struct job_rank *jr);
/* A rank function: arg is the struct job. Shared memory: outputs [n_rounds][n_tokens] rows. */
void job_main(struct rank *rank);
size_t job_shared_bytes(const struct job *job);
/*
 * Runs the job on the backend of opts; *digest (may be NULL): of all outputs. What channels in CUDA
 * memory do not do yet must be refused there, in words; *digest is 0 then.
 */
int job_run(const struct job *job, const struct ranks_opts *opts, uint64_t *digest);

#endif
