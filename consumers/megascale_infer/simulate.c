/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `megascale_infer simulate`: the pipeline of a plan, or of times given, as discrete events beside
 * equations (4) and (5). A routing trace gives each expert its own load; with x = load / mean it
 * takes max(k4, product * x) + rest * x, where product (of a plan by the roofline) and rest make up
 * T_e at x = 1. Percentiles of T_c are drawn for each transfer.
 */
#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "load.h"
#include "model/error.h"
#include "pipeline.h"

struct simulate {
	double t_a_us, t_e_us, t_c_us, sample_us, k4_us, product_us, m, layers, iterations, window,
		seed;
	const char *plan_path, *routing_path, *jitter_path;
	int json;
	struct load_trace trace;
	struct load_jitter jitter;
};

enum { KEY_PLAN = 256, KEY_ROUTING, KEY_JITTER, KEY_JSON, KEY_NUMBER };

static const struct number {
	const char *name;
	double min, max;
	size_t offset;
	int whole;
} numbers[] = {
	{"t-a-us", 0, 1e9, offsetof(struct simulate, t_a_us), 0},
	{"t-e-us", 0, 1e9, offsetof(struct simulate, t_e_us), 0},
	{"t-c-us", 0, 1e9, offsetof(struct simulate, t_c_us), 0},
	{"sample-us", 0, 1e9, offsetof(struct simulate, sample_us), 0},
	{"k4-us", 0, 1e9, offsetof(struct simulate, k4_us), 0},
	{"micro-batches", 1, PIPELINE_MAX_M, offsetof(struct simulate, m), 1},
	{"layers", 1, 10000, offsetof(struct simulate, layers), 1},
	{"iterations", 1, 100000, offsetof(struct simulate, iterations), 1},
	{"window", 1, 1e6, offsetof(struct simulate, window), 1},
	{"seed", 0, 1e15, offsetof(struct simulate, seed), 1},
};

static const struct argp_option options[] = {
	{"plan", KEY_PLAN, "FILE", 0, "times, m and layers of `plan --json`; others go over it", 0},
	{"routing", KEY_ROUTING, "FILE", 0, "loads of the experts from a routing trace", 0},
	{"jitter", KEY_JITTER, "FILE", 0, "T_c from a table percentile,us", 0},
	{"json", KEY_JSON, NULL, 0, "print JSON", 0},
	{"t-a-us", KEY_NUMBER, "X", 0, "T_a of a micro-batch and layer", 1},
	{"t-e-us", KEY_NUMBER + 1, "X", 0, "T_e, at the experts' mean load", 1},
	{"t-c-us", KEY_NUMBER + 2, "X", 0, "T_c one way", 1},
	{"sample-us", KEY_NUMBER + 3, "X", 0,
		"what attention ranks do between the last layer and the first of the next token "
		"(0)",
		1},
	{"k4-us", KEY_NUMBER + 4, "X", 0, "what of T_e does not depend on the load (0)", 1},
	{"micro-batches", KEY_NUMBER + 5, "N", 0, "m", 1},
	{"layers", KEY_NUMBER + 6, "N", 0, "layers of an iteration", 1},
	{"iterations", KEY_NUMBER + 7, "N", 0, "tokens of each sequence (10)", 1},
	{"window", KEY_NUMBER + 8, "N", 0, "tokens of a micro-batch in the trace (128)", 1},
	{"seed", KEY_NUMBER + 9, "N", 0, "of the jitter (1)", 1},
	{0},
};

static void set_number(struct argp_state *state, const struct number *row, const char *text)
{
	double *value = (double *)((char *)state->input + row->offset);
	char *end;

	*value = strtod(text, &end);
	if (end == text || *end || !(*value >= row->min && *value <= row->max) ||
		(row->whole && *value != floor(*value)))
		argp_error(state, "--%s: '%s' is no %s from %g to %g", row->name, text,
			row->whole ? "whole number" : "number", row->min, row->max);
}

static error_t parse_one(int key, char *text, struct argp_state *state)
{
	struct simulate *s = state->input;

	switch (key) {
	case KEY_PLAN:
		s->plan_path = text;
		return 0;
	case KEY_ROUTING:
		s->routing_path = text;
		return 0;
	case KEY_JITTER:
		s->jitter_path = text;
		return 0;
	case KEY_JSON:
		s->json = 1;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "'%s' is no option", text);
		return EINVAL;
	}
	if (key < KEY_NUMBER || key >= KEY_NUMBER + (int)(sizeof(numbers) / sizeof(numbers[0])))
		return ARGP_ERR_UNKNOWN;
	set_number(state, &numbers[key - KEY_NUMBER], text);
	return 0;
}

/* Over what is not given on the command line (negative). */
static int read_plan(struct simulate *s)
{
	json_error_t error;
	json_t *root = json_load_file(s->plan_path, 0, &error);
	json_t *plan = json_array_get(json_object_get(root, "plans"), 0);
	const struct {
		const char *name;
		double *value;
	} members[] = {
		{"t_a_us", &s->t_a_us},
		{"t_e_us", &s->t_e_us},
		{"t_c_us", &s->t_c_us},
		{"m", &s->m},
		{"layers", &s->layers},
	};
	int own = s->t_e_us < 0 && s->k4_us < 0, rc = 0;

	if (!root)
		return model_fail(-EINVAL, "%s:%d: %s", s->plan_path, error.line, error.text);
	for (size_t i = 0; !rc && i < sizeof(members) / sizeof(members[0]); i++) {
		json_t *value = json_object_get(plan, members[i].name);

		if (!json_is_number(value) || !(json_number_value(value) >= 0))
			rc = model_fail(-EINVAL, "%s: plans[0]: no number %s", s->plan_path,
				members[i].name);
		else if (*members[i].value < 0)
			*members[i].value = json_number_value(value);
	}
	if (!rc && own) {
		s->k4_us = fmin(s->t_e_us, json_number_value(json_object_get(plan, "k4_us")));
		s->product_us =
			fmin(s->t_e_us, json_number_value(json_object_get(plan, "product_e_us")) *
						json_number_value(json_object_get(plan, "b_e")));
	}
	json_decref(root);
	return rc;
}

static int read_inputs(struct simulate *s)
{
	int rc = s->plan_path ? read_plan(s) : 0;

	s->k4_us = fmax(s->k4_us, 0);
	if (!rc && (s->t_a_us < 0 || s->t_e_us < 0 || s->t_c_us < 0 || s->m < 1 || s->layers < 1))
		rc = model_fail(-EINVAL, "--plan, or --t-a-us, --t-e-us, --t-c-us, "
					 "--micro-batches and --layers are wanted");
	if (!rc && (s->m > PIPELINE_MAX_M || s->layers > 10000))
		rc = model_fail(-EINVAL, "m of %g up to %d, %g layers up to 10000", s->m,
			PIPELINE_MAX_M, s->layers);
	if (!rc && s->k4_us > s->t_e_us)
		rc = model_fail(-EINVAL, "k4 of %g us is above T_e of %g us", s->k4_us, s->t_e_us);
	if (!rc && s->t_a_us + s->t_e_us + s->t_c_us <= 0)
		rc = model_fail(-EINVAL, "all times are 0");
	if (!rc && s->routing_path)
		rc = load_trace_read(s->routing_path, &s->trace);
	if (!rc && s->jitter_path)
		rc = load_jitter_read(s->jitter_path, (uint64_t)s->seed, &s->jitter);
	return rc;
}

static double attention_time(void *context, const struct pipeline_step *step)
{
	const struct simulate *s = context;

	return (s->t_a_us + (step->iteration && !step->layer ? s->sample_us : 0)) * 1e-6;
}

static double transfer_time(void *context, const struct pipeline_step *step)
{
	struct simulate *s = context;

	(void)step;
	return s->jitter.n ? load_jitter_draw(&s->jitter) : s->t_c_us * 1e-6;
}

static double expert_time(void *context, const struct pipeline_step *step, size_t expert)
{
	const struct simulate *s = context;
	size_t window = (size_t)s->window;
	double share = 1, rest = s->t_e_us - fmax(s->k4_us, s->product_us);

	if (s->trace.experts)
		share = load_trace_share(&s->trace, step->layer,
			(step->iteration * (size_t)s->m + step->micro_batch) * window, window,
			expert);
	return (fmax(s->k4_us, s->product_us * share) + rest * share) * 1e-6;
}

struct expected {
	double low, high, total; /* (4), (5), in s */
	int full;                /* (2) and (3) hold, and nothing comes between iterations */
};

static struct expected equations(const struct simulate *s)
{
	double t_f = fmax(s->t_a_us, s->t_e_us), way = s->t_a_us + s->t_e_us + 2 * s->t_c_us;

	return (struct expected){
		.low = (way + s->m * t_f * (s->layers - 1)) * 1e-6,
		.high = s->m * t_f * s->layers * 1e-6,
		.total = (way + t_f * (s->m * s->layers - 1)) * 1e-6,
		.full = !s->sample_us && s->t_c_us < t_f && s->m * t_f >= 2 * (t_f + s->t_c_us),
	};
}

static int print_json(const struct simulate *s, const struct expected *e,
	const struct pipeline_result *r, double tpot)
{
	json_t *root = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:b, s:f, s:f, s:f, s:f}",
		"first_ms", r->first * 1e3, "total_ms", r->total * 1e3, "tpot_ms", tpot * 1e3,
		"equation_4_low_ms", e->low * 1e3, "equation_4_high_ms", e->high * 1e3,
		"equation_5_ms", e->total * 1e3, "equations_hold",
		e->full && !s->jitter.n && !s->trace.experts, "attention_busy", r->attention_busy,
		"expert_busy", r->expert_busy, "busiest_expert", r->busiest_expert, "network_busy",
		r->network_busy);
	int rc = root ? json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : -1;

	json_decref(root);
	printf("\n");
	return rc ? model_fail(-ENOMEM, "the JSON could not be written") : 0;
}

static void print_text(const struct simulate *s, const struct expected *e,
	const struct pipeline_result *r, double tpot)
{
	printf("T_a %.1f us, T_e %.1f us, T_c %.1f us, m %.0f, %.0f layers, %.0f iterations%s%s\n",
		s->t_a_us, s->t_e_us, s->t_c_us, s->m, s->layers, s->iterations,
		s->jitter.n ? ", jitter" : "", s->trace.experts ? ", routing trace" : "");
	printf("first micro-batch %.3f ms; (4): %.3f to %.3f ms\n", r->first * 1e3, e->low * 1e3,
		e->high * 1e3);
	printf("all micro-batches %.3f ms; (5): %.3f ms\n", r->total * 1e3, e->total * 1e3);
	printf("time between tokens %.3f ms\n", tpot * 1e3);
	printf("busy: attention %.1f %%, experts %.1f %% (busiest %.1f %%), network %.1f %%\n",
		r->attention_busy * 100, r->expert_busy * 100, r->busiest_expert * 100,
		r->network_busy * 100);
	if (!e->full)
		printf("(2) or (3) does not hold, or there is sampling: (4) and (5) are of a full "
		       "pipeline\n");
}

static int simulate(struct simulate *s)
{
	struct pipeline_params params = {.m = (size_t)s->m,
		.n_layers = (size_t)s->layers,
		.n_iterations = (size_t)s->iterations,
		.n_experts = s->trace.experts ? s->trace.n_experts : 1,
		.times = {s, attention_time, transfer_time, expert_time}};
	struct expected expected = equations(s);
	struct pipeline_result result;
	int rc = pipeline_run(&params, &result);
	double tpot;

	if (rc)
		return rc;
	tpot = pipeline_tpot(&params, &result);
	if (s->json)
		rc = print_json(s, &expected, &result, tpot);
	else
		print_text(s, &expected, &result, tpot);
	pipeline_result_free(&result);
	if (!rc && fflush(stdout))
		rc = model_fail(-errno, "standard output: %s", strerror(errno));
	return rc;
}

int simulate_main(int argc, char **argv)
{
	static const struct argp argp = {options, parse_one, NULL,
		"Simulates the ping-pong of m micro-batches between attention and experts.", NULL,
		NULL, NULL};
	struct simulate s = {.t_a_us = -1,
		.t_e_us = -1,
		.t_c_us = -1,
		.k4_us = -1,
		.m = -1,
		.layers = -1,
		.iterations = 10,
		.window = 128,
		.seed = 1};
	int rc;

	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, &s);
	rc = read_inputs(&s);
	if (!rc)
		rc = simulate(&s);
	load_trace_free(&s.trace);
	if (rc)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	return rc ? 1 : 0;
}
