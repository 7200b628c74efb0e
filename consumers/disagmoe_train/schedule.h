/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order in which workers compute a training step. Layers are interleaved: group g of p owns
 * layers g, g + p, ..., v of them; attention group A_g and FFN group F_g have the same layers.
 * AF-Pipe: A_0 -M2N-> F_0 -N2M-> A_1 ... -> F_{p-1} -N2M-> A_0 (its next layer); after the last
 * layer the replies go to A_0, which has final norm, head and loss; the backward goes the other
 * way.
 *
 * The order comes from estimated times by list scheduling of the whole step (sim_engine.h), so it
 * is a topological one: workers that go through their lists, each waiting for the inputs of its
 * next operation, cannot block each other whatever the real times are. No worker ever holds
 * activations of more than `max_in_flight` micro-batches. The executor and the simulator both use
 * these lists; every process computes the same ones from the same parameters.
 */
#ifndef DISAGMOE_SCHEDULE_H
#define DISAGMOE_SCHEDULE_H

#include <stddef.h>

enum train_schedule_kind {
	TRAIN_AFPIPE, /* 2p workers, transfers beside the computation */
	TRAIN_1F1B, /* p workers, attention and FFN of a layer together, transfers inside */
	TRAIN_SEQUENTIAL, /* 2p workers, one operation or transfer at a time in the whole job */
	TRAIN_N_SCHEDULES
};

enum train_op_kind {
	TRAIN_FORWARD, /* of layer 0: with the embedding */
	TRAIN_HEAD, /* forward and backward of final norm, head and loss; layer == p * v */
	TRAIN_BACKWARD, /* gradient of the input; of the weights too, unless they are split */
	TRAIN_WEIGHTS, /* gradient of the weights, only with `split_weights` */
	TRAIN_N_OPS
};

/* Seconds for one layer and one micro-batch, [0] forward and [1] backward. */
struct train_costs {
	double attention[2], ffn[2]; /* backward: without the weights' gradient */
	double attention_weights, ffn_weights;
	double transfer[2]; /* one way: M2N or N2M */
	double stage; /* 1f1b: activations to the next group; 0 where the combine goes there */
	double head;
};

struct train_schedule_params {
	enum train_schedule_kind kind;
	size_t p, v, n_micro;
	size_t max_in_flight; /* 0: as many as keep every worker busy, from the costs */
	int split_weights; /* 0: the weights' gradient is part of TRAIN_BACKWARD */
	struct train_costs costs;
};

struct train_op {
	enum train_op_kind kind;
	int worker;
	size_t layer, micro;
	double start, end; /* estimated, from the begin of the step */
};

struct train_schedule {
	struct train_op *ops; /* [n_ops], by start: a topological order; owned */
	size_t n_ops;
	/* Of worker w: ops[by_worker[i]], i in [first[w], first[w + 1]), in its order; owned.
	 * Workers: A_0 .. A_{p-1}, F_0 .. F_{p-1}; with 1f1b the p combined ones only. */
	size_t *by_worker, *first;
	size_t n_workers;
	size_t max_in_flight; /* as given, or as chosen */
	double seconds; /* estimated, without all-reduce and optimizer */
};

/* 0, -EINVAL (a size is 0 or too large, a cost is negative or no number) or -ENOMEM. */
int train_schedule_make(const struct train_schedule_params *params,
	struct train_schedule *schedule);
void train_schedule_free(struct train_schedule *schedule);

/* "afpipe", "1f1b", "sequential"; -EINVAL for another. */
int train_schedule_parse(const char *text, enum train_schedule_kind *kind);
const char *train_schedule_name(enum train_schedule_kind kind);
const char *train_op_name(enum train_op_kind kind);

#endif
