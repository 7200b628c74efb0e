/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: levels, the sink, and standard error, which a pipe stands in for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "core/log.h"

struct sink {
	int n_lines;
	enum m2n_log_level level;
	char text[4096];
};

static void keep(void *arg, enum m2n_log_level level, const char *text)
{
	struct sink *sink = arg;

	sink->n_lines++;
	sink->level = level;
	snprintf(sink->text, sizeof(sink->text), "%s", text);
}

static int n_evaluated;

static int evaluate(void)
{
	return ++n_evaluated;
}

/* Runs one call with standard error in a pipe; returns what arrived there. */
static const char *stderr_of(const struct m2n__log *log, enum m2n_log_level level, const char *text)
{
	static char seen[4096];
	int saved = dup(STDERR_FILENO);
	int ends[2];
	ssize_t n;

	assert_int_equal(pipe(ends), 0);
	assert_true(saved >= 0 && dup2(ends[1], STDERR_FILENO) >= 0);
	m2n__log(log, level, "%s", text);
	assert_true(dup2(saved, STDERR_FILENO) >= 0);
	close(saved);
	close(ends[1]);
	n = read(ends[0], seen, sizeof(seen) - 1);
	close(ends[0]);
	assert_true(n >= 0);
	seen[n] = '\0';
	return seen;
}

static void the_sink_gets_what_the_level_lets_through(void **state)
{
	struct sink sink = {0};
	struct m2n__log log = {.sink = keep, .sink_arg = &sink, .level = M2N_LOG_INFO};

	(void)state;
	m2n__log(&log, M2N_LOG_INFO, "rank %d", evaluate());
	assert_int_equal(sink.n_lines, 1);
	assert_int_equal(sink.level, M2N_LOG_INFO);
	assert_string_equal(sink.text, "rank 1");
	m2n__log(&log, M2N_LOG_DEBUG, "rank %d", evaluate());
	assert_int_equal(sink.n_lines, 1);
	assert_int_equal(n_evaluated, 1);
}

static void nothing_is_written_by_default(void **state)
{
	struct m2n__log log = {.level = M2N_LOG_OFF};

	(void)state;
	assert_string_equal(stderr_of(&log, M2N_LOG_ERROR, "gone"), "");
}

static void standard_error_has_its_own_level(void **state)
{
	struct sink sink = {0};
	struct m2n__log log = {.sink = keep, .sink_arg = &sink, .level = M2N_LOG_TRACE,
		.stderr_level = M2N_LOG_WARN};
	char want[64];

	(void)state;
	snprintf(want, sizeof(want), "m2n[%d] warn: slower\n", (int)getpid());
	assert_string_equal(stderr_of(&log, M2N_LOG_WARN, "slower"), want);
	assert_string_equal(stderr_of(&log, M2N_LOG_INFO, "chosen"), "");
	assert_int_equal(sink.n_lines, 2);
	assert_string_equal(sink.text, "chosen");
}

static void a_line_stays_one_line(void **state)
{
	struct sink sink = {0};
	struct m2n__log log = {.sink = keep, .sink_arg = &sink, .level = M2N_LOG_TRACE};
	char text[3000];

	(void)state;
	m2n__log(&log, M2N_LOG_ERROR, "a\nb\r\033[2J\177c %s", "\xc3\xa9");
	assert_string_equal(sink.text, "a b  [2J c \xc3\xa9");
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	m2n__log(&log, M2N_LOG_ERROR, "%s", text);
	assert_int_equal(strlen(sink.text), 2047);
}

static void break_errno(void *arg, enum m2n_log_level level, const char *text)
{
	(void)arg;
	(void)level;
	(void)text;
	errno = EIO;
}

static void errno_is_kept(void **state)
{
	struct m2n__log log = {.sink = break_errno, .level = M2N_LOG_TRACE};

	(void)state;
	errno = ENOENT;
	m2n__log(&log, M2N_LOG_ERROR, "text");
	assert_int_equal(errno, ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_sink_gets_what_the_level_lets_through),
		cmocka_unit_test(nothing_is_written_by_default),
		cmocka_unit_test(standard_error_has_its_own_level),
		cmocka_unit_test(a_line_stays_one_line),
		cmocka_unit_test(errno_is_kept),
	};

	return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
