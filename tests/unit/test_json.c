/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON as the tools print it: hand-written texts are the oracle. What cannot be a value (bytes
 * that are no UTF-8, numbers that are not finite) is refused, and a refusal reaches the caller.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../perftest/jansson/jansson.h"

static void assert_prints(json_t *value, int indent, const char *text)
{
	char *printed = NULL;
	size_t bytes = 0;
	FILE *file = open_memstream(&printed, &bytes);

	assert_non_null(file);
	assert_non_null(value);
	assert_int_equal(json_dumpf(value, file, indent), 0);
	fclose(file);
	assert_string_equal(printed, text);
	free(printed);
	json_decref(value);
}

static void values_print(void **state)
{
	(void)state;
	assert_prints(json_null(), 1, "null");
	assert_prints(json_boolean(7), 1, "true");
	assert_prints(json_boolean(0), 1, "false");
	assert_prints(json_integer(INT64_MIN), 1, "-9223372036854775808");
	assert_prints(json_real(2), 1, "2.0");
	assert_prints(json_real(-0.125), 1, "-0.125");
	assert_prints(json_real(1e300), 1, "1e+300");
	assert_prints(json_array(), 1, "[]");
	assert_prints(json_object(), 1, "{}");
	assert_prints(json_string("a\"b\\c\n\t\x01/"), 1, "\"a\\\"b\\\\c\\n\\t\\u0001/\"");
}

static void lists_nest(void **state)
{
	json_t *list = json_array();

	(void)state;
	json_array_append_new(
		list, json_pack("{s:s, s:s?, s:i, s:b}", "a", "x", "b", NULL, "c", -1, "d", 1));
	json_array_append_new(list, json_pack("{s:I, s:f, s:o}", "i", (json_int_t)1 << 40, "f", 0.5,
					    "o", json_array()));
	assert_prints(list, 2,
		"[\n  {\n    \"a\": \"x\",\n    \"b\": null,\n    \"c\": -1,\n"
		"    \"d\": true\n  },\n  {\n    \"i\": 1099511627776,\n    \"f\": 0.5,\n"
		"    \"o\": []\n  }\n]");
}

static void text_is_utf8(void **state)
{
	static const char *const good[] = {
		"", "~", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"};
	static const char *const bad[] = {"\x80", "\xc0\x80", "\xc3", "\xe0\x80\x80",
		"\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "a\xff", "\xe2\x82"};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		json_t *value = json_string(good[i]);

		assert_non_null(value);
		assert_string_equal(json_string_value(value), good[i]);
		json_decref(value);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_null(json_string(bad[i]));
	assert_null(json_string(NULL));
}

static void refusals_are_passed_on(void **state)
{
	json_t *list = json_array(), *object = json_object();

	(void)state;
	assert_null(json_real(NAN));
	assert_null(json_real(INFINITY));
	assert_int_equal(json_array_append_new(list, json_string("\xff")), -1);
	assert_int_equal(json_array_append_new(NULL, json_null()), -1);
	assert_int_equal(json_object_set_new(object, "x", NULL), -1);
	assert_null(json_pack("{s:s, s:o}", "a", "\xff", "b", json_array()));
	assert_null(json_pack("{s:f}", "a", NAN));
	assert_int_equal(json_array_size(list), 0);
	assert_null(json_object_get(object, "x"));
	json_decref(list);
	json_decref(object);
	json_decref(NULL);
}

static void members_are_found_and_replaced(void **state)
{
	json_t *object = json_object(), *more = json_pack("{s:i, s:i}", "b", 3, "c", 4);

	(void)state;
	assert_int_equal(json_object_set_new(object, "a", json_integer(1)), 0);
	assert_int_equal(json_object_set_new(object, "b", json_integer(2)), 0);
	assert_int_equal(json_object_update(object, more), 0);
	json_decref(more);
	assert_int_equal(json_integer_value(json_object_get(object, "b")), 3);
	assert_int_equal(json_integer_value(json_object_get(object, "c")), 4);
	assert_null(json_object_get(object, "d"));
	assert_null(json_object_get(NULL, "a"));
	assert_true(json_is_integer(json_object_get(object, "a")));
	assert_false(json_is_null(json_object_get(object, "a")));
	assert_false(json_is_true(NULL));
	assert_null(json_array_get(object, 0));
	json_decref(object);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values_print),
		cmocka_unit_test(lists_nest),
		cmocka_unit_test(text_is_utf8),
		cmocka_unit_test(refusals_are_passed_on),
		cmocka_unit_test(members_are_found_and_replaced),
	};

	return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
