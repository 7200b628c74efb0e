/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables of comma-separated values with a line of names on top: cells by row and name. Cells may
 * be quoted ("a, b" and "" for a quote in one); empty lines and those from '#' are left out. What
 * is wrong with a cell is said with the file and the line.
 */
#ifndef PLANNING_TABLE_H
#define PLANNING_TABLE_H

#include <stddef.h>

struct table {
	const char *path; /* kept, for messages */
	char *text; /* owned; the cells point into it */
	char **cells; /* [n_rows, n_columns] row-major, row 0 has the names */
	size_t *lines; /* [n_rows]: where a row stands in the file */
	size_t n_rows, n_columns;
};

/* 0, or a negative errno with a text; then nothing is to be freed. */
int table_read(const char *path, struct table *table);
void table_free(struct table *table);

/* The row whose cell in that column is the text, or a negative errno with the names there are. */
int table_find(const struct table *table, const char *column, const char *text, size_t *row);
/* NULL where there is no such column. */
const char *table_text(const struct table *table, size_t row, const char *column);
/* A number from `min`; an empty cell or a missing column is an error ... */
int table_number(const struct table *table, size_t row, const char *column, double min,
	double *value);
/* ... unless there is a value for them. */
int table_number_or(const struct table *table, size_t row, const char *column, double min,
	double otherwise, double *value);

#endif
