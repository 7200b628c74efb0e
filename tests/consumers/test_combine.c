/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model's own combine against libm2n's kernels, which m2n_combine_recv() runs: the same bits in
 * every row type and on every instruction set of this machine, so that a one-process run and a
 * disaggregated one can be compared token for token.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "kernel/kernel.h"
#include "model/model.h"

#define HIDDEN 333
#define TOP_K 4
#define ROWS 5

static float x[ROWS * HIDDEN], replies[ROWS * TOP_K * HIDDEN], weights[ROWS * TOP_K];
static float stored_x[ROWS * HIDDEN], stored_replies[ROWS * TOP_K * HIDDEN];

static void fill(float *values, size_t n_values, uint32_t seed)
{
	for (size_t i = 0; i < n_values; i++) {
		seed = seed * 1664525u + 1013904223u;
		values[i] = (float)(int32_t)seed * 0x1p-31f;
	}
}

/* Row by row with the library's kernel, on values stored in the type. */
static void check_kernels(const struct m2n__kernels *kernels, enum model_dtype dtype,
	const float *expected)
{
	size_t row_bytes = HIDDEN * model_dtype_bytes(dtype);

	for (size_t row = 0; row < ROWS; row++) {
		const char *first = (const char *)stored_replies + row * TOP_K * row_bytes;
		const void *rows[TOP_K];
		float out[HIDDEN], got[HIDDEN];

		for (size_t k = 0; k < TOP_K; k++)
			rows[k] = first + k * row_bytes;
		kernels->wsum[dtype](out, (const char *)stored_x + row * row_bytes, rows,
			weights + row * TOP_K, TOP_K, HIDDEN, 0);
		model_to_f32(dtype, out, HIDDEN, got);
		assert_memory_equal(got, expected + row * HIDDEN, sizeof(got));
	}
}

static void combines_agree(void **state)
{
	struct model_config config = {.hidden_size = HIDDEN, .top_k = TOP_K};
	struct model model = {.config = &config};
	const struct m2n__kernels *kernels;
	int usable;

	(void)state;
	for (int dtype = MODEL_F32; dtype <= MODEL_F16; dtype++) {
		fill(x, ROWS * HIDDEN, 1);
		fill(replies, ROWS * TOP_K * HIDDEN, 2);
		fill(weights, ROWS * TOP_K, 3);
		model_round((enum model_dtype)dtype, x, ROWS * HIDDEN);
		model_round((enum model_dtype)dtype, replies, ROWS * TOP_K * HIDDEN);
		model_from_f32((enum model_dtype)dtype, x, ROWS * HIDDEN, stored_x);
		model_from_f32((enum model_dtype)dtype, replies, ROWS * TOP_K * HIDDEN,
			stored_replies);
		model_combine(&model, replies, weights, ROWS, x);
		model_round((enum model_dtype)dtype, x, ROWS * HIDDEN);
		for (unsigned i = 0; (kernels = m2n__kernels_at(i, &usable)); i++)
			if (usable)
				check_kernels(kernels, (enum model_dtype)dtype, x);
	}
}

static void types_have_the_same_numbers(void **state)
{
	(void)state;
	assert_int_equal((int)MODEL_F32, (int)M2N_DTYPE_F32);
	assert_int_equal((int)MODEL_BF16, (int)M2N_DTYPE_BF16);
	assert_int_equal((int)MODEL_F16, (int)M2N_DTYPE_F16);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(combines_agree),
		cmocka_unit_test(types_have_the_same_numbers),
	};

	return cmocka_run_group_tests_name("combine", tests, NULL, NULL);
}
