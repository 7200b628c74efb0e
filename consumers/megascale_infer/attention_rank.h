/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An attention rank: requests, keys and values, router, sampling. Its micro-batches are independent
 * of each other: while one is with the experts the next is in attention, and each starts its next
 * iteration as soon as it ended the last one. That is the ping-pong.
 */
#ifndef MEGASCALE_ATTENTION_RANK_H
#define MEGASCALE_ATTENTION_RANK_H

#include <jansson.h>

#include "batcher.h"
#include "report/timeline.h"
#include "transport.h"

struct attention_params {
	const struct transport_ops *ops;
	struct transport *transport;
	const struct model *model; /* all parts but the experts */
	enum model_dtype row_dtype;
	struct batcher_params batcher; /* without the cache */
	size_t n_pages;
	const struct request *const *requests; /* [n_requests], of this rank */
	size_t n_requests;
	float temperature, top_p;
	uint64_t seed;
	int64_t start_ns; /* of the clock of arrivals, by timeline_now() */
	struct timeline *timeline;
	/* After each iteration; may be NULL. */
	void (*progress)(void *arg, uint64_t n_tokens, size_t n_ended);
	void *arg;
};

/* Serves all requests. *report: what was done, an object of its own. 0, or an error with a text. */
int attention_rank(const struct attention_params *params, json_t **report);

#endif
