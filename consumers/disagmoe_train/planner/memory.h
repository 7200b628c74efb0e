/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of a GPU: weights, gradients and optimizer of what it holds, activations from forward to
 * backward. Buffers of communication and of kernels are not counted.
 */
#ifndef PLANNER_MEMORY_H
#define PLANNER_MEMORY_H

#include "planner/costs.h"

/*
 * live_a, live_f: (layer, micro-batch) whose activations a group holds. The optimizer's state of
 * attention is divided among the group's ranks; an expert's lies with the expert.
 */
void memory_apart(const struct train_case *job, const struct pair_split *split, double live_a,
	double live_f, double *bytes_a, double *bytes_f);
/* n_copies: 2 where a GPU holds the stages of both directions. */
double memory_together(const struct train_case *job, double gpus, double live, double n_copies);

#endif
