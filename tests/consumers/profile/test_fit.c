/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines through points whose answer is known: exact ones, and four with noise fitted by hand.
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
#include <unistd.h>

#include "megascale_infer/profile.h"
#include "model/error.h"

#define NEAR(a, b) assert_true(fabs((a) - (b)) < 1e-9)

static void a_line_is_found(void **state)
{
	struct profile_points points = {.n = 0};
	struct profile_line line;

	(void)state;
	for (uint32_t i = 1; i <= 32; i *= 2) {
		points.points[points.n++] = (struct profile_point){i, 64, 3.5 * i + 20};
		points.points[points.n++] = (struct profile_point){i, 256, 7.5 * i + 10};
	}
	assert_int_equal(profile_fit(&points, 64, &line), 0);
	NEAR(line.slope_us, 3.5);
	NEAR(line.constant_us, 20);
	NEAR(line.residual_us, 0);
	assert_int_equal(profile_fit(&points, 256, &line), 0);
	NEAR(line.slope_us, 7.5);
	NEAR(line.constant_us, 10);
}

/* (1, 3), (2, 5), (3, 6), (4, 10): slope 2.2, constant 0.5; off by .3, .1, -1.1, .7 */
static void noise_is_the_residual(void **state)
{
	struct profile_points points = {.n = 4,
		.points = {{1, 0, 3}, {2, 0, 5}, {3, 0, 6}, {4, 0, 10}}};
	struct profile_line line;

	(void)state;
	assert_int_equal(profile_fit(&points, 0, &line), 0);
	NEAR(line.slope_us, 2.2);
	NEAR(line.constant_us, 0.5);
	NEAR(line.residual_us, sqrt((0.09 + 0.01 + 1.21 + 0.49) / 4));
}

/* (1, 1), (2, 4): the line 3 b - 2 is none; through the origin it is 9 / 5 b. */
static void no_constant_is_negative(void **state)
{
	struct profile_points points = {.n = 2, .points = {{1, 0, 1}, {2, 0, 4}}};
	struct profile_line line;

	(void)state;
	assert_int_equal(profile_fit(&points, 0, &line), 0);
	NEAR(line.slope_us, 1.8);
	NEAR(line.constant_us, 0);
	NEAR(line.residual_us, sqrt((0.64 + 0.16) / 2));
}

static void what_is_no_line_is_refused(void **state)
{
	struct profile_points points = {.n = 2, .points = {{4, 0, 1}, {4, 0, 4}}};
	struct profile_line line;

	(void)state;
	assert_int_equal(profile_fit(&points, 0, &line), -EINVAL);
	assert_int_equal(profile_fit(&points, 5, &line), -EINVAL);
	points.points[1] = (struct profile_point){8, 0, 0.5};
	assert_int_equal(profile_fit(&points, 0, &line), -EINVAL);
	assert_non_null(strstr(model_error(), "do not rise"));
}

static void costs_are_what_the_slopes_differ_by(void **state)
{
	struct profile_line small = {.slope_us = 3}, large = {.slope_us = 9};
	struct profile_cost cost;

	(void)state;
	profile_cost_of(&small, 64, &large, 256, &cost); /* 6 us for 192 keys */
	NEAR(cost.key_us, 0.03125);
	NEAR(cost.row_us, 1);
	profile_cost_of(&large, 64, &small, 256, &cost); /* noise: keys cost nothing */
	NEAR(cost.key_us, 0);
	NEAR(cost.row_us, 3);
	small.slope_us = 0.001; /* noise: all is in the keys */
	profile_cost_of(&small, 64, &large, 256, &cost);
	NEAR(cost.key_us, 9 / 256.);
	NEAR(cost.row_us, 0);
}

static int read_cost(const char *text, struct profile_cost *cost)
{
	char path[] = "/tmp/m2n_cost_XXXXXX";
	int fd = mkstemp(path), rc;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	rc = profile_cost_read(path, cost);
	unlink(path);
	return rc;
}

static void costs_are_read(void **state)
{
	struct profile_cost cost = {7, 7};

	(void)state;
	assert_int_equal(read_cost("{\"batch\": {\"row_us\": -1, \"key_us\": 1}}", &cost), -EINVAL);
	assert_int_equal(read_cost("{\"batch\": {\"row_us\": 0, \"key_us\": 0}}", &cost), -EINVAL);
	assert_int_equal(read_cost("{\"batch\": {\"row_us\": 1}}", &cost), -EINVAL);
	assert_int_equal(read_cost("{}", &cost), -EINVAL);
	assert_int_equal(read_cost("{", &cost), -EINVAL);
	assert_true(cost.row_us == 7 && cost.key_us == 7);
	assert_int_equal(read_cost("{\"batch\": {\"row_us\": 2.5, \"key_us\": 0}}", &cost), 0);
	assert_true(cost.row_us == 2.5 && cost.key_us == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_is_found),
		cmocka_unit_test(noise_is_the_residual),
		cmocka_unit_test(no_constant_is_negative),
		cmocka_unit_test(what_is_no_line_is_refused),
		cmocka_unit_test(costs_are_what_the_slopes_differ_by),
		cmocka_unit_test(costs_are_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
