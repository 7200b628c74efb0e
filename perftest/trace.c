/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trace reader: one pass over the text with a cursor that knows its line. Room for all lines
 * is made first, so arrays never move. Numbers are read by hand: strtod()
 * follows the locale, and takes hexadecimal, infinity and NaN.
 */
#include "trace.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cursor {
	const char *name;
	const char *at, *end;
	size_t line; /* from 1 */
	char *error;
	size_t error_bytes;
};

/* What was expected and what stands there: the field at the cursor, cut at 20 characters. */
static int __attribute__((format(printf, 2, 3)))
refuse(const struct cursor *c, const char *format, ...)
{
	size_t n = 0, n_left = (size_t)(c->end - c->at), room;
	char found[21];
	va_list args;
	int used;

	while (n < 20 && n < n_left && c->at[n] != ',' && c->at[n] != '\n' && c->at[n] != '\r') {
		found[n] = c->at[n] < ' ' || c->at[n] > '~' ? '?' : c->at[n];
		n++;
	}
	found[n] = '\0';
	used = snprintf(c->error, c->error_bytes, "%s:%zu: expected ", c->name, c->line);
	room = (size_t)used < c->error_bytes ? c->error_bytes - (size_t)used : 0;
	va_start(args, format);
	used += vsnprintf(room ? c->error + used : NULL, room, format, args);
	va_end(args);
	room = (size_t)used < c->error_bytes ? c->error_bytes - (size_t)used : 0;
	snprintf(room ? c->error + used : NULL, room, n ? ", found '%s'" : ", found nothing%s",
		found);
	return -EINVAL;
}

static int no_memory(const struct cursor *c)
{
	snprintf(c->error, c->error_bytes, "%s: no memory for its %zu bytes", c->name,
		(size_t)(c->end - c->at));
	return -ENOMEM;
}

static int is_digit(const struct cursor *c)
{
	return c->at < c->end && *c->at >= '0' && *c->at <= '9';
}

static int is_field_end(const struct cursor *c)
{
	return c->at == c->end || *c->at == ',' || *c->at == '\n' || *c->at == '\r';
}

static int take_char(struct cursor *c, char wanted)
{
	if (c->at == c->end || *c->at != wanted)
		return 0;
	c->at++;
	return 1;
}

/* LF, CR LF or the end of the text. */
static int take_line_end(struct cursor *c)
{
	const char *at = c->at;

	if (at < c->end && *at == '\r')
		at++;
	if (at < c->end && *at != '\n')
		return 0;
	if (at == c->end && at != c->at)
		return 0; /* a lone CR */
	c->at = at + (at < c->end);
	c->line++;
	return 1;
}

static int take_number(struct cursor *c, const char *what, uint32_t *number)
{
	const char *start = c->at;
	uint64_t value = 0;

	while (is_digit(c) && value <= TRACE_MAX_NUMBER)
		value = value * 10 + (uint64_t)(*c->at++ - '0');
	if (c->at > start && value <= TRACE_MAX_NUMBER && is_field_end(c)) {
		*number = (uint32_t)value;
		return 0;
	}
	c->at = start;
	return refuse(c, "%s, a whole number in 0..%d", what, TRACE_MAX_NUMBER);
}

/* digits [. digits] [e [sign] digits], as a double without rounding to f32 in between. */
static int take_weight(struct cursor *c, uint32_t k, float *weight)
{
	const char *start = c->at;
	double value = 0;
	int exponent = 0, n_digits = 0, n_exponent = 1;

	for (; is_digit(c); c->at++, n_digits++)
		value = value * 10 + (*c->at - '0');
	if (take_char(c, '.')) {
		for (; is_digit(c); c->at++, n_digits++, exponent--)
			value = value * 10 + (*c->at - '0');
	}
	if (n_digits && (take_char(c, 'e') || take_char(c, 'E'))) {
		int sign = take_char(c, '-') ? -1 : 1, given = 0;

		if (sign > 0)
			take_char(c, '+');
		for (n_exponent = 0; is_digit(c); c->at++, n_exponent++)
			given = given < 10000 ? given * 10 + (*c->at - '0') : given;
		exponent += sign * given;
	}
	/* Dividing by an exact power of ten rounds once, multiplying by an inexact one twice. */
	value = exponent < 0 ? value / pow(10, -exponent) : value * pow(10, exponent);
	if (n_digits && n_exponent && is_field_end(c) && value <= 3.4028234663852886e38) {
		*weight = (float)value;
		return 0;
	}
	c->at = start;
	return refuse(c, "weight%u, a finite decimal number >= 0", k);
}

static int take_comma(struct cursor *c, const struct trace *trace)
{
	if (take_char(c, ','))
		return 0;
	return refuse(c, "a comma, %u columns a line", 3 + 2 * trace->top_k);
}

static int starts_with(const struct cursor *c, const char *text)
{
	size_t n = strlen(text);

	return (size_t)(c->end - c->at) >= n && memcmp(c->at, text, n) == 0;
}

/* ",<stem><index>" at the cursor; a longer index is not this one. */
static int take_column(struct cursor *c, const char *stem, uint32_t index)
{
	char column[32];
	size_t n = (size_t)snprintf(column, sizeof(column), ",%s%u", stem, index);
	struct cursor after = *c;

	if (!starts_with(c, column))
		return 0;
	after.at += n;
	if (!is_field_end(&after))
		return 0;
	*c = after;
	return 1;
}

/* The head line says how many experts a token has. */
static int take_head(struct cursor *c, uint32_t *top_k)
{
	static const char start[] = "layer,token,rank_hint";
	uint32_t n = 0;

	if (!starts_with(c, start))
		return refuse(c, "the columns %s,expert0..,weight0..", start);
	c->at += strlen(start);
	while (n < TRACE_MAX_TOP_K && take_column(c, "expert", n))
		n++;
	if (n == 0) {
		take_char(c, ',');
		return refuse(c, "column expert0");
	}
	for (uint32_t k = 0; k < n; k++) {
		if (!take_column(c, "weight", k)) {
			take_char(c, ',');
			return refuse(c, "column weight%u after %u experts (%d at most)", k, n,
				TRACE_MAX_TOP_K);
		}
	}
	if (!take_line_end(c)) {
		take_char(c, ',');
		return refuse(c, "the end of the line after weight%u", n - 1);
	}
	*top_k = n;
	return 0;
}

/* Most lines that the rest of the text can hold: by its line ends, and by the shortest line. */
static size_t max_lines(const struct cursor *c, uint32_t top_k)
{
	size_t n = 1, shortest = 2 * (3 + 2 * (size_t)top_k);
	size_t most = (size_t)(c->end - c->at) / shortest + 1;

	for (const char *at = c->at; at < c->end; at++)
		n += *at == '\n';
	return n < most ? n : most;
}

static int make_room(const struct cursor *c, struct trace *trace)
{
	size_t n = max_lines(c, trace->top_k), n_pairs = n * trace->top_k;

	trace->token = calloc(n, sizeof(*trace->token));
	trace->rank_hint = calloc(n, sizeof(*trace->rank_hint));
	trace->ids = calloc(n_pairs, sizeof(*trace->ids));
	trace->weights = calloc(n_pairs, sizeof(*trace->weights));
	if (!trace->token || !trace->rank_hint || !trace->ids || !trace->weights)
		return no_memory(c);
	return 0;
}

/* Layer and token, which say where the line belongs; opens a new layer when the number is new. */
static int take_place(struct cursor *c, struct trace *trace, size_t line_idx)
{
	struct trace_layer *last = trace->n_layers ? &trace->layers[trace->n_layers - 1] : NULL;
	const char *start = c->at;
	uint32_t layer, token;
	int status;

	status = take_number(c, "layer", &layer);
	if (status)
		return status;
	if (last && layer < last->layer) {
		c->at = start;
		return refuse(c, "layer %u or more (lines are sorted by layer)", last->layer);
	}
	if (!last || layer != last->layer) {
		struct trace_layer *grown =
			realloc(trace->layers, (trace->n_layers + 1) * sizeof(*trace->layers));

		if (!grown)
			return no_memory(c);
		trace->layers = grown;
		last = &grown[trace->n_layers++];
		*last = (struct trace_layer){.layer = layer,
			.token = trace->token + line_idx,
			.rank_hint = trace->rank_hint + line_idx,
			.ids = trace->ids + line_idx * trace->top_k,
			.weights = trace->weights + line_idx * trace->top_k};
	}
	status = take_comma(c, trace);
	start = c->at;
	if (!status)
		status = take_number(c, "token", &token);
	if (status)
		return status;
	if (last->n_tokens && token <= last->token[last->n_tokens - 1]) {
		c->at = start;
		return refuse(c, "a token above %u (lines are sorted by token)",
			last->token[last->n_tokens - 1]);
	}
	last->token[last->n_tokens++] = token;
	if (last->n_tokens > trace->max_tokens)
		trace->max_tokens = last->n_tokens;
	return 0;
}

static int take_expert(struct cursor *c, struct trace *trace, int32_t *ids, uint32_t k)
{
	const char *start = c->at;
	uint32_t id = 0;
	char what[24];
	int status;

	snprintf(what, sizeof(what), "expert%u", k);
	status = take_number(c, what, &id);
	if (status)
		return status;
	for (uint32_t i = 0; i < k; i++) {
		if (ids[i] != (int32_t)id)
			continue;
		c->at = start;
		return refuse(c, "%s other than expert%u", what, i);
	}
	ids[k] = (int32_t)id;
	if (id >= trace->n_experts)
		trace->n_experts = id + 1;
	return 0;
}

static int take_line(struct cursor *c, struct trace *trace, size_t line_idx)
{
	int32_t *ids = trace->ids + line_idx * trace->top_k;
	float *weights = trace->weights + line_idx * trace->top_k;
	int status = take_place(c, trace, line_idx);

	if (!status)
		status = take_comma(c, trace);
	if (!status)
		status = take_number(c, "rank_hint", &trace->rank_hint[line_idx]);
	for (uint32_t k = 0; !status && k < trace->top_k; k++) {
		status = take_comma(c, trace);
		if (!status)
			status = take_expert(c, trace, ids, k);
	}
	for (uint32_t k = 0; !status && k < trace->top_k; k++) {
		status = take_comma(c, trace);
		if (!status)
			status = take_weight(c, k, &weights[k]);
	}
	if (!status && !take_line_end(c)) {
		take_char(c, ',');
		status = refuse(c, "the end of the line, %u columns", 3 + 2 * trace->top_k);
	}
	return status;
}

int trace_parse(const char *name, const char *text, size_t bytes, struct trace *trace, char *error,
	size_t error_bytes)
{
	struct cursor c = {name, text, text + bytes, 1, error, error_bytes};
	struct trace made = {0};
	size_t n_lines = 0;
	int status = take_head(&c, &made.top_k);

	if (!status)
		status = make_room(&c, &made);
	if (!status && c.at == c.end)
		status = refuse(&c, "one line of data at least");
	while (!status && c.at < c.end)
		status = take_line(&c, &made, n_lines++);
	if (status) {
		trace_free(&made);
		return status;
	}
	*trace = made;
	return 0;
}

/* The whole file; grows, because a pipe has no size. */
static int read_all(FILE *file, char **text, size_t *bytes)
{
	size_t room = 1 << 16, used = 0;
	char *buffer = malloc(room), *grown;

	while (buffer) {
		used += fread(buffer + used, 1, room - used, file);
		if (used < room)
			break;
		room *= 2;
		grown = realloc(buffer, room);
		if (!grown)
			free(buffer);
		buffer = grown;
	}
	if (!buffer)
		return -ENOMEM;
	if (ferror(file)) {
		int status = errno ? -errno : -EIO;

		free(buffer);
		return status;
	}
	*text = buffer;
	*bytes = used;
	return 0;
}

int trace_load(const char *path, struct trace *trace, char *error, size_t error_bytes)
{
	FILE *file = fopen(path, "re");
	size_t bytes = 0;
	char *text = NULL;
	int status = file ? 0 : -errno;

	if (!status) {
		errno = 0;
		status = read_all(file, &text, &bytes);
		fclose(file);
	}
	if (status) {
		snprintf(error, error_bytes, "%s: cannot read the trace: %s", path,
			strerror(-status));
		return status;
	}
	status = trace_parse(path, text, bytes, trace, error, error_bytes);
	free(text);
	return status;
}

void trace_free(struct trace *trace)
{
	if (!trace)
		return;
	free(trace->layers);
	free(trace->token);
	free(trace->rank_hint);
	free(trace->ids);
	free(trace->weights);
	*trace = (struct trace){0};
}

const struct trace_layer *trace_find(const struct trace *trace, uint32_t layer)
{
	for (uint32_t i = 0; i < trace->n_layers; i++) {
		if (trace->layers[i].layer == layer)
			return &trace->layers[i];
	}
	return NULL;
}
