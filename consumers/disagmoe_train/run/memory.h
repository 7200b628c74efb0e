/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that a rank will take, from sizes alone: parameters with gradients and moments,
 * activations of as many micro-batches as the schedule has alive, and libm2n's slots.
 *
 * The rows of an FFN rank hang on the routing, which is uneven while it is learned: the load of an
 * expert then varies by about as much as its mean, that of a rank's n experts by 1/sqrt(n) of it.
 * There is room for MEMORY_SKEW times that more than an even load, or for all that can come if that
 * is less; layers and micro-batches share it, and more is taken only while more than it are there.
 */
#ifndef RUN_MEMORY_H
#define RUN_MEMORY_H

#include "run/trainer.h"

#define MEMORY_SKEW 2.5 /* the most that was seen: 2.7 times an even load on two experts */

struct memory_plan {
	size_t parameters, activations, slots, work;
};
/* place: of the rank. 0; -EINVAL: sizes that the library refuses. */
int memory_plan(const struct nn_settings *settings, struct place *place, const struct flow *flow,
	struct memory_plan *plan);
/* Of an FFN rank: bytes for the rows of a layer and micro-batch, its share of that room. */
size_t memory_expert_slot(const struct nn_settings *settings, const struct place *place);
size_t memory_sum(const struct memory_plan *plan);

#endif
