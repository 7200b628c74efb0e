/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What follows from a schedule for the communication. Every process makes the same one.
 *
 * Rows of group g's layers leave its attention ranks in the order of their forward operations, and
 * gradients of its replies leave the next group's attention ranks in the order of their backward
 * operations. These orders number the rounds: no layer or micro-batch has to travel. How many
 * rounds there are between one that is sent and the oldest that has not come to its sink is counted
 * along the schedule, which is a topological order; with that many slots nobody can wait for a slot
 * in a circle.
 */
#ifndef RUN_FLOW_H
#define RUN_FLOW_H

#include <stdint.h>

#include "schedule.h"

enum flow_way { FLOW_FORWARD, FLOW_BACKWARD, FLOW_WAYS };

struct flow {
	struct train_schedule schedule;
	uint32_t p, n_layers, n_micro;
	uint32_t n_rounds; /* of a group's channel, one way, in a step */
	/* [p, n_rounds]: which layer * n_micro + micro a round of the step is; owned */
	uint32_t *sent[FLOW_WAYS];
	uint32_t *round_of[FLOW_WAYS]; /* [n_layers * n_micro] the other way round; owned */
	uint32_t depth;                /* slots that the schedule needs */
	uint32_t max_records_of[2];    /* that an attention, an FFN worker keeps at a time */
};

/* 0; -EINVAL (the schedule needs more than max_depth slots); -ENOMEM. */
int flow_make(const struct train_schedule_params *params, uint32_t max_depth, struct flow *flow);
void flow_free(struct flow *flow);

static inline uint32_t flow_key(const struct flow *flow, uint32_t layer, uint32_t micro)
{
	return layer * flow->n_micro + micro;
}

#endif
