/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rank's part in training: what it holds, and the passes that it takes part in. All ranks make
 * the same calls in the same order. A failure has a text; the group has to be left then.
 */
#ifndef RUN_TRAINER_H
#define RUN_TRAINER_H

#include "nn/reference.h"
#include "report/timeline.h"
#include "run/comm.h"

struct trainer_params {
	const struct nn_settings *settings;
	const struct nn_text *text;
	struct place place; /* checked; the rank is set by trainer_open() */
	enum train_schedule_kind kind;
	int split_weights;
	uint32_t max_in_flight; /* 0: as the schedule chooses */
	int64_t timeout_ns;
	struct timeline *timeline; /* NULL: none */
	/* An attention rank, in each forward of training: after routing. May be NULL. */
	void (*routed)(void *arg, uint32_t layer, uint32_t first_seq,
		const struct nn_attention_record *record);
	void *arg;
	/* Steps that all ranks begin together, so that their bubbles can be told. */
	int is_aligned;
};

/* Nanoseconds of this rank, of all passes since it was opened or since they were set to 0. */
struct trainer_times {
	int64_t ns[TIMELINE_KINDS];  /* by what it did */
	int64_t begin_ns, end_ns;    /* of the first and the last computation of the last pass */
	int64_t ops_ns[TRAIN_N_OPS]; /* computing, by operation; a rank of both kinds: together */
	int64_t n_ops[TRAIN_N_OPS];
	int64_t sent_ns, n_sent; /* handing rows or gradients over, in passes */
};

/* At rank 0, of an aligned step: what the clocks of all ranks say, if it is one host's. */
struct trainer_bubble {
	int64_t warm_up_ns, cool_down_ns; /* from the first rank's begin to the last one's; ends */
	int64_t span_ns;                  /* first begin to last end */
};

struct trainer {
	struct trainer_params p;
	const struct rank_env *env;
	struct flow flow;
	struct comm *comm;
	struct nn_params *params;
	struct nn_work *work;
	uint32_t n_seqs; /* of a micro-batch, of all attention ranks */
	struct attention_side *attention;
	struct expert_side *experts;
	struct trainer_times times;
	struct trainer_bubble *bubbles; /* [n_bubbles] */
	size_t n_bubbles;
	int64_t mark; /* where the next span begins */
	/* Of the pass under way. */
	int is_training;
	uint64_t step;
	uint32_t n_left, n_of; /* evaluating: sequences from here on, and in all */
	double loss, balance;  /* sums over sequences or tokens of this rank */
	uint32_t bad_layer;    /* see report_finite() */
	uint64_t n_passes, n_steps;
	/* Weights' gradients to be made, oldest first: ring of layer * n_micro + micro. */
	uint32_t *owed, n_owed, first_owed;
	size_t bytes; /* of activations and parameters */
};

/* Fills the parameters by the settings' seed. */
int trainer_open(
	const struct trainer_params *params, const struct rank_env *env, struct trainer **trainer);
void trainer_close(struct trainer *trainer);

/*
 * Loss and gradients of a step; gradients are summed over the attention ranks of a group. *result
 * is the same on all ranks. -EDOM: the loss or the gradients' norm is no number; the text names the
 * step, counted from 1, and the loss's layer.
 */
int trainer_gradients(struct trainer *trainer, uint64_t step, struct nn_step_result *result);
/* The same, then clipping and AdamW. */
int trainer_step(struct trainer *trainer, uint64_t step, struct nn_step_result *result);
/* Mean cross entropy of up to max_seqs held-back sequences (0: all), as nn_reference_evaluate(). */
int trainer_evaluate(struct trainer *trainer, size_t max_seqs, double *loss);
/*
 * A checkpoint by all ranks. 0; 1: it could not be written, the text says why, the one before is
 * there still and training can go on; negative: a rank is lost.
 */
int trainer_save(struct trainer *trainer, const char *dir, uint64_t n_steps);

/* Bytes of parameters, activations and slots of this rank so far. */
size_t trainer_bytes(const struct trainer *trainer);

#endif
