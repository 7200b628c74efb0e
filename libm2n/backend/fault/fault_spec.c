/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parser of option FAULT: comma-separated key=value pairs.
 */
#include "backend/fault/fault_spec.h"

#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "util/error.h"

static int64_t time_unit_ns(const char *unit)
{
	if (strcmp(unit, "ns") == 0)
		return 1;
	if (strcmp(unit, "us") == 0)
		return 1000;
	if (strcmp(unit, "ms") == 0)
		return 1000000;
	return strcmp(unit, "s") == 0 ? 1000000000 : 0;
}

static int set(struct m2n__fault_spec *spec, const char *key, const char *value)
{
	double *p = strcmp(key, "drop") == 0       ? &spec->drop
		    : strcmp(key, "reorder") == 0  ? &spec->reorder
		    : strcmp(key, "fail") == 0     ? &spec->fail
		    : strcmp(key, "truncate") == 0 ? &spec->truncate
						   : NULL;
	char *end;
	double x = strtod(value, &end);

	if (end == value)
		return -1;
	if (p) {
		*p = x;
		return *end == '\0' && x >= 0 && x <= 1 ? 0 : -1;
	}
	if (strcmp(key, "delay") == 0) {
		int64_t unit = time_unit_ns(end);

		spec->delay_ns = (int64_t)(x * (double)unit);
		return unit && x >= 0 && x < 1e9 ? 0 : -1;
	}
	if (strcmp(key, "seed") == 0) {
		spec->seed = strtoull(value, &end, 10);
		return *end == '\0' ? 0 : -1;
	}
	return -1;
}

int m2n__fault_spec_parse(const char *text, struct m2n__fault_spec *spec)
{
	char word[64];

	memset(spec, 0, sizeof(*spec));
	spec->seed = 1;
	while (*text) {
		size_t n = strcspn(text, ",");
		char *value;

		if (n < sizeof(word)) {
			memcpy(word, text, n);
			word[n] = '\0';
			value = strchr(word, '=');
			if (value)
				*value++ = '\0';
		}
		if (n >= sizeof(word) || !value || set(spec, word, value))
			return m2n__error(M2N_ERR_OPTION,
				"option FAULT: cannot read '%.*s'; accepted: drop=P, reorder=P, "
				"fail=P, truncate=P (0..1), delay=TIME (ns, us, ms, s), seed=N",
				(int)n, text);
		text += n + (text[n] == ',');
	}
	return 0;
}
