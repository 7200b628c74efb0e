/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a run tells: a line of progress, a CSV line for each step, and the report at its end. Rank 0
 * writes all of it.
 */
#ifndef RUN_METRICS_H
#define RUN_METRICS_H

#include <stdio.h>

#include "run/options.h"

/* Of each rank, at the end; travels to rank 0. */
struct metrics_rank {
	struct trainer_times times;
	uint64_t bytes, planned_bytes; /* counted where they were taken; as memory_plan() has it */
	uint64_t resident_bytes;       /* of the process at most, since it was started */
	int32_t group, attention, expert;
};

struct metrics {
	const struct run_options *options;
	FILE *csv;
	int has_failed; /* the CSV was given up */
	int64_t begin_ns, step_ns; /* of the run; begin of the step under way */
	double *seconds;           /* [n_steps] of each, without evaluation and checkpoint */
	uint64_t n_steps;
	struct nn_step_result last;
	double held_back; /* NaN: not evaluated yet */
	double exposed;   /* share; NaN: no timeline */
};

int metrics_open(const struct run_options *options, struct metrics **metrics);
void metrics_close(struct metrics *metrics);
void metrics_begin_step(struct metrics *metrics);
void metrics_end_step(struct metrics *metrics, const struct nn_step_result *result);
/* After a step; held_back is NaN where it was not evaluated. */
void metrics_step(struct metrics *metrics, uint64_t step, double held_back);
/* Prints the report, and writes it where --json says. ranks: [place.n_ranks] */
int metrics_report(
	struct metrics *metrics, const struct trainer *trainer, const struct metrics_rank *ranks);

#endif
