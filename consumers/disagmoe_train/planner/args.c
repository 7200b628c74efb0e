/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command lines. Numbers are one table: name, where they go, smallest and largest value.
 *
 * The defaults are the case of DisagMoE: 16 nodes of 8 H800 with 8 NICs of 400 Gb/s, 4 groups of
 * each kind, pairs of 32 GPUs. Products reach half of the peak (Megatron-LM reports 0.47 of H100
 * for whole steps). Transfers reach what was measured at 8 MiB for each pair of ranks: NCCL 169,
 * M2N 193 of 200 Gb/s (figure 7 of MegaScale-Infer). Communication beside computation takes 20 of
 * 132 SMs (DeepSeek-V3).
 */
#include "planner/args.h"

#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/error.h"

enum { KEY_MODELS = 256, KEY_GPUS, KEY_TRACE, KEY_SVG, KEY_JSON, KEY_SCHEDULE, KEY_COPIES,
	KEY_PROFILE, KEY_HEAD, KEY_RESIDUAL, KEY_RECOMPUTE, KEY_MEMORY, KEY_A, KEY_F, KEY_NUMBER };

static const struct number {
	const char *name;
	size_t offset;
	double min, max;
	int whole;
	const char *text;
} numbers[] = {
/* clang-format off */
#define NUMBER(name, field, min, max, whole, text) \
	{name, offsetof(struct planner_args, field), min, max, whole, text}
	NUMBER("seq", job.seq, 1, 1e8, 1, "tokens of a sequence (4096)"),
	NUMBER("sequences", job.n_sequences, 1, 1e6, 1, "of a micro-batch on an attention GPU (1)"),
	NUMBER("batch", job.batch, 1, 1e7, 1, "sequences of a step (512)"),
	NUMBER("groups", job.p, 1, 256, 1, "p, pipeline groups of each kind (4)"),
	NUMBER("in-flight", job.in_flight, 1, 65536, 1, "micro-batches under way in AF-Pipe"),
	NUMBER("ep", job.ep, 1, 4096, 1, "expert-parallel ranks of the other schedules (16)"),
	NUMBER("efficiency", job.efficiency, 1e-3, 1, 0, "share of the peak of products (0.5)"),
	NUMBER("attention-efficiency", job.attention_efficiency, 1e-3, 1, 0, "of attention's"),
	NUMBER("nic-gbps", job.nic_bytes_per_s, 1e-3, 1e5, 0, "GB/s of a NIC (the table's, or 50)"),
	NUMBER("m2n-util", job.m2n_util, 1e-3, 1, 0, "share of that in AF-Pipe (0.965)"),
	NUMBER("a2a-util", job.a2a_util, 1e-3, 1, 0, "and in the others (0.845)"),
	NUMBER("sm-share", job.sm_share, 0, .9, 0, "of a GPU for communication beside it (0.15)"),
	NUMBER("weight-bytes", job.weight_bytes, 0, 64, 0, "of a parameter (2)"),
	NUMBER("grad-bytes", job.grad_bytes, 0, 64, 0, "of its gradient (4)"),
	NUMBER("optimizer-bytes", job.optimizer_bytes, 0, 64, 0, "of master copy, moments (12)"),
	NUMBER("window", job.window, 1, 1e6, 1, "tokens of the trace in a micro-batch (2048)"),
	NUMBER("pair-gpus", space.pair_gpus, 2, 2048, 1, "GPUs of a pair (32, unless both sides are given)"),
	NUMBER("attention-nics", space.nics_a, 1, 2048, 1, "NICs of an attention group (its GPUs)"),
	NUMBER("ffn-nics", space.nics_f, 1, 2048, 1, "NICs of an FFN group (its GPUs)"),
	NUMBER("nics", space.nics, 2, 256, 1, "NICs of a pair, divided as is best"),
	NUMBER("slack", space.slack, 0, 1, 0, "what phase 2 may give away of phase 1 (0.02)"),
	NUMBER("top", top, 1, 1e6, 1, "splits to print (8)"),
/* clang-format on */
};

static const struct argp_option options[] = {
	{"model", 'm', "NAME", 0, "DeepSeek-MoE, GPT-OSS-120B, Qwen3-235B, or of --models", 0},
	{"models", KEY_MODELS, "FILE", 0, "a table in the form of models.csv", 0},
	{"gpu", 'g', "NAME", 0, "kind of GPU (H800)", 0},
	{"gpus", KEY_GPUS, "FILE", 0, "a table in the form of gpus.csv", 0},
	{"profile", KEY_PROFILE, "FILE", 0, "plan: model and times measured here", 0},
	{"trace", KEY_TRACE, "FILE", 0, "routing whose skew the experts have", 0},
	{"copies", KEY_COPIES, "WHERE", 0, "a row travels once per node (default), rank, expert",
		0},
	{"head", KEY_HEAD, "WHERE", 0, "shared by all groups (default), or on the last", 0},
	{"residual", KEY_RESIDUAL, "WAY", 0, "by link in a node (default), or by nic", 0},
	{"recompute", KEY_RECOMPUTE, 0, 0, "layers' forward again in the backward", 0},
	{"attention-gpus", KEY_A, "N[-N]", 0, "GPUs of an attention group", 0},
	{"ffn-gpus", KEY_F, "N[-N]", 0, "GPUs of an FFN group", 0},
	{"any-memory", KEY_MEMORY, 0, 0, "also splits that do not fit", 0},
	{"json", KEY_JSON, 0, 0, "print JSON", 0},
	{"svg", KEY_SVG, "FILE", 0, "plan: picture of the roofline", 0},
	{"schedule", KEY_SCHEDULE, "NAME", 0, "simulate: this one beside AF-Pipe", 0},
};

enum { N_NUMBERS = sizeof(numbers) / sizeof(numbers[0]),
	N_OPTIONS = sizeof(options) / sizeof(options[0]) };

static double parse_number(struct argp_state *state, const struct number *number,
	const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= number->min && value <= number->max) ||
		(number->whole && value != floor(value)))
		argp_error(state, "--%s: '%s' is no %snumber from %g to %g", number->name, text,
			number->whole ? "whole " : "", number->min, number->max);
	return value;
}

static void parse_range(struct argp_state *state, const char *name, const char *text, double *min,
	double *max)
{
	char *end;

	*min = *max = strtod(text, &end);
	if (end != text && *end == '-') {
		text = end + 1;
		*max = strtod(text, &end);
	}
	if (end == text || *end || !(*min >= 1 && *max >= *min && *max <= 1024) ||
		*min != floor(*min) || *max != floor(*max))
		argp_error(state, "--%s: N or N-N is wanted, whole, from 1 to 1024", name);
}

/* The place of the text in the words, which end with NULL. */
static int parse_word(struct argp_state *state, const char *name, const char *text,
	const char *const *words)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(words[i], text))
			return i;
	argp_error(state, "--%s: '%s' is neither %s nor %s%s%s", name, text, words[0], words[1],
		words[2] ? " nor " : "", words[2] ? words[2] : "");
	return 0;
}

static int parse_text(struct planner_args *args, int key, char *text)
{
	const struct {
		int key;
		const char **place;
	} texts[] = {
		{'m', &args->model}, {KEY_MODELS, &args->models}, {'g', &args->gpu},
		{KEY_GPUS, &args->gpus}, {KEY_TRACE, &args->trace}, {KEY_SVG, &args->svg},
		{KEY_SCHEDULE, &args->schedule}, {KEY_PROFILE, &args->profile},
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (texts[i].key == key) {
			*texts[i].place = text;
			return 1;
		}
	return 0;
}

static error_t parse_one(int key, char *text, struct argp_state *state)
{
	static const char *const copies[] = {"node", "rank", "expert", NULL};
	static const char *const heads[] = {"shared", "last", NULL};
	static const char *const ways[] = {"link", "nic", NULL};
	struct planner_args *args = state->input;

	if (key >= KEY_NUMBER && key < KEY_NUMBER + N_NUMBERS) {
		const struct number *number = &numbers[key - KEY_NUMBER];
		double value = parse_number(state, number, text);

		memcpy((char *)args + number->offset, &value, sizeof(value));
		return 0;
	}
	switch (key) {
	case KEY_COPIES:
		args->job.copies = (enum case_copies)parse_word(state, "copies", text, copies);
		return 0;
	case KEY_HEAD:
		args->job.head_last = parse_word(state, "head", text, heads);
		return 0;
	case KEY_RESIDUAL:
		args->job.residual_nic = parse_word(state, "residual", text, ways);
		return 0;
	case KEY_RECOMPUTE:
		args->job.recompute = 1;
		return 0;
	case KEY_MEMORY:
		args->space.any_memory = 1;
		return 0;
	case KEY_JSON:
		args->json = 1;
		return 0;
	case KEY_A:
		parse_range(state, "attention-gpus", text, &args->space.min_a, &args->space.max_a);
		return 0;
	case KEY_F:
		parse_range(state, "ffn-gpus", text, &args->space.min_f, &args->space.max_f);
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "'%s' is no option", text);
		return EINVAL;
	default:
		return parse_text(args, key, text) ? 0 : ARGP_ERR_UNKNOWN;
	}
}

/* This machine: a rank on each core, rows that are copied in memory for each expert. */
static int read_profile(struct planner_args *args)
{
	struct train_case *job = &args->job;
	struct machine *m = &args->machine;
	double nic = job->nic_bytes_per_s;
	int rc = machine_read(args->profile, m);

	if (rc)
		return rc;
	job->machine = m;
	job->model = (struct plan_model){.name = "profile", .n_layers = m->layers,
		.hidden = m->hidden, .expert_hidden = m->intermediate, .n_experts = m->experts,
		.top_k = m->top_k, .q_width = m->heads * m->head_dim,
		.kv_width = m->kv_heads * m->head_dim, .vocab = m->vocab};
	job->seq = m->seq;
	job->flops = m->gflops * 1e9;
	job->link_bytes_per_s = m->copy_us > 0 ? 1e12 / m->copy_us : 1e12;
	job->nic_bytes_per_s = nic > 0 ? nic * 1e9 : job->link_bytes_per_s;
	job->gpus_per_node = 1;
	job->gpu_bytes = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGE_SIZE) /
		(double)sysconf(_SC_NPROCESSORS_ONLN);
	args->gpu = "cores";
	return 0;
}

static int read_tables(struct planner_args *args)
{
	struct train_case *job = &args->job;
	double nic = job->nic_bytes_per_s;
	struct plan_gpu gpu;
	int rc = args->profile ? read_profile(args) :
				 case_find_model(args->models, args->model, &job->model);

	if (!rc && !args->profile)
		rc = plan_gpu_find(args->gpus, args->gpu, 1, &gpu);
	if (!rc && args->trace)
		rc = load_trace_read(args->trace, &job->trace);
	if (rc || args->profile)
		return rc;
	job->flops = gpu.flops;
	job->gpu_bytes = gpu.mem_bytes;
	job->link_bytes_per_s = gpu.link_bytes_per_s;
	job->gpus_per_node = gpu.gpus_per_node;
	/* The built-in network is another paper's. */
	job->nic_bytes_per_s = nic > 0 ? nic * 1e9 : args->gpus ? gpu.nic_bytes_per_s : 50e9;
	return 0;
}

/* Ranges of both sides stand for themselves; else they are the ways to divide a pair. */
static void set_pair(const char *profile, struct plan_space *space)
{
	double n_cores = (double)sysconf(_SC_NPROCESSORS_ONLN);
	int given = space->min_a > 0 && space->min_f > 0;

	if (space->pair_gpus < 0)
		space->pair_gpus = given ? 0 : profile ? fmax(2, n_cores) : 32;
	if (space->min_a <= 0) {
		space->min_a = 1;
		space->max_a = 1024;
	}
	if (space->min_f <= 0) {
		space->min_f = 1;
		space->max_f = 1024;
	}
}

/* Sizes that do not go together. */
static int check(const struct planner_args *args)
{
	const struct train_case *job = &args->job;
	double experts = job->model.n_experts;

	if (job->p > job->model.n_layers)
		return model_fail(-EINVAL, "--groups: %g groups for the %g layers of %s", job->p,
			job->model.n_layers, job->model.name);
	if (fmod(experts, job->ep) != 0)
		return model_fail(-EINVAL, "--ep: %g experts of %s on %g ranks do not divide",
			experts, job->model.name, job->ep);
	if (args->space.nics > 0 && (args->space.nics_a > 0 || args->space.nics_f > 0))
		return model_fail(-EINVAL, "--nics divides them; --attention-nics and --ffn-nics "
			"give them");
	return 0;
}

/* What a profile's plan has instead: fp32, ranks of `run` and its batch. */
static void set_here(struct planner_args *args)
{
	struct train_case *job = &args->job;

	job->efficiency = job->m2n_util = job->a2a_util = 1;
	job->sm_share = 0;
	job->p = job->ep = 1;
	job->batch = 16;
	job->copies = CASE_PER_EXPERT;
	job->residual_nic = job->head_last = 1;
	job->value_bytes = job->weight_bytes = job->grad_bytes = 4;
	job->optimizer_bytes = 8;
}

int planner_args_parse(int argc, char **argv, const char *doc, struct planner_args *args)
{
	struct argp_option table[N_OPTIONS + N_NUMBERS + 1] = {{0}};
	struct argp argp = {table, parse_one, NULL, doc, NULL, NULL, NULL};
	int rc;

	*args = (struct planner_args){.model = "Qwen3-235B", .gpu = "H800", .top = 8,
		.job = {.efficiency = .5, .m2n_util = .965, .a2a_util = .845,
			.sm_share = 20. / 132, .seq = 4096, .n_sequences = 1, .batch = 512, .p = 4,
			.ep = 16, .window = 2048, .weight_bytes = 2, .grad_bytes = 4,
			.optimizer_bytes = 12, .value_bytes = 2},
		.space = {.pair_gpus = -1, .slack = .02}};
	for (int i = 1; i < argc; i++)
		if (!strncmp(argv[i], "--profile", strlen("--profile")))
			set_here(args);
	memcpy(table, options, sizeof(options));
	for (int i = 0; i < N_NUMBERS; i++)
		table[N_OPTIONS + i] = (struct argp_option){numbers[i].name, KEY_NUMBER + i, "N", 0,
			numbers[i].text, 1};
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, args);
	set_pair(args->profile, &args->space);
	rc = read_tables(args);
	if (!rc)
		rc = check(args);
	if (rc) {
		case_free(&args->job);
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	}
	return rc ? 1 : 0;
}
