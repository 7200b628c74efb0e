/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference kernels, against what they must be: formats decoded by their definition
 * (sign * 2^e * fraction, in double), roundings tried at and around every midpoint of two
 * neighbouring values, fp8 against a search for the nearest of its 256 values, and sums worked
 * out by hand. The other tables are compared with this one in test_kernel.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <float.h>
#include <math.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/kernel.h"
#include "kernel/value.h"

static const struct m2n__kernels *scalar(void)
{
	const struct m2n__kernels *kernels = m2n__kernels_select("scalar");

	assert_non_null(kernels);
	return kernels;
}

/* A binary format's value by its definition; NAN and INFINITY where it has them. */
static double decode(unsigned bits, int exponent_bits, int fraction_bits, int has_infinity)
{
	unsigned fraction = bits & ((1u << fraction_bits) - 1);
	unsigned exponent = bits >> fraction_bits & ((1u << exponent_bits) - 1);
	unsigned last = (1u << exponent_bits) - 1;
	int bias = (1 << (exponent_bits - 1)) - 1;
	double sign = bits >> (exponent_bits + fraction_bits) & 1 ? -1.0 : 1.0;

	if (has_infinity && exponent == last)
		return fraction ? (double)NAN : sign * (double)INFINITY;
	if (!has_infinity && exponent == last && fraction == (1u << fraction_bits) - 1)
		return (double)NAN;
	if (exponent == 0)
		return sign * ldexp(fraction, 1 - bias - fraction_bits);
	return sign * ldexp((1u << fraction_bits) + fraction, (int)exponent - bias - fraction_bits);
}

static double decode_bf16(unsigned bits)
{
	return decode(bits, 8, 7, 1);
}

static double decode_f16(unsigned bits)
{
	return decode(bits, 5, 10, 1);
}

static double decode_fp8(unsigned bits)
{
	return decode(bits, 4, 3, 0);
}

static void assert_same(double expected, float actual, unsigned bits)
{
	if (isnan(expected) ? !isnan(actual)
			    : expected != (double)actual || !signbit(expected) != !signbit(actual))
		fail_msg("bits %#x: %g, not %g", bits, (double)actual, expected);
}

static void every_value_decodes(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits < 65536; bits++) {
		assert_same(decode_bf16(bits), bf16_to_f32((uint16_t)bits), bits);
		assert_same(decode_f16(bits), f16_to_f32((uint16_t)bits), bits);
	}
	for (unsigned bits = 0; bits < 256; bits++)
		assert_same(decode_fp8(bits), fp8_to_f32((uint8_t)bits), bits);
}

static void every_value_survives_a_round_trip(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits < 65536; bits++) {
		unsigned bf16 = bf16_from_f32(bf16_to_f32((uint16_t)bits));
		unsigned f16 = f16_from_f32(f16_to_f32((uint16_t)bits));

		/* NaN becomes quiet: its first fraction bit is set, the rest stays. */
		assert_int_equal(bf16, isnan(decode_bf16(bits)) ? bits | 0x40 : bits);
		assert_int_equal(f16, isnan(decode_f16(bits)) ? bits | 0x200 : bits);
	}
	for (unsigned bits = 0; bits < 256; bits++)
		assert_int_equal(fp8_from_f32(fp8_to_f32((uint8_t)bits)),
			isnan(decode_fp8(bits)) ? 0x7f : bits);
}

static unsigned encode_bf16(float value)
{
	return bf16_from_f32(value);
}

static unsigned encode_f16(float value)
{
	return f16_from_f32(value);
}

static unsigned encode_fp8(float value)
{
	return fp8_from_f32(value);
}

/*
 * The midpoint of the neighbours `bits` and `bits` + 1 (of the value `next`) goes to the even
 * one, the floats beside it to the nearer one; the same with the sign set.
 */
static void check_midpoint(
	unsigned (*encode)(float), unsigned bits, unsigned sign, double value, double next)
{
	float middle = (float)((value + next) / 2);
	unsigned even = bits + (bits & 1);

	assert_true((double)middle == (value + next) / 2);
	assert_int_equal(encode(middle), even);
	assert_int_equal(encode(nextafterf(middle, 0.0f)), bits);
	assert_int_equal(encode(nextafterf(middle, INFINITY)), bits + 1);
	assert_int_equal(encode(-middle), sign | even);
	assert_int_equal(encode(-nextafterf(middle, 0.0f)), sign | bits);
	assert_int_equal(encode(-nextafterf(middle, INFINITY)), sign | (bits + 1));
}

static void casts_round_to_nearest_even(void **state)
{
	(void)state;
	/* Infinity's neighbour below rounds as if infinity were the next power of two. */
	for (unsigned bits = 0; bits < 0x7f80; bits++)
		check_midpoint(encode_bf16, bits, 0x8000, decode_bf16(bits),
			bits == 0x7f7f ? 0x1p128 : decode_bf16(bits + 1));
	for (unsigned bits = 0; bits < 0x7c00; bits++)
		check_midpoint(encode_f16, bits, 0x8000, decode_f16(bits),
			bits == 0x7bff ? 0x1p16 : decode_f16(bits + 1));
	for (unsigned bits = 0; bits < 0x7e; bits++)
		check_midpoint(encode_fp8, bits, 0x80, decode_fp8(bits), decode_fp8(bits + 1));
}

static void casts_know_the_ends(void **state)
{
	static const float large[] = {65536.0f, 1e30f, FLT_MAX, INFINITY};

	(void)state;
	for (unsigned i = 0; i < sizeof(large) / sizeof(large[0]); i++) {
		assert_int_equal(f16_from_f32(large[i]), 0x7c00);
		assert_int_equal(f16_from_f32(-large[i]), 0xfc00);
		assert_int_equal(fp8_from_f32(large[i]), 0x7e);
		assert_int_equal(fp8_from_f32(-large[i]), 0xfe);
	}
	assert_int_equal(bf16_from_f32(FLT_MAX), 0x7f80);
	assert_int_equal(bf16_from_f32(INFINITY), 0x7f80);
	assert_int_equal(f16_from_f32(FLT_TRUE_MIN), 0);
	assert_int_equal(f16_from_f32(-FLT_TRUE_MIN), 0x8000);
	assert_int_equal(bf16_from_f32(-0.0f), 0x8000);
	assert_int_equal(fp8_from_f32(-0.0f), 0x80);
	assert_int_equal(fp8_from_f32(-NAN), 0x7f);
	/* A NaN whose upper fraction bits are 0 does not become an infinity. */
	assert_true(isnan(bf16_to_f32(bf16_from_f32(f32_from_bits(0x7f800001)))));
	assert_true(isnan(f16_to_f32(f16_from_f32(f32_from_bits(0xff800001)))));
}

static unsigned nearest_fp8(float value)
{
	unsigned best = 0;
	double best_distance = INFINITY;

	for (unsigned bits = 0; bits < 0x7f; bits++) {
		double distance = fabs(fabs((double)value) - decode_fp8(bits));

		if (distance < best_distance || (distance == best_distance && bits % 2 == 0)) {
			best = bits;
			best_distance = distance;
		}
	}
	return best | (signbit(value) ? 0x80 : 0);
}

static void fp8_is_the_nearest_of_its_values(void **state)
{
	uint32_t random = 1;

	(void)state;
	for (int i = 0; i < 50000; i++) {
		float value;

		random = random * 1664525 + 1013904223;
		/* Exponents from 2^-13, half the smallest value and less, to 2^11, beyond 448. */
		value = ldexpf(
			(float)(random >> 8) * 0x1p-24f + 1.0f, (int)(random >> 3) % 24 - 13);
		if (random & 4)
			value = -value;
		assert_int_equal(fp8_from_f32(value), nearest_fp8(value));
	}
}

static void wsum_by_hand(void **state)
{
	const struct m2n__kernels *k = scalar();
	/* bf16: 1 = 0x3f80, 2 = 0x4000, 3 = 0x4040, -4 = 0xc080, 0.5 = 0x3f00 */
	const uint16_t a[2] = {0x3f80, 0x4000}, b[2] = {0x4040, 0xc080}, r[2] = {0x3f00, 0x3f00};
	const uint16_t h[2] = {0x3c00, 0xc000}; /* fp16: 1, -2 */
	const void *x[2] = {a, b}, *half[1] = {h};
	const float w[2] = {2.0f, 0.5f};
	uint16_t out[2];

	(void)state;
	k->wsum[M2N_DTYPE_BF16](out, NULL, x, w, 2, 2, 0);
	assert_int_equal(out[0], 0x4060); /* 2*1 + 0.5*3 = 3.5 */
	assert_int_equal(out[1], 0x4000); /* 2*2 - 0.5*4 = 2 */
	k->wsum[M2N_DTYPE_BF16](out, r, x, NULL, 2, 2, 1);
	assert_int_equal(out[0], 0x4090); /* 0.5 + 1 + 3 = 4.5 */
	assert_int_equal(out[1], 0xbfc0); /* 0.5 + 2 - 4 = -1.5 */
	k->wsum[M2N_DTYPE_BF16](out, r, NULL, NULL, 0, 2, 0);
	assert_memory_equal(out, r, sizeof(r));
	k->wsum[M2N_DTYPE_BF16](out, NULL, NULL, NULL, 0, 2, 0);
	assert_int_equal(out[0] | out[1], 0);
	k->wsum[M2N_DTYPE_F16](out, NULL, half, w, 1, 2, 0);
	assert_int_equal(out[0], 0x4000);
	assert_int_equal(out[1], 0xc400);
	k->scale[M2N_DTYPE_BF16](out, b, 0.5f, 2);
	assert_int_equal(out[0], 0x3fc0);
	assert_int_equal(out[1], 0xc000);
}

static void wsum_is_fused_and_in_order(void **state)
{
	const struct m2n__kernels *k = scalar();
	const float big[1] = {1e8f}, one[1] = {1.0f}, minus[1] = {-1e8f};
	const void *x[3] = {big, one, minus}, *y[3] = {big, minus, one};
	const float near_one[1] = {1.0f + 0x1p-12f}, residual[1] = {-(1.0f + 0x1p-11f)};
	const void *z[1] = {near_one};
	float out[1];

	(void)state;
	/* 1e8 + 1 is 1e8 in fp32: the order decides what is left. */
	k->wsum[M2N_DTYPE_F32](out, NULL, x, NULL, 3, 1, 0);
	assert_true(out[0] == 0.0f);
	k->wsum[M2N_DTYPE_F32](out, NULL, y, NULL, 3, 1, 0);
	assert_true(out[0] == 1.0f);
	/* The product's last bits survive only if it is not rounded before the sum. */
	k->wsum[M2N_DTYPE_F32](out, residual, z, near_one, 1, 1, 0);
	assert_true(out[0] == 0x1p-24f);
}

static void dot_by_hand(void **state)
{
	const struct m2n__kernels *k = scalar();
	float a[17] = {0}, b[17];

	(void)state;
	for (unsigned i = 0; i < 17; i++)
		b[i] = 1.0f;
	assert_true(k->dot[M2N_DTYPE_F32](a, b, 0) == 0.0f);
	/* Values 0 and 16 share a partial sum, 1e8 + 1 = 1e8; value 8 cancels it afterwards. */
	a[0] = 1e8f;
	a[16] = 1.0f;
	a[8] = -1e8f;
	a[3] = 5.0f;
	assert_true(k->dot[M2N_DTYPE_F32](a, b, 17) == 5.0f);
	/* In a partial sum of its own the 1 is still there when the 1e8 are gone. */
	a[16] = 0.0f;
	a[4] = 1.0f;
	assert_true(k->dot[M2N_DTYPE_F32](a, b, 17) == 6.0f);
}

static void cast_fp8_by_hand(void **state)
{
	const struct m2n__kernels *k = scalar();
	uint16_t src[200] = {0}, back[200];
	uint8_t codes[200];
	float scales[2];

	(void)state;
	src[0] = 0x4360; /* 224 */
	src[1] = 0xc2e0; /* -112 */
	src[2] = 0x7fc0; /* NaN */
	src[3] = 0xff80; /* -infinity */
	src[4] = 0x8000; /* -0 */
	src[199] = 0x8000;
	k->cast_fp8(codes, scales, src, 200);
	assert_true(scales[0] == 0.5f); /* 224/448: the infinity does not count */
	assert_true(scales[1] == 1.0f); /* nothing but zeros */
	assert_int_equal(codes[0], 0x7e);
	assert_int_equal(codes[1], 0xf6); /* -224 = -2^7 * 1.75: exponent 14, fraction 6 */
	assert_int_equal(codes[2], 0x7f);
	assert_int_equal(codes[3], 0xfe);
	assert_int_equal(codes[4], 0x80);
	assert_int_equal(codes[5], 0);
	assert_int_equal(codes[199], 0x80);
	k->uncast_fp8(back, codes, scales, 200);
	assert_int_equal(back[0], 0x4360);
	assert_int_equal(back[1], 0xc2e0);
	assert_true(isnan(bf16_to_f32(back[2])));
	assert_int_equal(back[3], 0xc360);
	assert_int_equal(back[4], 0x8000);
}

static void cast_fp8_takes_the_smallest_and_largest_blocks(void **state)
{
	static const uint16_t amax[] = {0x0001, 0x0080, 0x0480, 0x0500, 0x0580, 0x3f80, 0x7f7f};
	const struct m2n__kernels *k = scalar();

	(void)state;
	for (unsigned i = 0; i < sizeof(amax) / sizeof(amax[0]); i++) {
		uint16_t src[2] = {amax[i], 0}, back[2];
		float value = bf16_to_f32(amax[i]), scale;
		uint8_t codes[2];

		k->cast_fp8(codes, &scale, src, 2);
		assert_true(isfinite(scale) && scale > 0.0f);
		assert_int_equal(codes[1], 0);
		k->uncast_fp8(back, codes, &scale, 2);
		/* The largest value comes back whole, except where fp32 has no inverse for it. */
		if (value >= 0x1p-117f)
			assert_int_equal(back[0], amax[i]);
		else
			assert_true(fabsf(bf16_to_f32(back[0]) - value) <= 0x1p-126f);
	}
}

static void tables_are_found_by_name(void **state)
{
	const struct m2n__kernels *fastest = NULL, *table;
	int usable;
	unsigned i;

	(void)state;
	for (i = 0; (table = m2n__kernels_at(i, &usable)) != NULL; i++) {
		assert_ptr_equal(m2n__kernels_select(table->name), usable ? table : NULL);
		if (usable)
			fastest = table;
	}
	assert_true(i > 0);
	assert_ptr_equal(m2n__kernels_select(NULL), fastest);
	assert_null(m2n__kernels_select("none"));
	assert_null(m2n__kernels_select(""));
	assert_int_equal(m2n__dtype_bytes(M2N_DTYPE_F32), 4);
	assert_int_equal(m2n__dtype_bytes(M2N_DTYPE_BF16), 2);
	assert_int_equal(m2n__dtype_bytes(M2N_DTYPE_F16), 2);
	assert_string_equal(m2n__dtype_name(M2N_DTYPE_BF16), "bf16");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_value_decodes),
		cmocka_unit_test(every_value_survives_a_round_trip),
		cmocka_unit_test(casts_round_to_nearest_even),
		cmocka_unit_test(casts_know_the_ends),
		cmocka_unit_test(fp8_is_the_nearest_of_its_values),
		cmocka_unit_test(wsum_by_hand),
		cmocka_unit_test(wsum_is_fused_and_in_order),
		cmocka_unit_test(dot_by_hand),
		cmocka_unit_test(cast_fp8_by_hand),
		cmocka_unit_test(cast_fp8_takes_the_smallest_and_largest_blocks),
		cmocka_unit_test(tables_are_found_by_name),
	};

	return cmocka_run_group_tests_name("kernel scalar", tests, NULL, NULL);
}
