/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the user asked m2n_perf for: one struct, filled from the command line and checked as a
 * whole, so that no test meets a combination that it cannot run.
 */
#ifndef PERF_ARGS_H
#define PERF_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <m2n/m2n.h>

enum perf_test {
	PERF_NONE = 0,
	PERF_BW,
	PERF_LAT,
	PERF_MOE,
	PERF_INIT,
	PERF_KERNEL,
};

enum perf_format {
	PERF_TABLE = 0,
	PERF_CSV,
	PERF_JSON,
};

/* Yardsticks, as bits of args.compare. */
#define PERF_COMPARE_MEMCPY 1u
#define PERF_COMPARE_MPI 2u
#define PERF_COMPARE_UCX 4u
#define PERF_COMPARE_IB_WRITE_BW 8u
#define PERF_COMPARE_IB_WRITE_LAT 16u
#define PERF_COMPARE_UCX_PERFTEST 32u
#define PERF_COMPARE_NCCL 64u
#define PERF_COMPARE_IB_SEND_LAT 128u
#define PERF_COMPARE_IB_SEND_BW 256u
/* Those that are programs of others, run as children. */
#define PERF_COMPARE_TOOLS \
	(PERF_COMPARE_IB_WRITE_BW | PERF_COMPARE_IB_WRITE_LAT | PERF_COMPARE_IB_SEND_BW | \
		PERF_COMPARE_IB_SEND_LAT | PERF_COMPARE_UCX_PERFTEST)
#define PERF_N_COMPARE 9

struct perf_args {
	enum perf_test test;
	uint64_t n_sources;      /* -M */
	uint64_t n_expert_ranks; /* -N */
	uint64_t n_tokens;       /* per source; 0 is legal */
	uint64_t row_bytes;
	uint64_t top_k;
	uint64_t n_experts;
	uint64_t n_iters;        /* per case, over all repetitions; 0: the test's default */
	uint64_t n_warmup;
	uint64_t n_reps;         /* alternations between ours and the yardsticks */
	uint64_t seed;
	uint64_t depth;
	uint64_t capacity;
	uint64_t max_layers;     /* 0: all layers of a trace */
	uint64_t timeout_s;      /* without progress */
	uint64_t n_gpus;
	uint64_t size_min, size_max; /* sweep of bw and lat, in factors of `size_factor` */
	const char *backend;     /* NULL: the library's default */
	const char *routing;
	const char *output;      /* NULL: standard output */
	enum perf_format format;
	enum m2n_placement placement;
	enum m2n_dtype dtype;
	enum m2n_memory memory;
	unsigned compare;
	bool tokens_given, top_k_given, experts_given;
	bool dedup, reduce_at_expert, cast_fp8;
	bool matrix, samples, no_pin, no_check, local, round_trip;
	bool threads, classic, graph;
};

/*
 * Parses the command line. Does not return on --help (exit 0) or on an error (what was wrong and
 * the accepted range on standard error, exit 2).
 */
void perf_args_parse(int argc, char **argv, struct perf_args *args);

/* Ranks of the job: sources and expert ranks, with --classic the same ones. */
static inline uint64_t perf_n_ranks(const struct perf_args *args)
{
	return args->classic ? args->n_sources : args->n_sources + args->n_expert_ranks;
}

const char *perf_test_name(enum perf_test test);
/* The word of bit `bit` of args.compare. */
const char *perf_compare_name(unsigned bit);
const char *perf_dtype_name(enum m2n_dtype dtype);
size_t perf_dtype_bytes(enum m2n_dtype dtype);
/* Bytes of one output row: those of the dispatched row, or of the values before the cast. */
size_t perf_out_row_bytes(const struct perf_args *args);

#endif
