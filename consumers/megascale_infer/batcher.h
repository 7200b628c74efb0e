/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Continuous batching on one attention rank: which rows the next iteration of each of the m
 * micro-batches consists of. An iteration takes one row of every sequence that decodes and chunks
 * of the prompts of those that do not yet. A request is admitted in the order of arrival as soon as
 * the pages for its whole prompt and answer are free, and they are reserved then: nothing that runs
 * is ever evicted, and one that is too long for the pool or the model is refused.
 *
 * *Attention balance*: the expected time of an iteration is row_ns for each row and key_ns for each
 * key that a row attends to. A request joins the micro-batch whose sequences cost least, and chunks
 * of prompts fill an iteration up to target_ns, so that micro-batches, and ranks with the same
 * target, take equally long.
 */
#ifndef MEGASCALE_BATCHER_H
#define MEGASCALE_BATCHER_H

#include <stddef.h>
#include <stdint.h>

#include "model/model.h"
#include "requests.h"

enum { BATCHER_MAX_SLOTS = 4 };

struct batcher_params {
	struct model_cache *cache; /* kept until close; all its pages are free at first */
	size_t max_tokens;         /* of a sequence: the model's */
	uint32_t sliding_window;   /* the config's */
	uint32_t n_slots;          /* m micro-batches, 1 to BATCHER_MAX_SLOTS */
	uint32_t max_rows;         /* of an iteration, from 1 */
	uint32_t chunk;            /* rows of one prompt in an iteration; 0: max_rows */
	double row_ns, key_ns;     /* both 0: a row counts as 1 */
	double target_ns;          /* expected time of an iteration; 0: up to max_rows */
};

/* An iteration of a micro-batch, kept until batcher_done() of its slot. */
struct batcher_batch {
	const struct model_span *spans; /* [n_spans] */
	const uint32_t *ids;            /* [n_rows], of the spans one after another */
	const uint32_t *sample_rows;    /* [n_samples], rising: rows whose logits give a token */
	const size_t *sample_records;   /* [n_samples]: whose token it is */
	uint32_t n_spans, n_rows, n_samples;
	double expected_ns;
};

/* What became of a request. Times are -1 until they come, by the caller's clock from its start. */
struct batcher_record {
	const struct request *request;
	char *refused;        /* the reason; NULL: not refused */
	int64_t admitted_ns;
	uint32_t n_tokens;    /* generated so far; request->n_generate: ended */
	uint32_t *tokens;     /* [n_generate] */
	int64_t *token_ns;    /* [n_generate]; the first is the time to the first token */
};

struct batcher_stats {
	uint64_t n_iterations, n_rows, n_prefill_rows;
	size_t n_refused, n_ended, n_running, n_waiting;
	size_t max_reserved_pages;
	double mean_ns, deviation_ns, max_ns; /* expected times of the iterations */
};

struct batcher;

/* requests: by rising arrival; the array and what it points to are kept until close. 0, -EINVAL,
 * -ENOMEM. */
int batcher_open(const struct batcher_params *params, const struct request *const *requests,
	size_t n_requests, struct batcher **batcher);
/* Gives back the pages of what still runs. */
void batcher_close(struct batcher *batcher);

/*
 * Admits what has arrived by now_ns and composes the next iteration of the slot, which must not be
 * in flight. 0 rows: there is nothing to do in this slot, and nothing to be done with it. Pages of
 * all rows are reserved. 0 or -ENOMEM.
 */
int batcher_next(struct batcher *batcher, uint32_t slot, int64_t now_ns,
	struct batcher_batch *batch);
/* The iteration is through: tokens[i] is of sample i. Moves the sequences on, so that the caller
 * leaves their n_tokens alone. */
void batcher_done(struct batcher *batcher, uint32_t slot, int64_t now_ns,
	const uint32_t *tokens);

/* Every request is answered or refused. */
int batcher_is_over(const struct batcher *batcher);
/* When the next request arrives that is not admitted yet; -1: none is left. */
int64_t batcher_next_arrival(const struct batcher *batcher);
/* [n_requests], in the order of the requests. */
const struct batcher_record *batcher_records(const struct batcher *batcher);
void batcher_stats(const struct batcher *batcher, struct batcher_stats *stats);

#endif
