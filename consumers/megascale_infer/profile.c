/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `megascale_infer profile`: measures a model's parts here and writes what `plan --measured` reads
 * (measured.h), with the points and what a batch costs beside it; or turns bandwidths of m2n_perf
 * into what `plan --util` reads.
 */
#include "profile.h"

#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "model/error.h"
#include "model/product.h"

struct profile {
	struct profile_params params;
	const char *gpu, *out_path, *util_path;
	double gbit;
	struct profile_points attention, experts;
	struct profile_line line_a, line_e;
	struct profile_cost cost;
};

enum { KEY_CONTEXT = 256, KEY_REPEATS, KEY_UTIL, KEY_GBIT };

static const struct argp_option options[] = {
	{"batches", 'b', "N,N", 0, "rows of the batches (1,2,4,8,16,24,32,48,64)", 0},
	{"context", KEY_CONTEXT, "N", 0, "tokens of a sequence, for T_a (256)", 0},
	{"repeats", KEY_REPEATS, "N", 0, "calls that a median is of (25)", 0},
	{"gpu", 'g', "NAME", 0, "what plan shall take this machine for (any)", 0},
	{"output", 'o', "FILE", 0, "not to standard output", 0},
	{"util-from", KEY_UTIL, "FILE", 0, "no model, but a curve for plan --util from the JSON "
		"of m2n_perf bw", 1},
	{"gbit", KEY_GBIT, "X", 0, "Gb/s of a source's link (the best of that file)", 1},
	{0},
};

static double number(struct argp_state *state, const char *name, const char *text, double min,
	double max, int whole)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= min && value <= max) ||
	    (whole && value != (double)(uint32_t)value))
		argp_error(state, "--%s: '%s' is no %s from %g to %g", name, text,
			whole ? "whole number" : "number", min, max);
	return value;
}

static void set_batches(struct argp_state *state, char *text)
{
	struct profile_params *params = &((struct profile *)state->input)->params;
	char *at, *rest = text;

	params->n_batches = 0;
	while ((at = strsep(&rest, ",")) != NULL) {
		if (params->n_batches == PROFILE_MAX_POINTS / 2)
			argp_error(state, "--batches: more than %d", PROFILE_MAX_POINTS / 2);
		params->batches[params->n_batches++] =
			(uint32_t)number(state, "batches", at, 1, 65536, 1);
	}
}

static error_t parse_one(int key, char *text, struct argp_state *state)
{
	struct profile *p = state->input;

	switch (key) {
	case 'b':
		set_batches(state, text);
		return 0;
	case 'g':
		p->gpu = text;
		return 0;
	case 'o':
		p->out_path = text;
		return 0;
	case KEY_CONTEXT:
		p->params.context = (uint32_t)number(state, "context", text, 2, 1e8, 1);
		return 0;
	case KEY_REPEATS:
		p->params.n_repeats = (size_t)number(state, "repeats", text, 1, 1e6, 1);
		return 0;
	case KEY_UTIL:
		p->util_path = text;
		return 0;
	case KEY_GBIT:
		p->gbit = number(state, "gbit", text, 1e-3, 1e5, 0);
		return 0;
	case ARGP_KEY_ARG:
		if (p->params.dir)
			argp_error(state, "one model's directory, not also '%s'", text);
		p->params.dir = text;
		return 0;
	case ARGP_KEY_END:
		if (!p->params.dir == !p->util_path)
			argp_error(state, "a model's directory or --util-from is wanted");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static json_t *points_json(const struct profile_points *points)
{
	json_t *list = json_array();

	for (size_t i = 0; i < points->n; i++) {
		const struct profile_point *point = &points->points[i];
		json_t *row = json_pack("{s:i, s:f}", "rows", (int)point->rows, "us", point->us);

		if (point->context)
			json_object_set_new(row, "context", json_integer(point->context));
		json_array_append_new(list, row);
	}
	return list;
}

static json_t *line_json(const struct profile *p, const char *slope, const char *constant,
	const struct profile_line *line)
{
	json_t *row = json_pack("{s:i, s:f, s:f}", "tp", 1, slope, line->slope_us, constant,
		line->constant_us);

	if (p->gpu)
		json_object_set_new(row, "gpu", json_string(p->gpu));
	return json_pack("[o]", row);
}

static json_t *to_json(const struct profile *p)
{
	return json_pack("{s:o, s:o, s:{s:f, s:f}, s:{s:f, s:f}, s:{s:o, s:o}, s:s, s:i, s:i, s:s}",
		"attention", line_json(p, "k1_us", "k2_us", &p->line_a),
		"experts", line_json(p, "k3_us", "k4_us", &p->line_e),
		"batch", "row_us", p->cost.row_us, "key_us", p->cost.key_us,
		"residual", "attention_us", p->line_a.residual_us, "experts_us",
		p->line_e.residual_us,
		"points", "attention", points_json(&p->attention), "experts",
		points_json(&p->experts),
		"model", p->params.dir, "context", (int)p->params.context, "repeats",
		(int)p->params.n_repeats, "engine", model_product_engine());
}

static int write_json(const struct profile *p, FILE *out)
{
	json_t *root = to_json(p);
	int rc = root ? json_dumpf(root, out, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : -1;

	json_decref(root);
	fputc('\n', out);
	return rc ? model_fail(-ENOMEM, "the JSON could not be written") : 0;
}

/* For people, beside the file. */
static void print_lines(const struct profile *p)
{
	fprintf(stderr, "T_a = %.3f b + %.1f us (residual %.1f us) at a context of %u\n"
		"T_e = %.3f b + %.1f us (residual %.1f us)\n"
		"a row costs %.3f us, a key %.5f us\n", p->line_a.slope_us, p->line_a.constant_us,
		p->line_a.residual_us, p->params.context, p->line_e.slope_us,
		p->line_e.constant_us, p->line_e.residual_us, p->cost.row_us, p->cost.key_us);
}

static int fit(struct profile *p)
{
	uint32_t context = p->params.context, quarter = (context + 3) / 4;
	struct profile_line small;
	int rc = profile_fit(&p->attention, quarter, &small);

	if (!rc)
		rc = profile_fit(&p->attention, context, &p->line_a);
	if (!rc)
		rc = profile_fit(&p->experts, 0, &p->line_e);
	if (!rc)
		profile_cost_of(&small, quarter, &p->line_a, context, &p->cost);
	return rc;
}

static int profile(struct profile *p)
{
	FILE *out = stdout;
	int rc = p->util_path ? 0 : profile_measure(&p->params, &p->attention, &p->experts);

	if (!rc && !p->util_path)
		rc = fit(p);
	if (rc)
		return rc;
	if (p->out_path)
		out = fopen(p->out_path, "we");
	if (!out)
		return model_fail(-errno, "%s: %s", p->out_path, strerror(errno));
	if (!p->util_path)
		print_lines(p);
	rc = p->util_path ? profile_write_util(p->util_path, p->gbit, out) : write_json(p, out);
	if (!rc && (ferror(out) || fflush(out)))
		rc = model_fail(-EIO, "%s could not be written", p->out_path ? : "standard output");
	if (p->out_path)
		fclose(out);
	return rc;
}

int profile_main(int argc, char **argv)
{
	static const struct argp argp = {options, parse_one, "MODELDIR\n--util-from FILE",
		"Measures the slopes and constants of the performance model on this machine.", NULL,
		NULL, NULL};
	struct profile p = {.params = {.context = 256, .n_batches = 9, .n_repeats = 25,
		.batches = {1, 2, 4, 8, 16, 24, 32, 48, 64}}};
	int rc;

	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, &p);
	rc = profile(&p);
	if (rc)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	return rc ? 1 : 0;
}
