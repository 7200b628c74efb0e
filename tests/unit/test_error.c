/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results and their texts: every code has its own constant text, details belong to the thread.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <cmocka.h>

#include "util/error.h"

static void every_code_has_a_text(void **state)
{
	(void)state;
#define CHECK(name, code, text) assert_string_equal(m2n_strerror(M2N_ERR_##name), text);
	M2N_STATUS_LIST(CHECK)
#undef CHECK
	assert_string_equal(m2n_strerror(0), "success");
	assert_string_equal(m2n_strerror(-EINVAL), "Invalid argument");
	assert_string_equal(m2n_strerror(-999999), "unknown status");
	assert_string_equal(m2n_strerror(77), "unknown status");
}

static void *other_thread(void *arg)
{
	(void)arg;
	m2n__error(-EINVAL, "theirs");
	return NULL;
}

static void details_belong_to_the_thread(void **state)
{
	pthread_t thread;

	(void)state;
	assert_int_equal(m2n__error(-EINVAL, "rank %d", 3), -EINVAL);
	assert_int_equal(pthread_create(&thread, NULL, other_thread, NULL), 0);
	pthread_join(thread, NULL);
	assert_string_equal(m2n_error_text(), "rank 3");
	assert_int_equal(m2n__error_at(-EIO, "channel '%s'", "moe"), -EIO);
	assert_string_equal(m2n_error_text(), "channel 'moe': rank 3");
}

static void long_details_are_cut(void **state)
{
	char text[2000];

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	m2n__error(-EINVAL, "%s", text);
	assert_int_equal(strlen(m2n_error_text()), 511);
	m2n__error_at(-EINVAL, "%s", text);
	assert_int_equal(strlen(m2n_error_text()), 511);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_code_has_a_text),
		cmocka_unit_test(details_belong_to_the_thread),
		cmocka_unit_test(long_details_are_cut),
	};

	return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
