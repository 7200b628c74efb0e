/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a table into one buffer and cuts it into cells in place. Every row must have as many cells
 * as the first, so that a line that was cut off is seen before its numbers are used.
 */
#include "table.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

enum { MAX_BYTES = 16 << 20 };

static int read_text(const char *path, char **text)
{
	FILE *file = fopen(path, "re");
	size_t n;

	if (!file)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	*text = malloc(MAX_BYTES + 1);
	n = *text ? fread(*text, 1, MAX_BYTES + 1, file) : 0;
	if (!*text || ferror(file) || n > MAX_BYTES || memchr(*text, 0, n)) {
		free(*text);
		fclose(file);
		return model_fail(-EINVAL, "%s: not a table of text up to %d MiB", path,
			MAX_BYTES >> 20);
	}
	fclose(file);
	(*text)[n] = '\0';
	return 0;
}

/* Ends the cell at `at` in place; *next is behind it: 0 if the line goes on, 1 if it ended. */
static int cut_cell(char *at, char **cell, char **next)
{
	char *out = at, *in = at;
	int quoted = *in == '"';

	*cell = at;
	for (in += quoted; *in; in++) {
		if (quoted && *in == '"' && in[1] == '"')
			in++;
		else if (quoted && *in == '"')
			break;
		else if (!quoted && *in == ',')
			break;
		*out++ = *in;
	}
	if (quoted && *in != '"')
		return -EINVAL;
	in += quoted;
	if (*in && *in != ',')
		return -EINVAL;
	*next = *in ? in + 1 : in;
	quoted = *in == ',';
	*out = '\0';
	return !quoted;
}

static int grow(struct table *table, size_t n_cells)
{
	char **cells = realloc(table->cells, (n_cells + 1) * sizeof(*cells));
	size_t *lines = realloc(table->lines, (table->n_rows + 1) * sizeof(*lines));

	table->cells = cells ? cells : table->cells;
	table->lines = lines ? lines : table->lines;
	return cells && lines ? 0 : model_fail(-ENOMEM, "%s: no memory", table->path);
}

static int cut_line(struct table *table, char *line, size_t number, size_t *n_cells)
{
	size_t first = *n_cells;
	int last = 0;

	while (!last) {
		int rc = grow(table, *n_cells);

		if (rc)
			return rc;
		last = cut_cell(line, &table->cells[*n_cells], &line);
		if (last < 0)
			return model_fail(-EINVAL, "%s:%zu: a quote that does not end a cell",
				table->path, number);
		++*n_cells;
	}
	if (!table->n_rows)
		table->n_columns = *n_cells;
	if (*n_cells - first != table->n_columns)
		return model_fail(-EINVAL, "%s:%zu: %zu cells, the first line names %zu columns",
			table->path, number, *n_cells - first, table->n_columns);
	table->lines[table->n_rows++] = number;
	return 0;
}

int table_read(const char *path, struct table *table)
{
	size_t n_cells = 0, number = 0;
	char *line, *next;
	int rc;

	*table = (struct table){.path = path};
	rc = read_text(path, &table->text);
	for (line = table->text; !rc && *line; line = next) {
		size_t n = strcspn(line, "\n");

		next = line + n + (line[n] != '\0');
		line[n] = '\0';
		if (n && line[n - 1] == '\r')
			line[n - 1] = '\0';
		number++;
		if (*line && *line != '#')
			rc = cut_line(table, line, number, &n_cells);
	}
	if (!rc && !table->n_rows)
		rc = model_fail(-EINVAL, "%s: no line with the columns' names", path);
	if (rc)
		table_free(table);
	return rc;
}

void table_free(struct table *table)
{
	free(table->text);
	free(table->cells);
	free(table->lines);
	*table = (struct table){0};
}

static int find_column(const struct table *table, const char *column, size_t *found)
{
	for (*found = 0; *found < table->n_columns; ++*found)
		if (!strcmp(table->cells[*found], column))
			return 0;
	return model_fail(-EINVAL, "%s:%zu: no column '%s'", table->path, table->lines[0], column);
}

const char *table_text(const struct table *table, size_t row, const char *column)
{
	size_t found;

	return find_column(table, column, &found) ? NULL :
						    table->cells[row * table->n_columns + found];
}

int table_find(const struct table *table, const char *column, const char *text, size_t *row)
{
	char names[640] = "";
	size_t found, n = 0;
	int rc = find_column(table, column, &found);

	if (rc)
		return rc;
	for (*row = 1; *row < table->n_rows; ++*row) {
		const char *cell = table->cells[*row * table->n_columns + found];

		if (!strcmp(cell, text))
			return 0;
		if (n < sizeof(names))
			n += (size_t)snprintf(names + n, sizeof(names) - n, "%s%s",
				n ? ", " : "", cell);
	}
	return model_fail(-ENOENT, "%s: no %s '%s'; there are %s", table->path, column, text,
		names);
}

int table_number(const struct table *table, size_t row, const char *column, double min,
	double *value)
{
	size_t found;
	const char *cell;
	char *end;
	double number;
	int rc = find_column(table, column, &found);

	if (rc)
		return rc;
	cell = table->cells[row * table->n_columns + found];
	number = strtod(cell, &end);
	if (end == cell || *end || !isfinite(number) || number < min)
		return model_fail(-EINVAL, "%s:%zu: %s: '%s' is no number from %g", table->path,
			table->lines[row], column, cell, min);
	*value = number;
	return 0;
}

int table_number_or(const struct table *table, size_t row, const char *column, double min,
	double otherwise, double *value)
{
	const char *cell = table_text(table, row, column);

	if (cell && *cell)
		return table_number(table, row, column, min, value);
	*value = otherwise;
	return 0;
}
