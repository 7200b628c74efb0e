/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every table of kernels that runs here, against the scalar one: the same bits (any NaN for a
 * NaN) and not a byte outside the destination, over sizes around every vector's, all alignments,
 * and values that break arithmetic. Casts see every bf16 and every fp8 value. What the scalar
 * table itself must do is in test_kernel_scalar.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/kernel.h"
#include "kernel/value.h"

#define GUARD 128
#define GUARD_BYTE 0xa5
#define MAX_BYTES (7168 * 4)
#define MAX_ROWS 64
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static const enum m2n_dtype dtypes[] = {M2N_DTYPE_F32, M2N_DTYPE_BF16, M2N_DTYPE_F16};

/* A destination: room for the largest row at any alignment between guards. */
struct target {
	uint8_t *bytes;
	size_t size;
	_Alignas(64) uint8_t memory[2 * GUARD + 64 + MAX_BYTES];
};

static struct target expected, actual, targets[8];
static _Alignas(64) uint8_t source[MAX_ROWS + 1][MAX_BYTES + 64];
static uint64_t random_state;

static uint32_t next_random(void)
{
	random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(random_state >> 32);
}

static void aim(struct target *target, size_t alignment, size_t size)
{
	memset(target->memory, GUARD_BYTE, 2 * GUARD + 64 + size);
	target->bytes = target->memory + GUARD + alignment;
	target->size = size;
}

static void check_guards(const struct target *target, const char *what)
{
	const uint8_t *end = target->bytes + target->size;

	for (const uint8_t *byte = target->bytes - GUARD; byte < target->bytes; byte++)
		if (*byte != GUARD_BYTE)
			fail_msg("%s of %zu bytes wrote %td before", what, target->size,
				target->bytes - byte);
	for (const uint8_t *byte = end; byte < end + GUARD; byte++)
		if (*byte != GUARD_BYTE)
			fail_msg("%s of %zu bytes wrote %td after", what, target->size, byte - end);
}

static void check_copy(const struct target *target, const uint8_t *src, const char *what)
{
	if (memcmp(target->bytes, src, target->size) != 0)
		fail_msg("%s of %zu bytes differs", what, target->size);
	check_guards(target, what);
}

/* Calls `check` for every usable table; the reference's copies need checking as well. */
static void for_each_table(void (*check)(const struct m2n__kernels *))
{
	const struct m2n__kernels *table;
	int usable;

	for (unsigned i = 0; (table = m2n__kernels_at(i, &usable)) != NULL; i++) {
		random_state = 42;
		if (usable)
			check(table);
	}
}

static void fill_sources(void)
{
	for (size_t r = 0; r < LENGTH(source); r++)
		for (size_t i = 0; i < sizeof(source[0]); i++)
			source[r][i] = (uint8_t)next_random();
}

/* 0, 1, 7, ... 7168: calls `check` for each number of values (or bytes) worth trying. */
static size_t size_at(unsigned index)
{
	static const size_t few[] = {0, 1, 7, 8, 15, 16, 17};
	static const size_t many[] = {255, 256, 257, 1000, 1023, 1024, 1025, 7168};

	if (index < LENGTH(few))
		return few[index];
	index -= LENGTH(few);
	if (index < 100)
		return 31 + index;
	index -= 100;
	return index < LENGTH(many) ? many[index] : SIZE_MAX;
}

static void check_copies_at(const struct m2n__kernels *table, size_t bytes, size_t to, size_t from)
{
	aim(&actual, to, bytes);
	table->copy(actual.bytes, source[0] + from, bytes);
	check_copy(&actual, source[0] + from, "copy");
	aim(&actual, to, bytes);
	table->stream(actual.bytes, source[0] + from, bytes);
	table->fence();
	check_copy(&actual, source[0] + from, "stream");
}

static void check_copies(const struct m2n__kernels *table)
{
	static const size_t each_pair[] = {1, 63, 64, 65, 130, 300};
	size_t bytes;

	fill_sources();
	for (size_t to = 0; to < 64; to++) {
		for (size_t from = 0; from < 64; from++)
			for (unsigned i = 0; i < LENGTH(each_pair); i++)
				check_copies_at(table, each_pair[i], to, from);
		for (unsigned i = 0; (bytes = size_at(i)) != SIZE_MAX; i++)
			check_copies_at(table, bytes, to, (to * 7 + 3) % 64);
	}
	for (bytes = 1; bytes <= 4096 + 64; bytes += bytes < 1100 ? 1 : 61)
		check_copies_at(table, bytes, bytes % 64, 0);
}

static void check_scatter(const struct m2n__kernels *table)
{
	static const size_t sizes[] = {0, 1, 63, 64, 130, 1000, 4095, 4096, 4097, 4160, 9000};
	void *dst[LENGTH(targets)];

	fill_sources();
	for (size_t a = 0; a < 64 * LENGTH(sizes); a++) {
		size_t bytes = sizes[a / 64];

		for (unsigned n = 0; n <= LENGTH(targets); n += n < 3 ? 1 : 5) {
			for (unsigned j = 0; j < n; j++) {
				aim(&targets[j], (a + 13 * j) % 64, bytes);
				dst[j] = targets[j].bytes;
			}
			table->scatter(dst, n, source[0] + a * 5 % 64, bytes);
			table->fence();
			for (unsigned j = 0; j < n; j++)
				check_copy(&targets[j], source[0] + a * 5 % 64, "scatter");
		}
	}
}

/* Bit patterns that make trouble, in the upper bits of f32, bf16 and f16 alike. */
static uint32_t special_bits(enum m2n_dtype dtype)
{
	static const uint32_t f32[] = {0, 0x80000000, 1, 0x80000001, 0x007fffff, 0x00800000,
		0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0x3f800000,
		0x3f808000, 0x3f818000, 0x3f807fff, 0x3f818001, 0x477fefff, 0x477ff000, 0x33000000,
		0x33000001, 0x38800000, 0x387fffff};
	static const uint32_t bf16[] = {0, 0x8000, 1, 0x8001, 0x7f, 0x80, 0x7f7f, 0xff7f, 0x7f80,
		0xff80, 0x7fc0, 0x7f81, 0x3f80, 0x3f81, 0xbf80};
	static const uint32_t f16[] = {0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x7bff, 0xfbff, 0x7c00,
		0xfc00, 0x7e00, 0x7c01, 0x3c00, 0x3c01, 0xbc00};
	uint32_t random = next_random();

	if (dtype == M2N_DTYPE_F32)
		return f32[random % LENGTH(f32)];
	return dtype == M2N_DTYPE_BF16 ? bf16[random % LENGTH(bf16)] : f16[random % LENGTH(f16)];
}

/*
 * Rows of values: any bits, special ones, or (where sums should not drown in NaN) numbers
 * around 1 whose sums need rounding.
 */
static void fill_values(enum m2n_dtype dtype, void *row, size_t n_values, unsigned kind)
{
	for (size_t i = 0; i < n_values; i++) {
		uint32_t bits = kind == 0 ? next_random() : special_bits(dtype);
		float value = (float)(int32_t)next_random() * 0x1p-30f;

		if (kind == 2)
			store_value(dtype, row, i, value);
		else
			memcpy((char *)row + i * m2n__dtype_bytes(dtype), &bits,
				m2n__dtype_bytes(dtype));
	}
}

static void fill_value_rows(enum m2n_dtype dtype, unsigned kind)
{
	for (size_t r = 0; r < LENGTH(source); r++)
		fill_values(dtype, source[r], sizeof(source[r]) / m2n__dtype_bytes(dtype), kind);
}

/* The rows in both targets are the same values. */
static void check_values(enum m2n_dtype dtype, size_t n_values, const char *what)
{
	size_t size = m2n__dtype_bytes(dtype);

	check_guards(&actual, what);
	if (memcmp(actual.bytes, expected.bytes, actual.size) == 0)
		return;
	for (size_t i = 0; i < n_values; i++) {
		float a = load_value(dtype, actual.bytes, i),
		      e = load_value(dtype, expected.bytes, i);

		if (memcmp(actual.bytes + i * size, expected.bytes + i * size, size) != 0 &&
			!(isnan(a) && isnan(e)))
			fail_msg("%s %s of %zu: value %zu is %a, not %a", what,
				m2n__dtype_name(dtype), n_values, i, (double)a, (double)e);
	}
}

static void check_wsum_of(const struct m2n__kernels *table, enum m2n_dtype dtype, size_t n_values,
	unsigned n, unsigned flags)
{
	const struct m2n__kernels *scalar = m2n__kernels_select("scalar");
	size_t bytes = n_values * m2n__dtype_bytes(dtype), to = next_random() % 64;
	const void *x[MAX_ROWS],
		*residual = flags & 1 ? source[MAX_ROWS] + next_random() % 64 : NULL;
	float w[MAX_ROWS];

	/* Every other time values begin cache lines. */
	if (flags & 4 && next_random() % 2)
		to -= to % m2n__dtype_bytes(dtype);
	for (unsigned k = 0; k < n; k++) {
		x[k] = source[k] + next_random() % 64;
		w[k] = (float)(int32_t)next_random() * 0x1p-31f;
	}
	aim(&expected, to, bytes);
	aim(&actual, to, bytes);
	scalar->wsum[dtype](expected.bytes, residual, x, flags & 2 ? w : NULL, n, n_values, 0);
	table->wsum[dtype](
		actual.bytes, residual, x, flags & 2 ? w : NULL, n, n_values, flags & 4 ? 1 : 0);
	table->fence();
	check_values(dtype, n_values, "wsum");
}

static void check_wsum(const struct m2n__kernels *table)
{
	static const unsigned ns[] = {0, 1, 2, 8, 64};
	size_t n_values;

	for (unsigned c = 0; c < LENGTH(dtypes) * 3; c++) {
		fill_value_rows(dtypes[c / 3], c % 3);
		for (unsigned i = 0; (n_values = size_at(i)) != SIZE_MAX; i++)
			for (unsigned j = 0; j < LENGTH(ns) * 8; j++)
				if (n_values < 200 || ns[j / 8] < 64 || j % 8 > 5)
					check_wsum_of(
						table, dtypes[c / 3], n_values, ns[j / 8], j % 8);
	}
}

static void check_scale_and_dot(const struct m2n__kernels *table)
{
	static const float weights[] = {0.0f, -0.0f, 1.0f, 0.1f, -3e38f, 1e-40f, INFINITY, NAN};
	const struct m2n__kernels *scalar = m2n__kernels_select("scalar");
	size_t n_values;

	for (unsigned c = 0; c < LENGTH(dtypes) * 3; c++) {
		enum m2n_dtype dtype = dtypes[c / 3];

		fill_value_rows(dtype, c % 3);
		for (unsigned i = 0; (n_values = size_at(i)) != SIZE_MAX; i++) {
			size_t bytes = n_values * m2n__dtype_bytes(dtype), to = next_random() % 64;
			const uint8_t *a = source[0] + next_random() % 64;
			const uint8_t *b = source[1] + next_random() % 64;
			float e = scalar->dot[dtype](a, b, n_values);
			float d = table->dot[dtype](a, b, n_values);

			if (memcmp(&d, &e, sizeof(d)) != 0 && !(isnan(d) && isnan(e)))
				fail_msg("dot of %zu: %a, not %a", n_values, (double)d, (double)e);
			for (unsigned j = 0; j < LENGTH(weights); j++) {
				aim(&expected, to, bytes);
				aim(&actual, to, bytes);
				scalar->scale[dtype](expected.bytes, a, weights[j], n_values);
				table->scale[dtype](actual.bytes, a, weights[j], n_values);
				check_values(dtype, n_values, "scale");
			}
		}
	}
}

/* Casts n values of `src` there and back with both tables. */
static void check_fp8_of(const struct m2n__kernels *table, const void *src, size_t n_values)
{
	const struct m2n__kernels *scalar = m2n__kernels_select("scalar");
	size_t n_blocks = (n_values + M2N__FP8_BLOCK - 1) / M2N__FP8_BLOCK;
	size_t to = next_random() % 64;
	float scales[MAX_BYTES / M2N__FP8_BLOCK + 2] = {0}, scales_expected[LENGTH(scales)] = {0};
	uint8_t codes[MAX_BYTES];

	aim(&expected, to, n_values);
	aim(&actual, to, n_values);
	scalar->cast_fp8(expected.bytes, scales_expected, src, n_values);
	table->cast_fp8(actual.bytes, scales, src, n_values);
	check_guards(&actual, "cast_fp8");
	assert_memory_equal(actual.bytes, expected.bytes, n_values);
	assert_memory_equal(scales, scales_expected, sizeof(scales));
	assert_true(scales[n_blocks] == 0.0f);

	memcpy(codes, expected.bytes, n_values);
	aim(&expected, to, 2 * n_values);
	aim(&actual, to, 2 * n_values);
	scalar->uncast_fp8((void *)expected.bytes, codes, scales, n_values);
	table->uncast_fp8((void *)actual.bytes, codes, scales, n_values);
	check_values(M2N_DTYPE_BF16, n_values, "uncast_fp8");
}

static void check_fp8(const struct m2n__kernels *table)
{
	uint16_t ordered[M2N__FP8_BLOCK];
	size_t n_values;

	for (unsigned kind = 0; kind < 3; kind++) {
		fill_value_rows(M2N_DTYPE_BF16, kind);
		for (unsigned i = 0; (n_values = size_at(i)) != SIZE_MAX; i++)
			check_fp8_of(table, source[i % MAX_ROWS] + next_random() % 64, n_values);
	}
	/* Neighbouring values under one scale: every bf16 value and every rounding of its size. */
	for (unsigned base = 0; base < 65536; base += M2N__FP8_BLOCK / 2) {
		for (unsigned i = 0; i < M2N__FP8_BLOCK; i++)
			ordered[i] = (uint16_t)(base + i);
		check_fp8_of(table, ordered, M2N__FP8_BLOCK);
	}
	/* A fixed largest value: all smaller ones, fp8's denormals among them, in its steps. */
	for (unsigned base = 0; base < 0x43e0; base += M2N__FP8_BLOCK - 1) {
		for (unsigned i = 0; i < M2N__FP8_BLOCK; i++)
			ordered[i] = (uint16_t)(i ? base + i : 0x43e0);
		check_fp8_of(table, ordered, M2N__FP8_BLOCK);
	}
}

static void check_every_code(const struct m2n__kernels *table)
{
	static const float scales[] = {
		1.0f, 0.3f, 1e-38f, 1e-44f, 1e36f, 3e38f, 0.0f, INFINITY, NAN};
	const struct m2n__kernels *scalar = m2n__kernels_select("scalar");
	uint8_t codes[256];

	for (unsigned i = 0; i < 256; i++)
		codes[i] = (uint8_t)i;
	for (unsigned i = 0; i + 1 < LENGTH(scales); i++) {
		aim(&expected, 2, 512);
		aim(&actual, 2, 512);
		scalar->uncast_fp8((void *)expected.bytes, codes, scales + i, 256);
		table->uncast_fp8((void *)actual.bytes, codes, scales + i, 256);
		check_values(M2N_DTYPE_BF16, 256, "uncast_fp8");
	}
}

#define TEST(name)                                                                                 \
	static void test_##name(void **state)                                                      \
	{                                                                                          \
		(void)state;                                                                       \
		for_each_table(check_##name);                                                      \
	}
TEST(copies)
TEST(scatter)
TEST(wsum)
TEST(scale_and_dot)
TEST(fp8)
TEST(every_code)
#undef TEST

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copies),
		cmocka_unit_test(test_scatter),
		cmocka_unit_test(test_wsum),
		cmocka_unit_test(test_scale_and_dot),
		cmocka_unit_test(test_fp8),
		cmocka_unit_test(test_every_code),
	};

	return cmocka_run_group_tests_name("kernel", tests, NULL, NULL);
}
