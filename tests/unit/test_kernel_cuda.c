/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA kernels of a round, a whole M:N job at a time: what lies in every batch, what comes
 * out of every sum, against host plans and the scalar kernels, bit for bit. On a CUDA device where
 * there is one, else on the emulation. Plans have a test of their own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "doubles/device_launch.h"
#include "doubles/device_run.h"
#include "gpu_world.h"

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define MAX_ROW 8192
#define TOP_K_MOST 64

static struct world world;
static const struct m2n__kernels *scalar;

static const uint32_t *words(uint64_t at)
{
	return (const uint32_t *)(uintptr_t)at;
}

static uint8_t *bytes(uint64_t at)
{
	return (uint8_t *)(uintptr_t)at;
}

static void check_bytes(const char *what, const uint8_t *got, const uint8_t *want, size_t n,
	uint32_t a, uint32_t b)
{
	for (size_t i = 0; i < n; i++)
		if (got[i] != want[i])
			fail_msg("%s: %s (%u, %u): byte %zu of %zu is %02x, not %02x", world.c.name,
				what, a, b, i, n, got[i], want[i]);
}

/* ---- what must come out -------------------------------------------------------------------- */

/* The travelling bytes of a source's row. */
static void expect_row(const struct source *s, uint32_t row, uint8_t *bytes_out, uint8_t *scales)
{
	const struct config *c = &world.c;
	uint32_t token = s->host->row_token[row], pair = s->host->row_pair[row];
	const uint8_t *given = s->rows + token * s->row_stride;

	if (c->cast) {
		static uint16_t values[MAX_ROW];

		memcpy(values, given, 2 * c->row_bytes);
		scalar->cast_fp8(bytes_out, (float *)(void *)scales, values, c->row_bytes);
		return;
	}
	memcpy(scales, s->scales + token * s->scale_stride, c->scale_bytes);
	memcpy(bytes_out, given, c->row_bytes);
	if (c->with_row_weights)
		scalar->scale[c->dtype](bytes_out, given, s->row_weights[pair],
			c->row_bytes / m2n__dtype_bytes(c->dtype));
}

/* One cell: the batch's rows, and which output each of the source's rows gets. */
static uint32_t check_cell(const struct rank *r, struct source *s, uint32_t instance,
	uint32_t first, uint32_t batch_row)
{
	static uint8_t row[MAX_ROW];
	static _Alignas(16) uint8_t scales[MAX_ROW];
	uint32_t n = s->host->count[instance];

	for (uint32_t i = 0; i < n; i++, batch_row++) {
		expect_row(s, first + i, row, scales);
		check_bytes("row of a batch", bytes(r->batch.rows) + batch_row * world.c.row_bytes,
			row, world.c.row_bytes, batch_row, first + i);
		check_bytes("scales of a batch",
			bytes(r->batch.scales) + batch_row * world.c.scale_bytes, scales,
			world.c.scale_bytes, batch_row, first + i);
		s->out_row[first + i] = r->out_rows + batch_row * r->out_stride;
		world_fill(world.c.dtype, r->out_rows + batch_row * r->out_stride,
			world.shape.n_values);
	}
	return n;
}

/* First row of an instance in a source's plan. */
static uint32_t first_row(const struct source *s, uint32_t instance)
{
	uint32_t row = 0;

	for (uint32_t i = 0; i < instance; i++)
		row += s->host->count[i];
	return row;
}

static void check_batch(uint32_t j)
{
	struct rank *r = &world.rank[j];
	uint32_t first = world.host_map->rank_first[j], row = 0, n_sources = world.c.n_sources;

	for (uint32_t e = 0; e < r->n_local; e++) {
		assert_int_equal(words(r->batch.expert_first)[e], row);
		for (uint32_t s = 0; s < n_sources; s++) {
			struct source *source = &world.source[s];
			uint32_t cell = e * n_sources + s, n;

			assert_int_equal(words(r->batch.cell_first)[cell], row);
			n = check_cell(r, source, first + e, first_row(source, first + e), row);
			assert_int_equal(words(r->batch.cell_rows)[cell], n);
			assert_int_equal(r->mirror->cell_rows[cell], n);
			assert_int_equal(words(r->batch.cell_source)[cell],
				first_row(source, first + e) - source->host->rank_first[j]);
			row += n;
		}
		assert_int_equal(words(r->batch.expert_rows)[e],
			row - words(r->batch.expert_first)[e]);
	}
	assert_int_equal(r->mirror->n_rows, row);
	assert_int_equal(r->mirror->code, 0);
	assert_int_equal(words(r->batch.expert_first)[r->n_local], row);
}

/* reduce_at_expert: the reply of the rank that pair p of the plan is the first of. */
static void expect_partial(const struct source *s, uint32_t p, uint8_t *out)
{
	const struct m2n_plan *plan = s->host;
	uint32_t rank = plan->pair_rank[p], token = p / world.c.top_k, n = 0;
	const void *rows[TOP_K_MOST];
	float weights[TOP_K_MOST];

	for (uint32_t r = plan->rank_first[rank]; r < plan->rank_first[rank + 1]; r++) {
		if (plan->row_token[r] != token)
			continue;
		rows[n] = s->out_row[r];
		weights[n++] = plan->weight[plan->row_pair[r]];
	}
	scalar->wsum[world.c.dtype](out, NULL, rows, weights, n, world.shape.n_values, 0);
}

static float weight_of(const struct source *s, uint32_t p)
{
	if (world.c.with_unit_weights || world.c.reduce_at_expert)
		return 1;
	return s->host->weight[p];
}

static void check_token(const struct source *s, uint32_t token)
{
	static uint8_t partial[TOP_K_MOST][MAX_ROW], out[MAX_ROW];
	const struct config *c = &world.c;
	const void *rows[TOP_K_MOST];
	float weights[TOP_K_MOST];
	uint32_t n = 0;

	for (uint32_t k = 0; k < c->top_k; k++) {
		uint32_t p = token * c->top_k + k;
		const uint8_t *reply = s->replies + p * c->out_row_bytes;
		int32_t row = s->host->pair_row[p];
		static const uint8_t zeros[MAX_ROW];

		if (c->with_replies)
			check_bytes("reply", reply, row < 0 ? zeros : s->out_row[row],
				c->out_row_bytes, token, k);
		if (s->host->pair_reply[p] < 0)
			continue;
		if (c->reduce_at_expert)
			expect_partial(s, p, partial[n]);
		rows[n] = c->reduce_at_expert ? partial[n] : s->out_row[row];
		weights[n++] = weight_of(s, p);
	}
	scalar->wsum[c->dtype](out, c->with_residual ? s->residual + token * s->out_stride : NULL,
		rows, weights, n, world.shape.n_values, 0);
	check_bytes("sum", s->out + token * s->out_stride, out, c->out_row_bytes, token, n);
	assert_int_equal(s->missing[token], 0);
}

static void route_all(void)
{
	for (uint32_t s = 0; s < world.c.n_sources; s++) {
		struct source *source = &world.source[s];

		world_route(&world, s);
		(void)m2n__plan_route(source->host, world.host_map, s, world_n_tokens(&world),
			source->ids, world.c.without_weights ? NULL : source->weights, NULL);
	}
}

static void check_reports(void)
{
	for (uint32_t s = 0; s < world.c.n_sources; s++) {
		assert_true(world.source[s].send_report->seq == 0);
		assert_true(world.source[s].combine_report->seq == 0);
	}
	for (uint32_t j = 0; j < world.c.n_ranks; j++) {
		assert_true(world.rank[j].recv_report->seq == 0);
		assert_true(world.rank[j].reply_report->seq == 0);
	}
}

/* What both ends counted of a source and a rank: one round more than before. */
static void check_counts(uint32_t s, uint32_t j, struct m2n__gpu_count *rows,
	struct m2n__gpu_count *replies)
{
	const struct m2n_plan *plan = world.source[s].host;
	uint64_t n_rows = plan->rank_first[j + 1] - plan->rank_first[j];
	uint64_t n_sent = plan->unique_first[j + 1] - plan->unique_first[j];
	uint64_t n_replies = world.c.reduce_at_expert ? n_sent : n_rows;

	rows->n_rounds++;
	rows->n_rows += n_rows;
	rows->bytes += n_sent * (world.c.row_bytes + world.c.scale_bytes);
	replies->n_rounds++;
	replies->n_rows += n_replies;
	replies->bytes += n_replies * world.c.out_row_bytes;
	assert_memory_equal(&world.source[s].sent[j], rows, sizeof(*rows));
	assert_memory_equal(&world.rank[j].received[s], rows, sizeof(*rows));
	assert_memory_equal(&world.rank[j].sent[s], replies, sizeof(*replies));
	assert_memory_equal(&world.source[s].received[j], replies, sizeof(*replies));
}

static struct m2n__gpu_count counted[2][WORLD_MAX_PEERS][WORLD_MAX_PEERS];

static void check_round(void)
{
	route_all();
	world_plan(&world);
	world_dispatch(&world);
	world_receive(&world);
	for (uint32_t j = 0; j < world.c.n_ranks; j++)
		check_batch(j);
	world_reply(&world);
	world_combine(&world);
	for (uint32_t s = 0; s < world.c.n_sources; s++)
		for (uint32_t t = 0; t < world_n_tokens(&world); t++)
			check_token(&world.source[s], t);
	for (uint32_t s = 0; s < world.c.n_sources; s++)
		for (uint32_t j = 0; j < world.c.n_ranks; j++)
			check_counts(s, j, &counted[0][s][j], &counted[1][s][j]);
	check_reports();
}

/* ---- cases --------------------------------------------------------------------------------- */

static const struct config cases[] = {
	{.name = "plain"},
	{.name = "one to one", .n_sources = 1, .n_ranks = 1, .max_tokens = 5},
	{.name = "one token", .max_tokens = 1},
	{.name = "no token", .tokens = UINT32_MAX},
	{.name = "fewer tokens than fit", .max_tokens = 16, .tokens = 3},
	{.name = "1 x 3", .n_sources = 1, .n_ranks = 3, .n_experts = 7},
	{.name = "5 x 2", .n_sources = 5, .n_ranks = 2, .n_experts = 9, .max_tokens = 9},
	{.name = "all to one", .routing = ROUTE_ALL_TO_ONE, .n_ranks = 3},
	{.name = "none", .routing = ROUTE_NONE},
	{.name = "holes", .routing = ROUTE_HOLES, .top_k = 3},
	{.name = "repeated expert", .routing = ROUTE_REPEATED, .top_k = 4},
	{.name = "top_k = n_experts", .top_k = 8, .n_experts = 8},
	{.name = "top_k 1", .top_k = 1},
	{.name = "top_k 40", .top_k = 40, .n_experts = 64, .max_tokens = 3, .with_replies = 1},
	{.name = "depth 1", .depth = 1},
	{.name = "rows of 7168 bytes", .row_bytes = 7168, .max_tokens = 5},
	{.name = "rows of 1 byte", .dtype = M2N_DTYPE_BF16, .row_bytes = 1, .out_row_bytes = 2},
	{.name = "rows of 17 bytes", .dtype = M2N_DTYPE_BF16, .row_bytes = 17,
		.out_row_bytes = 34, .pad = 3},
	{.name = "rows of 2049 bytes", .dtype = M2N_DTYPE_BF16, .row_bytes = 2049,
		.out_row_bytes = 2050, .pad = 1},
	{.name = "rows of 4104 bytes", .row_bytes = 4104, .pad = 8, .max_tokens = 6},
	{.name = "rows of 1028 bytes", .row_bytes = 1028, .pad = 4, .dtype = M2N_DTYPE_F32},
	{.name = "aligned, in wider strides", .row_bytes = 2080, .pad = 16},
	{.name = "odd strides", .row_bytes = 256, .pad = 5, .with_residual = 1},
	{.name = "f32", .dtype = M2N_DTYPE_F32, .with_residual = 1},
	{.name = "bf16", .dtype = M2N_DTYPE_BF16, .with_residual = 1, .row_bytes = 1056},
	{.name = "f16", .dtype = M2N_DTYPE_F16, .with_residual = 1},
	{.name = "f16, unaligned", .dtype = M2N_DTYPE_F16, .row_bytes = 90, .pad = 1},
	{.name = "other output", .row_bytes = 96, .out_row_bytes = 1600, .with_residual = 1},
	{.name = "scales", .scale_bytes = 16},
	{.name = "odd scales", .dtype = M2N_DTYPE_BF16, .scale_bytes = 7, .pad = 3,
		.row_bytes = 31, .out_row_bytes = 62},
	{.name = "many scales", .scale_bytes = 600},
	{.name = "row weights", .with_row_weights = 1, .dtype = M2N_DTYPE_BF16, .scale_bytes = 12},
	{.name = "row weights f32", .with_row_weights = 1, .dtype = M2N_DTYPE_F32, .pad = 4},
	{.name = "row weights f16", .with_row_weights = 1, .dtype = M2N_DTYPE_F16, .pad = 1},
	{.name = "cast", .cast = M2N_CAST_BF16_FP8, .row_bytes = 256, .out_row_bytes = 512},
	{.name = "cast, 7168", .cast = M2N_CAST_BF16_FP8, .row_bytes = 7168, .max_tokens = 3,
		.out_row_bytes = 64},
	{.name = "cast, short block", .dtype = M2N_DTYPE_BF16, .cast = M2N_CAST_BF16_FP8,
		.row_bytes = 133, .pad = 2,
		.out_row_bytes = 10},
	{.name = "cast, odd address", .dtype = M2N_DTYPE_BF16, .cast = M2N_CAST_BF16_FP8,
		.row_bytes = 1040, .pad = 1,
		.out_row_bytes = 10},
	{.name = "unit weights", .with_unit_weights = 1, .with_replies = 1},
	{.name = "no weights", .without_weights = 1},
	{.name = "replies", .dtype = M2N_DTYPE_BF16, .with_replies = 1, .routing = ROUTE_HOLES,
		.row_bytes = 130},
	{.name = "replicas", .replicas = 2, .n_ranks = 3, .n_experts = 6, .top_k = 3},
	{.name = "dedup", .dedup = 1, .top_k = 4},
	{.name = "dedup, repeated", .dedup = 1, .top_k = 4, .routing = ROUTE_REPEATED,
		.scale_bytes = 8},
	{.name = "dedup, all to one", .dedup = 1, .top_k = 3, .routing = ROUTE_ALL_TO_ONE},
	{.name = "dedup, none", .dedup = 1, .routing = ROUTE_NONE},
	{.name = "dedup, replicas", .dedup = 1, .replicas = 2, .n_ranks = 3, .top_k = 5},
	{.name = "dedup, cast", .dedup = 1, .top_k = 4, .cast = M2N_CAST_BF16_FP8,
		.out_row_bytes = 32},
	{.name = "reduce", .dedup = 1, .reduce_at_expert = 1, .top_k = 4, .with_residual = 1},
	{.name = "reduce f32", .dedup = 1, .reduce_at_expert = 1, .top_k = 6, .n_sources = 3,
		.dtype = M2N_DTYPE_F32, .row_bytes = 1300, .pad = 4},
	{.name = "reduce f16", .dedup = 1, .reduce_at_expert = 1, .top_k = 3,
		.dtype = M2N_DTYPE_F16, .row_bytes = 50, .routing = ROUTE_HOLES},
	{.name = "reduce, repeated", .dedup = 1, .reduce_at_expert = 1, .top_k = 8,
		.routing = ROUTE_REPEATED, .n_experts = 80, .max_tokens = 7, .n_sources = 1},
	{.name = "reduce, all to one", .dedup = 1, .reduce_at_expert = 1, .top_k = 40,
		.routing = ROUTE_ALL_TO_ONE, .max_tokens = 3},
	{.name = "capacity, drop", .capacity = 5, .drop_overflow = 1, .with_residual = 1},
	{.name = "capacity, drop, dedup", .capacity = 5, .drop_overflow = 1, .dedup = 1,
		.top_k = 4},
	{.name = "capacity that is kept", .capacity = 16, .max_tokens = 8},
	{.name = "messages", .dtype = M2N_DTYPE_BF16, .is_messaging = 1, .row_bytes = 514,
		.scale_bytes = 4},
	{.name = "messages, none", .is_messaging = 1, .routing = ROUTE_NONE},
	{.name = "messages, reduce", .is_messaging = 1, .dedup = 1, .reduce_at_expert = 1,
		.top_k = 4, .with_residual = 1},
};

static void test_rounds(void **state)
{
	(void)state;
	for (size_t i = 0; i < LENGTH(cases); i++) {
		world_seed(i + 1);
		world_open(&world, &cases[i]);
		memset(counted, 0, sizeof(counted));
		for (unsigned n = 0; n < 2 * world.c.depth + 1; n++)
			check_round();
		world_close(&world);
	}
}

/* Blocks in another order, and grids of other sizes, give the same. */
static void test_block_order(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed < 4; seed++) {
		static const struct config c = {.name = "order of blocks", .row_bytes = 4100,
			.top_k = 4, .max_tokens = 12, .dedup = 1};

		m2n_double_block_seed = seed;
		world_seed(seed);
		world_open(&world, &c);
		memset(counted, 0, sizeof(counted));
		check_round();
		world_close(&world);
	}
	m2n_double_block_seed = 0;
}

static int setup(void **state)
{
	(void)state;
	scalar = m2n__kernels_select("scalar");
	device_open();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	device_close();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rounds),
		cmocka_unit_test(test_block_order),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
