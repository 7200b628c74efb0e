/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing traces and tables of percentiles, by the same reader as the planner's tables.
 */
#include "load.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/error.h"
#include "table.h"

enum { MAX_EXPERT = 4095 };

static size_t count_columns(const struct table *table)
{
	char name[32];
	size_t n = 0;

	do
		snprintf(name, sizeof(name), "expert%zu", n);
	while (n < 64 && table_text(table, 0, name) && ++n);
	return n;
}

static int read_row(const struct table *table, size_t row, struct load_trace *trace,
	double *last_layer)
{
	double layer, expert;
	char name[32];
	int rc = table_number(table, row, "layer", 0, &layer);

	if (rc)
		return rc;
	if (row == 1 || layer > *last_layer)
		trace->n_layers++;
	else if (layer < *last_layer)
		return model_fail(-EINVAL, "%s:%zu: layer %g after %g: not sorted", table->path,
			table->lines[row], layer, *last_layer);
	*last_layer = layer;
	for (size_t k = 0; k < trace->top_k; k++) {
		snprintf(name, sizeof(name), "expert%zu", k);
		rc = table_number(table, row, name, 0, &expert);
		if (!rc && (expert > MAX_EXPERT || expert != floor(expert)))
			rc = model_fail(-EINVAL, "%s:%zu: %s: %g is no expert up to %d",
				table->path, table->lines[row], name, expert, MAX_EXPERT);
		if (rc)
			return rc;
		trace->experts[(row - 1) * trace->top_k + k] = (uint16_t)expert;
		if (trace->n_experts <= (size_t)expert)
			trace->n_experts = (size_t)expert + 1;
	}
	return 0;
}

static int read_rows(const struct table *table, struct load_trace *trace)
{
	size_t n_rows = table->n_rows - 1;
	double layer = 0;
	int rc = 0;

	trace->top_k = count_columns(table);
	if (!trace->top_k || !n_rows)
		return model_fail(-EINVAL, "%s: no column expert0, or no line of routing",
			table->path);
	trace->experts = calloc(n_rows * trace->top_k, sizeof(*trace->experts));
	if (!trace->experts)
		return model_fail(-ENOMEM, "%s: no memory for %zu rows", table->path, n_rows);
	for (size_t row = 1; !rc && row <= n_rows; row++)
		rc = read_row(table, row, trace, &layer);
	if (!rc && n_rows % trace->n_layers)
		rc = model_fail(-EINVAL, "%s: %zu rows in %zu layers: not as many tokens in each",
			table->path, n_rows, trace->n_layers);
	if (!rc)
		trace->n_tokens = n_rows / trace->n_layers;
	return rc;
}

int load_trace_read(const char *path, struct load_trace *trace)
{
	struct load_trace found = {0};
	struct table table;
	int rc = table_read(path, &table);

	if (rc)
		return rc;
	rc = read_rows(&table, &found);
	table_free(&table);
	if (rc)
		load_trace_free(&found);
	else
		*trace = found;
	return rc;
}

void load_trace_free(struct load_trace *trace)
{
	free(trace->experts);
	trace->experts = NULL;
}

double load_trace_share(const struct load_trace *trace, size_t layer, size_t first, size_t n,
	size_t expert)
{
	const uint16_t *rows = trace->experts +
		layer % trace->n_layers * trace->n_tokens * trace->top_k;
	size_t count = 0;

	for (size_t i = 0; i < n; i++) {
		size_t token = (first + i) % trace->n_tokens;

		for (size_t k = 0; k < trace->top_k; k++)
			count += rows[token * trace->top_k + k] == expert;
	}
	return (double)(count * trace->n_experts) / (double)(n * trace->top_k);
}

static int read_percentile(const struct table *table, size_t row, struct load_jitter *jitter)
{
	size_t i = jitter->n;
	int rc = i == LOAD_MAX_PERCENTILES ? model_fail(-E2BIG, "%s:%zu: more than %d lines",
		table->path, table->lines[row], LOAD_MAX_PERCENTILES) : 0;

	if (!rc)
		rc = table_number(table, row, "percentile", 0, &jitter->percentile[i]);
	if (!rc)
		rc = table_number(table, row, "us", 0, &jitter->seconds[i]);
	if (rc)
		return rc;
	jitter->seconds[i] *= 1e-6;
	if (jitter->percentile[i] > 100 ||
	    (i && (jitter->percentile[i] <= jitter->percentile[i - 1] ||
			   jitter->seconds[i] < jitter->seconds[i - 1])))
		return model_fail(-EINVAL, "%s:%zu: percentiles up to 100 and times must rise",
			table->path, table->lines[row]);
	jitter->n++;
	return 0;
}

int load_jitter_read(const char *path, uint64_t seed, struct load_jitter *jitter)
{
	struct load_jitter found = {.state = seed};
	struct table table;
	int rc = table_read(path, &table);

	if (rc)
		return rc;
	for (size_t row = 1; !rc && row < table.n_rows; row++)
		rc = read_percentile(&table, row, &found);
	if (!rc && !found.n)
		rc = model_fail(-EINVAL, "%s: no percentile", path);
	table_free(&table);
	if (!rc)
		*jitter = found;
	return rc;
}

/* splitmix64: any seed will do. */
static double draw(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

double load_jitter_draw(struct load_jitter *jitter)
{
	double at = 100 * draw(&jitter->state), part;
	size_t i = 1, last = jitter->n - 1;

	if (at <= jitter->percentile[0])
		return jitter->seconds[0];
	if (at >= jitter->percentile[last])
		return jitter->seconds[last];
	while (at > jitter->percentile[i])
		i++;
	part = (at - jitter->percentile[i - 1]) /
		(jitter->percentile[i] - jitter->percentile[i - 1]);
	return jitter->seconds[i - 1] + part * (jitter->seconds[i] - jitter->seconds[i - 1]);
}
