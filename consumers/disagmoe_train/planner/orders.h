/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The orders of operations that schedules prescribe, as operations of steps.h without times.
 */
#ifndef PLANNER_ORDERS_H
#define PLANNER_ORDERS_H

#include "planner/steps.h"

struct orders {
	struct steps_op *ops; /* [n_ops]; owned */
	size_t n_ops, max_ops;
	int failed;
};

void orders_free(struct orders *orders);

/*
 * AF-Pipe's from schedule.h. Stages 2l and 2l + 1 are attention and experts of layer l, stage
 * 2 * n_layers is the head. in_flight 0: as schedule.h chooses. Layers need not be a multiple of
 * p: groups differ by one then.
 */
int orders_afpipe(const struct train_costs *mean, size_t p, size_t n_layers, size_t n_micro,
	size_t in_flight, struct orders *orders);
/* Megatron-LM's interleaved 1F1B; a stage is a layer, n_micro a multiple of p. */
int orders_1f1b(size_t p, size_t n_layers, size_t n_micro, struct orders *orders);
/*
 * DualPipe's eight phases; a stage is one of p runs of layers. Micro-batch m goes from worker 0 on
 * where m is even, from worker p - 1 on where it is odd. p even, n_micro even, from 2 p.
 */
int orders_dualpipe(size_t p, size_t n_micro, struct orders *orders);

#endif
