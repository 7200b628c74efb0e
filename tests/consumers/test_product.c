/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products: right by double precision, and a row's bits independent of its company. Casts: against
 * arithmetic on the values.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/product.h"

#define MAX_ROWS 70

static const size_t shapes[][2] = {
	{64, 256}, {1, 1}, {8, 48}, {3, 300}, {97, 48}, {130, 257}, {64, 513}, {65, 255}, {7, 1024},
};
#define N_SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static void fill(float *values, size_t n_values, unsigned seed)
{
	for (size_t i = 0; i < n_values; i++) {
		seed = seed * 1664525u + 1013904223u;
		values[i] = (float)(int32_t)seed * 0x1p-31f;
	}
}

struct operands {
	struct model_matrix matrix;
	void *weights;
	float *widened, *x, *alone, *y;
	struct model_work *work;
};

static struct operands make(const size_t *shape, enum model_dtype dtype)
{
	size_t n = shape[0] * shape[1];
	struct operands o = {.widened = malloc(n * sizeof(float)),
		.weights = malloc(n * sizeof(float)),
		.x = malloc(MAX_ROWS * shape[1] * sizeof(float)),
		.alone = malloc(MAX_ROWS * shape[0] * sizeof(float)),
		.y = malloc(2 * MAX_ROWS * shape[0] * sizeof(float)),
		.work = model_work_open(shape[1])};

	assert_non_null(o.work);
	fill(o.widened, n, 1);
	model_round(dtype, o.widened, n);
	model_from_f32(dtype, o.widened, n, o.weights);
	fill(o.x, MAX_ROWS * shape[1], 2);
	o.matrix = (struct model_matrix){o.weights, dtype, shape[0], shape[1]};
	for (size_t row = 0; row < MAX_ROWS; row++)
		model_product(o.work, &o.matrix, o.x + row * shape[1], 1, shape[1],
			o.alone + row * shape[0], shape[0]);
	return o;
}

static void drop(struct operands *o)
{
	model_work_close(o->work);
	free(o->weights);
	free(o->widened);
	free(o->x);
	free(o->alone);
	free(o->y);
}

static void products_are_right(void **state)
{
	(void)state;
	for (size_t i = 0; i < 2 * N_SHAPES; i++) {
		const size_t *shape = shapes[i / 2];
		struct operands o = make(shape, i % 2 ? MODEL_BF16 : MODEL_F32);

		for (size_t row = 0; row < MAX_ROWS; row++)
			for (size_t out = 0; out < shape[0]; out++) {
				double sum = 0, size = 0;

				for (size_t j = 0; j < shape[1]; j++) {
					double part = (double)o.x[row * shape[1] + j] *
						o.widened[out * shape[1] + j];

					sum += part;
					size += fabs(part);
				}
				assert_true(fabs(o.alone[row * shape[0] + out] - sum) <=
					1e-5 * size);
			}
		drop(&o);
	}
}

/* n rows from `first` on, with strides of their own: every row as alone, nothing beside them. */
static void check_batch(struct operands *o, size_t first, size_t n)
{
	size_t outs = o->matrix.n_out, ins = o->matrix.n_in, stride = outs + outs % 3;

	memset(o->y, 0x55, 2 * MAX_ROWS * outs * sizeof(float));
	model_product(o->work, &o->matrix, o->x + first * ins, n, ins, o->y, stride);
	for (size_t row = 0; row < n; row++) {
		assert_memory_equal(o->y + row * stride, o->alone + (first + row) * outs,
			outs * sizeof(float));
		for (size_t i = outs; i < stride; i++)
			assert_memory_equal(o->y + row * stride + i, "\x55\x55\x55\x55", 4);
	}
	for (size_t i = n * stride; i < 2 * MAX_ROWS * outs; i++)
		assert_memory_equal(o->y + i, "\x55\x55\x55\x55", 4);
}

static void rows_do_not_depend_on_company(void **state)
{
	(void)state;
	for (size_t i = 0; i < 2 * N_SHAPES; i++) {
		struct operands o = make(shapes[i / 2], i % 2 ? MODEL_BF16 : MODEL_F32);

		for (size_t n = 0; n <= MAX_ROWS; n++)
			for (size_t first = 0; first + n <= MAX_ROWS; first += 1 + n / 4)
				check_batch(&o, first, n);
		drop(&o);
	}
}

/* What the neighbours are must not matter either: infinities and NaN in all other rows. */
static void neighbours_may_be_anything(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_SHAPES; i++) {
		struct operands o = make(shapes[i], MODEL_F32);
		size_t outs = o.matrix.n_out, ins = o.matrix.n_in;

		for (size_t row = 0; row < 13; row++) {
			for (size_t j = 0; j < 13 * ins; j++)
				if (j / ins != row)
					o.x[j] = j % 2 ? INFINITY : NAN;
			model_product(o.work, &o.matrix, o.x, 13, ins, o.y, outs);
			assert_memory_equal(o.y + row * outs, o.alone + row * outs,
				outs * sizeof(float));
			fill(o.x, MAX_ROWS * ins, 2);
		}
		drop(&o);
	}
}

/* A bf16 matrix gives the bits of the same values in fp32. */
static void bf16_is_fp32_of_the_same_values(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_SHAPES; i++) {
		struct operands o = make(shapes[i], MODEL_BF16);
		struct model_matrix wide = {o.widened, MODEL_F32, shapes[i][0], shapes[i][1]};

		model_product(o.work, &wide, o.x, MAX_ROWS, wide.n_in, o.y, wide.n_out);
		assert_memory_equal(o.y, o.alone, MAX_ROWS * wide.n_out * sizeof(float));
		drop(&o);
	}
}

/* Another scratch, another alignment of x, y and weights: the same bits. */
static void alignment_does_not_matter(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_SHAPES; i++) {
		struct operands o = make(shapes[i], MODEL_F32);
		size_t n = o.matrix.n_out * o.matrix.n_in;
		float *moved = malloc((n + 16) * sizeof(float));
		struct model_work *work = model_work_open(o.matrix.n_in);

		for (size_t shift = 0; shift < 16; shift += 3) {
			memcpy(moved + shift, o.widened, n * sizeof(float));
			o.matrix.data = moved + shift;
			model_product(work, &o.matrix, o.x, 11, o.matrix.n_in, o.y + shift,
				o.matrix.n_out);
			assert_memory_equal(o.y + shift, o.alone,
				11 * o.matrix.n_out * sizeof(float));
		}
		model_work_close(work);
		free(moved);
		drop(&o);
	}
}

static void tiles_are_known(void **state)
{
	struct model_work *work = model_work_open(1);
	unsigned tiles = model_product_tiles(work, 64, 256);

	(void)state;
	assert_true(tiles >= 1 && tiles <= 15);
	assert_int_equal(model_product_tiles(work, 64, 256), tiles);
	assert_non_null(strstr(model_product_engine(), "OpenBLAS"));
	print_message("tiles of 64 x 256: %u, %s\n", tiles, model_product_engine());
	model_work_close(work);
}

static double half_value(unsigned half)
{
	double sign = half & 0x8000 ? -1 : 1;
	int exponent = half >> 10 & 31, fraction = half & 0x3ff;

	return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}

static uint16_t cast_half(enum model_dtype dtype, float value)
{
	uint16_t half;

	model_from_f32(dtype, &value, 1, &half);
	return half;
}

/* Each finite half by its formula; the middle between neighbours goes to the even one. */
static void halves_round_to_nearest_even(void **state)
{
	(void)state;
	for (unsigned half = 0; half < 0x7c00; half++) {
		uint16_t bits = (uint16_t)half;
		float wide, middle;

		model_to_f32(MODEL_F16, &bits, 1, &wide);
		assert_true((double)wide == half_value(half));
		assert_int_equal(cast_half(MODEL_F16, wide), half);
		assert_int_equal(cast_half(MODEL_F16, -wide), half | 0x8000);
		middle = half == 0x7bff ? 65520.0f :
			(float)((half_value(half) + half_value(half + 1)) / 2);
		assert_int_equal(cast_half(MODEL_F16, middle), half + (half & 1));
		assert_int_equal(cast_half(MODEL_F16, nextafterf(middle, 0)), half);
		assert_int_equal(cast_half(MODEL_F16, nextafterf(middle, INFINITY)), half + 1);
	}
	assert_int_equal(cast_half(MODEL_F16, INFINITY), 0x7c00);
	assert_int_equal(cast_half(MODEL_F16, 1e30f), 0x7c00);
	assert_int_equal(cast_half(MODEL_F16, NAN) & 0x7fff, 0x7e00);
}

static void bf16_rounds_to_nearest_even(void **state)
{
	(void)state;
	for (unsigned high = 0; high < 0x7f80; high += 3) {
		uint16_t half = (uint16_t)high;
		float wide, middle;
		uint32_t bits = high << 16 | 0x8000;

		model_to_f32(MODEL_BF16, &half, 1, &wide);
		memcpy(&middle, &bits, sizeof(middle));
		assert_int_equal(cast_half(MODEL_BF16, wide), high);
		assert_int_equal(cast_half(MODEL_BF16, middle), high + (high & 1));
		assert_int_equal(cast_half(MODEL_BF16, nextafterf(middle, 0)), high);
		assert_int_equal(cast_half(MODEL_BF16, nextafterf(middle, INFINITY)), high + 1);
	}
	assert_true((cast_half(MODEL_BF16, NAN) & 0x7fff) > 0x7f80);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(products_are_right),
		cmocka_unit_test(rows_do_not_depend_on_company),
		cmocka_unit_test(neighbours_may_be_anything),
		cmocka_unit_test(bf16_is_fp32_of_the_same_values),
		cmocka_unit_test(alignment_does_not_matter),
		cmocka_unit_test(tiles_are_known),
		cmocka_unit_test(halves_round_to_nearest_even),
		cmocka_unit_test(bf16_rounds_to_nearest_even),
	};

	return cmocka_run_group_tests_name("product", tests, NULL, NULL);
}
