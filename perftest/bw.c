/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bandwidth of messages: each source puts a window of messages to every expert rank, depth of
 * them in flight; from the first put to the last message taken, divided by the window.
 */
#include <stdlib.h>

#include "message.h"
#include "tests.h"

/* Messages of one sample: 4 MiB of them, within reason. */
static uint64_t window_of(uint64_t size)
{
	uint64_t n = (4 << 20) / size;

	return n < 16 ? 16 : n > 1024 ? 1024 : n;
}

/* Over several hosts the sources time the window, until an answer behind the last message. */
static void answer(struct message *message)
{
	struct m2n_iov iov = {message->data, 1};

	for (int peer = message->first_peer; peer < message->last_peer; peer++) {
		if (message->rank->source >= 0)
			message_get(message, peer);
		else
			perf_rank_check(message->rank,
				m2n_exchange_put(message->exchange, peer, &iov, 1,
					M2N_TIMEOUT_DEFAULT),
				"m2n_exchange_put");
	}
}

static void ours(struct message *message, uint64_t window)
{
	bool source = message->rank->source >= 0;

	for (uint64_t i = 0; i < window; i++) {
		for (int peer = message->first_peer; peer < message->last_peer; peer++) {
			if (source)
				message_put(message, peer);
			else
				message_get(message, peer);
		}
	}
	for (int peer = message->first_peer; source && peer < message->last_peer; peer++)
		perf_rank_check(message->rank,
			m2n_exchange_flush(message->exchange, peer, M2N_TIMEOUT_DEFAULT),
			"m2n_exchange_flush");
	if (message->rank->job->many_hosts)
		answer(message);
}

static void bare(struct message *message, uint64_t window, bool nt)
{
	for (uint64_t i = 0; i < window; i++) {
		if (message->rank->source >= 0) {
			bare_wait_credit(message);
			bare_put(message, nt);
		} else {
			bare_get(message);
		}
	}
}

/* UCX is spared the credits: its receiver only waits for the last message. */
static void ucx(struct message *message, uint64_t window)
{
	for (uint64_t i = 0; i < window; i++) {
		if (message->rank->source >= 0)
			ucx_link_put(message->ucx, message->data, message->size);
		else
			ucx_link_get(message->ucx, message->size);
	}
}

static void step(void *arg, unsigned series, int64_t iter)
{
	struct message *message = arg;
	uint64_t window = window_of(message->size);
	enum perf_kind kind = message->rank->job->kinds[series];

	perf_rank_barrier(message->rank);
	int64_t start = perf_now();
	if (kind == PERF_OURS)
		ours(message, window);
	else if (kind == PERF_UCX)
		ucx(message, window);
	else
		bare(message, window, kind == PERF_STREAM);
	int64_t end = perf_now();
	bool source = message->rank->source >= 0;
	if (message->rank->job->many_hosts)
		*message_stamp(message, series, iter) = (struct page_stamp){source ? start : 0,
			source ? end : 0};
	else
		*message_stamp(message, series, iter) =
			(struct page_stamp){source ? start : 0, source ? 0 : end};
	if (kind == PERF_UCX)
		ucx_link_settle(message->ucx);
}

static void body(struct perf_rank *rank)
{
	uint64_t sizes[PERF_MAX_SIZES];
	size_t n = perf_sizes(rank->args, sizes, PERF_MAX_SIZES);
	struct message message;

	message_open(&message, rank);
	message.credits = true;
	for (size_t i = 0; i < n; i++) {
		message_begin(&message, i, sizes[i], (uint32_t)window_of(sizes[i]));
		perf_rank_loop(rank, step, &message);
		message_end(&message);
	}
	message_close(&message);
}

static bool prepare(struct perf_job *job, char *text, size_t text_bytes)
{
	return message_prepare(job, body, true, text, text_bytes);
}

static bool make_cases(const struct perf_job *job, struct perf_report *report)
{
	uint64_t sizes[PERF_MAX_SIZES];
	uint64_t n_pairs = job->args->n_sources * job->args->n_expert_ranks;
	bool ok = true;

	report->n_cases = perf_sizes(job->args, sizes, PERF_MAX_SIZES);
	report->cases = calloc(report->n_cases, sizeof(*report->cases));
	for (size_t i = 0; report->cases != NULL && ok && i < report->n_cases; i++) {
		report->cases[i] = (struct perf_case){.tokens = window_of(sizes[i]),
			.row_bytes = sizes[i], .top_k = 1, .bytes = sizes[i] * n_pairs,
			.route_us = -1, .n_messages = (double)n_pairs};
		ok = perf_case_reduce(
			job, (uint32_t)i, (double)window_of(sizes[i]), &report->cases[i]);
	}
	return ok && report->cases != NULL;
}

const struct perf_test_ops perf_bw_ops = {prepare, make_cases};
