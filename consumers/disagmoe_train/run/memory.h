/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that a rank will take, from sizes alone: parameters with gradients and moments,
 * activations of as many micro-batches as the schedule has alive, and libm2n's slots. Experts are
 * taken as evenly loaded.
 */
#ifndef RUN_MEMORY_H
#define RUN_MEMORY_H

#include "run/trainer.h"

struct memory_plan {
	size_t parameters, activations, slots, work;
};
/* place: of the rank. 0; -EINVAL: sizes that the library refuses. */
int memory_plan(const struct nn_settings *settings, struct place *place, const struct flow *flow,
	struct memory_plan *plan);
size_t memory_sum(const struct memory_plan *plan);

#endif
