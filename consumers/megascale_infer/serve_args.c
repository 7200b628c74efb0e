/* SPDX-License-Identifier: Apache-2.0 */
/* Options of `megascale_infer serve`. */
#include <argp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "serve.h"

enum kind { WHOLE_32, WHOLE_SIZE, WHOLE_64, WHOLE_INT, REAL, REAL_32, TEXT, FLAG };

/* One option: argp's row and what it sets. */
static const struct row {
	const char *name;
	char key;
	const char *arg, *about;
	enum kind kind;
	size_t offset;
	double min, max;
} rows[] = {
#define AT(field) offsetof(struct serve, field)
	{"trace", 't', "FILE", "requests of a trace TIMESTAMP,ContextTokens,GeneratedTokens", TEXT,
		AT(trace_path), 0, 0},
	{"prompts", 'P', "FILE", "a request on each line: token ids, or text with --bytes", TEXT,
		AT(prompts_path), 0, 0},
	{"prompt", 'p', "TEXT", "one request, in the form of such a line", TEXT, AT(prompt), 0, 0},
	{"bytes", 'b', NULL, "prompts are text, a byte is a token", FLAG, AT(requests.bytes), 0, 0},
	{"tokens", 'n', "N", "to generate where the prompt does not say (16)", WHOLE_32,
		AT(requests.n_generate), 1, 1e9},
	{"requests", 0, "N", "only the first N lines (all)", WHOLE_SIZE, AT(requests.limit), 0,
		1e9},
	{"length-divisor", 0, "X", "of the trace's lengths (1)", REAL, AT(requests.divisor), 1e-6,
		1e9},
	{"speed", 0, "X", "of the trace's clock; 0: all requests at once (0)", REAL,
		AT(requests.speed), 0, 1e9},
	{"attention", 'M', "N", "attention ranks (1)", WHOLE_INT, AT(n_attention), 1, 1024},
	{"experts", 'N', "N", "expert ranks (1)", WHOLE_INT, AT(n_expert_ranks), 1, 64},
	{"micro-batches", 'm', "N", "in flight from an attention rank (2)", WHOLE_32,
		AT(n_micro_batches), 1, BATCHER_MAX_SLOTS},
	{"batch", 0, "ROWS", "of a micro-batch at most (64)", WHOLE_32, AT(max_rows), 1, 65536},
	{"chunk", 0, "ROWS", "of a prompt in one iteration (all that fit)", WHOLE_32, AT(chunk), 0,
		65536},
	{"cache-tokens", 0, "N", "room for keys and values of an attention rank (16384)",
		WHOLE_SIZE, AT(cache_tokens), 1, 1e12},
	{"replicas", 'r', "N", "owners of each expert (1)", WHOLE_32, AT(n_replicas), 1, 64},
	{"balance", 0, "ROUNDS", "place experts anew every so many rounds (never)", WHOLE_32,
		AT(balance_rounds), 0, 1e9},
	{"cost", 0, "FILE", "of a row and a key, from `profile`", TEXT, AT(cost_path), 0, 0},
	{"target-us", 0, "X", "time that batches are composed to (as many rows as fit)", REAL,
		AT(target_us), 0, 1e12},
	{"temperature", 0, "X", "0: the likeliest token (0)", REAL_32, AT(temperature), 0, 1e3},
	{"top-p", 0, "X", "with a temperature (1)", REAL_32, AT(top_p), 1e-6, 1},
	{"seed", 0, "N", "of prompts of a trace, and of chance (1)", WHOLE_64, AT(seed), 0, 1e15},
	{"transport", 0, "NAME", "m2n", TEXT, AT(transport), 0, 0},
	{"json", 'j', "FILE", "the report as JSON", TEXT, AT(json_path), 0, 0},
	{"tokens-out", 0, "FILE", "generated tokens, a JSON object on each line", TEXT,
		AT(tokens_path), 0, 0},
	{"timeline", 0, "DIR", "writes timeline.json (Chrome trace) and timeline.svg", TEXT,
		AT(timeline_dir), 0, 0},
	{"restart", 0, "N", "times that a process takes a killed expert rank's place (0)",
		WHOLE_INT, AT(max_restart), 0, 1000},
	{"kill-rank", 0, "N", "test: kill -9 of that rank ...", WHOLE_INT, AT(kill_rank), 0, 1e6},
	{"kill-after", 0, "S", "... after so many seconds of serving", REAL, AT(kill_s), 0, 1e6},
	{"launched", 0, NULL, "mpirun, srun or torchrun started this rank", FLAG, AT(launched), 0,
		0},
	{"no-pin", 0, NULL, "ranks are not bound to cores", FLAG, AT(no_pin), 0, 0},
	{"quiet", 'q', NULL, "no progress line", FLAG, AT(quiet), 0, 0},
#undef AT
};

enum { N_ROWS = sizeof(rows) / sizeof(rows[0]), KEY_FIRST = 256, KEY_ROWS = 1000 };

static void set_whole(void *at, enum kind kind, double value)
{
	if (kind == WHOLE_32)
		*(uint32_t *)at = (uint32_t)value;
	else if (kind == WHOLE_SIZE)
		*(size_t *)at = (size_t)value;
	else if (kind == WHOLE_64)
		*(uint64_t *)at = (uint64_t)value;
	else
		*(int *)at = (int)value;
}

static void set_row(struct argp_state *state, const struct row *row, char *text)
{
	void *at = (char *)state->input + row->offset;
	double value;
	char *end;

	if (row->kind == TEXT) {
		*(const char **)at = text;
		return;
	}
	if (row->kind == FLAG) {
		*(int *)at = 1;
		return;
	}
	value = strtod(text, &end);
	if (end == text || *end || !(value >= row->min && value <= row->max) ||
		(row->kind < REAL && value != (double)(int64_t)value))
		argp_error(state, "--%s: '%s' is no %s from %g to %g", row->name, text,
			row->kind < REAL ? "whole number" : "number", row->min, row->max);
	if (row->kind == REAL)
		*(double *)at = value;
	else if (row->kind == REAL_32)
		*(float *)at = (float)value;
	else
		set_whole(at, row->kind, value);
}

static void check_all(struct argp_state *state)
{
	struct serve *s = state->input;

	if (!s->model_dir)
		argp_error(state, "a model's directory is wanted");
	if (!s->trace_path + !s->prompts_path + !s->prompt != 2)
		argp_error(state, "one of --trace, --prompts and --prompt is wanted");
	if (s->n_replicas > (uint32_t)s->n_expert_ranks)
		argp_error(state, "--replicas: %u, but there are %d expert ranks", s->n_replicas,
			s->n_expert_ranks);
	if (s->target_us > 0 && !s->cost_path)
		argp_error(state, "--target-us wants the costs of --cost");
	s->requests.seed = s->seed;
}

static error_t parse_one(int key, char *text, struct argp_state *state)
{
	struct serve *s = state->input;

	for (size_t i = 0; i < N_ROWS; i++)
		if (key == (rows[i].key ? rows[i].key : KEY_FIRST + (int)i)) {
			set_row(state, &rows[i], text);
			return 0;
		}
	switch (key) {
	case KEY_ROWS:
		s->row_dtype = model_dtype_parse(text);
		if (s->row_dtype != MODEL_F32 && s->row_dtype != MODEL_BF16)
			argp_error(state, "--rows: '%s' is neither f32 nor bf16", text);
		return 0;
	case ARGP_KEY_ARG:
		if (s->model_dir)
			argp_error(state, "one model's directory, not also '%s'", text);
		s->model_dir = text;
		return 0;
	case ARGP_KEY_END:
		check_all(state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

void serve_parse(int argc, char **argv, struct serve *serve)
{
	struct argp_option options[N_ROWS + 2] = {{0}};
	const struct argp argp = {.options = options,
		.parser = parse_one,
		.args_doc = "DIR",
		.doc = "Serves requests with the model in DIR: attention ranks and expert ranks as "
		       "processes over libm2n."};

	*serve = (struct serve){.n_attention = 1,
		.n_expert_ranks = 1,
		.n_micro_batches = 2,
		.max_rows = 64,
		.n_replicas = 1,
		.row_dtype = MODEL_F32,
		.cache_tokens = 16384,
		.top_p = 1,
		.seed = 1,
		.transport = "m2n",
		.kill_rank = -1,
		.requests = {.n_generate = 16, .divisor = 1}};
	for (size_t i = 0; i < N_ROWS; i++)
		options[i] = (struct argp_option){rows[i].name,
			rows[i].key ? rows[i].key : KEY_FIRST + (int)i, rows[i].arg, 0,
			rows[i].about, 0};
	options[N_ROWS] = (struct argp_option){
		"rows", KEY_ROWS, "TYPE", 0, "f32 or bf16, between attention and experts (f32)", 0};
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, serve);
}
