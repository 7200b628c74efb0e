/* SPDX-License-Identifier: Apache-2.0 */
/*
 * m2n_perf_mpi: MPI_Alltoallv as a yardstick of moe. All M + N ranks are one communicator.
 * Dispatch: sources pack their rows by expert rank, all exchange, expert ranks unpack them to
 * expert-major order; with one source they arrive so, and nothing is unpacked. Combine: the
 * reverse, and the sinks sum the replies with the library's own kernel. Row counts are known to
 * both sides beforehand; MPI is not charged for telling them. Started by m2n_perf, and not of
 * use alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <mpi.h>

#include "compare_mpi.h"
#include "kernel/kernel.h"
#include "order.h"

/* One direction as MPI_Alltoallv() wants it, in rows. */
struct lists {
	int *counts, *offsets;
};

struct yardstick {
	struct page *page;
	const struct mpi_task *task;
	const struct perf_routing *routing;
	int rank, n_ranks, n_sources;
	int source, expert;          /* index, or -1 */
	uint32_t variant;
	struct perf_order *orders;   /* [sources] */
	struct lists
		forth; /* rows by peer: sent in dispatch and received in combine, or the reverse */
	struct lists none;
	MPI_Datatype row, out_row;
	char *rows, *out;            /* source: tokens, sums */
	char *sends;                 /* packed: rows by expert rank, or outputs by source */
	char *received;              /* of this round: one of `slots` */
	char *batch;                 /* expert: rows, or outputs, by expert */
	char *slots;                 /* [depth, slot_bytes] */
	uint64_t slot_bytes, n_rounds;
};

static void __attribute__((noreturn)) give_up(struct yardstick *y, const char *what)
{
	page_fail(y->page, PAGE_MPI_RANK + y->rank, "%s", what);
	_exit(1);
}

static void *allocate(struct yardstick *y, size_t bytes)
{
	void *base = NULL;

	if (posix_memalign(&base, 4096, bytes + 4096) != 0)
		give_up(y, "no memory");
	memset(base, 0, bytes + 4096);
	return base;
}

static void allocate_lists(struct yardstick *y, struct lists *lists)
{
	lists->counts = allocate(y, (size_t)y->n_ranks * sizeof(int));
	lists->offsets = allocate(y, (size_t)y->n_ranks * sizeof(int));
}

static uint64_t most_rows(const struct yardstick *y, int source, int expert)
{
	uint64_t most = 0;

	for (uint32_t v = 0; v < y->routing->n_variants; v++) {
		uint64_t n = perf_routing_rows(y->routing, v, source, expert);
		most = n > most ? n : most;
	}
	return most;
}

static void open_buffers(struct yardstick *y)
{
	uint64_t row_bytes = y->task->row_bytes, out_row_bytes = y->task->out_row_bytes;
	uint64_t n_rows = most_rows(y, y->source, y->expert);
	uint64_t larger = row_bytes > out_row_bytes ? row_bytes : out_row_bytes;

	y->sends = allocate(y, n_rows * (y->source >= 0 ? row_bytes : out_row_bytes));
	y->slot_bytes = n_rows * (y->source >= 0 ? out_row_bytes : row_bytes);
	y->slot_bytes = (y->slot_bytes + 4095) & ~UINT64_C(4095);
	y->slots = allocate(y, y->task->depth * y->slot_bytes);
	if (y->source >= 0) {
		y->rows = allocate(y, y->routing->max_tokens * row_bytes);
		y->out = allocate(y, y->routing->max_tokens * out_row_bytes);
	} else {
		y->batch = allocate(y, n_rows * larger);
	}
	y->orders = allocate(y, (size_t)y->n_sources * sizeof(*y->orders));
	for (int s = 0; s < y->n_sources; s++)
		if (!perf_order_alloc(&y->orders[s], y->routing))
			give_up(y, "no memory");
	allocate_lists(y, &y->forth);
	allocate_lists(y, &y->none);
	MPI_Type_contiguous((int)row_bytes, MPI_BYTE, &y->row);
	MPI_Type_contiguous((int)out_row_bytes, MPI_BYTE, &y->out_row);
	MPI_Type_commit(&y->row);
	MPI_Type_commit(&y->out_row);
	/* Rows that say whose they are, for check_batch(). */
	for (uint32_t t = 0; y->source >= 0 && t < y->routing->max_tokens && row_bytes >= 8; t++)
		memcpy(y->rows + t * row_bytes, (uint32_t[]){(uint32_t)y->source, t}, 8);
}

static uint32_t n_rows_of(const struct yardstick *y, int source, int expert)
{
	const uint32_t *first = y->orders[source].rank_first;

	return first[expert + 1] - first[expert];
}

/* Counts and offsets of this round, which the library's plan has too before a round begins. */
static void plan(struct yardstick *y)
{
	int at = 0;

	for (int s = 0; s < y->n_sources; s++)
		if (y->source < 0 || s == y->source)
			perf_order_make(&y->orders[s], y->routing, y->variant, (uint32_t)s);
	for (int peer = 0; peer < y->n_ranks; peer++) {
		int n = 0;
		if (y->source >= 0 && peer >= y->n_sources)
			n = (int)n_rows_of(y, y->source, peer - y->n_sources);
		if (y->source < 0 && peer < y->n_sources)
			n = (int)n_rows_of(y, peer, y->expert);
		y->forth.counts[peer] = n;
		y->forth.offsets[peer] = at;
		at += n;
	}
}

static void pack_rows(const struct yardstick *y)
{
	const struct perf_order *order = &y->orders[y->source];
	size_t bytes = y->task->row_bytes;

	for (uint32_t row = 0; row < order->n_rows; row++)
		memcpy(y->sends + row * bytes, y->rows + order->row_token[row] * bytes, bytes);
}

/* Between [source][expert][rows] as it travels and [expert][source][rows] as experts want it. */
static void reorder(
	const struct yardstick *y, char *travels, char *batch, size_t bytes, bool unpack)
{
	size_t at_batch = 0;

	for (uint32_t e = 0; e < y->routing->n_experts; e++) {
		if (perf_routing_owner(y->routing, (int32_t)e) != (uint32_t)y->expert)
			continue;
		for (int s = 0; s < y->n_sources; s++) {
			const struct perf_order *order = &y->orders[s];
			/* order->next is behind the expert's last row, counted from the source. */
			size_t at = order->next[e] - order->expert_rows[e] -
				order->rank_first[y->expert] + (size_t)y->forth.offsets[s];
			size_t n = order->expert_rows[e] * bytes;
			memcpy(unpack ? batch + at_batch : travels + at * bytes,
				unpack ? travels + at * bytes : batch + at_batch, n);
			at_batch += n;
		}
	}
}

static void exchange(struct yardstick *y, char *sends, char *receives, bool dispatch)
{
	bool sender = dispatch == (y->source >= 0);
	struct lists *send = sender ? &y->forth : &y->none;
	struct lists *receive = sender ? &y->none : &y->forth;
	MPI_Datatype type = dispatch ? y->row : y->out_row;

	MPI_Alltoallv(sends, send->counts, send->offsets, type, receives, receive->counts,
		receive->offsets, type, MPI_COMM_WORLD);
}

static void sum_replies(struct yardstick *y)
{
	static const struct m2n__kernels *kernels;
	const struct perf_order *order = &y->orders[y->source];
	uint32_t source = (uint32_t)y->source, top_k = y->routing->top_k;
	const int32_t *ids = perf_routing_ids(y->routing, y->variant, source);
	const float *weights = perf_routing_weights(y->routing, y->variant, source);
	uint32_t n_tokens = *perf_routing_tokens(y->routing, y->variant, source);
	size_t bytes = y->task->out_row_bytes;
	size_t n_values = bytes / (y->task->dtype == M2N_DTYPE_F32 ? 4 : 2);

	if (kernels == NULL)
		kernels = m2n__kernels_select(NULL);
	for (uint32_t token = 0; token < n_tokens; token++) {
		const void *rows[64];
		float w[64];
		unsigned n = 0;
		for (uint32_t k = 0; k < top_k; k++) {
			size_t pair = (size_t)token * top_k + k;
			if (ids[pair] < 0)
				continue;
			w[n] = weights[pair];
			rows[n++] = y->received + (size_t)order->pair_row[pair] * bytes;
		}
		kernels->wsum[y->task->dtype](
			y->out + token * bytes, NULL, rows, w, n, n_values, 1);
	}
	kernels->fence();
}

/* What the expert rank got is what the routing says, in expert-major order. */
static void check_batch(struct yardstick *y, const char *batch)
{
	size_t bytes = y->task->row_bytes;
	size_t row = 0;

	for (uint32_t e = 0; e < y->routing->n_experts && bytes >= 8; e++) {
		if (perf_routing_owner(y->routing, (int32_t)e) != (uint32_t)y->expert)
			continue;
		for (uint32_t s = 0; s < (uint32_t)y->n_sources; s++) {
			const struct perf_order *order = &y->orders[s];
			for (uint32_t i = 0; i < order->expert_rows[e]; i++, row++) {
				uint32_t at = order->next[e] - order->expert_rows[e] + i;
				uint32_t want[2] = {s, order->row_token[at]};
				if (memcmp(batch + row * bytes, want, 8) != 0)
					give_up(y, "data check: wrong row");
			}
		}
	}
}

static struct page_stamp *stamp_of(struct yardstick *y, uint32_t n_case, int64_t iter)
{
	static struct page_stamp spare;

	if (iter < 0)
		return &spare;
	return page_stamps(y->page, (uint32_t)y->rank, y->task->first_case + n_case,
		       y->task->series) +
		iter;
}

static void meet(struct yardstick *y)
{
	if (!page_barrier(y->page, PAGE_MPI, (uint32_t)y->n_ranks))
		_exit(3);
}

static void source_round(struct yardstick *y, int64_t iter)
{
	meet(y);
	stamp_of(y, 0, iter)->start = perf_now();
	pack_rows(y);
	exchange(y, y->sends, NULL, true);
	meet(y);
	exchange(y, NULL, y->received, false);
	sum_replies(y);
	stamp_of(y, 1, iter)->end = perf_now();
}

static void expert_round(struct yardstick *y, int64_t iter)
{
	bool alone = y->n_sources == 1;

	meet(y);
	exchange(y, NULL, y->received, true);
	if (!alone)
		reorder(y, y->received, y->batch, y->task->row_bytes, true);
	stamp_of(y, 0, iter)->end = perf_now();
	if (iter < 0)
		check_batch(y, alone ? y->received : y->batch);
	meet(y);
	stamp_of(y, 1, iter)->start = perf_now();
	if (!alone)
		reorder(y, y->sends, y->batch, y->task->out_row_bytes, false);
	exchange(y, alone ? y->batch : y->sends, NULL, false);
}

static void run_round(struct yardstick *y, int64_t iter)
{
	y->variant = (uint32_t)((uint64_t)(iter < 0 ? -1 - iter : iter) % y->routing->n_variants);
	y->received = y->slots + y->n_rounds++ % y->task->depth * y->slot_bytes;
	plan(y);
	if (y->source >= 0)
		source_round(y, iter);
	else
		expert_round(y, iter);
}

static void run(struct yardstick *y)
{
	const struct mpi_task *task = y->task;

	if (y->rank == 0)
		page_post(&y->page->mpi_ready, 1);
	for (uint64_t rep = 0; rep < task->n_reps; rep++) {
		if (!page_wait(y->page, &y->page->mpi_open, (uint32_t)rep + 1))
			_exit(3);
		int64_t first = (int64_t)(task->n_iters * rep / task->n_reps);
		int64_t last = (int64_t)(task->n_iters * (rep + 1) / task->n_reps);
		uint64_t n_warmup = PERF_SETTLE + (rep == 0 ? task->n_warmup : 0);
		for (uint64_t i = 0; i < n_warmup; i++)
			run_round(y, -1 - (int64_t)i);
		for (int64_t i = first; i < last; i++)
			run_round(y, i);
		meet(y);
		if (y->rank == 0)
			page_post(&y->page->mpi_done, (uint32_t)rep + 1);
	}
}

int main(int argc, char **argv)
{
	struct yardstick y = {.page = argc == 2 ? page_map(argv[1]) : NULL};

	if (y.page == NULL) {
		fprintf(stderr, "m2n_perf_mpi: started by m2n_perf --compare mpi, not by hand\n");
		return 2;
	}
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &y.rank);
	MPI_Comm_size(MPI_COMM_WORLD, &y.n_ranks);
	y.task = page_extra(y.page);
	y.routing = (const struct perf_routing *)y.task->routing;
	y.n_sources = (int)y.task->n_sources;
	y.source = y.rank < y.n_sources ? y.rank : -1;
	y.expert = y.rank < y.n_sources ? -1 : y.rank - y.n_sources;
	if (!y.task->no_pin)
		perf_pin((unsigned)y.rank);
	open_buffers(&y);
	MPI_Barrier(MPI_COMM_WORLD);
	run(&y);
	MPI_Finalize();
	/* Buffers, and what MPI itself leaves, go with the process. */
	_exit(0);
}
