/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What serving relies on, bit for bit: a sequence gives the same values alone and in a batch, in
 * one prefill and in chunks, in any pages, and an expert gives a row the same reply in any group.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "model/reference.h"

#define N_TOKENS 90
#define N_SEQUENCES 5

static struct model *model;
static size_t vocab;

static int open_model(void **state)
{
	struct model_weights_params params = {.parts = MODEL_PART_ALL};
	struct model_weights *weights;
	struct model_config config;

	(void)state;
	model_config_default(&config);
	config.hidden_size = 80;
	config.intermediate_size = 300;
	config.n_layers = 2;
	config.n_heads = 6;
	config.n_kv_heads = 2;
	config.sliding_window = 40;
	config.n_experts = 5;
	config.vocab_size = vocab = 101;
	if (model_weights_create(&config, &params, &weights) != 0)
		return -1;
	model_weights_fill(weights, 7, 0);
	return model_create(weights, 200, &model);
}

static int close_model(void **state)
{
	(void)state;
	model_close(model);
	return 0;
}

static void make_ids(uint32_t *ids, size_t n_ids, uint32_t seed)
{
	for (size_t i = 0; i < n_ids; i++) {
		seed = seed * 1664525u + 1013904223u;
		ids[i] = (seed >> 8) % (uint32_t)vocab;
	}
}

static struct model_reference *open_reference(enum model_dtype dtype)
{
	struct model_reference *reference;

	assert_int_equal(model_reference_open(model, dtype, 512, 200, &reference), 0);
	return reference;
}

/* Logits of all rows of a step. */
static void step(struct model_reference *reference, const struct model_span *spans, size_t n_spans,
	const uint32_t *ids, size_t n_rows, float *logits)
{
	assert_int_equal(model_reference_step(reference, spans, n_spans, ids), 0);
	model_logits(model, reference->scratch, reference->x, n_rows, logits);
}

/* A sequence of its own, `chunk` rows a step. */
static void run_alone(const uint32_t *ids, size_t n_ids, size_t chunk, enum model_dtype dtype,
	float *logits)
{
	struct model_reference *reference = open_reference(dtype);
	struct model_sequence sequence = {0};

	for (size_t at = 0; at < n_ids; at += chunk) {
		size_t n = n_ids - at < chunk ? n_ids - at : chunk;
		struct model_span span = {&sequence, n};

		step(reference, &span, 1, ids + at, n, logits + at * vocab);
	}
	model_sequence_release(reference->cache, &sequence);
	assert_int_equal(model_cache_free_pages(reference->cache), 200);
	model_reference_close(reference);
}

static void chunks_do_not_matter(void **state)
{
	static const size_t chunks[] = {1, 2, 3, 7, 16, 17, 64, 65};
	size_t bytes = N_TOKENS * vocab * sizeof(float);
	float *whole = malloc(bytes), *parts = malloc(bytes);
	uint32_t ids[N_TOKENS];

	(void)state;
	make_ids(ids, N_TOKENS, 1);
	for (int dtype = MODEL_F32; dtype <= MODEL_F16; dtype++) {
		run_alone(ids, N_TOKENS, N_TOKENS, (enum model_dtype)dtype, whole);
		for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
			run_alone(ids, N_TOKENS, chunks[i], (enum model_dtype)dtype, parts);
			assert_memory_equal(parts, whole, bytes);
		}
	}
	free(whole);
	free(parts);
}

/* Five sequences, spans of changing sizes in changing order, in one batch a step. */
static void batches_do_not_matter(void **state)
{
	struct model_reference *reference = open_reference(MODEL_F32);
	struct model_sequence sequences[N_SEQUENCES] = {0};
	size_t bytes = N_TOKENS * vocab * sizeof(float), n_done[N_SEQUENCES] = {0};
	float *alone[N_SEQUENCES], *batch = malloc(N_SEQUENCES * bytes);
	uint32_t ids[N_SEQUENCES][N_TOKENS], together[N_SEQUENCES * N_TOKENS];
	uint32_t seed = 3;

	(void)state;
	for (uint32_t i = 0; i < N_SEQUENCES; i++) {
		alone[i] = malloc(bytes);
		make_ids(ids[i], N_TOKENS, 10 + i);
		run_alone(ids[i], N_TOKENS, N_TOKENS, MODEL_F32, alone[i]);
	}
	for (size_t round = 0; n_done[0] < N_TOKENS; round++) {
		struct model_span spans[N_SEQUENCES];
		size_t n_rows = 0;

		for (size_t i = 0; i < N_SEQUENCES; i++) {
			size_t which = (i + round) % N_SEQUENCES, left = N_TOKENS - n_done[which];
			size_t n = (seed = seed * 1664525u + 1013904223u) >> 29;

			n = n > left ? left : which == 0 && n == 0 ? 1 : n;
			spans[i] = (struct model_span){&sequences[which], n};
			memcpy(together + n_rows, ids[which] + n_done[which], n * sizeof(*ids[0]));
			n_rows += n;
		}
		step(reference, spans, N_SEQUENCES, together, n_rows, batch);
		for (size_t i = 0, row = 0; i < N_SEQUENCES; row += spans[i++].n_rows) {
			size_t which = (i + round) % N_SEQUENCES;

			assert_memory_equal(batch + row * vocab,
				alone[which] + n_done[which] * vocab,
				spans[i].n_rows * vocab * sizeof(float));
			n_done[which] += spans[i].n_rows;
		}
	}
	for (size_t i = 0; i < N_SEQUENCES; i++) {
		model_sequence_release(reference->cache, &sequences[i]);
		free(alone[i]);
	}
	free(batch);
	model_reference_close(reference);
}

/* Pages that others left behind, in another order, with NaN in them. */
static void pages_do_not_matter(void **state)
{
	struct model_reference *reference = open_reference(MODEL_F32);
	struct model_sequence holders[8] = {0}, sequence = {0};
	struct model_span span = {&sequence, N_TOKENS};
	size_t bytes = N_TOKENS * vocab * sizeof(float);
	float *alone = malloc(bytes), *again = malloc(bytes);
	uint32_t ids[N_TOKENS];

	(void)state;
	make_ids(ids, N_TOKENS, 1);
	run_alone(ids, N_TOKENS, N_TOKENS, MODEL_F32, alone);
	for (size_t i = 0; i < 8; i++)
		assert_int_equal(model_sequence_reserve(reference->cache, &holders[i],
			25 * MODEL_PAGE_TOKENS), 0);
	assert_int_equal(model_cache_free_pages(reference->cache), 0);
	for (size_t i = 0; i < 8; i++)
		for (size_t page = 0; page < 25; page++)
			for (uint32_t head = 0; head < 2; head++)
				memset(model_cache_keys(reference->cache, holders[i].pages[page],
					1, head), 0xff, sizeof(float) * 2 * 16 * 16);
	for (size_t i = 0; i < 8; i++)
		model_sequence_release(reference->cache, &holders[i * 3 % 8]);
	assert_int_equal(model_sequence_reserve(reference->cache, &sequence, 150), 0);
	step(reference, &span, 1, ids, N_TOKENS, again);
	assert_memory_equal(again, alone, bytes);
	model_sequence_release(reference->cache, &sequence);
	model_reference_close(reference);
	free(alone);
	free(again);
}

/* An expert's rows in any grouping, in and out of rows with gaps. */
static void groups_do_not_matter(void **state)
{
	enum { HIDDEN = 80, ROWS = 130, STRIDE = 83 };
	struct model_scratch *scratch = model_scratch_open(model), *other;
	float *rows = malloc(ROWS * STRIDE * sizeof(float));
	float *whole = malloc(ROWS * HIDDEN * sizeof(float));
	float *part = malloc(ROWS * STRIDE * sizeof(float));

	(void)state;
	other = model_scratch_open(model);
	for (size_t i = 0; i < ROWS * STRIDE; i++)
		rows[i] = sinf((float)i);
	model_expert(model, scratch, 1, 3, rows, ROWS, STRIDE, whole, HIDDEN);
	for (size_t n = 1; n <= ROWS; n += n < 10 ? 1 : 17)
		for (size_t at = 0; at < ROWS; at += n) {
			size_t count = ROWS - at < n ? ROWS - at : n;

			model_expert(model, n % 2 ? scratch : other, 1, 3, rows + at * STRIDE,
				count, STRIDE, part, STRIDE);
			for (size_t row = 0; row < count; row++)
				assert_memory_equal(part + row * STRIDE,
					whole + (at + row) * HIDDEN, HIDDEN * sizeof(float));
		}
	model_scratch_close(scratch);
	model_scratch_close(other);
	free(rows);
	free(whole);
	free(part);
}

static void router_weights_are_shares(void **state)
{
	struct model_scratch *scratch = model_scratch_open(model);
	float rows[80] = {0}, weights[2];
	int32_t ids[2];

	(void)state;
	/* All logits equal: the lowest ids, half each. */
	model_route(model, scratch, 0, rows, 1, ids, weights);
	assert_int_equal(ids[0], 0);
	assert_int_equal(ids[1], 1);
	assert_true(weights[0] == 0.5f && weights[1] == 0.5f);
	for (size_t i = 0; i < 80; i++)
		rows[i] = cosf((float)i * 3);
	model_route(model, scratch, 0, rows, 1, ids, weights);
	assert_true(weights[0] >= weights[1] && ids[0] != ids[1]);
	assert_true(fabsf(weights[0] + weights[1] - 1) < 1e-6f);
	model_scratch_close(scratch);
}

/* As the combine of libm2n: fused, k ascending, starting from the residual. */
static void combine_is_fused_in_order(void **state)
{
	static float replies[2 * 80], x[80];
	float weights[2] = {0.1f, 0.9f};

	(void)state;
	for (int i = 0; i < 80; i++) {
		replies[i] = sinf((float)i);
		replies[80 + i] = cosf((float)i);
		x[i] = (float)i * 1e-3f;
	}
	model_combine(model, replies, weights, 1, x);
	for (int i = 0; i < 80; i++)
		assert_true(x[i] == fmaf(0.9f, cosf((float)i),
			fmaf(0.1f, sinf((float)i), (float)i * 1e-3f)));
}

static void limits_are_named(void **state)
{
	struct model_reference *reference;
	struct model_sequence sequence = {0};
	struct model_span span = {&sequence, 4};
	uint32_t ids[300] = {1, 2, 101, 3};

	(void)state;
	assert_int_equal(model_reference_open(model, MODEL_F32, 250, 2, &reference), 0);
	assert_int_equal(model_reference_step(reference, &span, 1, ids), -EINVAL);
	assert_non_null(strstr(model_error(), "token 2 is 101"));
	ids[2] = 0;
	span.n_rows = 33;
	assert_int_equal(model_reference_step(reference, &span, 1, ids), -ENOSPC);
	assert_non_null(strstr(model_error(), "33 tokens need 3 more pages"));
	assert_int_equal(sequence.n_pages, 0);
	span.n_rows = 201;
	assert_int_equal(model_reference_step(reference, &span, 1, ids), -EINVAL);
	assert_non_null(strstr(model_error(), "at most 200"));
	span.n_rows = 32;
	assert_int_equal(model_reference_step(reference, &span, 1, ids), 0);
	assert_int_equal(sequence.n_tokens, 32);
	model_sequence_release(reference->cache, &sequence);
	model_reference_close(reference);
}

static void samples_follow_the_logits(void **state)
{
	float logits[4] = {0, 2, 2, -1};
	uint32_t order[4], counts[4] = {0};
	uint64_t first = 5, second = 5;

	(void)state;
	assert_int_equal(model_argmax(logits, 4), 1);
	assert_int_equal(model_sample(logits, 4, 0, 1, &first, order), 1);
	for (int i = 0; i < 10000; i++) {
		uint32_t token = model_sample(logits, 4, 1, 1, &first, order);

		assert_int_equal(token, model_sample(logits, 4, 1, 1, &second, order));
		counts[token]++;
	}
	/* exp(0), exp(2), exp(2), exp(-1) over their sum: 619, 4576, 4576, 228 of 10000 */
	assert_in_range(counts[0], 500, 730);
	assert_in_range(counts[1], 4350, 4760);
	assert_in_range(counts[2], 4350, 4760);
	assert_in_range(counts[3], 160, 300);
	for (int i = 0; i < 1000; i++)
		assert_in_range(model_sample(logits, 4, 1, 0.9f, &first, order), 1, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(chunks_do_not_matter),
		cmocka_unit_test(batches_do_not_matter),
		cmocka_unit_test(pages_do_not_matter),
		cmocka_unit_test(groups_do_not_matter),
		cmocka_unit_test(router_weights_are_shares),
		cmocka_unit_test(combine_is_fused_in_order),
		cmocka_unit_test(limits_are_named),
		cmocka_unit_test(samples_follow_the_logits),
	};

	return cmocka_run_group_tests_name("model", tests, open_model, close_model);
}
