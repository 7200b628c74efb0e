/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text forms of option values. Numbers are read digit by digit with overflow checks: strtol()
 * takes blanks, signs and locales that an option must not. A unit is a row of a table, smallest
 * first, and printing takes the largest unit that leaves no remainder.
 */
#include "core/option_text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct unit {
	const char *name;
	int64_t factor;
};

static const struct unit size_units[] = {
	{"", 1},
	{"K", INT64_C(1) << 10},
	{"M", INT64_C(1) << 20},
	{"G", INT64_C(1) << 30},
	{"T", INT64_C(1) << 40},
	{NULL, 0},
};

static const struct unit time_units[] = {
	{"ns", 1},
	{"us", 1000},
	{"ms", 1000 * 1000},
	{"s", INT64_C(1000) * 1000 * 1000},
	{"m", INT64_C(60) * 1000 * 1000 * 1000},
	{"h", INT64_C(3600) * 1000 * 1000 * 1000},
	{NULL, 0},
};

static const char bool_words[] = "no|yes|false|true|off|on|0|1";

static int equal_word(const char *text, size_t bytes, const char *word)
{
	return strlen(word) == bytes && strncasecmp(text, word, bytes) == 0;
}

/* The position of text[0..bytes) in a list of words by '|', or -1. */
static int find_word(const char *words, const char *text, size_t bytes)
{
	int idx = 0;

	for (;;) {
		size_t n = strcspn(words, "|");

		if (n == bytes && n > 0 && strncasecmp(words, text, n) == 0)
			return idx;
		if (!words[n])
			return -1;
		words += n + 1;
		idx++;
	}
}

/* Digits at *text, which moves past them. -ERANGE above 2^63 - 1, with the digits read. */
static int read_digits(const char **text, const char *end, int64_t *value)
{
	const char *at = *text;
	int64_t sum = 0;
	int too_large = 0;

	while (at < end && *at >= '0' && *at <= '9') {
		too_large |= __builtin_mul_overflow(sum, 10, &sum);
		too_large |= __builtin_add_overflow(sum, *at - '0', &sum);
		at++;
	}
	if (at == *text)
		return -EINVAL;
	*text = at;
	*value = sum;
	return too_large ? -ERANGE : 0;
}

static int read_int(const char *text, const char *end, int64_t *value)
{
	int negative = text < end && *text == '-';
	int ret;

	text += negative || (text < end && *text == '+');
	ret = read_digits(&text, end, value);
	if (ret == -EINVAL || text != end)
		return -EINVAL;
	if (negative)
		*value = -*value;
	return ret;
}

static int read_scaled(const struct unit *units, const char *text, const char *end, int64_t *value)
{
	int64_t number = 0;
	int ret = read_digits(&text, end, &number);

	if (ret == -EINVAL)
		return ret;
	if (ret == 0 && number == 0 && text == end) {
		*value = 0;
		return 0;
	}
	for (; units->name; units++) {
		if (!equal_word(text, (size_t)(end - text), units->name))
			continue;
		if (ret == 0 && __builtin_mul_overflow(number, units->factor, value))
			ret = -ERANGE;
		return ret;
	}
	return -EINVAL;
}

/* Reads text[..end) without looking at the range, unless the range is the list of words. */
static int read_plain(enum m2n__option_type type, const char *range, const char *text,
	const char *end, int64_t *value)
{
	int word;

	switch (type) {
	case M2N__OPTION_bool:
		word = find_word(bool_words, text, (size_t)(end - text));
		*value = word & 1;
		return word < 0 ? -EINVAL : 0;
	case M2N__OPTION_choice:
		word = find_word(range, text, (size_t)(end - text));
		*value = word;
		return word < 0 ? -EINVAL : 0;
	case M2N__OPTION_int:
		return read_int(text, end, value);
	case M2N__OPTION_size:
		return read_scaled(size_units, text, end, value);
	case M2N__OPTION_time:
		return read_scaled(time_units, text, end, value);
	case M2N__OPTION_text:
		break;
	}
	return -EINVAL;
}

/* Is the number inside "LOW..HIGH"? A range of another form allows all. */
static int check_range(enum m2n__option_type type, const char *range, const char *range_end,
	int64_t value)
{
	const char *dots = strstr(range, "..");
	int64_t low, high;

	if (!dots || read_plain(type, range, range, dots, &low) ||
		read_plain(type, range, dots + 2, range_end, &high))
		return 0;
	return value < low || value > high ? -ERANGE : 0;
}

static int check_text(const char *range, const char *text)
{
	static const char characters[] = " characters";
	size_t n = strlen(range);
	size_t n_end = sizeof(characters) - 1;
	int only_words = strspn(range, "abcdefghijklmnopqrstuvwxyz0123456789_|") == n;

	if (only_words && strchr(range, '|'))
		return find_word(range, text, strlen(text)) < 0 ? -EINVAL : 0;
	if (n > n_end && strcmp(range + n - n_end, characters) == 0)
		return check_range(M2N__OPTION_int, range, range + n - n_end,
			(int64_t)strlen(text));
	return 0;
}

int m2n__option_read(enum m2n__option_type type, const char *range, const char *text,
	int64_t *value)
{
	int64_t number = 0;
	int ret;

	if (type == M2N__OPTION_text) {
		ret = check_text(range, text);
	} else {
		ret = read_plain(type, range, text, text + strlen(text), &number);
		if (ret == 0 && type != M2N__OPTION_bool && type != M2N__OPTION_choice)
			ret = check_range(type, range, range + strlen(range), number);
	}
	if (ret == 0)
		*value = number;
	return ret;
}

static int print_scaled(const struct unit *units, int64_t value, char *text, size_t bytes)
{
	const struct unit *best = units;

	if (value == 0)
		return snprintf(text, bytes, "0");
	for (; units->name; units++)
		if (value % units->factor == 0)
			best = units;
	return snprintf(text, bytes, "%" PRId64 "%s", value / best->factor, best->name);
}

static int print_word(const char *words, int64_t idx, char *text, size_t bytes)
{
	while (idx-- > 0 && strchr(words, '|'))
		words = strchr(words, '|') + 1;
	return snprintf(text, bytes, "%.*s", (int)strcspn(words, "|"), words);
}

int m2n__option_print(enum m2n__option_type type, const char *range, int64_t value, char *text,
	size_t bytes)
{
	switch (type) {
	case M2N__OPTION_bool:
		return print_word(bool_words, value, text, bytes);
	case M2N__OPTION_choice:
		return print_word(range, value, text, bytes);
	case M2N__OPTION_size:
		return print_scaled(size_units, value, text, bytes);
	case M2N__OPTION_time:
		return print_scaled(time_units, value, text, bytes);
	case M2N__OPTION_int:
	case M2N__OPTION_text:
		break;
	}
	return snprintf(text, bytes, "%" PRId64, value);
}

#define MAX_LETTERS 31

/* Wagner and Fischer's table (1974), one row at a time. */
unsigned m2n__option_distance(const char *a, const char *b)
{
	unsigned row[MAX_LETTERS + 1];
	size_t n_a = strnlen(a, MAX_LETTERS);
	size_t n_b = strnlen(b, MAX_LETTERS);

	for (size_t j = 0; j <= n_b; j++)
		row[j] = (unsigned)j;
	for (size_t i = 1; i <= n_a; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i;
		for (size_t j = 1; j <= n_b; j++) {
			int differ = toupper((unsigned char)a[i - 1]) !=
				toupper((unsigned char)b[j - 1]);
			unsigned best = diagonal + (unsigned)differ;

			diagonal = row[j];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[n_b];
}
