/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A training step as discrete events, for any schedule: micro-batches go through stages 0 ..
 * n_stages - 1 and back; each worker has its operations in a fixed order; what goes from a worker
 * to another is a transfer that holds the sender's way out and the receiver's way in. Built on
 * sim_engine.h.
 */
#ifndef PLANNER_STEPS_H
#define PLANNER_STEPS_H

#include <stddef.h>

#include "schedule.h"

struct steps_part {
	enum train_op_kind kind; /* TRAIN_FORWARD, TRAIN_BACKWARD or TRAIN_WEIGHTS */
	int releases; /* the activations of (stage, micro) are not needed any more */
	size_t stage, micro;
};

struct steps_op {
	int worker;
	size_t n_parts; /* 1, or 2 that are computed together */
	struct steps_part parts[2];
	double seconds, computing; /* the rest of seconds is communication that shows */
};

struct steps_model {
	size_t n_workers, n_stages, n_micro;
	const void *arg;
	int (*worker)(const void *arg, size_t stage, size_t micro);
	/* From stage to stage + 1, or back: seconds. */
	double (*transfer)(const void *arg, size_t stage, size_t micro, int back);
	/* From stage to stage + 2, or back, beside it, in a node; negative: none. May be NULL. */
	double (*beside)(const void *arg, size_t stage, size_t micro, int back);
};

struct steps_worker {
	double busy; /* computing */
	double exposed; /* communication inside operations, or for which the worker stands */
	double bubble; /* the rest of the step */
	size_t live; /* (stage, micro) whose activations it holds, at most */
};

struct steps_result {
	double seconds;
	struct steps_worker *workers; /* [n_workers]; owned */
	struct steps_span { /* operations as they ran, [n_ops]; owned */
		double begin, end;
	} *spans;
};

/* ops: [n_ops], those of a worker in its order. 0, -EDEADLK (they wait for each other), -ENOMEM. */
int steps_run(const struct steps_model *model, const struct steps_op *ops, size_t n_ops,
	struct steps_result *result);
void steps_free(struct steps_result *result);

#endif
