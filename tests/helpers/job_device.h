/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of a logical job (helpers/job_run.h) whose rows lie in CUDA memory. Every call is made
 * on a stream that chance picks, inputs are written by the stream before the call and destroyed by
 * it after the call, so that work which is not in the order of the streams shows. Experts compute
 * on the host, from copies of the batch; by chance the host asks how many rows there are, or reads
 * it behind the batch's device addresses.
 */
#ifndef TESTS_JOB_DEVICE_H
#define TESTS_JOB_DEVICE_H

#include "helpers/job_run.h"

#define JOB_STREAMS 3 /* of each side: source and expert calls may come from two threads */

enum job_side { JOB_SOURCE_SIDE, JOB_EXPERT_SIDE, JOB_N_SIDES };

/* What stands for the arrays of a flight. */
struct job_stage {
	int32_t *ids;
	float *weights;
	uint8_t *rows, *scales, *residual, *out, *missing;
	struct m2n_mem *rows_mem, *scales_mem;
	void *routed, *sent; /* streams that have their last use before them; NULL: none */
};

/* A batch as the host sees it. */
struct job_view {
	const struct m2n_batch *batch; /* of the library; NULL: not in use */
	struct m2n_batch host;
	struct m2n_segment *segments;
	uint32_t *counts;
	uint8_t *rows, *scales;
	uint8_t *answer; /* on the device */
	uint8_t *answer_from; /* what it is copied from: read when the stream comes to it */
	void *stream; /* that used `answer` last */
};

struct job_device {
	void *streams[JOB_N_SIDES][JOB_STREAMS];
	uint64_t n_picks[JOB_N_SIDES];
	size_t max_rows; /* of a batch */
	struct job_stage stages[JOB_MAX_DEPTH];
	struct job_view views[JOB_MAX_DEPTH];
	uint64_t foreign_bytes; /* when the channel was there */
};

void job_device_open(struct job_rank *jr);
void job_device_close(struct job_rank *jr);
/* As the functions of job_run.h without "device". */
/* Before the flight is filled anew: the host memory of what failed may still be read. */
void job_device_reuse(struct job_rank *jr, struct job_flight *flight);
int job_device_route(struct job_rank *jr, struct job_flight *flight);
int job_device_send(
	struct job_rank *jr, struct job_flight *flight, struct m2n_dispatch_send_params *params);
int job_device_recv_batch(struct job_rank *jr, const struct m2n_batch **batch);
int job_device_answer(struct job_rank *jr, const struct m2n_batch *batch);
int job_device_combine(
	struct job_rank *jr, struct job_flight *flight, struct m2n_combine_recv_params *params);

/* Waits for all that this rank's streams have before them. In host memory: nothing. */
void job_device_settle(struct job_rank *jr);
/*
 * For callers that receive by themselves, on the default stream: the batch with its rows in host
 * memory, until job_answer() or job_device_unlook(). In host memory the batch itself.
 */
const struct m2n_batch *job_device_look(struct job_rank *jr, const struct m2n_batch *batch);
void job_device_unlook(struct job_rank *jr, const struct m2n_batch *batch);

#endif
