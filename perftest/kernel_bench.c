/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel benchmark: a pass walks the source rows once, the tables and the yardstick take
 * turns of several passes, and the median pass of a turn counts. Turns do not mix: a
 * non-temporal store to a line that someone left dirty in a cache costs three times as much.
 */
#include "kernel_bench.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernel/kernel.h"
#include "util/time.h"

#define FAN 8 /* destinations of a row, rows of a sum */
#define N_SLOTS 3
#define MAX_ROW_BYTES 14336 /* hidden size 7168 in bf16 */
#define SOURCE_BYTES (128 * MAX_ROW_BYTES) /* 1.8 MB */
#define SLOT_BYTES (FAN * SOURCE_BYTES) /* 14.7 MB */
#define HUGE_PAGE (2u << 20)
#define MAX_TABLES 8
#define HOT_CALLS 512
#define WARM_PASSES 15
#define WARM_NS 40000000

struct bench {
	const struct m2n__kernels *table; /* NULL in the yardstick's turn */
	size_t row_bytes;
	unsigned n_rows; /* source rows of a pass */
	unsigned slot;
	uint8_t *source; /* [n_rows] rows */
	uint8_t *slots; /* [N_SLOTS][FAN][n_rows] rows */
	uint8_t *out; /* [n_rows] rows */
	volatile float sum; /* keeps reads alive */
};

struct kernel_bench {
	const char *name;
	void (*pass)(struct bench *b); /* n_rows calls, or HOT_CALLS where they are hot */
	unsigned n;
	int is_hot;
	unsigned moved_quarters; /* bytes that count, in quarters of a row */
};

static uint8_t *slot_row(const struct bench *b, unsigned k, unsigned row)
{
	/* Neighbours in the source are not neighbours in the slot: experts order the rows. */
	unsigned place = (row * 37 + k * 11) % b->n_rows;

	return b->slots + (size_t)b->slot * SLOT_BYTES +
	       ((size_t)k * b->n_rows + place) * b->row_bytes;
}

static uint8_t *source_row(const struct bench *b, unsigned row)
{
	return b->source + row * b->row_bytes;
}

static uint8_t *out_row(const struct bench *b, unsigned row)
{
	return b->out + row * b->row_bytes;
}

static uint64_t read_row(const uint8_t *row, size_t bytes)
{
	uint64_t any[8] = {0}, words[8];

	for (; bytes >= sizeof(words); bytes -= sizeof(words), row += sizeof(words)) {
		memcpy(words, row, sizeof(words));
		for (unsigned i = 0; i < 8; i++)
			any[i] |= words[i];
	}
	return any[0] | any[1] | any[2] | any[3] | any[4] | any[5] | any[6] | any[7];
}

/* The bare loop: reads the rows that a pass reads, writes as many bytes as it writes. */
static void bare_pass(struct bench *b, unsigned n_read, size_t read_bytes, size_t write_bytes)
{
	const struct m2n__kernels *fastest = m2n__kernels_select(NULL);

	for (unsigned row = 0; row < b->n_rows; row++) {
		uint64_t any = 0;

		for (unsigned k = 0; k < n_read; k++)
			any |= read_row(slot_row(b, k, row), read_bytes);
		b->sum = (float)any;
		if (write_bytes)
			fastest->stream(out_row(b, row), source_row(b, 0), write_bytes);
	}
	fastest->fence();
}

static void copy_pass(struct bench *b)
{
	for (unsigned i = 0; i < HOT_CALLS; i++) {
		if (b->table)
			b->table->copy(b->out, b->source, b->row_bytes);
		else
			memcpy(b->out, b->source, b->row_bytes);
		__asm__ __volatile__("" ::: "memory");
	}
}

static void stream_pass(struct bench *b)
{
	for (unsigned row = 0; row < b->n_rows; row++) {
		for (unsigned k = 0; k < FAN; k++) {
			if (b->table)
				b->table->stream(
					slot_row(b, k, row), source_row(b, row), b->row_bytes);
			else
				memcpy(slot_row(b, k, row), source_row(b, row), b->row_bytes);
		}
	}
	if (b->table)
		b->table->fence();
}

static void scatter_pass(struct bench *b)
{
	if (!b->table) {
		stream_pass(b);
		return;
	}
	for (unsigned row = 0; row < b->n_rows; row++) {
		void *dst[FAN];

		for (unsigned k = 0; k < FAN; k++)
			dst[k] = slot_row(b, k, row);
		b->table->scatter(dst, FAN, source_row(b, row), b->row_bytes);
	}
	b->table->fence();
}

static void wsum_pass(struct bench *b, enum m2n_dtype dtype)
{
	static const float w[FAN] = {0.3f, 0.2f, 0.1f, 0.1f, 0.1f, 0.1f, 0.05f, 0.05f};

	if (!b->table) {
		bare_pass(b, FAN, b->row_bytes, b->row_bytes);
		return;
	}
	for (unsigned row = 0; row < b->n_rows; row++) {
		const void *x[FAN];

		for (unsigned k = 0; k < FAN; k++)
			x[k] = slot_row(b, k, row);
		b->table->wsum[dtype](out_row(b, row), NULL, x, w, FAN,
			b->row_bytes / m2n__dtype_bytes(dtype), 1);
	}
	b->table->fence();
}

static void wsum_f32_pass(struct bench *b)
{
	wsum_pass(b, M2N_DTYPE_F32);
}

static void wsum_bf16_pass(struct bench *b)
{
	wsum_pass(b, M2N_DTYPE_BF16);
}

static void wsum_f16_pass(struct bench *b)
{
	wsum_pass(b, M2N_DTYPE_F16);
}

static void scale_pass(struct bench *b)
{
	if (!b->table) {
		bare_pass(b, 1, b->row_bytes, b->row_bytes);
		return;
	}
	for (unsigned row = 0; row < b->n_rows; row++)
		b->table->scale[M2N_DTYPE_BF16](
			out_row(b, row), slot_row(b, 0, row), 0.3f, b->row_bytes / 2);
}

static void dot_pass(struct bench *b)
{
	if (!b->table) {
		bare_pass(b, 2, b->row_bytes, 0);
		return;
	}
	for (unsigned row = 0; row < b->n_rows; row++)
		b->sum = b->table->dot[M2N_DTYPE_BF16](
			slot_row(b, 0, row), slot_row(b, 1, row), b->row_bytes / 2);
}

static void cast_pass(struct bench *b)
{
	float scales[MAX_ROW_BYTES / 2 / M2N__FP8_BLOCK + 1];

	if (!b->table) {
		bare_pass(b, 1, b->row_bytes, b->row_bytes / 2);
		return;
	}
	for (unsigned row = 0; row < b->n_rows; row++)
		b->table->cast_fp8(out_row(b, row), scales, (const void *)slot_row(b, 0, row),
			b->row_bytes / 2);
}

static void uncast_pass(struct bench *b)
{
	static const float scales[MAX_ROW_BYTES / 2 / M2N__FP8_BLOCK + 1] = {1.0f};

	if (!b->table) {
		bare_pass(b, 1, b->row_bytes / 2, b->row_bytes);
		return;
	}
	for (unsigned row = 0; row < b->n_rows; row++)
		b->table->uncast_fp8(
			(void *)out_row(b, row), slot_row(b, 0, row), scales, b->row_bytes / 2);
}

static const struct kernel_bench kernels[] = {
	{"copy", copy_pass, 1, 1, 4},
	{"stream", stream_pass, 1, 0, 4},
	{"scatter", scatter_pass, FAN, 0, 4 * FAN},
	{"wsum f32", wsum_f32_pass, FAN, 0, 4 * (FAN + 1)},
	{"wsum bf16", wsum_bf16_pass, FAN, 0, 4 * (FAN + 1)},
	{"wsum f16", wsum_f16_pass, FAN, 0, 4 * (FAN + 1)},
	{"scale bf16", scale_pass, 1, 0, 8},
	{"dot bf16", dot_pass, 1, 0, 8},
	{"cast fp8", cast_pass, 1, 0, 6},
	{"uncast fp8", uncast_pass, 1, 0, 6},
};

static int compare_times(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/* What one kernel and row size is measured with: turns is the tables, then NULL, the yardstick. */
struct run {
	const struct m2n__kernels *turns[MAX_TABLES + 1];
	unsigned n_turns;
	unsigned iterations;
	int64_t *times; /* [n_turns][iterations] */
	void (*emit)(void *arg, const struct kernel_case *c);
	void *arg;
};

static double median(int64_t *times, unsigned n)
{
	qsort(times, n, sizeof(*times), compare_times);
	return (double)times[n / 2];
}

static void emit_cases(const struct kernel_bench *kernel, const struct bench *b, struct run *run)
{
	double ns[MAX_TABLES + 1], calls = kernel->is_hot ? HOT_CALLS : b->n_rows;

	if (kernel->pass == stream_pass)
		calls *= FAN;
	for (unsigned t = 0; t < run->n_turns; t++)
		ns[t] = median(run->times + (size_t)t * run->iterations, run->iterations) / calls;
	for (unsigned t = 0; t + 1 < run->n_turns; t++) {
		struct kernel_case c = {
			.kernel = kernel->name,
			.table = run->turns[t]->name,
			.row_bytes = b->row_bytes,
			.n = kernel->n,
			.ns = ns[t],
			.gbps = (double)b->row_bytes * kernel->moved_quarters / 4 / ns[t],
			.ratio = ns[run->n_turns - 1] / ns[t],
			.ratio_scalar = ns[0] / ns[t],
		};

		run->emit(run->arg, &c);
	}
}

/*
 * Passes of one turn follow each other, after some that leave the caches as this turn leaves
 * them: the last level takes several rounds to adapt, slow kernels need not wait for it.
 */
static void time_turn(
	const struct kernel_bench *kernel, struct bench *b, int64_t *times, unsigned n)
{
	int64_t begin = m2n__now_ns();
	unsigned pass = 0;

	do {
		b->slot = pass++ % N_SLOTS;
		kernel->pass(b);
	} while (pass < N_SLOTS || (pass < WARM_PASSES && m2n__now_ns() - begin < WARM_NS));
	for (unsigned i = 0; i < n; i++) {
		b->slot = pass++ % N_SLOTS;
		begin = m2n__now_ns();
		kernel->pass(b);
		times[i] = m2n__now_ns() - begin;
	}
}

static void time_kernel(const struct kernel_bench *kernel, struct bench *b, struct run *run)
{
	for (unsigned t = 0; t < run->n_turns; t++) {
		b->table = run->turns[t];
		time_turn(kernel, b, run->times + (size_t)t * run->iterations, run->iterations);
	}
	emit_cases(kernel, b, run);
}

static void time_all(struct bench *b, struct run *run)
{
	static const size_t row_bytes[] = {64, 256, 1024, 4096, MAX_ROW_BYTES};

	for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
		for (size_t j = 0; j < sizeof(row_bytes) / sizeof(row_bytes[0]); j++) {
			b->row_bytes = row_bytes[j];
			b->n_rows = (unsigned)(SOURCE_BYTES / row_bytes[j]);
			time_kernel(&kernels[i], b, run);
		}
	}
}

int kernel_bench_run(
	void (*emit)(void *arg, const struct kernel_case *c), void *arg, int iterations)
{
	struct run run = {.emit = emit, .arg = arg, .iterations = iterations > 0 ? iterations : 1};
	size_t size = (size_t)N_SLOTS * SLOT_BYTES + 2 * SOURCE_BYTES;
	const struct m2n__kernels *table;
	struct bench b = {0};
	int usable;

	size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
	b.slots = aligned_alloc(HUGE_PAGE, size);
	run.times = malloc(sizeof(*run.times) * (MAX_TABLES + 1) * run.iterations);
	if (!b.slots || !run.times) {
		free(b.slots);
		free(run.times);
		return -ENOMEM;
	}
	(void)madvise(b.slots, size, MADV_HUGEPAGE); /* where there are none, small ones do */
	memset(b.slots, 0x3c, size); /* ordinary numbers in every format */
	b.source = b.slots + (size_t)N_SLOTS * SLOT_BYTES;
	b.out = b.source + SOURCE_BYTES;
	for (unsigned i = 0; (table = m2n__kernels_at(i, &usable)) && run.n_turns < MAX_TABLES; i++)
		if (usable)
			run.turns[run.n_turns++] = table;
	run.n_turns++;
	time_all(&b, &run);
	free(b.slots);
	free(run.times);
	return 0;
}
