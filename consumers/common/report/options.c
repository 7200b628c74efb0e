/* SPDX-License-Identifier: Apache-2.0 */
/* Rows become argp's; an option's key is its letter, or its row's number above all letters. */
#include "options.h"

#include <argp.h>
#include <stdint.h>
#include <stdlib.h>

enum { KEY_FIRST = 256 };

struct parsing {
	const struct option_table *table;
	char *into;
	unsigned char *given;
	int has_arg;
};

static void set_whole(void *at, enum option_kind kind, double value)
{
	switch (kind) {
	case OPTION_U32:
		*(uint32_t *)at = (uint32_t)value;
		break;
	case OPTION_SIZE:
		*(size_t *)at = (size_t)value;
		break;
	case OPTION_U64:
		*(uint64_t *)at = (uint64_t)value;
		break;
	default:
		*(int *)at = (int)value;
	}
}

static void set_number(
	struct argp_state *state, const struct option_row *row, const char *text, void *at)
{
	int is_whole = row->kind < OPTION_REAL;
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= row->min && value <= row->max) ||
		(is_whole && value != (double)(int64_t)value))
		argp_error(state, "--%s: '%s' is no %s from %g to %g", row->name, text,
			is_whole ? "whole number" : "number", row->min, row->max);
	if (row->kind == OPTION_REAL)
		*(double *)at = value;
	else if (row->kind == OPTION_REAL_32)
		*(float *)at = (float)value;
	else
		set_whole(at, row->kind, value);
}

static void set_row(struct argp_state *state, const struct option_row *row, char *text)
{
	struct parsing *p = state->input;
	void *at = p->into + row->offset;

	if (row->kind == OPTION_TEXT)
		*(const char **)at = text;
	else if (row->kind == OPTION_FLAG)
		*(int *)at = 1;
	else
		set_number(state, row, text, at);
}

static error_t parse_one(int key, char *text, struct argp_state *state)
{
	struct parsing *p = state->input;
	const struct option_table *table = p->table;
	const char *wrong;

	for (size_t i = 0; i < table->n_rows; i++)
		if (key == (table->rows[i].key ? table->rows[i].key : KEY_FIRST + (int)i)) {
			set_row(state, &table->rows[i], text);
			p->given[i] = 1;
			return 0;
		}
	if (key == ARGP_KEY_ARG && table->args_doc) {
		if (p->has_arg++)
			argp_error(state, "one %s, not also '%s'", table->args_doc, text);
		*(const char **)(void *)(p->into + table->arg_offset) = text;
		return 0;
	}
	if (key != ARGP_KEY_END)
		return ARGP_ERR_UNKNOWN;
	wrong = table->check ? table->check(p->into, p->given) : NULL;
	if (wrong)
		argp_error(state, "%s", wrong);
	return 0;
}

void options_parse(const struct option_table *table, int argc, char **argv, void *into)
{
	struct argp_option *options = calloc(table->n_rows + 1, sizeof(*options));
	struct parsing p = {table, into, calloc(table->n_rows + 1, 1), 0};
	const struct argp argp = {.options = options,
		.parser = parse_one,
		.args_doc = table->args_doc,
		.doc = table->doc};

	if (!options || !p.given) {
		fprintf(stderr, "%s: no memory\n", argv[0]);
		exit(1);
	}
	for (size_t i = 0; i < table->n_rows; i++)
		options[i] = (struct argp_option){table->rows[i].name,
			table->rows[i].key ? table->rows[i].key : KEY_FIRST + (int)i,
			table->rows[i].arg, 0, table->rows[i].about, 0};
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, &p);
	free(options);
	free(p.given);
}
