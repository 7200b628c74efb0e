/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command lines of plan and simulate. Numbers are one table: name, where they go, smallest and
 * largest value.
 */
#include "plan_args.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "model/error.h"

enum { KEY_NUMBER = 1000, KEY_MODELS = 900, KEY_GPUS, KEY_TRACE, KEY_SVG, KEY_JSON, KEY_TA, KEY_TF,
	KEY_TC, KEY_SCHEDULE };

#define NUMBERS(X) \
	X("seq", job.seq, 1, 1e8, 1, "tokens of a sequence") \
	X("sequences", job.n_sequences, 1, 1e6, 1, "sequences of a micro-batch of a group") \
	X("ep", job.ep, 1, 4096, 1, "expert-parallel ranks, attention and experts together") \
	X("efficiency", job.efficiency, 1e-3, 1, 0, "share of the peak that products reach") \
	X("nic-gbps", job.nic_bytes_per_s, 1e-3, 1e6, 0, "GB/s of a NIC, one way") \
	X("copies", job.copies, 1e-3, 4096, 0, "of a row between groups, default one per node") \
	X("groups", p, 1, 512, 1, "pipeline groups p of each side") \
	X("micro-batches", n_micro, 1, 65536, 1, "of a step") \
	X("attention-gpus", max_gpus_a, 1, 1024, 1, "GPUs of an attention group, at most") \
	X("min-attention-gpus", min_gpus_a, 1, 1024, 1, "and at least") \
	X("ffn-gpus", max_gpus_f, 1, 1024, 1, "GPUs of an FFN group, at most") \
	X("attention-nics", nics_a, 1, 1024, 1, "NICs of an attention group") \
	X("ffn-nics", nics_f, 1, 1024, 1, "NICs of an FFN group") \
	X("in-flight", max_in_flight, 1, 65536, 1, "micro-batches with activations") \
	X("virtual", v, 1, 65536, 1, "virtual stages; with --t-a-us") \
	X("t-head-us", t_head, 0, 1e12, 0, "norm, head and loss; with --t-a-us")

static const struct argp_option options[] = {
	{"model", 'm', "NAME", 0, "DeepSeek-MoE, GPT-OSS-120B or Qwen3-235B", 0},
	{"models", KEY_MODELS, "FILE", 0, "table of models' shapes", 0},
	{"gpu", 'g', "NAME", 0, "kind of GPU, default H800", 0},
	{"gpus", KEY_GPUS, "FILE", 0, "table of GPUs", 0},
	{"trace", KEY_TRACE, "FILE", 0, "routing whose skew the expert ranks have", 0},
	{"svg", KEY_SVG, "FILE", 0, "plan: picture of the roofline", 0},
	{"json", KEY_JSON, 0, 0, "print JSON", 0},
	{"t-a-us", KEY_TA, "F,B[,W]", 0, "simulate: attention's forward, backward, weights", 0},
	{"t-f-us", KEY_TF, "F,B[,W]", 0, "simulate: the experts'", 0},
	{"t-c-us", KEY_TC, "F,B", 0, "simulate: a transfer one way", 0},
	{"schedule", KEY_SCHEDULE, "NAME", 0, "with --t-a-us: afpipe, 1f1b or sequential", 0},
	{0},
};

struct number {
	const char *name;
	size_t offset;
	double min, max;
	int whole;
	const char *text;
};

static const struct number numbers[] = {
#define NUMBER(name, field, min, max, whole, text) \
	{name, offsetof(struct train_args, field), min, max, whole, text},
	NUMBERS(NUMBER)
};

enum { N_NUMBERS = sizeof(numbers) / sizeof(numbers[0]),
	N_OPTIONS = sizeof(options) / sizeof(options[0]) };

static void parse_list(struct argp_state *state, const char *name, const char *text, int least,
	int most, double *values)
{
	for (int i = 0; i < most; i++) {
		char *end;

		values[i] = strtod(text, &end);
		if (end == text || !isfinite(values[i]) || values[i] < 0 || values[i] > 1e12 ||
			(*end && *end != ',') || (*end && i + 1 == most))
			argp_error(state, "--%s: '%s' is no list of up to %d times", name, text,
				most);
		text = end + 1;
		if (!*end && i + 1 >= least)
			return;
		if (!*end)
			argp_error(state, "--%s: fewer than %d times", name, least);
	}
}

static void parse_number(struct argp_state *state, const struct number *number, const char *text)
{
	double *to = (double *)(void *)((char *)state->input + number->offset);
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= number->min && value <= number->max) ||
		(number->whole && value != floor(value)))
		argp_error(state, "--%s: '%s' is no %snumber from %g to %g", number->name, text,
			number->whole ? "whole " : "", number->min, number->max);
	*to = value;
}

static error_t parse(int key, char *text, struct argp_state *state)
{
	struct train_args *args = state->input;

	if (key >= KEY_NUMBER && key < KEY_NUMBER + N_NUMBERS) {
		parse_number(state, &numbers[key - KEY_NUMBER], text);
		return 0;
	}
	switch (key) {
	case 'm': args->model = text; return 0;
	case 'g': args->gpu = text; return 0;
	case KEY_MODELS: args->models = text; return 0;
	case KEY_GPUS: args->gpus = text; return 0;
	case KEY_TRACE: args->trace = text; return 0;
	case KEY_SVG: args->svg = text; return 0;
	case KEY_JSON: args->json = 1; return 0;
	case KEY_SCHEDULE: args->schedule = text; return 0;
	case KEY_TA: parse_list(state, "t-a-us", text, 2, 3, args->t_a); return 0;
	case KEY_TF: parse_list(state, "t-f-us", text, 2, 3, args->t_f); return 0;
	case KEY_TC: parse_list(state, "t-c-us", text, 2, 2, args->t_c); return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

/* Mean over the layers of the busiest rank's load over the mean, experts in order on the ranks. */
static int read_skew(const char *path, struct train_case *job)
{
	struct load_trace trace;
	size_t ranks = (size_t)job->ep, each;
	double sum = 0;
	int rc = load_trace_read(path, &trace);

	if (rc)
		return rc;
	each = trace.n_experts / ranks;
	if (!each || trace.n_experts % ranks)
		rc = model_fail(-EINVAL, "%s: %zu experts on %zu ranks", path, trace.n_experts,
			ranks);
	for (size_t layer = 0; !rc && layer < trace.n_layers; layer++) {
		double most = 0;

		for (size_t rank = 0; rank < ranks; rank++) {
			double load = 0;

			for (size_t i = 0; i < each; i++)
				load += load_trace_share(&trace, layer, 0, trace.n_tokens,
					rank * each + i) / (double)each;
			most = fmax(most, load);
		}
		sum += most / (double)trace.n_layers;
	}
	load_trace_free(&trace);
	if (!rc)
		job->skew = sum;
	return rc;
}

static int read_tables(struct train_args *args)
{
	struct train_case *job = &args->job;
	double nic = job->nic_bytes_per_s;
	struct plan_gpu gpu;
	int rc = train_model_find(args->models, args->model, &job->model);

	if (!rc)
		rc = plan_gpu_find(args->gpus, args->gpu, 1, &gpu);
	if (!rc && args->trace)
		rc = read_skew(args->trace, job);
	if (rc)
		return rc;
	job->flops = gpu.flops;
	job->gpu_bytes = gpu.mem_bytes;
	job->link_bytes_per_s = gpu.link_bytes_per_s;
	job->gpus_per_node = gpu.gpus_per_node;
	job->nic_bytes_per_s = nic > 0 ? nic * 1e9 : args->gpus ? gpu.nic_bytes_per_s : 50e9;
	return 0;
}

int train_args_parse(int argc, char **argv, const char *doc, struct train_args *args)
{
	struct argp_option table[N_OPTIONS + N_NUMBERS] = {{0}};
	struct argp argp = {table, parse, NULL, doc, NULL, NULL, NULL};
	int rc;

	*args = (struct train_args){.job = {.efficiency = .45, .seq = 4096, .n_sequences = 16,
		.ep = 16, .skew = 1}, .model = "Qwen3-235B", .gpu = "H800", .p = 4,
		.n_micro = 32, .max_gpus_a = 16, .max_gpus_f = 16, .min_gpus_a = 1, .nics_a = 16,
		.nics_f = 16, .t_a = {-1, 0, 0}, .t_f = {-1, 0, 0}, .v = 1};
	for (size_t i = 0; i < N_NUMBERS; i++)
		table[i] = (struct argp_option){numbers[i].name, KEY_NUMBER + (int)i, "N", 0,
			numbers[i].text, 0};
	memcpy(table + N_NUMBERS, options, sizeof(options));
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, args);
	if (args->min_gpus_a > args->max_gpus_a) {
		fprintf(stderr, "%s: --min-attention-gpus is above --attention-gpus\n", argv[0]);
		return 2;
	}
	rc = read_tables(args);
	if (rc)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	return rc ? 1 : 0;
}
