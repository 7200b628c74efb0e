/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that a training rank says to others, over libm2n.
 *
 * Each group g has two channels, A_g -> F_g -> A_{g+1} for rows and A_{g+1} -> F_g -> A_g for
 * gradients: replies go straight to the next stage. What they do not carry goes beside them from
 * attention rank i of one group to rank i of the next: forward the packed plan and the residual,
 * backward the gradient of the residual and of the weights. A third pair of exchanges adds
 * gradients inside an attention group, and tells rank 0 about the step.
 *
 * Rounds and messages come in the order of struct flow. Calls with a deadline return -EAGAIN for
 * timeout_ns 0 when nothing has come. Every other failure has a text, which names a rank that was
 * lost, and ends the run: see comm_abandon().
 */
#ifndef RUN_COMM_H
#define RUN_COMM_H

#include "nn/layer.h"
#include "report/ranks.h"
#include "run/flow.h"
#include "run/place.h"

struct comm;

struct comm_params {
	const struct rank_env *env;
	const struct place *place;
	const struct flow *flow;
	const struct model_config *config;
	uint32_t seq_len, n_seqs; /* of a micro-batch */
	int64_t timeout_ns;       /* of every wait */
};

int comm_open(const struct comm_params *params, struct comm **comm);
void comm_close(struct comm *comm);

/* Memory that leaves without a copy, zeroed; freed with the comm. NULL with a text. */
void *comm_alloc(struct comm *comm, size_t bytes);

/* What an attention rank keeps of one layer and micro-batch between forward and backward. */
struct comm_record {
	struct m2n_plan *out, *in; /* of this layer; of the layer before */
	void *packed;              /* plan in bytes */
	float *x;                  /* [n_rows, hidden] */
	float *replies;            /* [n_rows, top_k, hidden] of the layer before */
	float *dx;                 /* [n_rows, hidden] */
	float *d_weights;          /* [n_rows, top_k] of this layer */
	float *d_weights_in;       /* [n_rows, top_k] of the layer before */
	int64_t sent_ns;           /* when the layer before sent its rows */
};
int comm_record_open(struct comm *comm, struct comm_record *record);
void comm_record_close(struct comm_record *record);
/* Bytes that a record takes. */
size_t comm_record_bytes(const struct comm *comm);

/* Attention, forward: this layer's rows to its experts, plan and residual to the next stage. */
int comm_send_rows(
	struct comm *comm, struct comm_record *record, const struct nn_attention_record *attention);
/* The oldest residual that has not been taken: into x, with the plan. */
int comm_take_residual(struct comm *comm, struct comm_record *record, uint64_t round, size_t n_rows,
	int64_t timeout_ns);
/* x += the weighted replies of the layer before, whose residual was taken. */
int comm_take_replies(
	struct comm *comm, struct comm_record *record, uint64_t round, int64_t timeout_ns);

/* Backward: dx, of x, back to the experts and the attention rank of the layer before. */
int comm_send_gradient(struct comm *comm, struct comm_record *record, size_t n_rows);
/* The oldest gradient of a residual that has not been taken: into dx and d_weights. */
int comm_take_gradient(
	struct comm *comm, struct comm_record *record, size_t n_rows, int64_t timeout_ns);
/* d_rows: [n_rows, hidden], summed over the experts of this layer. */
int comm_take_row_gradients(struct comm *comm, struct comm_record *record, uint64_t round,
	float *d_rows, int64_t timeout_ns);
/* Until what records sent may be overwritten. */
int comm_flush(struct comm *comm);

/* Experts: the next round of a way, and its answer in the batch's row order. */
int comm_take_batch(
	struct comm *comm, enum flow_way way, int64_t timeout_ns, const struct m2n_batch **batch);
int comm_answer(
	struct comm *comm, enum flow_way way, const struct m2n_batch *batch, const float *rows);

/* Adds values over the attention ranks of a group, in the order of ranks: equal bits for all. */
int comm_add(struct comm *comm, float *values, size_t n_values);
/* all: [n_ranks, bytes] at rank 0, which gets everybody's `mine`. bytes: up to 1024 */
int comm_gather(struct comm *comm, const void *mine, size_t bytes, void *all);
/* Rank 0's value to everybody. */
int comm_share(struct comm *comm, void *value, size_t bytes);

/* Bytes of libm2n's slots in this rank; and before there are any, params->env unused. */
size_t comm_bytes(const struct comm *comm);
int comm_plan_bytes(const struct comm_params *params, size_t *bytes);
/*
 * After a failure with code rc: the text becomes the run's, the same on all ranks, which is that of
 * the rank that was the first to see why. `where` is what was being done.
 */
int comm_abandon(const struct rank_env *env, int rc, const char *where);

#endif
