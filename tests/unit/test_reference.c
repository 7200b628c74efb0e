/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The oracle against numbers worked out by hand, and its conversions against properties that
 * hold for every value: a 16-bit value survives the way there and back, and what is stored is
 * the nearest value, the even one of two.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <string.h>
#include <cmocka.h>

#include "route/reference.h"

static float load16(enum m2n_dtype dtype, uint16_t bits)
{
	return m2n__ref_load(dtype, &bits, 0);
}

static uint16_t store16(enum m2n_dtype dtype, float value)
{
	uint16_t bits = 0xdead;

	m2n__ref_store(dtype, &bits, 0, value);
	return bits;
}

static void known_values_convert(void **state)
{
	static const struct {
		enum m2n_dtype dtype;
		uint16_t bits;
		float value;
	} known[] = {
		{M2N_DTYPE_BF16, 0x0000, 0.0f},
		{M2N_DTYPE_BF16, 0x3f80, 1.0f},
		{M2N_DTYPE_BF16, 0xc040, -3.0f},
		{M2N_DTYPE_BF16, 0x4049, 3.140625f},
		{M2N_DTYPE_BF16, 0x7f7f, 0x1.fep127f},
		{M2N_DTYPE_BF16, 0x0001, 0x1p-133f},
		{M2N_DTYPE_BF16, 0x0080, 0x1p-126f},
		{M2N_DTYPE_BF16, 0xff80, -INFINITY},
		{M2N_DTYPE_F16, 0x0000, 0.0f},
		{M2N_DTYPE_F16, 0x3c00, 1.0f},
		{M2N_DTYPE_F16, 0xc200, -3.0f},
		{M2N_DTYPE_F16, 0x7bff, 65504.0f},
		{M2N_DTYPE_F16, 0x0001, 0x1p-24f},
		{M2N_DTYPE_F16, 0x03ff, 0x3ffp-24f},
		{M2N_DTYPE_F16, 0x0400, 0x1p-14f},
		{M2N_DTYPE_F16, 0x3555, 0x1.554p-2f},
		{M2N_DTYPE_F16, 0x7c00, INFINITY},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		assert_true(load16(known[i].dtype, known[i].bits) == known[i].value);
		assert_int_equal(store16(known[i].dtype, known[i].value), known[i].bits);
	}
	assert_int_equal(store16(M2N_DTYPE_BF16, -0.0f), 0x8000);
	assert_true(signbit(load16(M2N_DTYPE_F16, 0x8000)));
}

static void rounding_is_to_nearest_even(void **state)
{
	(void)state;
	/* bf16 near 1: steps of 2^-7. */
	assert_int_equal(store16(M2N_DTYPE_BF16, 1 + 0x1p-8f), 0x3f80);
	assert_int_equal(store16(M2N_DTYPE_BF16, 1 + 0x1.0002p-8f), 0x3f81);
	assert_int_equal(store16(M2N_DTYPE_BF16, 1 + 3 * 0x1p-8f), 0x3f82);
	assert_int_equal(store16(M2N_DTYPE_BF16, 0x1.ffp0f), 0x4000);
	assert_int_equal(store16(M2N_DTYPE_BF16, 0x1.fffffep127f), 0x7f80);
	/* f16: steps of 2^-10, subnormals below 2^-14, 65520 is the tie to infinity. */
	assert_int_equal(store16(M2N_DTYPE_F16, 1 + 0x1p-11f), 0x3c00);
	assert_int_equal(store16(M2N_DTYPE_F16, 1 + 3 * 0x1p-11f), 0x3c02);
	assert_int_equal(store16(M2N_DTYPE_F16, 65519.996f), 0x7bff);
	assert_int_equal(store16(M2N_DTYPE_F16, 65520.0f), 0x7c00);
	assert_int_equal(store16(M2N_DTYPE_F16, -1e30f), 0xfc00);
	assert_int_equal(store16(M2N_DTYPE_F16, 0x1p-25f), 0x0000);
	assert_int_equal(store16(M2N_DTYPE_F16, 0x1.8p-25f), 0x0001);
	assert_int_equal(store16(M2N_DTYPE_F16, 0x3p-25f), 0x0002);
	assert_int_equal(store16(M2N_DTYPE_F16, 0x1p-149f), 0x0000);
	assert_int_equal(store16(M2N_DTYPE_F16, 0x3ff.8p-24f), 0x0400);
}

static void every_16_bit_value_comes_back(void **state)
{
	(void)state;
	for (int d = 0; d < 2; d++) {
		enum m2n_dtype dtype = d ? M2N_DTYPE_F16 : M2N_DTYPE_BF16;

		for (uint32_t bits = 0; bits <= 0xffff; bits++) {
			float value = load16(dtype, (uint16_t)bits);

			if (isnan(value)) {
				uint16_t quiet = store16(dtype, value);

				assert_true(isnan(load16(dtype, quiet)));
				assert_true(quiet & (d ? 0x0200 : 0x0040));
			} else {
				assert_int_equal(store16(dtype, value), bits);
			}
		}
	}
}

/* Between neighbours: a little below the middle goes down, a little above goes up. */
static void halves_split_between_neighbours(void **state)
{
	(void)state;
	for (int d = 0; d < 2; d++) {
		enum m2n_dtype dtype = d ? M2N_DTYPE_F16 : M2N_DTYPE_BF16;
		uint16_t largest = d ? 0x7bff : 0x7f7f;

		for (uint16_t bits = 0; bits < largest; bits++) {
			double low = (double)load16(dtype, bits);
			double high = (double)load16(dtype, (uint16_t)(bits + 1));
			float middle = (float)((low + high) / 2);

			assert_int_equal(store16(dtype, nextafterf(middle, 0)), bits);
			assert_int_equal(store16(dtype, nextafterf(middle, INFINITY)), bits + 1);
			assert_int_equal(store16(dtype, middle), bits + (bits & 1));
		}
	}
}

static void rows_of_an_expert(void **state)
{
	static const int32_t ids[] = {2, 0, /**/ 1, 2, /**/ -1, 2, /**/ 2, 2};
	uint32_t token[8], k[8];

	(void)state;
	assert_int_equal(m2n__ref_rows(4, 2, ids, 2, 0, 0, 1, token, k), 5);
	assert_memory_equal(token, ((uint32_t[]){0, 1, 2, 3, 3}), 20);
	assert_memory_equal(k, ((uint32_t[]){0, 1, 1, 0, 1}), 20);
	/* Two owners: source 1 gives token 0 to owner 1, token 1 to owner 0, and so on. */
	assert_int_equal(m2n__ref_rows(4, 2, ids, 2, 1, 1, 2, token, k), 2);
	assert_memory_equal(token, ((uint32_t[]){0, 2}), 8);
	assert_int_equal(m2n__ref_rows(4, 2, ids, 2, 1, 0, 2, token, k), 3);
	assert_memory_equal(token, ((uint32_t[]){1, 3, 3}), 12);
	assert_int_equal(m2n__ref_rows(4, 2, ids, 3, 0, 0, 1, token, k), 0);
	assert_int_equal(m2n__ref_rows(0, 2, ids, 2, 0, 0, 1, token, k), 0);
}

static void combine_sums_weighted_replies(void **state)
{
	const float a[] = {1, 2}, b[] = {10, 20}, c[] = {100, 200};
	const void *replies[] = {a, b, NULL, c};
	const float weights[] = {2, .5f, 7, -1}, residual[] = {1000, 2000, 3000, 4000};
	float out[4];

	(void)state;
	m2n__ref_combine(M2N_DTYPE_F32, 2, 2, 2, replies, weights, residual, out);
	assert_memory_equal(out, ((float[]){1007, 2014, 2900, 3800}), sizeof(out));
	m2n__ref_combine(M2N_DTYPE_F32, 2, 2, 2, replies, NULL, NULL, out);
	assert_memory_equal(out, ((float[]){11, 22, 100, 200}), sizeof(out));
	replies[0] = replies[1] = NULL;
	m2n__ref_combine(M2N_DTYPE_F32, 2, 2, 2, replies, weights, NULL, out);
	assert_memory_equal(out, ((float[]){0, 0, -100, -200}), sizeof(out));
}

/* One rounding at the end: in bf16 each of 256 + 1 + 1 would be lost if rounded in between. */
static void combine_rounds_once(void **state)
{
	const uint16_t big = 0x4380 /* 256 */, one = 0x3f80;
	const void *replies[] = {&big, &one, &one};
	uint16_t out = 0;

	(void)state;
	m2n__ref_combine(M2N_DTYPE_BF16, 1, 3, 1, replies, NULL, NULL, &out);
	assert_int_equal(out, 0x4381); /* 258 */
}

/* (1 + 2^-12)^2 - 1 keeps the last term only when the product is not rounded first. */
static void combine_is_fused_in_order_of_k(void **state)
{
	const float one = 1, x = 1 + 0x1p-12f, tiny = 0x1p-24f, minus = -1;
	const void *fused[] = {&one, &x}, *ordered[] = {&tiny, &one, &minus};
	const float weights[] = {-1, 1 + 0x1p-12f};
	float out = 0;

	(void)state;
	m2n__ref_combine(M2N_DTYPE_F32, 1, 2, 1, fused, weights, NULL, &out);
	assert_true(out == 0x1p-11f + 0x1p-24f);
	/* tiny + 1 is 1 in f32, so in this order nothing is left. */
	m2n__ref_combine(M2N_DTYPE_F32, 1, 3, 1, ordered, NULL, NULL, &out);
	assert_true(out == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(known_values_convert),
		cmocka_unit_test(rounding_is_to_nearest_even),
		cmocka_unit_test(every_16_bit_value_comes_back),
		cmocka_unit_test(halves_split_between_neighbours),
		cmocka_unit_test(rows_of_an_expert),
		cmocka_unit_test(combine_sums_weighted_replies),
		cmocka_unit_test(combine_rounds_once),
		cmocka_unit_test(combine_is_fused_in_order_of_k),
	};

	return cmocka_run_group_tests_name("reference", tests, NULL, NULL);
}
