/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of operations before anything was measured: operations of the products over one rate, bytes
 * over another. A schedule needs their proportions only, and the same ones on every rank and in
 * every run: the order of operations decides the bits of sums.
 */
#ifndef RUN_COSTS_H
#define RUN_COSTS_H

#include "nn/settings.h"
#include "run/place.h"
#include "schedule.h"

void costs_estimate(
	const struct nn_settings *settings, const struct place *place, struct train_costs *costs);

#endif
