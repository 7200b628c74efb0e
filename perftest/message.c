/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between sources and expert ranks over one exchange for the whole sweep.
 */
#include "message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compare_tool.h"
#include "tests.h"

size_t perf_sizes(const struct perf_args *args, uint64_t *sizes, size_t max)
{
	size_t n = 0;

	for (uint64_t size = args->size_min; size < args->size_max && n + 1 < max; size *= 2)
		sizes[n++] = size;
	sizes[n++] = args->size_max;
	return n;
}

bool message_prepare(struct perf_job *job, void (*body)(struct perf_rank *), bool with_stream,
	char *text, size_t text_bytes)
{
	const struct perf_args *args = job->args;
	uint64_t sizes[PERF_MAX_SIZES];

	job->body = body;
	perf_job_add(job, PERF_OURS);
	if (args->compare & PERF_COMPARE_MEMCPY) {
		perf_job_add(job, PERF_MEMCPY);
		if (with_stream)
			perf_job_add(job, PERF_STREAM);
		if (!bare_map(job)) {
			snprintf(text, text_bytes, "no memory for the memcpy yardstick: %s",
				m2n_error_text());
			return false;
		}
	}
	if (args->compare & PERF_COMPARE_UCX) {
		if (!ucx_link_built()) {
			snprintf(text, text_bytes,
				"--compare: built without UCX; install libucx-dev and configure "
				"again");
			return false;
		}
		perf_job_add(job, PERF_UCX);
		job->dims.extra_bytes = UCX_EXTRA_BYTES;
	}
	perf_tool_add(job);
	job->dims.n_cases = (uint32_t)perf_sizes(args, sizes, PERF_MAX_SIZES);
	job->dims.n_iters = (uint32_t)args->n_iters;
	job->n_steps = args->n_iters * job->dims.n_series * job->dims.n_cases *
		(args->n_sources + args->n_expert_ranks);
	return true;
}

void message_open(struct message *message, struct perf_rank *rank)
{
	const struct perf_args *args = rank->args;
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	int peers[1024];
	size_t n = 0;

	*message = (struct message){.rank = rank};
	message->first_peer = rank->source >= 0 ? (int)args->n_sources : 0;
	message->last_peer = rank->source >= 0 ? rank->n_ranks : (int)args->n_sources;
	for (int peer = message->first_peer; peer < message->last_peer; peer++)
		peers[n++] = peer;
	params.name = "messages";
	params.send_to = params.recv_from = peers;
	params.n_send = params.n_recv = n;
	params.max_bytes = args->size_max;
	params.depth = (uint32_t)args->depth;
	perf_rank_check(rank, m2n_exchange_create(rank->group, &params, &message->exchange),
		"m2n_exchange_create");
	message->data = perf_rank_memory(rank, args->size_max, &message->mem);
	perf_rank_note_backend(rank, message->first_peer);
	if (perf_job_has(rank->job, PERF_UCX))
		message->ucx = ucx_link_open(rank, args->size_max, (uint32_t)args->depth);
}

/* All that was sent to all peers. */
static struct m2n_counters count_sent(struct message *message)
{
	struct m2n_counters sum = {0}, sent, received;

	for (int peer = message->first_peer; peer < message->last_peer; peer++) {
		if (m2n_exchange_counters(message->exchange, peer, &sent, &received) != 0)
			continue;
		sum.n_rounds += sent.n_rounds;
		sum.n_puts += sent.n_puts;
		sum.staged_bytes += sent.staged_bytes + received.staged_bytes;
	}
	return sum;
}

void message_begin(struct message *message, size_t n_case, uint64_t size, uint32_t n_messages)
{
	message->size = message->rank->size = size;
	message->n_case = message->rank->n_case = (uint32_t)n_case;
	message->rank->n_messages = n_messages;
	message->before = count_sent(message);
	if (!message->rank->args->no_check)
		message_check(message, 0);
}

void message_end(struct message *message)
{
	struct perf_rank *rank = message->rank;

	if (!rank->args->no_check)
		message_check(message, 1);
	struct m2n_counters now = count_sent(message);
	*page_cost(rank->page, (uint32_t)rank->rank, message->n_case) = (struct page_cost){
		now.n_rounds - message->before.n_rounds, now.n_puts - message->before.n_puts,
		now.staged_bytes - message->before.staged_bytes};
}

static void note_counters(struct message *message)
{
	struct perf_rank *rank = message->rank;

	for (int peer = message->first_peer; peer < message->last_peer; peer++) {
		struct m2n_counters flows[2];
		if (m2n_exchange_counters(message->exchange, peer, &flows[0], &flows[1]) != 0)
			continue;
		for (int i = 0; i < 2; i++) {
			*page_peer(rank->page, (uint32_t)rank->rank, (uint32_t)peer,
				(enum page_flow)i) = (struct page_peer){flows[i].n_rounds,
				flows[i].n_rows, flows[i].bytes, flows[i].wait_ns};
			page_rank(rank->page, (uint32_t)rank->rank)->staged_bytes +=
				flows[i].staged_bytes;
		}
	}
}

void message_close(struct message *message)
{
	note_counters(message);
	ucx_link_close(message->ucx);
	perf_rank_barrier(message->rank);
	m2n_exchange_destroy(message->exchange);
	m2n_mem_free(message->mem);
}

struct page_stamp *message_stamp(struct message *message, unsigned series, int64_t iter)
{
	static struct page_stamp spare;
	struct perf_rank *rank = message->rank;

	if (iter < 0)
		return &spare;
	return page_stamps(rank->page, (uint32_t)rank->rank, message->n_case, series) + iter;
}

static char byte_of(uint64_t key, uint64_t i)
{
	return (char)(perf_mix(key + i / 8) >> 8 * (i % 8));
}

static uint64_t key_of(const struct message *message, unsigned generation, int from, int to)
{
	uint64_t key = perf_mix(message->rank->args->seed ^ (uint64_t)generation << 32);

	return perf_mix(key ^ message->size ^ (uint64_t)from << 40 ^ (uint64_t)to << 52);
}

static void check_put(struct message *message, unsigned generation, int peer)
{
	uint64_t key = key_of(message, generation, message->rank->rank, peer);

	for (uint64_t i = 0; i < message->size; i++)
		message->data[i] = byte_of(key, i);
	message_put(message, peer);
	perf_rank_check(message->rank,
		m2n_exchange_flush(message->exchange, peer, M2N_TIMEOUT_DEFAULT),
		"m2n_exchange_flush");
}

static void check_get(struct message *message, unsigned generation, int peer)
{
	struct perf_rank *rank = message->rank;
	uint64_t key = key_of(message, generation, peer, rank->rank);
	const char *data = NULL;
	size_t bytes = 0;
	char text[128];

	perf_rank_check(rank,
		m2n_exchange_get(message->exchange, peer, M2N_TIMEOUT_DEFAULT, (const void **)&data,
			&bytes),
		"m2n_exchange_get");
	for (uint64_t i = 0; i < message->size; i++) {
		if (bytes == message->size && data[i] == byte_of(key, i))
			continue;
		snprintf(text, sizeof(text),
			"data check: wrong byte %llu of %llu from rank %d (%zu came)",
			(unsigned long long)i, (unsigned long long)message->size, peer, bytes);
		perf_rank_fail(rank, 0, text);
	}
	m2n_exchange_release(message->exchange, peer);
	page_rank(rank->page, (uint32_t)rank->rank)->verified++;
}

void message_check(struct message *message, unsigned generation)
{
	bool source = message->rank->source >= 0;

	perf_rank_barrier(message->rank);
	for (int peer = message->first_peer; source && peer < message->last_peer; peer++)
		check_put(message, generation, peer);
	for (int peer = message->first_peer; peer < message->last_peer; peer++)
		check_get(message, generation, peer);
	for (int peer = message->first_peer; !source && peer < message->last_peer; peer++)
		check_put(message, generation, peer);
	perf_rank_barrier(message->rank);
}
