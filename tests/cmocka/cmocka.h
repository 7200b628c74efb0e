/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of CMocka as the unit tests use, for machines on which it cannot be installed; Meson
 * takes this folder only where there is no libcmocka. Names, meanings and the summary's lines are
 * CMocka's, so that tests and tests/run_count do not know the difference. A failed assertion ends
 * its test by longjmp(), as there; a signal ends the program.
 */
#ifndef TESTS_CMOCKA_H
#define TESTS_CMOCKA_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef void (*CMUnitTestFunction)(void **state);
typedef int (*CMFixtureFunction)(void **state);

struct CMUnitTest {
	const char *name;
	CMUnitTestFunction test_func;
	CMFixtureFunction setup_func;
	CMFixtureFunction teardown_func;
	void *initial_state;
};

/* clang-format off */
#define cmocka_unit_test(f) {#f, f, NULL, NULL, NULL}
#define cmocka_unit_test_setup(f, setup) {#f, f, setup, NULL, NULL}
#define cmocka_unit_test_teardown(f, teardown) {#f, f, NULL, teardown, NULL}
#define cmocka_unit_test_setup_teardown(f, setup, teardown) {#f, f, setup, teardown, NULL}
#define cmocka_unit_test_prestate(f, state) {#f, f, NULL, NULL, state}
#define cmocka_unit_test_prestate_setup_teardown(f, setup, teardown, state) \
	{#f, f, setup, teardown, state}
/* clang-format on */

enum { CMOCKA_FAILED = 1, CMOCKA_SKIPPED = 2 };

/* One for the program, whichever of its files asserts. */
__attribute__((weak)) jmp_buf cmocka_end_of_test;

static inline void __attribute__((noreturn, format(printf, 3, 4)))
cmocka_fail(const char *file, int line, const char *form, ...)
{
	va_list list;

	va_start(list, form);
	fprintf(stderr, "%s:%d: error: ", file, line);
	vfprintf(stderr, form, list);
	fputc('\n', stderr);
	va_end(list);
	longjmp(cmocka_end_of_test, CMOCKA_FAILED);
}

static inline void __attribute__((format(printf, 1, 2))) print_message(const char *form, ...)
{
	va_list list;

	va_start(list, form);
	vprintf(form, list);
	va_end(list);
	fflush(stdout);
}
#define print_error print_message

#define skip() longjmp(cmocka_end_of_test, CMOCKA_SKIPPED)
#define fail() cmocka_fail(__FILE__, __LINE__, "failed")
#define fail_msg(...) cmocka_fail(__FILE__, __LINE__, __VA_ARGS__)

#define cmocka_check(good, ...)                                                                    \
	do {                                                                                       \
		if (!(good))                                                                       \
			cmocka_fail(__FILE__, __LINE__, __VA_ARGS__);                              \
	} while (0)
#define assert_true(c) cmocka_check(c, "%s", #c)
#define assert_false(c) cmocka_check(!(c), "!(%s)", #c)
#define assert_null(p) cmocka_check((p) == NULL, "%s == NULL", #p)
#define assert_non_null(p) cmocka_check((p) != NULL, "%s != NULL", #p)
#define assert_ptr_equal(a, b) \
	cmocka_check((const void *)(a) == (const void *)(b), "%s == %s", #a, #b)
#define assert_ptr_not_equal(a, b) \
	cmocka_check((const void *)(a) != (const void *)(b), "%s != %s", #a, #b)

static inline void cmocka_integers(
	uint64_t a, uint64_t b, int equal, const char *words, const char *file, int line)
{
	if ((a == b) != equal)
		cmocka_fail(file, line, "%s: 0x%llx %s 0x%llx", words, (unsigned long long)a,
			equal ? "!=" : "==", (unsigned long long)b);
}
#define cmocka_bits(v) ((uint64_t)(v))
#define assert_int_equal(a, b) \
	cmocka_integers(cmocka_bits(a), cmocka_bits(b), 1, #a " == " #b, __FILE__, __LINE__)
#define assert_int_not_equal(a, b) \
	cmocka_integers(cmocka_bits(a), cmocka_bits(b), 0, #a " != " #b, __FILE__, __LINE__)
#define assert_uint_equal assert_int_equal
#define assert_return_code(rc, error) cmocka_check((rc) >= 0, "%s >= 0 (%d)", #rc, (int)(error))
#define assert_in_range(v, min, max)                                                               \
	cmocka_check((uint64_t)(v) >= (uint64_t)(min) && (uint64_t)(v) <= (uint64_t)(max),         \
		"%s within %s..%s", #v, #min, #max)

static inline void cmocka_strings(
	const char *a, const char *b, int equal, const char *file, int line)
{
	if ((strcmp(a, b) == 0) != equal)
		cmocka_fail(file, line, "\"%s\" %s \"%s\"", a, equal ? "!=" : "==", b);
}
#define assert_string_equal(a, b) cmocka_strings(a, b, 1, __FILE__, __LINE__)
#define assert_string_not_equal(a, b) cmocka_strings(a, b, 0, __FILE__, __LINE__)

static inline void cmocka_memories(
	const void *a, const void *b, size_t bytes, int equal, const char *file, int line)
{
	size_t at = 0;

	while (at < bytes && ((const uint8_t *)a)[at] == ((const uint8_t *)b)[at])
		at++;
	if (equal && at < bytes)
		cmocka_fail(file, line, "byte %zu of %zu: 0x%02x != 0x%02x", at, bytes,
			((const uint8_t *)a)[at], ((const uint8_t *)b)[at]);
	if (!equal && at == bytes)
		cmocka_fail(file, line, "%zu bytes are equal", bytes);
}
#define assert_memory_equal(a, b, bytes) cmocka_memories(a, b, bytes, 1, __FILE__, __LINE__)
#define assert_memory_not_equal(a, b, bytes) cmocka_memories(a, b, bytes, 0, __FILE__, __LINE__)

/* 0, CMOCKA_FAILED or CMOCKA_SKIPPED. */
static inline int cmocka_run_one(const struct CMUnitTest *test, void *group_state)
{
	void *volatile state = test->initial_state != NULL ? test->initial_state : group_state;
	void *passed = state;
	volatile int result;

	if (test->setup_func != NULL && test->setup_func(&passed) != 0)
		return CMOCKA_FAILED;
	state = passed;
	result = setjmp(cmocka_end_of_test);
	if (result == 0) {
		passed = state;
		test->test_func(&passed);
		state = passed;
	}
	passed = state;
	if (test->teardown_func != NULL && test->teardown_func(&passed) != 0)
		return CMOCKA_FAILED;
	return result;
}

static inline int _cmocka_run_group_tests(const char *name, const struct CMUnitTest *tests,
	size_t n, CMFixtureFunction setup, CMFixtureFunction teardown)
{
	static const char *const words[] = {"[       OK ]", "[  FAILED  ]", "[  SKIPPED ]"};
	size_t n_of[3] = {0};
	void *state = NULL;

	fprintf(stderr, "[==========] %s: Running %zu test(s).\n", name, n);
	if (setup != NULL && setup(&state) != 0) {
		fprintf(stderr, "[  FAILED  ] GROUP SETUP\n");
		return (int)n;
	}
	for (size_t i = 0; i < n; i++) {
		fprintf(stderr, "[ RUN      ] %s\n", tests[i].name);
		int result = cmocka_run_one(&tests[i], state);
		n_of[result]++;
		fprintf(stderr, "%s %s\n", words[result], tests[i].name);
	}
	if (teardown != NULL && teardown(&state) != 0)
		fprintf(stderr, "[  FAILED  ] GROUP TEARDOWN\n");
	fprintf(stderr, "[==========] %s: %zu test(s) run.\n", name, n);
	fprintf(stderr, "[  PASSED  ] %zu test(s).\n", n_of[0]);
	if (n_of[CMOCKA_SKIPPED] > 0)
		fprintf(stderr, "[  SKIPPED ] %s: %zu test(s), listed above\n", name,
			n_of[CMOCKA_SKIPPED]);
	if (n_of[CMOCKA_FAILED] > 0)
		fprintf(stderr, "[  FAILED  ] %s: %zu test(s), listed above\n", name,
			n_of[CMOCKA_FAILED]);
	return (int)n_of[CMOCKA_FAILED];
}
#define cmocka_run_group_tests_name(name, tests, setup, teardown) \
	_cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown)
#define cmocka_run_group_tests(tests, setup, teardown) \
	cmocka_run_group_tests_name(#tests, tests, setup, teardown)

#endif
