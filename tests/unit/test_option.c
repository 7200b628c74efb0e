/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options: what each type reads and prints, by hand-written pairs; who wins; what is refused, and
 * that the refusal says enough. Environments are lists in the test, never the process's own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <m2n/context.h>
#include <m2n/status.h>

#include "core/option.h"
#include "core/option_text.h"

#define N_TEXTS 8

/* getenv() over a list of "NAME=value" ended by NULL. */
static const char *get_from_list(void *arg, const char *name)
{
	char *const *list = arg;
	size_t n = strlen(name);

	for (; list && *list; list++)
		if (strncmp(*list, name, n) == 0 && (*list)[n] == '=')
			return *list + n + 1;
	return NULL;
}

static char warning[256];

/* The texts are copied, because an environment is char ** and literals are const. */
static int parse(struct m2n__options *options, const char *const *params, const char *const *env)
{
	static char texts[N_TEXTS][256];
	char *list[N_TEXTS + 1] = {NULL};

	for (unsigned i = 0; env && env[i]; i++) {
		assert_true(i < N_TEXTS && strlen(env[i]) < sizeof(texts[i]));
		list[i] = strcpy(texts[i], env[i]);
	}
	return m2n__options_parse(options, NULL, params, list, get_from_list, list, warning,
		sizeof(warning));
}

static int parse_param(struct m2n__options *options, const char *param)
{
	const char *const params[] = {param, NULL};

	return parse(options, params, NULL);
}

static void assert_value(const struct m2n__options *options, const char *name, const char *want,
	const char *want_origin)
{
	char value[256];
	const char *origin;

	assert_int_equal(m2n__options_format(options, name, value, sizeof(value), &origin), 0);
	assert_string_equal(value, want);
	assert_string_equal(origin, want_origin);
}

static void assert_text_has(const char *part)
{
	if (!strstr(m2n_error_text(), part))
		fail_msg("\"%s\" is not in \"%s\"", part, m2n_error_text());
}

static void defaults_are_the_tables(void **state)
{
	struct m2n__options options;
	struct m2n_option_attr attr;
	unsigned n = 0;

	(void)state;
	assert_int_equal(parse(&options, NULL, NULL), 0);
	for (; m2n_option_at(n, &attr) == 0; n++) {
		assert_value(&options, attr.name, attr.default_value, "default");
		assert_true(strlen(attr.about) > 10);
		assert_int_equal(attr.about[strlen(attr.about) - 1], '.');
	}
	assert_true(n >= 18);
	assert_int_equal(m2n_option_at(n, &attr), -ENOENT);
	assert_int_equal(m2n_option_at(0, NULL), -EINVAL);
	assert_true(options.timeout_ns == INT64_C(30000000000));
	assert_int_equal(options.spin_ns, 20000);
	assert_int_equal(options.nt_bytes, 1048576);
	assert_int_equal(options.n_signals, 65536);
	assert_int_equal(options.rank, -1);
	assert_int_equal(options.log_level, M2N_LOG_OFF);
	assert_string_equal(options.group, "m2n");
	assert_string_equal(options.secret, "");
	m2n__options_clear(&options);
	assert_null(options.group);
}

static void the_stronger_source_wins(void **state)
{
	const char *const params[] = {"TIMEOUT=1s", "SPIN=1us", "SPIN=2us", "GROUP=of params",
		NULL};
	const char *const env[] = {"M2N_TIMEOUT=2s", "M2N_GROUP=of environment", NULL};
	struct m2n__options options;

	(void)state;
	assert_int_equal(parse(&options, params, env), 0);
	assert_value(&options, "TIMEOUT", "2s", "environment");
	assert_value(&options, "GROUP", "of environment", "environment");
	assert_value(&options, "SPIN", "2us", "params");
	assert_value(&options, "YIELD", "50us", "default");
	assert_string_equal(warning, "");
	m2n__options_clear(&options);
}

static void the_backend_argument_is_a_param(void **state)
{
	const char *const params[] = {"BACKEND=self", NULL};
	struct m2n__options options;

	(void)state;
	assert_int_equal(m2n__options_parse(&options, "shm", NULL, NULL, get_from_list, NULL,
		warning, sizeof(warning)), 0);
	assert_value(&options, "BACKEND", "shm", "params");
	m2n__options_clear(&options);
	assert_int_equal(m2n__options_parse(&options, "shm", params, NULL, get_from_list, NULL,
		warning, sizeof(warning)), 0);
	assert_value(&options, "BACKEND", "self", "params");
	m2n__options_clear(&options);
}

static void each_type_reads_and_prints(void **state)
{
	static const struct {
		enum m2n__option_type type;
		const char *range;
		const char *text;
		int64_t value;
		const char *printed;
	} cases[] = {
		{M2N__OPTION_bool, "", "yes", 1, "yes"},
		{M2N__OPTION_bool, "", "TRUE", 1, "yes"},
		{M2N__OPTION_bool, "", "on", 1, "yes"},
		{M2N__OPTION_bool, "", "1", 1, "yes"},
		{M2N__OPTION_bool, "", "no", 0, "no"},
		{M2N__OPTION_bool, "", "False", 0, "no"},
		{M2N__OPTION_bool, "", "off", 0, "no"},
		{M2N__OPTION_bool, "", "0", 0, "no"},
		{M2N__OPTION_int, "", "-7", -7, "-7"},
		{M2N__OPTION_int, "", "+7", 7, "7"},
		{M2N__OPTION_int, "", "007", 7, "7"},
		{M2N__OPTION_int, "", "9223372036854775807", INT64_MAX, "9223372036854775807"},
		{M2N__OPTION_size, "", "0", 0, "0"},
		{M2N__OPTION_size, "", "1000", 1000, "1000"},
		{M2N__OPTION_size, "", "4k", 4096, "4K"},
		{M2N__OPTION_size, "", "1536K", 1572864, "1536K"},
		{M2N__OPTION_size, "", "1024M", 1073741824, "1G"},
		{M2N__OPTION_size, "", "1T", INT64_C(1099511627776), "1T"},
		{M2N__OPTION_time, "", "0", 0, "0"},
		{M2N__OPTION_time, "", "0h", 0, "0"},
		{M2N__OPTION_time, "", "17ns", 17, "17ns"},
		{M2N__OPTION_time, "", "1500us", 1500000, "1500us"},
		{M2N__OPTION_time, "", "90s", INT64_C(90000000000), "90s"},
		{M2N__OPTION_time, "", "120s", INT64_C(120000000000), "2m"},
		{M2N__OPTION_time, "", "60M", INT64_C(3600000000000), "1h"},
		{M2N__OPTION_choice, "no|try|yes", "no", 0, "no"},
		{M2N__OPTION_choice, "no|try|yes", "Try", 1, "try"},
		{M2N__OPTION_choice, "no|try|yes", "yes", 2, "yes"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t value = -99;
		char text[64];

		if (m2n__option_read(cases[i].type, cases[i].range, cases[i].text, &value) ||
			value != cases[i].value)
			fail_msg("%s is read as %lld", cases[i].text, (long long)value);
		m2n__option_print(cases[i].type, cases[i].range, value, text, sizeof(text));
		assert_string_equal(text, cases[i].printed);
	}
}

static void what_is_not_of_the_type_is_refused(void **state)
{
	static const struct {
		enum m2n__option_type type;
		const char *range;
		const char *text;
		int status;
	} cases[] = {
		{M2N__OPTION_bool, "", "", -EINVAL},
		{M2N__OPTION_bool, "", "y", -EINVAL},
		{M2N__OPTION_bool, "", "no|yes", -EINVAL},
		{M2N__OPTION_bool, "", "2", -EINVAL},
		{M2N__OPTION_int, "", "", -EINVAL},
		{M2N__OPTION_int, "", "-", -EINVAL},
		{M2N__OPTION_int, "", "--1", -EINVAL},
		{M2N__OPTION_int, "", "0x10", -EINVAL},
		{M2N__OPTION_int, "", " 1", -EINVAL},
		{M2N__OPTION_int, "", "1 ", -EINVAL},
		{M2N__OPTION_int, "", "1.0", -EINVAL},
		{M2N__OPTION_int, "", "9223372036854775808", -ERANGE},
		{M2N__OPTION_int, "", "99999999999999999999999999", -ERANGE},
		{M2N__OPTION_size, "", "K", -EINVAL},
		{M2N__OPTION_size, "", "-1K", -EINVAL},
		{M2N__OPTION_size, "", "1KB", -EINVAL},
		{M2N__OPTION_size, "", "1.5K", -EINVAL},
		{M2N__OPTION_size, "", "8388608T", -ERANGE},
		{M2N__OPTION_time, "", "30", -EINVAL},
		{M2N__OPTION_time, "", "1 s", -EINVAL},
		{M2N__OPTION_time, "", "-1s", -EINVAL},
		{M2N__OPTION_time, "", "1sec", -EINVAL},
		{M2N__OPTION_time, "", "2562048h", -ERANGE},
		{M2N__OPTION_choice, "no|try|yes", "", -EINVAL},
		{M2N__OPTION_choice, "no|try|yes", "ye", -EINVAL},
		{M2N__OPTION_choice, "no|try|yes", "yess", -EINVAL},
		{M2N__OPTION_choice, "no|try|yes", "no|try", -EINVAL},
		{M2N__OPTION_text, "auto|scalar", "scala", -EINVAL},
		{M2N__OPTION_text, "1..3 characters", "", -ERANGE},
		{M2N__OPTION_text, "1..3 characters", "four", -ERANGE},
		{M2N__OPTION_text, "auto|scalar", "scalar", 0},
		{M2N__OPTION_text, "1..3 characters", "two", 0},
		{M2N__OPTION_text, "auto|shm|..., fault:NAME", "anything", 0},
		{M2N__OPTION_text, "any text", "", 0},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t value = -99;
		int ret = m2n__option_read(cases[i].type, cases[i].range, cases[i].text, &value);

		if (ret != cases[i].status)
			fail_msg("\"%s\" of (%s) gives %d", cases[i].text, cases[i].range, ret);
		assert_int_equal(value, ret ? -99 : 0);
	}
}

static void the_ends_of_a_range_are_inside(void **state)
{
	static const struct {
		const char *low, *high, *below, *above;
	} cases[] = {
		{"TIMEOUT=1ms", "TIMEOUT=1h", "TIMEOUT=999999ns", "TIMEOUT=3600001ms"},
		{"SPIN=0", "SPIN=1s", "SPIN=-1ns", "SPIN=1000000001ns"},
		{"NT_BYTES=0", "NT_BYTES=1T", "NT_BYTES=-1", "NT_BYTES=1025G"},
		{"SIGNALS=64", "SIGNALS=16777216", "SIGNALS=63", "SIGNALS=16777217"},
		{"RANK=-1", "RANK=1048575", "RANK=-2", "RANK=1048576"},
		{"GROUP=x", "GROUP=1234567890123456789012345678901234567890123456789012345678901"
			"23", "GROUP=", "GROUP=123456789012345678901234567890123456789012345678901"
			"2345678901234"},
	};
	struct m2n__options options;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(parse_param(&options, cases[i].low), 0);
		m2n__options_clear(&options);
		assert_int_equal(parse_param(&options, cases[i].high), 0);
		m2n__options_clear(&options);
		assert_int_equal(parse_param(&options, cases[i].below), M2N_ERR_OPTION);
		assert_int_equal(parse_param(&options, cases[i].above), M2N_ERR_OPTION);
	}
}

static void a_refusal_says_what_where_and_the_range(void **state)
{
	const char *const bad_env[] = {"M2N_TIMEOUT=2h", NULL};
	const char *const good_env[] = {"M2N_TIMEOUT=2s", NULL};
	const char *const params[] = {"TIMEOUT=so\nlong", NULL};
	struct m2n__options options;
	struct m2n__options before;

	(void)state;
	memset(&options, 0x5a, sizeof(options));
	before = options;
	assert_int_equal(parse(&options, NULL, bad_env), M2N_ERR_OPTION);
	assert_text_has("TIMEOUT");
	assert_text_has("\"2h\"");
	assert_text_has("environment");
	assert_text_has("1ms..1h");
	/* A bad value is refused even where a stronger source would replace it. */
	assert_int_equal(parse(&options, params, good_env), M2N_ERR_OPTION);
	assert_text_has("\"so?long\"");
	assert_text_has("params");
	assert_memory_equal(&options, &before, sizeof(options));
}

static void unknown_params_are_refused(void **state)
{
	struct m2n__options options;

	(void)state;
	assert_int_equal(parse_param(&options, "TIMOUT=1s"), M2N_ERR_OPTION);
	assert_text_has("nearest name is TIMEOUT");
	assert_int_equal(parse_param(&options, "M2N_TIMEOUT=1s"), M2N_ERR_OPTION);
	assert_text_has("nearest name is TIMEOUT");
	assert_int_equal(parse_param(&options, "hugepages=no"), M2N_ERR_OPTION);
	assert_text_has("nearest name is HUGE_PAGES");
	assert_int_equal(parse_param(&options, "TIMEOUT"), M2N_ERR_OPTION);
	assert_text_has("NAME=value");
	assert_int_equal(parse_param(&options, ""), M2N_ERR_OPTION);
	assert_int_equal(parse_param(&options, "=1s"), M2N_ERR_OPTION);
	assert_int_equal(parse_param(&options, "TIMEOUT =1s"), M2N_ERR_OPTION);
}

static void unknown_variables_only_warn(void **state)
{
	const char *const env[] = {"PATH=/bin", "M2N_DATA=/data", "M2N_LOCAL_RANK=0",
		"M2N_TIMOUT=1s", "M2N_RANK=3", "M2N_BACKED=shm", NULL};
	char *const list[] = {(char[]){"M2N_A=1"}, (char[]){"M2N_LOGG=2"}, NULL};
	struct m2n__options options;
	char small[8];

	(void)state;
	assert_int_equal(parse(&options, NULL, env), 0);
	assert_string_equal(warning, "unknown variable M2N_TIMOUT; the nearest option is "
		"M2N_TIMEOUT. unknown variable M2N_BACKED; the nearest option is M2N_BACKEND");
	assert_value(&options, "RANK", "3", "environment");
	m2n__options_clear(&options);
	assert_int_equal(m2n__options_parse(&options, NULL, NULL, list, get_from_list, NULL, small,
		sizeof(small)), 0);
	assert_string_equal(small, "unknown");
	m2n__options_clear(&options);
	assert_int_equal(m2n__options_parse(&options, NULL, NULL, list, get_from_list, NULL, NULL,
		0), 0);
	m2n__options_clear(&options);
}

static void the_secret_is_never_shown(void **state)
{
	static const char *const bad[] = {"SECERT=hunter2", "SECRET:hunter2", "secret=hunter2"};
	struct m2n__options options;

	(void)state;
	assert_int_equal(parse_param(&options, "SECRET=hunter2"), 0);
	assert_string_equal(options.secret, "hunter2");
	assert_value(&options, "SECRET", "***", "params");
	m2n__options_clear(&options);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(parse_param(&options, bad[i]), M2N_ERR_OPTION);
		assert_null(strstr(m2n_error_text(), "hunter2"));
	}
}

static void format_checks_name_and_room(void **state)
{
	struct m2n__options options;
	char value[8];

	(void)state;
	assert_int_equal(parse_param(&options, "GROUP=1234567"), 0);
	assert_int_equal(m2n__options_format(&options, "GROUP", value, 8, NULL), 0);
	assert_string_equal(value, "1234567");
	assert_int_equal(m2n__options_format(&options, "GROUP", value, 7, NULL), -ENOSPC);
	assert_text_has("8 bytes");
	assert_int_equal(m2n__options_format(&options, "GROUP", NULL, 0, NULL), -ENOSPC);
	assert_int_equal(m2n__options_format(&options, "GROUPS", value, 8, NULL), -ENOENT);
	assert_text_has("GROUP");
	m2n__options_clear(&options);
}

static void the_process_has_an_environment(void **state)
{
	char *const *list;

	(void)state;
	assert_int_equal(setenv("M2N_DATA", "somewhere", 1), 0);
	assert_string_equal(m2n__getenv(NULL, "M2N_DATA"), "somewhere");
	list = m2n__environment();
	while (*list && strcmp(*list, "M2N_DATA=somewhere") != 0)
		list++;
	assert_non_null(*list);
}

static void distances_by_hand(void **state)
{
	(void)state;
	assert_int_equal(m2n__option_distance("kitten", "sitting"), 3);
	assert_int_equal(m2n__option_distance("", "abc"), 3);
	assert_int_equal(m2n__option_distance("abc", ""), 3);
	assert_int_equal(m2n__option_distance("flaw", "LAWN"), 2);
	assert_int_equal(m2n__option_distance("same", "SAME"), 0);
	assert_int_equal(m2n__option_distance("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", ""), 31);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults_are_the_tables),
		cmocka_unit_test(the_stronger_source_wins),
		cmocka_unit_test(the_backend_argument_is_a_param),
		cmocka_unit_test(each_type_reads_and_prints),
		cmocka_unit_test(what_is_not_of_the_type_is_refused),
		cmocka_unit_test(the_ends_of_a_range_are_inside),
		cmocka_unit_test(a_refusal_says_what_where_and_the_range),
		cmocka_unit_test(unknown_params_are_refused),
		cmocka_unit_test(unknown_variables_only_warn),
		cmocka_unit_test(the_secret_is_never_shown),
		cmocka_unit_test(format_checks_name_and_room),
		cmocka_unit_test(the_process_has_an_environment),
		cmocka_unit_test(distances_by_hand),
	};

	return cmocka_run_group_tests_name("option", tests, NULL, NULL);
}
