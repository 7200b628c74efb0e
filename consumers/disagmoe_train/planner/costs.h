/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seconds of one layer and one micro-batch: FLOPs over the GPUs of a side, bytes over its NICs. One
 * set of rates for all schedules; what differs is who holds what and how rows travel.
 */
#ifndef PLANNER_COSTS_H
#define PLANNER_COSTS_H

#include "planner/case.h"
#include "schedule.h"

struct pair_split {
	size_t gpus_a, gpus_f, nics_a, nics_f; /* of one attention group, of one FFN group */
};

/* The roofline of DisagMoE: forward and backward of a layer for one micro-batch. */
struct pair_roofline {
	double tokens; /* of the micro-batch */
	double compute_a, compute_f, network_a, network_f;
	double t_a, t_f; /* the larger of the two each */
	double intensity_a, intensity_f; /* FLOP per byte on the network, one way */
	double turning_a, turning_f; /* FLOP per byte at which computation takes as long */
	double mfu; /* (C_a + C_f) / (max(T_a, T_f) * GPUs * peak) */
};

/* busiest: load of the busiest expert rank over the mean, here and below. */
void costs_roofline(const struct train_case *job, const struct pair_split *split, double busiest,
	struct pair_roofline *roofline);

/* Without the network. */
void costs_compute(const struct train_case *job, double tokens, double gpus_a, double gpus_f,
	double busiest, struct train_costs *costs);
/* One way between an attention and an FFN group: the side that takes longer. */
double costs_transfer(const struct train_case *job, const struct pair_split *split, double tokens,
	double busiest);
/* The residual stream to the next attention group. */
double costs_residual(const struct train_case *job, const struct pair_split *split, double tokens);
/* Dispatch or combine among `ep` ranks of `gpus` that have attention and experts both. */
double costs_all_to_all(const struct train_case *job, double tokens, double gpus,
	enum case_copies copies, double busiest);
/* Activations from stage to stage of those. */
double costs_stage(const struct train_case *job, double tokens, double gpus);
/* Dispatch, experts, combine in n chunks that overlap; `after` follows the experts' last chunk. */
double costs_chunked(double transfer, double experts, double after, size_t n_chunks);

#endif
