/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One training step of a cluster under one schedule, with the costs of costs.h. Gradient sums and
 * the optimizer are not in it: they are the same for all.
 */
#ifndef PLANNER_CLUSTER_H
#define PLANNER_CLUSTER_H

#include "planner/costs.h"
#include "planner/steps.h"

enum cluster_kind {
	CLUSTER_AFPIPE, /* attention and experts apart */
	CLUSTER_1F1B, /* Megatron-LM's interleaved one, all-to-all exposed */
	CLUSTER_DUALPIPE, /* bidirectional; a forward and a backward chunk overlap */
	CLUSTER_CHUNKS_2, /* 1F1B whose dispatch, experts, combine overlap in chunks, as in Tutel */
	CLUSTER_CHUNKS_16, /* the same, finer, as in Comet */
	CLUSTER_N_KINDS
};

struct cluster_result {
	double seconds, tokens, gpus; /* of the step; GPUs of all groups */
	double tokens_per_s_gpu, mfu;
	double n_micro; /* micro-batches; those of 1F1B are larger by the ratio of GPUs */
	double busiest; /* mean load of the busiest expert rank over the mean of all */
	/* Shares of the step, mean over the GPUs. */
	double busy, exposed, bubble;
	double live_a, live_f; /* (layer, micro-batch) whose activations a group holds at most */
	double bytes_a, bytes_f; /* memory of a GPU of either side, the fullest */
};

const char *cluster_name(enum cluster_kind kind);
/*
 * `split` of a pair of groups; the other schedules use its GPUs together, in p stages. 0, -EINVAL
 * with a text (more groups than layers, too few micro-batches), -ENOMEM.
 */
int cluster_run(const struct train_case *job, const struct pair_split *split,
	enum cluster_kind kind, struct cluster_result *result);

#endif
