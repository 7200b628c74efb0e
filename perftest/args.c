/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line, as tables: a row per number and per choice, read by one parser. Every value
 * is checked against its row's range where it is read, and what only makes sense together once
 * all are known. What argp reports goes to standard error with exit status 2.
 */
#include "args.h"
#include "args_check.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum key {
	KEY_TOKENS = 256,
	KEY_ROW_BYTES,
	KEY_TOP_K,
	KEY_EXPERTS,
	KEY_BACKEND,
	KEY_ITERS,
	KEY_WARMUP,
	KEY_REPS,
	KEY_SEED,
	KEY_ROUTING,
	KEY_LAYERS,
	KEY_COMPARE,
	KEY_FORMAT,
	KEY_OUTPUT,
	KEY_MATRIX,
	KEY_SAMPLES,
	KEY_PLACEMENT,
	KEY_DEDUP,
	KEY_REDUCE,
	KEY_DEPTH,
	KEY_CAPACITY,
	KEY_DTYPE,
	KEY_CAST,
	KEY_SIZES,
	KEY_TIMEOUT,
	KEY_NO_PIN,
	KEY_NO_CHECK,
	KEY_LOCAL,
	KEY_ROUND_TRIP,
	KEY_MEMORY,
	KEY_GPUS,
	KEY_THREADS,
	KEY_CLASSIC,
	KEY_GRAPH,
};

/* clang-format off */
static const struct argp_option options[] = {
	{NULL, 'M', "RANKS", 0, "Source ranks (1)", 1},
	{NULL, 'N', "RANKS", 0, "Expert ranks (1)", 1},
	{"classic", KEY_CLASSIC, NULL, 0, "With --memory cuda: M = N ranks that are both", 1},
	{"threads", KEY_THREADS, NULL, 0, "moe: the ranks are threads of one process", 1},
	{"memory", KEY_MEMORY, "KIND", 0, "moe, kernel: where rows lie: host | cuda (host)", 1},
	{"gpus", KEY_GPUS, "N", 0, "With --memory cuda: rank r has GPU r modulo N (1)", 1},
	{"local", KEY_LOCAL, NULL, 0, "Fork the ranks even under a launcher", 1},
	{"no-pin", KEY_NO_PIN, NULL, 0, "Leave ranks where the scheduler puts them", 1},
	{"backend", KEY_BACKEND, "NAME", 0, "Force a backend (see m2n_info)", 1},
	{"tokens", KEY_TOKENS, "N", 0, "Tokens per source (128; a trace: all it has)", 2},
	{"row-bytes", KEY_ROW_BYTES, "BYTES", 0, "Bytes of a dispatched row (14336)", 2},
	{"top-k", KEY_TOP_K, "K", 0, "Experts per token (8; a trace: its own)", 2},
	{"experts", KEY_EXPERTS, "N", 0, "Experts (16, or N if more; a trace: its own)", 2},
	{"routing", KEY_ROUTING, "FORM", 0,
	 "uniform | khot:K | zipf:S | trace:FILE[,layer=L]", 2},
	{"layers", KEY_LAYERS, "N", 0, "At most this many layers of a trace (all)", 2},
	{"dtype", KEY_DTYPE, "TYPE", 0, "Values of outputs: f32 | bf16 | f16 (bf16)", 2},
	{"cast", KEY_CAST, "TYPE", 0, "Send bf16 rows as fp8: row-bytes is their number of values", 2},
	{"placement", KEY_PLACEMENT, "HOW", 0, "slot | exact (slot)", 2},
	{"dedup", KEY_DEDUP, NULL, 0, "A token goes once to each expert rank", 2},
	{"reduce-at-expert", KEY_REDUCE, NULL, 0, "With --dedup: replies of a rank are summed there", 2},
	{"depth", KEY_DEPTH, "N", 0, "Rounds, or messages, in flight (3)", 2},
	{"capacity", KEY_CAPACITY, "ROWS", 0, "Rows per source and expert rank (0: any routing fits)", 2},
	{"round-trip", KEY_ROUND_TRIP, NULL, 0, "moe: time the two as one, at the sink", 2},
	{"graph", KEY_GRAPH, NULL, 0, "With --memory cuda: launch rounds as a CUDA graph", 2},
	{"sizes", KEY_SIZES, "A:B", 0, "bw, lat: message sizes A, 2A, 4A .. B (bytes, K and M allowed)", 2},
	{"iters", KEY_ITERS, "N", 0, "Measured iterations per case", 3},
	{"warmup", KEY_WARMUP, "N", 0, "Iterations before, not measured (10)", 3},
	{"reps", KEY_REPS, "N", 0, "Alternations between ours and each yardstick (5)", 3},
	{"seed", KEY_SEED, "N", 0, "Seed of routing and data (1)", 3},
	{"compare", KEY_COMPARE, "LIST", 0, "Yardsticks in the same run: memcpy,mpi,ucx,nccl,"
	 "ib_write_bw,ib_write_lat,ib_send_bw,ib_send_lat,ucx_perftest", 3},
	{"no-check", KEY_NO_CHECK, NULL, 0, "Leave out the rounds that check the data", 3},
	{"timeout", KEY_TIMEOUT, "SECONDS", 0, "Fail when nothing moves for this long (60)", 3},
	{"format", KEY_FORMAT, "FORM", 0, "table | csv | json (table)", 4},
	{"output", KEY_OUTPUT, "FILE", 0, "Write there instead of standard output", 4},
	{"samples", KEY_SAMPLES, NULL, 0, "JSON: every sample too", 4},
	{"matrix", KEY_MATRIX, NULL, 0, "Who waited for whom, and for how long", 4},
	{0},
};

/* Numbers: key, name for errors, where, accepted range. */
static const struct number {
	int key;
	const char *name;
	size_t offset;
	uint64_t min, max;
} numbers[] = {
#define NUMBER(key, name, field, min, max) {key, name, offsetof(struct perf_args, field), min, max}
	NUMBER('M', "-M", n_sources, 1, 1024),
	NUMBER('N', "-N", n_expert_ranks, 1, 1024),
	NUMBER(KEY_TOKENS, "--tokens", n_tokens, 0, 1 << 20),
	NUMBER(KEY_ROW_BYTES, "--row-bytes", row_bytes, 1, 16 << 20),
	NUMBER(KEY_TOP_K, "--top-k", top_k, 1, 64),
	NUMBER(KEY_EXPERTS, "--experts", n_experts, 1, 65536),
	NUMBER(KEY_ITERS, "--iters", n_iters, 1, 10000000),
	NUMBER(KEY_WARMUP, "--warmup", n_warmup, 0, 10000000),
	NUMBER(KEY_REPS, "--reps", n_reps, 1, 1000),
	NUMBER(KEY_SEED, "--seed", seed, 0, INT64_MAX),
	NUMBER(KEY_LAYERS, "--layers", max_layers, 1, 65536),
	NUMBER(KEY_DEPTH, "--depth", depth, 1, 64),
	NUMBER(KEY_CAPACITY, "--capacity", capacity, 0, UINT32_MAX),
	NUMBER(KEY_GPUS, "--gpus", n_gpus, 1, 64),
	NUMBER(KEY_TIMEOUT, "--timeout", timeout_s, 1, 86400),
};

/* Words: key, name for errors, where (an int-sized enum), and what is accepted. */
static const struct choice {
	int key;
	const char *name;
	size_t offset;
	const char *words[4];
	int values[4];
} choices[] = {
#define CHOICE(key, name, field, ...) {key, name, offsetof(struct perf_args, field), __VA_ARGS__}
	CHOICE(KEY_FORMAT, "--format", format, {"table", "csv", "json"},
		{PERF_TABLE, PERF_CSV, PERF_JSON}),
	CHOICE(KEY_PLACEMENT, "--placement", placement, {"slot", "exact"},
		{M2N_PLACEMENT_SLOT, M2N_PLACEMENT_EXACT}),
	CHOICE(KEY_MEMORY, "--memory", memory, {"host", "cuda"},
		{M2N_MEMORY_HOST, M2N_MEMORY_CUDA}),
	CHOICE(KEY_DTYPE, "--dtype", dtype, {"f32", "bf16", "f16"},
		{M2N_DTYPE_F32, M2N_DTYPE_BF16, M2N_DTYPE_F16}),
};

static const struct flag {
	int key;
	size_t offset;
} flags[] = {
#define FLAG(key, field) {key, offsetof(struct perf_args, field)}
	FLAG(KEY_MATRIX, matrix), FLAG(KEY_SAMPLES, samples), FLAG(KEY_DEDUP, dedup),
	FLAG(KEY_REDUCE, reduce_at_expert), FLAG(KEY_NO_PIN, no_pin),
	FLAG(KEY_NO_CHECK, no_check), FLAG(KEY_LOCAL, local), FLAG(KEY_ROUND_TRIP, round_trip),
	FLAG(KEY_THREADS, threads), FLAG(KEY_CLASSIC, classic), FLAG(KEY_GRAPH, graph),
};

static const char *const test_names[] = {NULL, "bw", "lat", "moe", "init", "kernel"};
static const char *const dtype_names[] = {"f32", "bf16", "f16"};
static const char *const compare_names[PERF_N_COMPARE] = {
	"memcpy", "mpi", "ucx", "ib_write_bw", "ib_write_lat", "ucx_perftest", "nccl",
	"ib_send_lat", "ib_send_bw"};
/* clang-format on */

const char *perf_test_name(enum perf_test test)
{
	return test_names[test];
}

const char *perf_compare_name(unsigned bit)
{
	return compare_names[bit];
}

const char *perf_dtype_name(enum m2n_dtype dtype)
{
	return dtype_names[dtype];
}

size_t perf_dtype_bytes(enum m2n_dtype dtype)
{
	return dtype == M2N_DTYPE_F32 ? 4 : 2;
}

size_t perf_out_row_bytes(const struct perf_args *args)
{
	return args->cast_fp8 ? 2 * args->row_bytes : args->row_bytes;
}

/* A number with an optional K, M or G (powers of 1024). False when it is none. */
static bool read_number(const char *text, const char **end, uint64_t *value)
{
	char *stop;

	if (!isdigit((unsigned char)text[0]))
		return false;
	errno = 0;
	*value = strtoull(text, &stop, 0);
	if (errno != 0)
		return false;
	const char *units = "KMG";
	const char *unit = *stop != '\0' ? strchr(units, toupper((unsigned char)*stop)) : NULL;
	if (unit != NULL) {
		unsigned shift = 10 * (unsigned)(unit - units + 1);
		if (*value > UINT64_MAX >> shift)
			return false;
		*value <<= shift;
		stop++;
	}
	*end = stop;
	return true;
}

static void set_number(struct argp_state *state, const struct number *row, struct perf_args *args,
	const char *text)
{
	const char *end = text;
	uint64_t value = 0;

	if (!read_number(text, &end, &value) || *end != '\0' || value < row->min ||
		value > row->max)
		argp_error(state, "%s: '%s' is not a number from %" PRIu64 " to %" PRIu64,
			row->name, text, row->min, row->max);
	memcpy((char *)args + row->offset, &value, sizeof(value));
}

static void set_choice(struct argp_state *state, const struct choice *row, struct perf_args *args,
	const char *text)
{
	char accepted[64] = "";

	for (unsigned i = 0; i < 4 && row->words[i] != NULL; i++) {
		if (strcmp(row->words[i], text) == 0) {
			memcpy((char *)args + row->offset, &row->values[i], sizeof(int));
			return;
		}
		if (i > 0)
			strcat(accepted, ", ");
		strcat(accepted, row->words[i]);
	}
	argp_error(state, "%s: '%s' is none of %s", row->name, text, accepted);
}

static void set_sizes(struct argp_state *state, struct perf_args *args, const char *text)
{
	const uint64_t max = 1 << 30;
	const char *end = text;
	bool ok = read_number(text, &end, &args->size_min);

	args->size_max = args->size_min;
	if (ok && *end == ':')
		ok = read_number(end + 1, &end, &args->size_max);
	if (!ok || *end != '\0' || args->size_min < 1 || args->size_max < args->size_min ||
		args->size_max > max)
		argp_error(
			state, "--sizes: '%s' is not A:B with 1 <= A <= B <= %" PRIu64, text, max);
}

static void set_compare(struct argp_state *state, struct perf_args *args, const char *text)
{
	char known[128];

	perf_args_list_compare(UINT_MAX, known);
	while (*text != '\0') {
		size_t length = strcspn(text, ",");
		unsigned bit = 0;
		for (unsigned i = 0; i < PERF_N_COMPARE; i++)
			if (strlen(compare_names[i]) == length &&
				strncmp(compare_names[i], text, length) == 0)
				bit = 1u << i;
		if (bit == 0)
			argp_error(
				state, "--compare: '%.*s' is none of %s", (int)length, text, known);
		args->compare |= bit;
		text += length + (text[length] == ',');
	}
}

static void set_test(struct argp_state *state, struct perf_args *args, const char *text)
{
	if (args->test != PERF_NONE)
		argp_error(
			state, "one test at a time: '%s' after '%s'", text, test_names[args->test]);
	for (unsigned i = PERF_BW; i <= PERF_KERNEL; i++)
		if (strcmp(test_names[i], text) == 0)
			args->test = (enum perf_test)i;
	if (args->test == PERF_NONE)
		argp_error(state, "'%s' is none of bw, lat, moe, init, kernel", text);
}

/* Options that are neither number, word nor flag. */
static error_t set_other(struct argp_state *state, struct perf_args *args, int key, char *text)
{
	switch (key) {
	case KEY_BACKEND:
		args->backend = text;
		return 0;
	case KEY_ROUTING:
		args->routing = text;
		return 0;
	case KEY_OUTPUT:
		args->output = text;
		return 0;
	case KEY_COMPARE:
		set_compare(state, args, text);
		return 0;
	case KEY_SIZES:
		set_sizes(state, args, text);
		return 0;
	case KEY_CAST:
		if (strcmp(text, "fp8") != 0)
			argp_error(state, "--cast: '%s' is not fp8", text);
		args->cast_fp8 = true;
		return 0;
	case ARGP_KEY_ARG:
		set_test(state, args, text);
		return 0;
	case ARGP_KEY_END:
		perf_args_check(state, args);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static error_t parse_one(int key, char *text, struct argp_state *state)
{
	struct perf_args *args = state->input;

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (numbers[i].key != key)
			continue;
		set_number(state, &numbers[i], args, text);
		args->tokens_given |= key == KEY_TOKENS;
		args->top_k_given |= key == KEY_TOP_K;
		args->experts_given |= key == KEY_EXPERTS;
		return 0;
	}
	for (size_t i = 0; i < sizeof(choices) / sizeof(choices[0]); i++) {
		if (choices[i].key != key)
			continue;
		set_choice(state, &choices[i], args, text);
		return 0;
	}
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		if (flags[i].key != key)
			continue;
		*((bool *)((char *)args + flags[i].offset)) = true;
		return 0;
	}
	return set_other(state, args, key, text);
}

static void print_version(FILE *stream, struct argp_state *state)
{
	(void)state;
	fprintf(stream, "m2n_perf %s\n", m2n_version());
}

void perf_args_parse(int argc, char **argv, struct perf_args *args)
{
	static const struct argp argp = {options, parse_one, "bw|lat|moe|init|kernel",
		"Measures libm2n: bandwidth and latency of messages, dispatch and combine of "
		"tokens, "
		"start-up, and row kernels.\v"
		"Ranks are forked on this host, or the tool takes its place under mpirun, torchrun "
		"or "
		"srun: the first M ranks are sources, the next N experts.",
		NULL, NULL, NULL};

	*args = (struct perf_args){.n_sources = 1,
		.n_expert_ranks = 1,
		.n_tokens = 128,
		.row_bytes = 14336,
		.top_k = 8,
		.n_experts = 16,
		.n_warmup = 10,
		.n_reps = 5,
		.seed = 1,
		.depth = 3,
		.n_gpus = 1,
		.timeout_s = 60,
		.routing = "uniform",
		.dtype = M2N_DTYPE_BF16};
	argp_err_exit_status = 2;
	argp_program_version_hook = print_version;
	argp_parse(&argp, argc, argv, 0, NULL, args);
}
