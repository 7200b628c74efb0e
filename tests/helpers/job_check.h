/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a rank of a logical job must see: batches at the expert ranks, outputs at the sinks.
 */
#ifndef TESTS_JOB_CHECK_H
#define TESTS_JOB_CHECK_H

#include "helpers/job_run.h"

/* Every segment, row, count and order of a batch from all sources. */
void job_check_batch(struct job_rank *jr, const struct m2n_batch *batch);
/* Every out row, the pad between them, and the reports of what is missing. */
void job_check_out(struct job_rank *jr, struct job_flight *flight);
/* Row i of a segment and its scales (NULL without). */
void job_batch_row(const struct job *job, const struct m2n_segment *segment, uint32_t i,
	const uint8_t **row, const uint8_t **scales);

/* Where a batch from all sources must have its segments; without addresses. Their number. */
uint32_t job_predict_segments(
	struct job_rank *jr, uint64_t round, struct m2n_segment *segments);

#endif
