/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The yardstick of bw and lat without a protocol, between the same two processes: up to 64 bytes
 * are one cache line that holds data and flag, larger messages are copied to a slot in shared
 * memory and a flag line is written behind. Memory is of the kind that exchanges use.
 */
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "mem/mem.h"
#include "message.h"
#include "stream.h"

#define LINE_BYTES 64

struct line {
	alignas(128) _Atomic uint64_t number;
	char data[LINE_BYTES - sizeof(uint64_t)];
};

/* What one process writes for the other. */
struct box {
	struct line lines[64]; /* by slot */
	struct line taken;     /* how many messages the *owner* of the box took */
};

struct area {
	struct box boxes[2];   /* by writer: the source, the expert rank */
	uint64_t slot_bytes;
	uint64_t slots_at;
};

bool bare_map(struct perf_job *job)
{
	uint64_t slot_bytes = (job->args->size_max + 4095) & ~UINT64_C(4095);
	uint64_t slots_at = (sizeof(struct area) + 4095) & ~UINT64_C(4095);
	uint64_t bytes = slots_at + 2 * job->args->depth * slot_bytes;

	if (m2n__mem_alloc(bytes, bytes, M2N__HUGE_TRY, &job->bounce_mem) != 0)
		return false;
	struct area *area = job->bounce_mem->base;
	area->slot_bytes = slot_bytes;
	area->slots_at = slots_at;
	job->bounce = area;
	return true;
}

static char *slot_of(struct message *message, int writer, uint64_t number)
{
	struct area *area = message->rank->job->bounce;
	uint64_t depth = message->rank->args->depth;

	return (char *)area + area->slots_at +
		((uint64_t)writer * depth + number % depth) * area->slot_bytes;
}

static void wait_for(struct message *message, _Atomic uint64_t *word, uint64_t value)
{
	unsigned patience = message->rank->page->spin_ns > 0 ? 100000 : 100;
	unsigned n_looks = 0;

	while (atomic_load_explicit(word, memory_order_acquire) < value) {
		if (++n_looks < patience)
			continue;
		if (atomic_load(&message->rank->page->abort))
			_exit(3);
		sched_yield();
	}
}

void bare_put(struct message *message, bool nt)
{
	struct area *area = message->rank->job->bounce;
	int me = message->rank->source >= 0 ? 0 : 1;
	uint64_t number = message->n_sent++;
	struct line *line = &area->boxes[me].lines[number % message->rank->args->depth];

	if (message->size <= LINE_BYTES) {
		size_t n = message->size < sizeof(line->data) ? message->size : sizeof(line->data);
		memcpy(line->data, message->data, n);
	} else {
		perf_stream_copy(slot_of(message, me, number), message->data, message->size, nt);
		if (nt)
			perf_stream_fence();
	}
	atomic_store_explicit(&line->number, number + 1, memory_order_release);
}

void bare_get(struct message *message)
{
	struct area *area = message->rank->job->bounce;
	int other = message->rank->source >= 0 ? 1 : 0;
	uint64_t number = message->n_received++;
	struct line *line = &area->boxes[other].lines[number % message->rank->args->depth];

	wait_for(message, &line->number, number + 1);
	if (message->size <= LINE_BYTES)
		message_touch(line->data, 1);
	else
		message_touch(slot_of(message, other, number), message->size);
	if (message->credits)
		atomic_store_explicit(
			&area->boxes[1 - other].taken.number, number + 1, memory_order_release);
}

void bare_wait_credit(struct message *message)
{
	struct area *area = message->rank->job->bounce;
	int other = message->rank->source >= 0 ? 1 : 0;
	uint64_t depth = message->rank->args->depth;

	if (message->n_sent >= depth)
		wait_for(message, &area->boxes[other].taken.number, message->n_sent - depth + 1);
}
