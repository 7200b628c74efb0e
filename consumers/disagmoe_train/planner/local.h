/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A step of `disagmoe_train run` on this machine, before it is run: every rank is a process that
 * goes through its list as run/pass.c does, and processes that compute at the same time share the
 * cores. What an operation takes comes from a profile (machine.h), the order from the executor's
 * own schedule.
 */
#ifndef PLANNER_LOCAL_H
#define PLANNER_LOCAL_H

#include "load.h"
#include "planner/machine.h"
#include "run/options.h"

struct local_rank {
	double busy_us; /* computing and copying, of the step */
	double values;  /* parameters that it holds */
	size_t planned_bytes;
};

struct local_result {
	double step_us, pass_us; /* with and without gradient sums, norm and update */
	double t_a_us, t_f_us; /* of a layer and micro-batch: forward, backward, weights */
	double busy; /* share of the cores */
	struct local_rank *ranks; /* [place.n_ranks]; owned */
};

/* trace: where the rows go, a step's tokens in order; NULL: evenly. 0; -EINVAL (the profile or the
 * trace is of another model), other errors with a text. */
int local_run(const struct run_options *options, const struct machine *machine,
	const struct load_trace *trace, double n_cores, struct local_result *result);
void local_free(struct local_result *result);

#endif
