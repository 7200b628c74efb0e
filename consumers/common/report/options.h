/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A command line as a table: a row for each option says its name, what it is and where it goes in
 * the caller's struct. argp prints the help and what is wrong, and ends the process with status 2.
 */
#ifndef REPORT_OPTIONS_H
#define REPORT_OPTIONS_H

#include <stddef.h>

enum option_kind {
	OPTION_U32, /* whole numbers */
	OPTION_SIZE,
	OPTION_U64,
	OPTION_INT,
	OPTION_REAL, /* double */
	OPTION_REAL_32,
	OPTION_TEXT, /* const char *, not copied */
	OPTION_FLAG, /* int, 1 when given */
};

struct option_row {
	const char *name;
	char key;          /* 0: no short form */
	const char *arg;   /* NULL for a flag */
	const char *about; /* ends with the default in brackets */
	enum option_kind kind;
	size_t offset;
	double min, max; /* of numbers */
};

struct option_table {
	const struct option_row *rows; /* [n_rows] */
	size_t n_rows;
	const char *args_doc, *doc;
	size_t arg_offset; /* where the one argument goes: const char * */
	/* After all: what is wrong with the whole, NULL: nothing. given: [n_rows] which were given.
	 * May be NULL. */
	const char *(*check)(void *into, const unsigned char *given);
};

void options_parse(const struct option_table *table, int argc, char **argv, void *into);

#endif
