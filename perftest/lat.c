/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Latency of messages: each source sends one to every expert rank and waits for all answers;
 * half of that time is a sample. With 1 x 1 it is a ping-pong.
 */
#include <stdlib.h>

#include "message.h"
#include "tests.h"

static void ours(struct message *message)
{
	if (message->rank->source >= 0) {
		for (int peer = message->first_peer; peer < message->last_peer; peer++)
			message_put(message, peer);
		for (int peer = message->first_peer; peer < message->last_peer; peer++)
			message_get(message, peer);
		return;
	}
	for (int peer = message->first_peer; peer < message->last_peer; peer++) {
		message_take(message, peer);
		message_put(message, peer);
		message_release(message, peer); /* its credit is not what the sender waits for */
	}
}

static void bare(struct message *message)
{
	if (message->rank->source >= 0) {
		bare_put(message, false);
		bare_get(message);
	} else {
		bare_get(message);
		bare_put(message, false);
	}
}

static void ucx(struct message *message)
{
	if (message->rank->source >= 0) {
		ucx_link_put(message->ucx, message->data, message->size);
		ucx_link_get(message->ucx, message->size);
	} else {
		ucx_link_get(message->ucx, message->size);
		ucx_link_put(message->ucx, message->data, message->size);
	}
}

static void step(void *arg, unsigned series, int64_t iter)
{
	struct message *message = arg;
	/* One look at the clock per iteration: this one begins where the last one ended. */
	static int64_t ended;
	int64_t start = ended;

	switch (message->rank->job->kinds[series]) {
	case PERF_UCX:
		ucx(message);
		break;
	case PERF_MEMCPY:
		bare(message);
		break;
	default:
		ours(message);
	}
	/* The sources see both ways; an expert rank's own stamps would add its idle time. */
	if (message->rank->source >= 0) {
		ended = perf_now();
		*message_stamp(message, series, iter) = (struct page_stamp){start, ended};
	}
}

static void batch_end(void *arg, unsigned series)
{
	struct message *message = arg;

	if (message->rank->job->kinds[series] == PERF_UCX)
		ucx_link_settle(message->ucx);
}

static void body(struct perf_rank *rank)
{
	uint64_t sizes[PERF_MAX_SIZES];
	size_t n = perf_sizes(rank->args, sizes, PERF_MAX_SIZES);
	struct message message;

	message_open(&message, rank);
	rank->batch_end = batch_end;
	for (size_t i = 0; i < n; i++) {
		message_begin(&message, i, sizes[i], 1);
		perf_rank_loop(rank, step, &message);
		message_end(&message);
	}
	message_close(&message);
}

static bool prepare(struct perf_job *job, char *text, size_t text_bytes)
{
	return message_prepare(job, body, false, text, text_bytes);
}

static bool make_cases(const struct perf_job *job, struct perf_report *report)
{
	uint64_t sizes[PERF_MAX_SIZES];
	bool ok = true;

	report->n_cases = perf_sizes(job->args, sizes, PERF_MAX_SIZES);
	report->cases = calloc(report->n_cases, sizeof(*report->cases));
	for (size_t i = 0; report->cases != NULL && ok && i < report->n_cases; i++) {
		uint64_t bytes = sizes[i] * job->args->n_sources * job->args->n_expert_ranks;
		report->cases[i] = (struct perf_case){.tokens = 1,
			.row_bytes = sizes[i],
			.top_k = 1,
			.bytes = bytes,
			.route_us = -1,
			.n_messages = (double)(job->args->n_sources * job->args->n_expert_ranks)};
		ok = perf_case_reduce(job, (uint32_t)i, 2, &report->cases[i]);
	}
	return ok && report->cases != NULL;
}

const struct perf_test_ops perf_lat_ops = {prepare, make_cases};
