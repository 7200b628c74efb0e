/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of one layer and one micro-batch from shapes and rates: FLOPs over the GPUs of a side, and
 * bytes over its NICs, whichever takes longer. FLOPs are two for each multiply-add; a causal
 * attention scores half of the pairs. The backward of attention's scores costs 2.5 forwards (five
 * products for two, as they are computed again), that of every weight one for the input's gradient
 * and one for the weight's.
 */
#ifndef DISAGMOE_ROOFLINE_H
#define DISAGMOE_ROOFLINE_H

#include "schedule.h"
#include "specs.h"

struct train_case {
	struct plan_model model;
	double flops, nic_bytes_per_s, link_bytes_per_s, gpu_bytes; /* of a GPU; a NIC */
	double efficiency; /* of the peak that products reach */
	double seq, n_sequences; /* of a micro-batch, over all ranks of a group */
	double ep, gpus_per_node;
	double copies; /* of a row between the groups; 0: one for each node that has its experts */
	double skew; /* busiest expert rank over the mean */
};

struct train_split {
	size_t gpus_a, gpus_f, nics_a, nics_f; /* of one group each */
};

struct train_times {
	double compute_a, compute_f, network_a, network_f; /* forward and backward of a layer */
	double t_a, t_f;
	double intensity_a, intensity_f, turning_point; /* FLOP per byte */
	double mfu; /* (C_a + C_f) / (T * W * P) */
};

/* The three models of the paper; -ENOENT otherwise, or from a table in the form of models.csv. */
int train_model_find(const char *path, const char *name, struct plan_model *model);
/* Forward, per token. */
double train_flops_scores(const struct train_case *job);
double train_flops_projections(const struct train_case *job);
double train_flops_experts(const struct train_case *job);
/* Bytes of one transfer between an attention and an FFN group of so many GPUs. */
double train_bytes(const struct train_case *job, size_t gpus_f);

void train_roofline(const struct train_case *job, const struct train_split *split,
	struct train_times *times);
/* What the schedule wants to know; gpus as one side each (AF-Pipe). */
void train_costs_apart(const struct train_case *job, const struct train_split *split,
	struct train_costs *costs);
/* All `gpus` do attention and experts; transfer: an all-to-all of expert-parallel ranks. */
void train_costs_together(const struct train_case *job, size_t gpus, struct train_costs *costs);

#endif
