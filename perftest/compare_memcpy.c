/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The yardstick of moe without a protocol, run by the same processes on the same cores. Dispatch:
 * each source copies the same rows to shared memory of the kind that channels use, as many slots
 * as the channel's depth, in a bare loop; then a flag, which the expert rank sees. Combine: each
 * expert rank copies the same output rows to the sink's side, a flag, and the sink reads the
 * replies of each token and writes one row, without arithmetic on values. Slots need no credits:
 * the ranks meet between phases anyway.
 */
#include "moe.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "mem/mem.h"
#include "order.h"
#include "stream.h"

struct flag {
	alignas(128) _Atomic uint64_t value;
};

/* In shared memory, before the slots. */
struct area {
	uint64_t slot_bytes;
	uint64_t replies_at;  /* in a slot: replies lie behind the rows */
	uint64_t slots_at;
};

struct moe_bounce {
	struct area *area;
	struct flag *flags;         /* [2, sources, experts] */
	uint64_t *first;            /* [sources, experts] first row of a pair in a slot */
	struct perf_order *orders;  /* [sources]; a source uses its own only */
	uint64_t *first_output;     /* [experts, sources] first row in the expert's outputs */
	uint32_t *owner;            /* [experts] expert rank */
	uint64_t n_steps;
	uint32_t variant;           /* of this step */
};

/* Rows of each (source, expert rank), of the variant that has most; returns their sum. */
static uint64_t place_pairs(const struct perf_routing *routing, uint64_t *first)
{
	uint64_t row = 0;

	for (uint32_t s = 0; s < routing->n_sources; s++) {
		for (uint32_t e = 0; e < routing->n_expert_ranks; e++) {
			uint64_t most = 0;
			for (uint32_t v = 0; v < routing->n_variants; v++) {
				uint64_t n = perf_routing_rows(routing, v, (int)s, (int)e);
				most = n > most ? n : most;
			}
			if (first != NULL)
				first[s * routing->n_expert_ranks + e] = row;
			row += most;
		}
	}
	return row;
}

static uint64_t align_page(uint64_t value)
{
	return (value + 4095) & ~UINT64_C(4095);
}

bool moe_bounce_map(struct perf_job *job)
{
	const struct perf_args *args = job->args;
	const struct perf_routing *routing = job->routing;
	uint64_t n_rows = place_pairs(routing, NULL);
	uint64_t n_pairs = (uint64_t)routing->n_sources * routing->n_expert_ranks;
	uint64_t slots_at =
		align_page(sizeof(struct area) + 2 * (n_pairs + 1) * sizeof(struct flag));
	uint64_t replies_at = align_page(n_rows * args->row_bytes);
	uint64_t slot_bytes = replies_at + align_page(n_rows * perf_out_row_bytes(args));
	uint64_t bytes = slots_at + args->depth * slot_bytes;

	if (m2n__mem_alloc(bytes, bytes, M2N__HUGE_TRY, &job->bounce_mem) != 0)
		return false;
	job->bounce = job->bounce_mem->base;
	*(struct area *)job->bounce = (struct area){slot_bytes, replies_at, slots_at};
	return true;
}

struct moe_bounce *moe_bounce_open(struct moe *moe)
{
	const struct perf_routing *routing = moe->routing;
	size_t n_pairs = (size_t)routing->n_sources * routing->n_expert_ranks;
	struct moe_bounce *bounce = calloc(1, sizeof(*bounce));

	if (bounce == NULL)
		goto no_memory;
	bounce->area = moe->rank->job->bounce;
	bounce->flags = (struct flag *)((char *)bounce->area + 128);
	bounce->first = calloc(n_pairs, sizeof(uint64_t));
	bounce->first_output =
		calloc(routing->n_sources * (size_t)routing->n_experts, sizeof(uint64_t));
	bounce->orders = calloc(routing->n_sources, sizeof(*bounce->orders));
	bounce->owner = calloc(routing->n_experts, sizeof(uint32_t));
	if (bounce->first == NULL || bounce->first_output == NULL || bounce->orders == NULL ||
		bounce->owner == NULL)
		goto no_memory;
	for (uint32_t e = 0; e < routing->n_experts; e++)
		bounce->owner[e] = perf_routing_owner(routing, (int32_t)e);
	for (uint32_t s = 0; s < routing->n_sources; s++)
		if (!perf_order_alloc(&bounce->orders[s], routing))
			goto no_memory;
	place_pairs(routing, bounce->first);
	return bounce;
no_memory:
	perf_rank_fail(moe->rank, 0, "memcpy yardstick: no memory");
}

void moe_bounce_close(const struct moe *moe)
{
	struct moe_bounce *bounce = moe->bounce;

	if (bounce == NULL)
		return;
	for (uint32_t s = 0; s < moe->routing->n_sources; s++)
		perf_order_free(&bounce->orders[s]);
	free(bounce->first);
	free(bounce->first_output);
	free(bounce->orders);
	free(bounce->owner);
	free(bounce);
}

static struct flag *flag_of(const struct moe *moe, bool reply, uint32_t source, uint32_t expert)
{
	const struct perf_routing *routing = moe->routing;
	size_t pair = (size_t)source * routing->n_expert_ranks + expert;

	return &moe->bounce->flags[pair +
		(reply ? (size_t)routing->n_sources * routing->n_expert_ranks : 0)];
}

/* Where the rows, or the replies, of a pair of ranks lie in this step's slot. */
static char *slot_of(const struct moe *moe, bool reply, uint32_t source, uint32_t expert)
{
	const struct moe_bounce *bounce = moe->bounce;
	uint64_t slot = bounce->n_steps % moe->args->depth;
	uint64_t row = bounce->first[source * moe->routing->n_expert_ranks + expert];
	char *base =
		(char *)bounce->area + bounce->area->slots_at + slot * bounce->area->slot_bytes;

	if (reply)
		return base + bounce->area->replies_at + row * moe->out_row_bytes;
	return base + row * moe->row_bytes;
}

static void raise_flag(const struct moe *moe, bool reply, uint32_t source, uint32_t expert)
{
	perf_stream_fence();
	atomic_store_explicit(&flag_of(moe, reply, source, expert)->value, moe->bounce->n_steps,
		memory_order_release);
}

static void wait_flag(const struct moe *moe, bool reply, uint32_t source, uint32_t expert)
{
	struct flag *flag = flag_of(moe, reply, source, expert);
	unsigned n_looks = 0;
	unsigned patience = moe->rank->page->spin_ns > 0 ? 20000 : 100;

	while (atomic_load_explicit(&flag->value, memory_order_acquire) != moe->bounce->n_steps) {
		perf_relax();
		if (++n_looks < patience)
			continue;
		if (atomic_load(&moe->rank->page->abort))
			_exit(3);
		sched_yield();
	}
}

static void send_rows(const struct moe *moe, bool nt)
{
	const struct perf_order *order = &moe->bounce->orders[moe->rank->source];
	uint32_t source = (uint32_t)moe->rank->source;
	uint32_t n = moe->routing->n_expert_ranks;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t expert = (source + i) % n;
		char *dst = slot_of(moe, false, source, expert);
		for (uint32_t row = order->rank_first[expert]; row < order->rank_first[expert + 1];
			row++) {
			perf_stream_copy(dst, moe->rows + order->row_token[row] * moe->row_bytes,
				moe->row_bytes, nt);
			dst += moe->row_bytes;
		}
		raise_flag(moe, false, source, expert);
	}
}

static void merge_replies(const struct moe *moe, bool nt)
{
	const struct perf_order *order = &moe->bounce->orders[moe->rank->source];
	const struct perf_routing *routing = moe->routing;
	uint32_t source = (uint32_t)moe->rank->source;
	uint32_t variant = moe->bounce->variant;
	const int32_t *ids = perf_routing_ids(routing, variant, source);
	uint32_t n_tokens = *perf_routing_tokens(routing, variant, source);
	const void *rows[64];

	for (uint32_t expert = 0; expert < routing->n_expert_ranks; expert++)
		wait_flag(moe, true, source, expert);
	for (uint32_t token = 0; token < n_tokens; token++) {
		unsigned n = 0;
		for (uint32_t k = 0; k < routing->top_k; k++) {
			size_t pair = (size_t)token * routing->top_k + k;
			if (ids[pair] < 0)
				continue;
			uint32_t expert = moe->bounce->owner[ids[pair]];
			uint32_t row = (uint32_t)order->pair_row[pair] - order->rank_first[expert];
			rows[n++] = slot_of(moe, true, source, expert) + row * moe->out_row_bytes;
		}
		perf_stream_merge(
			moe->out + token * moe->out_row_bytes, rows, n, moe->out_row_bytes, nt);
	}
	perf_stream_fence();
}

/* First output row of each (expert, source): outputs lie by expert, then source. */
static void place_outputs(const struct moe *moe)
{
	const struct perf_routing *routing = moe->routing;
	uint64_t row = 0;

	for (uint32_t e = 0; e < routing->n_experts; e++) {
		if (moe->bounce->owner[e] != (uint32_t)moe->rank->expert)
			continue;
		for (uint32_t s = 0; s < routing->n_sources; s++) {
			moe->bounce->first_output[(size_t)e * routing->n_sources + s] = row;
			row += moe->bounce->orders[s].expert_rows[e];
		}
	}
}

static void send_outputs(const struct moe *moe, bool nt)
{
	const struct perf_routing *routing = moe->routing;
	uint32_t rank = (uint32_t)moe->rank->expert;

	for (uint32_t i = 0; i < routing->n_sources; i++) {
		uint32_t source = (rank + i) % routing->n_sources;
		const struct perf_order *order = &moe->bounce->orders[source];
		char *dst = slot_of(moe, true, source, rank);
		for (uint32_t e = 0; e < routing->n_experts; e++) {
			if (moe->bounce->owner[e] != rank)
				continue;
			uint64_t from =
				moe->bounce->first_output[(size_t)e * routing->n_sources + source];
			size_t bytes = order->expert_rows[e] * moe->out_row_bytes;
			perf_stream_copy(dst, moe->outputs + from * moe->out_row_bytes, bytes, nt);
			dst += bytes;
		}
		raise_flag(moe, true, source, rank);
	}
}

static void source_step(struct moe *moe, unsigned series, int64_t iter)
{
	bool nt = moe->rank->job->kinds[series] == PERF_STREAM;

	perf_order_make(&moe->bounce->orders[moe->rank->source], moe->routing, moe->bounce->variant,
		(uint32_t)moe->rank->source);
	perf_rank_barrier(moe->rank);
	moe_stamp(moe, MOE_DISPATCH, series, iter)->start = perf_now();
	send_rows(moe, nt);
	perf_rank_barrier(moe->rank);
	merge_replies(moe, nt);
	moe_stamp(moe, MOE_COMBINE, series, iter)->end = perf_now();
}

static void expert_step(struct moe *moe, unsigned series, int64_t iter)
{
	uint32_t n_sources = moe->routing->n_sources;

	for (uint32_t s = 0; s < n_sources; s++)
		perf_order_make(&moe->bounce->orders[s], moe->routing, moe->bounce->variant, s);
	place_outputs(moe);
	perf_rank_barrier(moe->rank);
	for (uint32_t s = 0; s < n_sources; s++)
		wait_flag(moe, false, s, (uint32_t)moe->rank->expert);
	moe_stamp(moe, MOE_DISPATCH, series, iter)->end = perf_now();
	perf_rank_barrier(moe->rank);
	moe_stamp(moe, MOE_COMBINE, series, iter)->start = perf_now();
	send_outputs(moe, moe->rank->job->kinds[series] == PERF_STREAM);
}

void moe_bounce_step(struct moe *moe, unsigned series, int64_t iter)
{
	moe->bounce->n_steps++;
	moe->bounce->variant = moe_variant(moe, iter);
	if (moe->rank->source >= 0)
		source_step(moe, series, iter);
	else
		expert_step(moe, series, iter);
}
