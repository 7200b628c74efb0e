/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The option table at work. Each row of option_list.h becomes a const row with the offset of its
 * field; everything below is loops over rows, so a new option needs no code. Sources are read
 * from weak to strong (default, params, environment), each checked even when a stronger one
 * follows. Secrets show as "***" wherever a value would.
 */
#include "core/option.h"

#include <m2n/context.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/option_text.h"
#include "util/error.h"

#define PREFIX "M2N_"
#define PREFIX_BYTES (sizeof(PREFIX) - 1)
#define NAME_BYTES 32
#define SHOWN_BYTES 96

struct row {
	struct m2n_option_attr attr;
	enum m2n__option_type type;
	size_t offset;
	size_t bytes;
};

/* clang-format off */
#define M2N_OPTION_ROW(name_, field, type_, def, range_, unit_, about_) \
	{ \
		.attr = { \
			.name = #name_, .type = #type_, .default_value = def, \
			.range = range_, .unit = unit_, .about = about_, \
		}, \
		.type = M2N__OPTION_##type_, \
		.offset = offsetof(struct m2n__options, field), \
		.bytes = sizeof(M2N_OPTION_TYPE_##type_), \
	},
/* clang-format on */
static const struct row rows[] = {M2N_OPTION_LIST(M2N_OPTION_ROW)};
#undef M2N_OPTION_ROW

#define N_ROWS (sizeof(rows) / sizeof(rows[0]))
_Static_assert(N_ROWS <= 64, "from_environment has a bit per row");

/* Variables of M2N_ that are no options: the launcher's, and where the tests find their data. */
static const char *const not_options[] = {"LOCAL_RANK", "LOCAL_SIZE", "DATA", "VM_UML"};

const char *m2n__getenv(void *arg, const char *name)
{
	(void)arg;
	return getenv(name);
}

char *const *m2n__environment(void)
{
	return environ;
}

int m2n_option_at(unsigned index, struct m2n_option_attr *attr)
{
	if (!attr)
		return m2n__error(-EINVAL, "m2n_option_at: attr is NULL");
	if (index >= N_ROWS)
		return m2n__error(-ENOENT, "there are %zu options, none at index %u", N_ROWS,
			index);
	*attr = rows[index].attr;
	return 0;
}

/* The row called name[0..bytes), or NULL. */
static const struct row *find_row(const char *name, size_t bytes)
{
	for (size_t i = 0; i < N_ROWS; i++)
		if (strlen(rows[i].attr.name) == bytes &&
			memcmp(rows[i].attr.name, name, bytes) == 0)
			return &rows[i];
	return NULL;
}

static const char *nearest_name(const char *name)
{
	const char *best = rows[0].attr.name;

	for (size_t i = 1; i < N_ROWS; i++)
		if (m2n__option_distance(name, rows[i].attr.name) <
			m2n__option_distance(name, best))
			best = rows[i].attr.name;
	return best;
}

static int is_secret(const struct row *row)
{
	return strcmp(row->attr.name, "SECRET") == 0;
}

/* Numbers have the width of their field; text has none here. */
static void store_number(struct m2n__options *options, const struct row *row, int64_t value)
{
	char *field = (char *)options + row->offset;
	int narrow = (int)value;

	if (row->bytes == sizeof(narrow))
		memcpy(field, &narrow, sizeof(narrow));
	else
		memcpy(field, &value, sizeof(value));
}

static int64_t load_number(const struct m2n__options *options, const struct row *row)
{
	const char *field = (const char *)options + row->offset;
	int64_t value;
	int narrow;

	if (row->bytes == sizeof(narrow)) {
		memcpy(&narrow, field, sizeof(narrow));
		return narrow;
	}
	memcpy(&value, field, sizeof(value));
	return value;
}

static char *load_text(const struct m2n__options *options, const struct row *row)
{
	char *text;

	memcpy(&text, (const char *)options + row->offset, sizeof(text));
	return text;
}

static void store_text(struct m2n__options *options, const struct row *row, char *text)
{
	char *old = load_text(options, row);

	if (old && is_secret(row))
		explicit_bzero(old, strlen(old));
	free(old);
	memcpy((char *)options + row->offset, &text, sizeof(text));
}

static int refuse(const struct row *row, const char *text, const char *origin, int why)
{
	char shown[SHOWN_BYTES];
	size_t n = 0;

	if (is_secret(row))
		text = "***";
	for (; text[n] && n < sizeof(shown) - 1; n++)
		shown[n] = (char)(isprint((unsigned char)text[n]) ? text[n] : '?');
	shown[n] = '\0';
	return m2n__error(M2N_ERR_OPTION, "option %s: \"%s\"%s from %s %s; accepted (%s): %s",
		row->attr.name, shown, text[n] ? "..." : "", origin,
		why == -ERANGE ? "is out of range" : "cannot be read", row->attr.type,
		row->attr.range);
}

static int set_value(struct m2n__options *options, const struct row *row, const char *text,
	const char *origin)
{
	int64_t value = 0;
	char *copy;
	int ret = m2n__option_read(row->type, row->attr.range, text, &value);

	if (ret)
		return refuse(row, text, origin, ret);
	if (row->type != M2N__OPTION_text) {
		store_number(options, row, value);
		return 0;
	}
	copy = strdup(text);
	if (!copy)
		return m2n__error(-ENOMEM, "option %s: no memory for %zu bytes", row->attr.name,
			strlen(text) + 1);
	store_text(options, row, copy);
	return 0;
}

static uint64_t row_bit(const struct row *row)
{
	return UINT64_C(1) << (row - rows);
}

static int set_defaults(struct m2n__options *options, const char *backend)
{
	for (size_t i = 0; i < N_ROWS; i++) {
		int ret = set_value(options, &rows[i], rows[i].attr.default_value, "default");

		if (ret)
			return ret;
	}
	if (backend) {
		const struct row *row = find_row("BACKEND", strlen("BACKEND"));

		options->from_params |= row_bit(row);
		return set_value(options, row, backend, "params");
	}
	return 0;
}

/* Only the name is quoted: what follows it may be a secret under a misspelt name. */
static int refuse_param(const char *param, size_t name_bytes, int has_value)
{
	char name[NAME_BYTES];

	if (name_bytes > sizeof(name) - 1)
		name_bytes = sizeof(name) - 1;
	memcpy(name, param, name_bytes);
	name[name_bytes] = '\0';
	if (!has_value && find_row(name, strlen(name)))
		return m2n__error(M2N_ERR_OPTION, "option %s from params has no value; "
			"accepted: NAME=value", name);
	return m2n__error(M2N_ERR_OPTION, "unknown option %s in params; the nearest name is %s",
		name, nearest_name(name));
}

static int set_params(struct m2n__options *options, const char *const *params)
{
	for (; params && *params; params++) {
		size_t n = strspn(*params, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
			"abcdefghijklmnopqrstuvwxyz0123456789_");
		const struct row *row = find_row(*params, n);
		int ret;

		if (!row || (*params)[n] != '=')
			return refuse_param(*params, n, (*params)[n] == '=');
		ret = set_value(options, row, *params + n + 1, "params");
		if (ret)
			return ret;
		options->from_params |= row_bit(row);
	}
	return 0;
}

static int set_from_environment(struct m2n__options *options, m2n__getenv_fn get, void *arg)
{
	for (size_t i = 0; i < N_ROWS; i++) {
		char name[PREFIX_BYTES + NAME_BYTES];
		const char *text;
		int ret;

		snprintf(name, sizeof(name), PREFIX "%s", rows[i].attr.name);
		text = get(arg, name);
		if (!text)
			continue;
		ret = set_value(options, &rows[i], text, "environment");
		if (ret)
			return ret;
		options->from_environment |= row_bit(&rows[i]);
	}
	return 0;
}

static int is_known(const char *name, size_t bytes)
{
	for (size_t i = 0; i < sizeof(not_options) / sizeof(not_options[0]); i++)
		if (strlen(not_options[i]) == bytes && memcmp(not_options[i], name, bytes) == 0)
			return 1;
	return find_row(name, bytes) != NULL;
}

/* Appends one sentence for each unknown M2N_ name, as far as there is room. */
static void find_unknown(char *const *environ_list, char *warning, size_t warning_bytes)
{
	size_t used = 0;

	if (warning_bytes)
		warning[0] = '\0';
	for (; environ_list && *environ_list; environ_list++) {
		const char *name = *environ_list + PREFIX_BYTES;
		char shown[NAME_BYTES];
		int n;

		if (strncmp(*environ_list, PREFIX, PREFIX_BYTES) != 0 ||
			is_known(name, strcspn(name, "=")))
			continue;
		snprintf(shown, sizeof(shown), "%.*s", (int)strcspn(name, "="), name);
		n = snprintf(warning + used, warning_bytes - used,
			"%sunknown variable " PREFIX "%s; the nearest option is " PREFIX "%s",
			used ? ". " : "", shown, nearest_name(shown));
		if (n < 0 || (size_t)n >= warning_bytes - used) {
			if (used)
				warning[used] = '\0';
			return;
		}
		used += (size_t)n;
	}
}

int m2n__options_parse(struct m2n__options *options, const char *backend,
	const char *const *params, char *const *environ_list, m2n__getenv_fn get, void *arg,
	char *warning, size_t warning_bytes)
{
	struct m2n__options parsed = {0};
	int ret = set_defaults(&parsed, backend);

	if (!ret)
		ret = set_params(&parsed, params);
	if (!ret)
		ret = set_from_environment(&parsed, get, arg);
	if (ret) {
		m2n__options_clear(&parsed);
		return ret;
	}
	find_unknown(environ_list, warning, warning_bytes);
	*options = parsed;
	return 0;
}

void m2n__options_clear(struct m2n__options *options)
{
	for (size_t i = 0; i < N_ROWS; i++)
		if (rows[i].type == M2N__OPTION_text)
			store_text(options, &rows[i], NULL);
	memset(options, 0, sizeof(*options));
}

static const char *origin_of(const struct m2n__options *options, const struct row *row)
{
	if (options->from_environment & row_bit(row))
		return "environment";
	return options->from_params & row_bit(row) ? "params" : "default";
}

int m2n__options_format(const struct m2n__options *options, const char *name, char *value,
	size_t bytes, const char **origin)
{
	const struct row *row = find_row(name, strlen(name));
	char number[NAME_BYTES];
	const char *text = number;

	if (!row)
		return m2n__error(-ENOENT, "unknown option %s; the nearest name is %s", name,
			nearest_name(name));
	if (row->type == M2N__OPTION_text)
		text = load_text(options, row);
	else
		m2n__option_print(row->type, row->attr.range, load_number(options, row), number,
			sizeof(number));
	if (text != number && is_secret(row) && text[0])
		text = "***";
	if (strlen(text) >= bytes)
		return m2n__error(-ENOSPC, "option %s: the value needs %zu bytes, given %zu", name,
			strlen(text) + 1, bytes);
	memcpy(value, text, strlen(text) + 1);
	if (origin)
		*origin = origin_of(options, row);
	return 0;
}
