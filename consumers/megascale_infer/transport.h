/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How rows travel between attention and expert ranks: the seam between the serving loops and a
 * communication library. transport_m2n.c is libm2n; the tests have one over MPI to compare with.
 *
 * A *round* is one micro-batch of every attention rank in one layer. Attention ranks are not in
 * step with each other in anything but rounds: what an expert rank has to compute is said by the
 * rows, not by the round's number, for experts of different layers are different experts to the
 * transport (channel expert = layer * n_experts + expert). An attention rank that has nothing to do
 * sends empty rounds as long as it stays, one that is through closes and is waited for no longer.
 *
 * Every function returns 0, one of the positive conditions named, or a negative code with a text
 * in model_error().
 */
#ifndef MEGASCALE_TRANSPORT_H
#define MEGASCALE_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

#include "model/config.h"
#include "model/dtype.h"
#include "report/ranks.h"

enum {
	TRANSPORT_MAX_FLIGHTS = 4,
	TRANSPORT_MIN_BALANCE = 8 * (TRANSPORT_MAX_FLIGHTS + 1), /* rounds */
};

enum {
	TRANSPORT_RESEND = 1, /* an expert rank was lost with rows of the batch: send it again */
	TRANSPORT_END = 2,    /* no attention rank is left */
};

/* Attention ranks are ranks 0 .. n_attention - 1, expert ranks the n_expert_ranks after them. */
struct transport_params {
	const struct rank_env *env;
	const struct model_config *config;
	int n_attention, n_expert_ranks;
	uint32_t n_micro_batches; /* in flight from one attention rank, 1 to 4 */
	uint32_t max_rows;        /* of a micro-batch */
	enum model_dtype row_dtype;
	uint32_t n_replicas;     /* owners of each expert at first, 1 .. n_expert_ranks */
	uint32_t balance_rounds; /* a new placement every so many rounds; 0: never */
	/* Expert rank: experts that a placement gives to it, before their rows come. */
	int (*hold)(void *arg, uint32_t layer, uint32_t expert);
	void *arg;
};

/* A micro-batch in one layer. All is borrowed until receive() of it returned. */
struct transport_batch {
	uint32_t layer;
	uint32_t n_rows;
	const void *rows;     /* [n_rows, hidden] of row_dtype */
	const int32_t *ids;   /* [n_rows, top_k] experts of the layer */
	const float *weights; /* [n_rows, top_k] */
};

/* Rows of one expert, in an expert rank's round. */
struct transport_part {
	uint32_t layer, expert;
	uint32_t n_rows;
	uint32_t first_reply; /* its first row in the replies */
	const void *rows;     /* dense, of row_dtype */
};

struct transport_work {
	uint64_t round;
	uint32_t n_rows;
	uint32_t n_parts;
	const struct transport_part *parts; /* by rising first_reply; parts of an expert adjoin */
};

struct transport_stats {
	uint64_t n_rounds, n_resent;
	uint64_t n_lost, n_joined; /* expert ranks */
	uint64_t n_placements;     /* switched to */
	int64_t stall_ns;          /* the longest time from a loss to the next whole round */
	/* max / mean over the expert ranks, under the old and the new placement, of the rows that
	 * the last switch was made from; 0: there was none */
	double load_before, load_after;
};

struct transport;

struct transport_ops {
	const char *name;
	int (*open)(const struct transport_params *params, struct transport **transport);
	/* Leaves; what the other side has not answered is given up. */
	void (*close)(struct transport *transport);
	/* Memory for rows and replies that the network may read where they lie; it goes with the
	 * transport. NULL: there is none. */
	void *(*alloc)(struct transport *transport, size_t bytes);

	/* Attention rank: up to n_micro_batches in flight, received in the order they were sent. */
	int (*send)(struct transport *transport, const struct transport_batch *batch);
	/* Of the oldest batch in flight, which is over with 0 and with TRANSPORT_RESEND:
	 * out = residual + sum of weight * reply, [n_rows, hidden] of row_dtype. out may not be the
	 * residual. */
	int (*receive)(struct transport *transport, const void *residual, void *out);

	/* Expert rank: TRANSPORT_END when all attention ranks have left. */
	int (*take)(struct transport *transport, const struct transport_work **work);
	/* Where replies to the work may be made, to save a copy; NULL, also for the function:
	 * nowhere. answer() has to be given the same. */
	void *(*place)(struct transport *transport, const struct transport_work *work);
	/* replies: [work->n_rows, hidden] of row_dtype, borrowed until the next answer returns. */
	int (*answer)(struct transport *transport, const struct transport_work *work,
		const void *replies);

	void (*stats)(const struct transport *transport, struct transport_stats *stats);
};

/* From the last round that came whole to the next one after a loss. */
struct transport_stall {
	int64_t whole_ns;
	int is_stalled; /* rows were lost since */
};
int transport_is_any(const uint8_t *flags, uint32_t n); /* not 0 */
/* Now is a round whole; the longest stall so far. */
void transport_whole(struct transport_stall *stall, int64_t *longest_ns);
/* Whether the numbers fit together: 0 or -EINVAL. */
int transport_check(const struct transport_params *params);
/* The one of that name; NULL with a text that lists them. */
const struct transport_ops *transport_find(const char *name);
extern const struct transport_ops transport_m2n;

#endif
