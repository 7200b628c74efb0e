/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Option text from a param and from the environment. An input is lines: the first is a param, the
 * others are variables. What is accepted must print, and what is printed must read back as the
 * same; what is refused must say so.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/context.h>
#include <m2n/status.h>

#include "core/option.h"

#define MAX_LINES 16
#define MAX_BYTES 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(int cond)
{
	if (!cond)
		abort();
}

static const char *get_from_list(void *arg, const char *name)
{
	char *const *list = arg;
	size_t n = strlen(name);

	for (; list && *list; list++)
		if (strncmp(*list, name, n) == 0 && (*list)[n] == '=')
			return *list + n + 1;
	return NULL;
}

/* NAME=value of one option into text[bytes]. */
static void print_param(const struct m2n__options *options, const char *name, char *text,
	size_t bytes)
{
	size_t n = strlen(name);
	const char *origin;

	memcpy(text, name, n);
	text[n] = '=';
	must(m2n__options_format(options, name, text + n + 1, bytes - n - 1, &origin) == 0);
	must(strcmp(origin, "environment") == 0 || strcmp(origin, "params") == 0 ||
		strcmp(origin, "default") == 0);
}

static void check_values(const struct m2n__options *options)
{
	static char text[MAX_BYTES + 64], again[MAX_BYTES + 64];
	const char *const params[] = {text, NULL};
	struct m2n_option_attr attr;
	struct m2n__options copy;

	for (unsigned i = 0; m2n_option_at(i, &attr) == 0; i++) {
		print_param(options, attr.name, text, sizeof(text));
		must(m2n__options_parse(&copy, NULL, params, NULL, get_from_list, NULL, NULL,
			0) == 0);
		print_param(&copy, attr.name, again, sizeof(again));
		must(strcmp(text, again) == 0);
		m2n__options_clear(&copy);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static char text[MAX_BYTES + 1];
	char *lines[MAX_LINES + 1] = {NULL};
	const char *params[] = {text, NULL};
	struct m2n__options options;
	char warning[200];
	char *at;
	int ret;

	if (bytes > MAX_BYTES)
		return 0;
	memcpy(text, data, bytes);
	text[bytes] = '\0';
	at = text;
	for (unsigned i = 0; i < MAX_LINES && (at = strchr(at, '\n')); i++) {
		*at++ = '\0';
		lines[i] = at;
	}
	ret = m2n__options_parse(&options, NULL, params[0][0] ? params : NULL, lines,
		get_from_list, lines, warning, sizeof(warning));
	must(ret == 0 || (ret == M2N_ERR_OPTION && m2n_error_text()[0]));
	if (ret == 0) {
		must(strlen(warning) < sizeof(warning));
		check_values(&options);
		m2n__options_clear(&options);
	}
	return 0;
}
