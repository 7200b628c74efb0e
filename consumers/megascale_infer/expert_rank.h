/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An expert rank: takes rounds, runs its experts over the rows of all attention ranks together, and
 * answers, until no attention rank is left. Experts are read when a placement gives them to it.
 */
#ifndef MEGASCALE_EXPERT_RANK_H
#define MEGASCALE_EXPERT_RANK_H

#include <jansson.h>

#include "model/model.h"
#include "report/timeline.h"
#include "transport.h"

struct expert_params {
	const struct transport_ops *ops;
	struct transport *transport;
	const struct model *model; /* its experts are held */
	enum model_dtype row_dtype;
	uint32_t max_rows; /* of a round at most */
	uint32_t n_micro_batches;
	struct timeline *timeline;
};

/* transport_params.hold: arg is a struct model. */
int expert_rank_hold(void *arg, uint32_t layer, uint32_t expert);

/* *report: what was done, an object of its own. 0, or an error with a text. */
int expert_rank(const struct expert_params *params, json_t **report);

#endif
