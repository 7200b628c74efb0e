/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What only makes sense together: checked once the whole command line is read, so that no test
 * meets a combination that it cannot run. What is wrong goes to argp_error(), with the remedy.
 */
#include "args_check.h"

#include <inttypes.h>
#include <string.h>

#include "compare_tool.h"

#define IB_BW (PERF_COMPARE_IB_WRITE_BW | PERF_COMPARE_IB_SEND_BW)
#define IB_LAT (PERF_COMPARE_IB_WRITE_LAT | PERF_COMPARE_IB_SEND_LAT)

/* What each test can be compared with. */
static const unsigned comparable[] = {
	[PERF_BW] = PERF_COMPARE_MEMCPY | PERF_COMPARE_UCX | PERF_COMPARE_TOOLS,
	[PERF_LAT] = PERF_COMPARE_MEMCPY | PERF_COMPARE_UCX | PERF_COMPARE_TOOLS,
	[PERF_MOE] = PERF_COMPARE_MEMCPY | PERF_COMPARE_MPI | PERF_COMPARE_NCCL,
	[PERF_INIT] = PERF_COMPARE_IB_WRITE_BW,
	[PERF_KERNEL] = 0,
};

/* The yardsticks of a set, as words. */
void perf_args_list_compare(unsigned set, char text[128])
{
	text[0] = '\0';
	for (unsigned i = 0; i < PERF_N_COMPARE; i++) {
		if ((set & 1u << i) == 0)
			continue;
		if (text[0] != '\0')
			strcat(text, ", ");
		strcat(text, perf_compare_name(i));
	}
}

static void check_moe(struct argp_state *state, struct perf_args *args)
{
	bool trace = strncmp(args->routing, "trace:", 6) == 0;
	size_t value_bytes = perf_dtype_bytes(args->dtype);

	if (!trace && !args->experts_given && args->n_experts < args->n_expert_ranks)
		args->n_experts = args->n_expert_ranks;
	if (!trace && args->n_experts < args->n_expert_ranks)
		argp_error(state,
			"--experts: %" PRIu64 " for %" PRIu64 " expert ranks; at least one each",
			args->n_experts, args->n_expert_ranks);
	if (!trace && args->top_k > args->n_experts)
		argp_error(state,
			"--top-k: %" PRIu64 " distinct experts of %" PRIu64 "; 1 to --experts",
			args->top_k, args->n_experts);
	if (args->cast_fp8 && args->dtype != M2N_DTYPE_BF16)
		argp_error(state, "--cast fp8 needs --dtype bf16");
	if (!args->cast_fp8 && args->row_bytes % value_bytes != 0)
		argp_error(state,
			"--row-bytes: %" PRIu64 " is no multiple of %zu, the bytes of one %s value",
			args->row_bytes, value_bytes, perf_dtype_name(args->dtype));
	if (args->reduce_at_expert && !args->dedup)
		argp_error(state, "--reduce-at-expert needs --dedup");
	if (args->compare != 0 && (args->dedup || args->cast_fp8 || args->round_trip))
		argp_error(state, "--compare: moves the same bytes only without --dedup, --cast, "
				  "--round-trip");
}

static void check_messages(struct argp_state *state, const struct perf_args *args)
{
	bool one_pair = args->n_sources == 1 && args->n_expert_ranks == 1;
	unsigned of_many = args->test == PERF_BW ? IB_BW : 0;

	if ((args->compare & ~of_many) != 0 && !one_pair)
		argp_error(state, "--compare: %s compares with -M 1 -N 1 only%s",
			perf_test_name(args->test),
			of_many != 0 ? ", but for ib_write_bw and ib_send_bw" : "");
	if ((args->compare & of_many) != 0 &&
		(args->n_sources > TOOL_MAX_PEERS || args->n_expert_ranks > TOOL_MAX_PEERS))
		argp_error(state,
			"--compare: a rank runs an ib tool with at most %d others at once: give "
			"-M and -N up to that",
			TOOL_MAX_PEERS);
}

/*
 * One list may serve bw and lat: of the ib tools each test takes those that measure what it does.
 */
static void check_compare(struct argp_state *state, struct perf_args *args)
{
	unsigned other = args->test == PERF_BW ? IB_LAT : args->test == PERF_LAT ? IB_BW : 0;
	char known[128];

	perf_args_list_compare(comparable[args->test] & ~other, known);
	if ((args->compare & ~comparable[args->test]) != 0 ||
		(args->compare != 0 && (args->compare & ~other) == 0))
		argp_error(state, "--compare: %s has %s", perf_test_name(args->test),
			known[0] != '\0' ? known : "no yardstick");
	args->compare &= ~other;
}

/* Options that are about CUDA memory, and what there is not in it. */
static void check_gpu(struct argp_state *state, const struct perf_args *args)
{
	bool gpu = args->memory == M2N_MEMORY_CUDA;
	const char *name = perf_test_name(args->test);

	if (gpu && args->test != PERF_MOE && args->test != PERF_KERNEL)
		argp_error(state,
			"--memory cuda: %s uses the exchange, which is in host memory only; moe "
			"and "
			"kernel have it",
			name);
	if (!gpu && (args->classic || args->graph || args->n_gpus > 1))
		argp_error(state, "--classic, --graph and --gpus need --memory cuda");
	if (args->classic && args->n_sources != args->n_expert_ranks)
		argp_error(state,
			"--classic: -M %" PRIu64 " and -N %" PRIu64
			" are the same ranks; give both "
			"the same number",
			args->n_sources, args->n_expert_ranks);
	if (args->threads && args->test != PERF_MOE)
		argp_error(state, "--threads: %s runs its ranks as processes; moe has it", name);
	if (gpu && args->placement != M2N_PLACEMENT_SLOT)
		argp_error(state, "--memory cuda has --placement slot only");
	if (args->compare & (gpu ? PERF_COMPARE_MPI : PERF_COMPARE_NCCL))
		argp_error(state, "--compare: %s is for --memory %s", gpu ? "mpi" : "nccl",
			gpu ? "host" : "cuda");
	if (gpu && args->matrix)
		argp_error(state, "--matrix: nobody waits for anybody in calls of --memory cuda");
}

void perf_args_check(struct argp_state *state, struct perf_args *args)
{
	static const uint64_t default_iters[] = {0, 200, 10000, 200, 5, 200};

	if (args->test == PERF_NONE)
		argp_error(state, "which test? One of bw, lat, moe, init, kernel");
	if (args->n_iters == 0)
		args->n_iters = default_iters[args->test];
	if (args->n_reps > args->n_iters)
		args->n_reps = args->n_iters;
	if (args->size_max == 0) {
		args->size_min = args->test == PERF_LAT ? 8 : 64;
		args->size_max = args->test == PERF_LAT ? 64 << 10 : 4 << 20;
	}
	check_compare(state, args);
	check_gpu(state, args);
	if (args->test == PERF_MOE || args->test == PERF_INIT)
		check_moe(state, args);
	if (args->test == PERF_BW || args->test == PERF_LAT)
		check_messages(state, args);
}
