/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options by argp, numbers by one table of their ranges; files and names are read when all
 * options are known.
 */
#include "plan_args.h"

#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

enum {
	KEY_MODELS = 256, KEY_GPUS, KEY_GPU_A, KEY_GPU_E, KEY_GPU, KEY_PRICE, KEY_UTIL,
	KEY_MEASURED, KEY_RELAXED, KEY_HOMOGENEOUS, KEY_JSON, KEY_STRAIGHT, KEY_NUMBER,
};

static const struct number {
	const char *name;
	double min, max;
	size_t offset;
	int whole, power;
} numbers[] = {
	{"slo-ms", 1e-3, 1e6, offsetof(struct plan_args, inputs.slo_s), 0, 0},
	{"input", 0, 1e8, offsetof(struct plan_args, input_tokens), 0, 0},
	{"output", 0, 1e8, offsetof(struct plan_args, output_tokens), 0, 0},
	{"context", 1, 1e8, offsetof(struct plan_args, context_tokens), 0, 0},
	{"compute-efficiency", 1e-3, 1, offsetof(struct plan_args, inputs.compute_efficiency),
		0, 0},
	{"memory-efficiency", 1e-3, 1, offsetof(struct plan_args, inputs.memory_efficiency), 0, 0},
	{"balance", 0, 1, offsetof(struct plan_args, inputs.balance_tolerance), 0, 0},
	{"nic-gbit", 1e-3, 1e5, offsetof(struct plan_args, nic_bytes_per_s), 0, 0},
	{"batch", 1, 1e9, offsetof(struct plan_args, space.batch), 0, 0},
	{"tp-a", 1, 8, offsetof(struct plan_args, space.tp_a), 1, 1},
	{"tp-e", 1, 8, offsetof(struct plan_args, space.tp_e), 1, 1},
	{"n-a", 1, 1 << 20, offsetof(struct plan_args, space.n_a), 1, 0},
	{"min-m", 1, 64, offsetof(struct plan_args, space.min_m), 1, 0},
	{"max-m", 1, 64, offsetof(struct plan_args, space.max_m), 1, 0},
	{"top", 1, 10000, offsetof(struct plan_args, n_shown), 1, 0},
};

static const struct argp_option options[] = {
	{"model", 'm', "NAME", 0, "Mixtral-8x22B (default), DBRX, Scaled-MoE, or of --models", 0},
	{"models", KEY_MODELS, "FILE", 0, "a table in the form of models.csv", 0},
	{"gpus", KEY_GPUS, "FILE", 0, "a table in the form of gpus.csv", 0},
	{"gpu", 'g', "A,B", 0, "GPUs of both sides (L20,H800,A800,H20,L40S)", 0},
	{"gpu-a", KEY_GPU_A, "A,B", 0, "GPUs of the attention nodes", 0},
	{"gpu-e", KEY_GPU_E, "A,B", 0, "GPUs of the expert nodes", 0},
	{"homogeneous", KEY_HOMOGENEOUS, NULL, 0, "the same GPU on both sides only", 0},
	{"price", KEY_PRICE, "NAME=X", 0, "price of a GPU, in that of an L20", 0},
	{"util", KEY_UTIL, "FILE", 0, "share of the bandwidth by bytes: a table bytes,util", 0},
	{"measured", KEY_MEASURED, "FILE", 0, "measured k1 to k4 (JSON), not the roofline", 0},
	{"relaxed", KEY_RELAXED, NULL, 0, "admit plans that break (2) or (3), so m of 1 and 2", 0},
	{"straight", KEY_STRAIGHT, NULL, 0, "sum of the roofline's asymptotes", 0},
	{"json", KEY_JSON, NULL, 0, "print JSON", 0},
	{"slo-ms", KEY_NUMBER, "X", 0, "longest time between tokens (150)", 1},
	{"input", KEY_NUMBER + 1, "N", 0, "tokens of a prompt (571)", 1},
	{"output", KEY_NUMBER + 2, "N", 0, "tokens of an answer (159)", 1},
	{"context", KEY_NUMBER + 3, "N", 0, "mean length of a sequence (input + output / 2)", 1},
	{"compute-efficiency", KEY_NUMBER + 4, "X", 0, "share of the peak FLOP/s reached (0.7)", 1},
	{"memory-efficiency", KEY_NUMBER + 5, "X", 0, "of memory's and links' bandwidth (0.8)", 1},
	{"balance", KEY_NUMBER + 6, "X", 0, "|T_a - T_e| / T_f at which (1) is broken (0.2)", 1},
	{"nic-gbit", KEY_NUMBER + 7, "X", 0, "network per GPU, Gb/s, in place of the tables'", 1},
	{"batch", KEY_NUMBER + 8, "N", 0, "fix B; others likewise:", 2},
	{"tp-a", KEY_NUMBER + 9, "N", 0, "GPUs of an attention node", 2},
	{"tp-e", KEY_NUMBER + 10, "N", 0, "GPUs of an expert node", 2},
	{"n-a", KEY_NUMBER + 11, "N", 0, "attention nodes (by the balance)", 2},
	{"min-m", KEY_NUMBER + 12, "N", 0, "micro-batches, from (1)", 2},
	{"max-m", KEY_NUMBER + 13, "N", 0, "to (4)", 2},
	{"top", KEY_NUMBER + 14, "N", 0, "plans to print (5)", 2},
	{0},
};

static void set_number(struct argp_state *state, const struct number *row, const char *text)
{
	struct plan_args *args = state->input;
	char *end;
	double value = strtod(text, &end);
	int whole = (int)value;

	if (end == text || *end || !(value >= row->min && value <= row->max) ||
	    ((row->whole || row->offset == offsetof(struct plan_args, space.batch)) &&
		    value != floor(value)) ||
	    (row->power && (whole & (whole - 1))))
		argp_error(state, "--%s: '%s' is no %s from %g to %g", row->name, text,
			row->power ? "power of 2" :
				row->whole ? "whole number" : "number", row->min, row->max);
	if (row->whole)
		memcpy((char *)args + row->offset, &whole, sizeof(whole));
	else
		memcpy((char *)args + row->offset, &value, sizeof(value));
}

static error_t set_switch(struct plan_args *args, int key)
{
	switch (key) {
	case KEY_RELAXED:
		args->space.relaxed = 1;
		return 0;
	case KEY_HOMOGENEOUS:
		args->homogeneous = 1;
		return 0;
	case KEY_STRAIGHT:
		args->inputs.straight = 1;
		return 0;
	case KEY_JSON:
		args->json = 1;
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static error_t parse_one(int key, char *text, struct argp_state *state)
{
	struct plan_args *args = state->input;
	const struct {
		int key;
		const char **place;
	} texts[] = {
		{'m', &args->model}, {KEY_MODELS, &args->models_path},
		{KEY_GPUS, &args->gpus_path}, {'g', &args->gpus}, {KEY_GPU_A, &args->gpus_a},
		{KEY_GPU_E, &args->gpus_e}, {KEY_UTIL, &args->util_path},
		{KEY_MEASURED, &args->measured_path},
	};
	const size_t n_numbers = sizeof(numbers) / sizeof(numbers[0]);

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (texts[i].key == key) {
			*texts[i].place = text;
			return 0;
		}
	if (key >= KEY_NUMBER && key < KEY_NUMBER + (int)n_numbers) {
		set_number(state, &numbers[key - KEY_NUMBER], text);
		return 0;
	}
	if (key == KEY_PRICE) {
		if (args->n_prices == PLAN_MAX_GPUS)
			argp_error(state, "--price: more than %d", PLAN_MAX_GPUS);
		args->prices[args->n_prices++] = text;
		return 0;
	}
	if (key == ARGP_KEY_ARG)
		argp_error(state, "'%s' is no option", text);
	return set_switch(args, key);
}

/* 0 and the price, 0 where none was given. */
static int find_price(const struct plan_args *args, const char *name, double *price)
{
	size_t n = strlen(name);
	char *end;

	*price = 0;
	for (size_t i = 0; i < args->n_prices; i++) {
		const char *text = args->prices[i];

		if (strncmp(text, name, n) || text[n] != '=')
			continue;
		*price = strtod(text + n + 1, &end);
		if (end == text + n + 1 || *end || !(*price > 0 && isfinite(*price)))
			return model_fail(-EINVAL, "--price: '%s' is no price above 0", text);
	}
	return 0;
}

static int read_gpus(const struct plan_args *args, const char *list, struct plan_gpu *gpus,
	size_t *n_gpus)
{
	while (*list) {
		size_t n = strcspn(list, ",");
		char name[64];
		double price;
		int rc;

		if (*n_gpus == PLAN_MAX_GPUS)
			return model_fail(-E2BIG, "more than %d GPUs", PLAN_MAX_GPUS);
		snprintf(name, sizeof(name), "%.*s", n > 63 ? 63 : (int)n, list);
		rc = find_price(args, name, &price);
		if (!rc)
			rc = plan_gpu_find(args->gpus_path, name, price, &gpus[*n_gpus]);
		if (rc)
			return rc;
		if (args->nic_bytes_per_s > 0) /* still as Gb/s */
			gpus[*n_gpus].nic_bytes_per_s = args->nic_bytes_per_s * 1e9 / 8;
		++*n_gpus;
		list += n + (list[n] == ',');
	}
	return 0;
}

static int read_files(struct plan_args *args)
{
	const char *both = args->gpus ? args->gpus :
		args->gpus_path && !(args->gpus_a && args->gpus_e) ? "" : "L20,H800,A800,H20,L40S";
	struct plan_space *space = &args->space;
	int rc = plan_model_find(args->models_path, args->model, &args->inputs.model);

	if (!rc)
		rc = read_gpus(args, args->gpus_a ? args->gpus_a : both, space->gpus_a,
			&space->n_gpus_a);
	if (!rc)
		rc = read_gpus(args, args->gpus_e ? args->gpus_e : both, space->gpus_e,
			&space->n_gpus_e);
	if (!rc && (!space->n_gpus_a || !space->n_gpus_e))
		rc = model_fail(-EINVAL, "--gpus needs --gpu, or --gpu-a and --gpu-e, with names");
	if (!rc && args->util_path)
		rc = plan_util_read(args->util_path, &args->inputs.util);
	if (!rc && args->measured_path)
		rc = plan_measured_read(args->measured_path, &args->inputs.measured);
	return rc;
}

int plan_args_parse(int argc, char **argv, struct plan_args *args)
{
	static const struct argp argp = {options, parse_one, NULL,
		"Chooses tp_a, tp_e, n_a, m and B of a disaggregated deployment by the performance "
		"model of MegaScale-Infer, for the most throughput per cost.", NULL, NULL, NULL};

	argp_err_exit_status = 2;
	*args = (struct plan_args){.model = "Mixtral-8x22B", .n_shown = 5, .input_tokens = 571,
		.output_tokens = 159};
	args->inputs = (struct plan_inputs){.util = plan_util_default, .slo_s = 150,
		.compute_efficiency = 0.7, .memory_efficiency = 0.8, .balance_tolerance = 0.2};
	args->space.min_m = 1;
	args->space.max_m = 4;
	argp_parse(&argp, argc, argv, 0, NULL, args);
	args->inputs.slo_s *= 1e-3; /* was in ms */
	args->inputs.context_tokens = args->context_tokens > 0 ? args->context_tokens :
		fmax(1, args->input_tokens + args->output_tokens / 2);
	if (args->space.min_m > args->space.max_m)
		return model_fail(-EINVAL, "--min-m %d is above --max-m %d", args->space.min_m,
			args->space.max_m);
	return read_files(args);
}
