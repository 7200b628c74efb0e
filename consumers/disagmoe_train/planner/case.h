/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is planned for: a model, a kind of GPU with its network, sequences, and how groups are made
 * of them. From it follow the FLOPs and bytes of one layer and one token. FLOPs are two for each
 * multiply-add; a causal attention scores half of the pairs. The paper prints attention's intensity
 * as (H(2+2/g)+4s)/(2k), where the projections count multiply-adds, the scores FLOPs of all pairs.
 */
#ifndef PLANNER_CASE_H
#define PLANNER_CASE_H

#include <stddef.h>

#include "load.h"
#include "planner/machine.h"
#include "specs.h"

/* How many times a row travels from an attention group to the experts. */
enum case_copies {
	CASE_PER_NODE, /* once to each node, which hands it on inside; replies are summed there */
	CASE_PER_RANK, /* once to each rank, as libm2n's dedup has it */
	CASE_PER_EXPERT, /* top_k times, as an all-to-all of permuted rows has it */
	CASE_N_COPIES
};

struct train_case {
	struct plan_model model;
	/* of a GPU; of a NIC and of the link in a node, one way */
	double flops, gpu_bytes, nic_bytes_per_s, link_bytes_per_s;
	double gpus_per_node;
	double efficiency; /* of the peak that products reach */
	double attention_efficiency; /* those of attention; 0: the same */
	double m2n_util, a2a_util; /* of a NIC's rate: AF-Pipe's transfers, all-to-all ones */
	double sm_share; /* of a GPU that communication takes beside computation; not AF-Pipe's */
	double seq, n_sequences; /* of a micro-batch on each attention GPU, or on each GPU */
	double batch; /* sequences of a step, of all groups' data parallel ranks */
	double p; /* pipeline groups of each kind */
	double in_flight; /* micro-batches under way in AF-Pipe at most; 0: what is worth it */
	double ep; /* expert-parallel ranks where attention and experts share GPUs */
	enum case_copies copies; /* AF-Pipe's and the bidirectional schedule's */
	double window; /* tokens of the trace in a micro-batch */
	double weight_bytes, grad_bytes, optimizer_bytes; /* of a parameter */
	int recompute; /* a layer's forward once more in its backward; only inputs are kept */
	int head_last; /* the head on the group that is last; else over all of them */
	int residual_nic; /* the residual stream travels by NIC, not inside a node */
	double value_bytes; /* of a row's value, of an activation */
	const struct machine *machine; /* measured times, not FLOPs over a rate; NULL: none */
	struct load_trace trace; /* experts NULL: balanced routing; owned */
};

/* The three models of the paper; or from a table in the form of models.csv. */
int case_find_model(const char *path, const char *name, struct plan_model *model);
void case_free(struct train_case *job);

/* FLOPs of a token, forward; of the weights' gradient likewise, except scores. */
double case_scores(const struct train_case *job);
double case_projections(const struct train_case *job);
double case_experts(const struct train_case *job);
double case_head(const struct train_case *job);
/* Backward of scores over forward: five products for two, as they are computed again. */
#define CASE_SCORES_BACKWARD 2.5

/* Parameters of a layer, and of embedding and head. */
double case_attention_params(const struct train_case *job);
double case_expert_params(const struct train_case *job); /* all experts of a layer */
double case_vocab_params(const struct train_case *job);

/* Distinct places that a token's experts lie on, in the mean, when n_places have as many each. */
double case_places(const struct train_case *job, double n_places);
/* Bytes of a row, and rows that leave an attention group for each token. */
double case_row_bytes(const struct train_case *job);
double case_rows(const struct train_case *job, double n_ranks);

/*
 * Load of the busiest of n_ranks over the mean in the window of a micro-batch: experts in order on
 * the ranks, as evenly as they go; those of a trace stand for as large a share of the model's.
 */
double case_busiest(const struct train_case *job, size_t n_ranks, size_t layer, size_t micro);
/* Its mean over the layers and n_micro micro-batches. */
double case_mean_busiest(const struct train_case *job, size_t n_ranks, size_t n_micro);

#endif
