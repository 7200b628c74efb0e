/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of whole jobs: rank counts, placements, dedup, dtypes, casts, sizes, routings, rounds in
 * flight, maps. Each row of the table is a job that helpers/job_run.c carries out and checks row by
 * row and bit for bit.
 */
#include <stdio.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/job_run.h"

/* 0 in the table stands for bf16. */
#define F16 M2N_DTYPE_F16
#define F32 ((enum m2n_dtype)100)
#define EXACT M2N_PLACEMENT_EXACT

/* Unset fields: bf16, 8 experts, top 2, rows of 64 bytes, depth 3 with one in flight, 5 rounds. */
static struct job complete(const struct job *from)
{
	struct job job = *from;

	job.dtype = job.dtype == F32 ? M2N_DTYPE_F32 : job.dtype == 0 ? M2N_DTYPE_BF16 : job.dtype;
	job.n_experts = job.n_experts ? job.n_experts : 8;
	job.top_k = job.top_k ? job.top_k : 2;
	job.row_bytes = job.row_bytes ? job.row_bytes : 64;
	job.out_row_bytes = job.out_row_bytes ? job.out_row_bytes : job.row_bytes;
	job.depth = job.depth ? job.depth : 3;
	job.in_flight = job.in_flight ? job.in_flight : 1;
	job.n_rounds = job.n_rounds ? job.n_rounds : 5;
	job.seed = 20240;
	return job;
}

static int run_jobs(const struct conf *conf, const struct job *jobs)
{
	for (const struct job *one = jobs; one->n_sources; one++) {
		struct job job = complete(one);
		int result;

		if (strstr(conf->backend, "self") && job_n_ranks(&job) > 1)
			continue;
		result = job_run(&job, &conf->opts, NULL);
		if (result) {
			printf("# job %d (%d x %d): %s\n", (int)(one - jobs), job.n_sources,
				job.n_expert_ranks, job.name);
			return result;
		}
	}
	return 0;
}

#define JOBS(case_name, ...) \
	static int case_name(const struct conf *conf) \
	{ \
		static const struct job jobs[] = {__VA_ARGS__, {0}}; \
		return run_jobs(conf, jobs); \
	}
#define JOB(text, m, n, tokens, ...) \
	{.name = text, .n_sources = m, .n_expert_ranks = n, .n_tokens = tokens, \
		.classic = 1, __VA_ARGS__}
#define SPLIT(text, m, n, tokens, ...) \
	{.name = text, .n_sources = m, .n_expert_ranks = n, .n_tokens = tokens, \
		__VA_ARGS__}

JOBS(one_rank,
	JOB("plain", 1, 1, 16, .residual = 0),
	JOB("exact", 1, 1, 16, .placement = EXACT),
	JOB("dedup", 1, 1, 16, .dedup = 1, .top_k = 4),
	JOB("exact dedup", 1, 1, 16, .dedup = 1, .top_k = 4, .placement = EXACT),
	JOB("residual", 1, 1, 16, .residual = 1),
	JOB("no weights", 1, 1, 16, .no_weights = 1))

JOBS(rank_counts,
	SPLIT("1x1", 1, 1, 16, .residual = 1),
	SPLIT("1x4", 1, 4, 16, .residual = 1),
	SPLIT("4x1", 4, 1, 16, .residual = 1),
	SPLIT("3x5", 3, 5, 17, .residual = 1),
	SPLIT("8x2", 8, 2, 30, .residual = 1),
	SPLIT("3x5, lists reversed", 3, 5, 17, .reversed = 1))

JOBS(rank_counts_exact,
	SPLIT("1x4", 1, 4, 16, .placement = EXACT),
	SPLIT("4x1", 4, 1, 16, .placement = EXACT),
	SPLIT("3x5", 3, 5, 17, .placement = EXACT),
	SPLIT("8x2", 8, 2, 30, .placement = EXACT),
	SPLIT("3x5 dedup", 3, 5, 17, .placement = EXACT, .dedup = 1, .top_k = 4))

JOBS(all_roles,
	SPLIT("2 ranks", 2, 2, 13, .classic = 1),
	SPLIT("4 ranks, two in flight", 4, 4, 32, .classic = 1, .in_flight = 2),
	SPLIT("3 ranks exact", 3, 3, 24, .classic = 1, .placement = EXACT),
	SPLIT("3 ranks exact, two in flight", 3, 3, 24, .classic = 1, .placement = EXACT,
		.in_flight = 2),
	SPLIT("3 ranks dedup", 3, 3, 24, .classic = 1, .dedup = 1, .top_k = 4),
	SPLIT("3 ranks, reversed", 3, 3, 24, .classic = 1, .reversed = 1))

JOBS(dedup,
	JOB("1x1", 1, 1, 9, .dedup = 1, .top_k = 8, .routing = JOB_DISTINCT),
	JOB("1x1 repeated", 1, 1, 9, .dedup = 1, .top_k = 3, .routing = JOB_REPEATED),
	SPLIT("2x3", 2, 3, 20, .dedup = 1, .top_k = 4),
	SPLIT("2x3 replicas", 2, 3, 20, .dedup = 1, .top_k = 4, .map = JOB_MAP_REPLICAS),
	SPLIT("2x3 scales", 2, 3, 20, .dedup = 1, .top_k = 4, .scale_bytes = 8))

JOBS(reduce,
	JOB("1x1", 1, 1, 9, .dedup = 1, .reduce_at_expert = 1, .top_k = 4),
	JOB("1x1 residual f32", 1, 1, 9, .dedup = 1, .reduce_at_expert = 1, .top_k = 4,
		.residual = 1, .dtype = F32),
	JOB("1x1 exact", 1, 1, 9, .dedup = 1, .reduce_at_expert = 1, .top_k = 4,
		.placement = EXACT),
	SPLIT("2x3", 2, 3, 20, .dedup = 1, .reduce_at_expert = 1, .top_k = 4),
	SPLIT("2x3 holes", 2, 3, 20, .dedup = 1, .reduce_at_expert = 1, .top_k = 4,
		.routing = JOB_HOLES),
	SPLIT("2x3 exact", 2, 3, 20, .dedup = 1, .reduce_at_expert = 1, .top_k = 4,
		.placement = EXACT))

JOBS(scales_and_casts,
	JOB("scales", 1, 1, 16, .scale_bytes = 4),
	JOB("odd scales", 1, 1, 16, .scale_bytes = 3, .row_bytes = 5, .out_row_bytes = 6),
	JOB("exact scales", 1, 1, 16, .scale_bytes = 12, .placement = EXACT),
	JOB("fp8", 1, 1, 7, .cast = M2N_CAST_BF16_FP8, .row_bytes = 256, .scale_bytes = 8),
	JOB("fp8, a short block", 1, 1, 7, .cast = M2N_CAST_BF16_FP8, .row_bytes = 200,
		.scale_bytes = 8),
	JOB("fp8 exact dedup", 1, 1, 7, .cast = M2N_CAST_BF16_FP8, .row_bytes = 200,
		.scale_bytes = 8, .placement = EXACT, .dedup = 1),
	SPLIT("fp8 2x2", 2, 2, 12, .cast = M2N_CAST_BF16_FP8, .row_bytes = 384, .scale_bytes = 12,
		.out_row_bytes = 512),
	SPLIT("scales exact 2x2", 2, 2, 12, .scale_bytes = 20, .placement = EXACT))

JOBS(dtypes,
	JOB("f32", 1, 1, 16, .dtype = F32, .residual = 1),
	JOB("f16", 1, 1, 16, .dtype = F16, .residual = 1),
	JOB("f32 exact", 1, 1, 16, .dtype = F32, .placement = EXACT),
	JOB("f16, rows apart", 1, 1, 16, .dtype = F16, .pad = 6, .residual = 1),
	SPLIT("f32 2x2", 2, 2, 16, .dtype = F32, .residual = 1),
	SPLIT("f16 2x2", 2, 2, 16, .dtype = F16, .residual = 1))

JOBS(row_sizes,
	JOB("1", 1, 1, 16, .row_bytes = 1, .out_row_bytes = 2),
	JOB("2", 1, 1, 16, .row_bytes = 2),
	JOB("7", 1, 1, 16, .row_bytes = 7, .out_row_bytes = 14),
	JOB("64", 1, 1, 16, .row_bytes = 64),
	JOB("100", 1, 1, 16, .row_bytes = 100),
	JOB("7168", 1, 1, 12, .row_bytes = 7168),
	JOB("7 exact", 1, 1, 16, .row_bytes = 7, .out_row_bytes = 14, .placement = EXACT),
	JOB("1, apart", 1, 1, 16, .row_bytes = 1, .out_row_bytes = 2, .pad = 1),
	JOB("7168, apart", 1, 1, 12, .row_bytes = 7168, .pad = 22),
	SPLIT("1, 2x2", 2, 2, 16, .row_bytes = 1, .out_row_bytes = 2),
	SPLIT("7, 2x2 exact", 2, 2, 16, .row_bytes = 7, .out_row_bytes = 14, .placement = EXACT),
	SPLIT("7168, 2x2", 2, 2, 64, .row_bytes = 7168, .n_rounds = 3),
	SPLIT("7168, 2x2 exact", 2, 2, 64, .row_bytes = 7168, .n_rounds = 3, .placement = EXACT),
	SPLIT("14336 in large rounds", 1, 1, 128, .row_bytes = 14336, .n_rounds = 2,
		.n_experts = 16, .top_k = 8, .out_row_bytes = 128))

JOBS(routings,
	JOB("top 1", 1, 1, 16, .top_k = 1),
	JOB("top k = experts", 1, 1, 16, .n_experts = 6, .top_k = 6, .routing = JOB_DISTINCT),
	JOB("one expert", 1, 1, 16, .n_experts = 1, .top_k = 1),
	JOB("repeated", 1, 1, 16, .top_k = 4, .routing = JOB_REPEATED),
	JOB("holes", 1, 1, 16, .top_k = 4, .routing = JOB_HOLES, .residual = 1),
	JOB("nobody", 1, 1, 16, .top_k = 4, .routing = JOB_NOBODY, .residual = 1),
	JOB("nobody, no residual", 1, 1, 16, .top_k = 4, .routing = JOB_NOBODY),
	JOB("no tokens", 1, 1, 0, .top_k = 4),
	JOB("no tokens exact", 1, 1, 0, .top_k = 4, .placement = EXACT),
	JOB("one token", 1, 1, 1, .top_k = 4),
	JOB("top 64", 1, 1, 3, .n_experts = 64, .top_k = 64, .routing = JOB_DISTINCT),
	JOB("256 experts", 1, 1, 40, .n_experts = 256, .top_k = 8))

JOBS(routings_many,
	SPLIT("all to one", 2, 3, 18, .top_k = 4, .routing = JOB_ONE),
	SPLIT("all to one exact", 2, 3, 18, .top_k = 4, .routing = JOB_ONE, .placement = EXACT),
	SPLIT("nobody", 2, 3, 18, .top_k = 4, .routing = JOB_NOBODY),
	SPLIT("nobody exact", 2, 3, 18, .top_k = 4, .routing = JOB_NOBODY, .placement = EXACT),
	SPLIT("some without tokens", 4, 2, 18, .odd_sources_only = 1, .residual = 1),
	SPLIT("some without tokens exact", 4, 2, 18, .odd_sources_only = 1, .placement = EXACT),
	SPLIT("nobody has tokens", 3, 2, 0, .residual = 1),
	SPLIT("fewer tokens than sources", 5, 2, 3, .residual = 1),
	SPLIT("skewed", 2, 4, 40, .top_k = 4, .routing = JOB_SKEWED),
	SPLIT("repeated", 2, 2, 18, .top_k = 4, .routing = JOB_REPEATED))

JOBS(in_flight,
	JOB("depth 1", 1, 1, 8, .depth = 1, .n_rounds = 12),
	JOB("depth 2", 1, 1, 8, .depth = 2, .in_flight = 2, .n_rounds = 12),
	JOB("depth 4", 1, 1, 8, .depth = 4, .in_flight = 4, .n_rounds = 13),
	JOB("depth 3 exact", 1, 1, 8, .depth = 3, .in_flight = 3, .n_rounds = 12,
		.placement = EXACT),
	JOB("depth 4, out of order", 1, 1, 8, .depth = 4, .in_flight = 4, .n_rounds = 14,
		.out_of_order = 1),
	JOB("depth 3 exact, out of order", 1, 1, 8, .depth = 3, .in_flight = 3, .n_rounds = 14,
		.out_of_order = 1, .placement = EXACT),
	SPLIT("2x2 depth 1", 2, 2, 16, .depth = 1, .n_rounds = 12),
	SPLIT("2x2 depth 4", 2, 2, 16, .depth = 4, .in_flight = 4, .n_rounds = 30),
	SPLIT("2x2 depth 4 exact", 2, 2, 16, .depth = 4, .in_flight = 4, .n_rounds = 30,
		.placement = EXACT),
	SPLIT("3x2 out of order", 3, 2, 16, .depth = 3, .in_flight = 3, .n_rounds = 14,
		.out_of_order = 1),
	SPLIT("3x2 out of order exact", 3, 2, 16, .depth = 3, .in_flight = 3, .n_rounds = 14,
		.out_of_order = 1, .placement = EXACT),
	SPLIT("2x2 long", 2, 2, 8, .depth = 3, .in_flight = 3, .n_rounds = 300))

JOBS(maps,
	JOB("1x1 replicas", 1, 1, 16, .map = JOB_MAP_REPLICAS),
	SPLIT("uneven", 2, 3, 20, .map = JOB_MAP_UNEVEN),
	SPLIT("uneven exact", 2, 3, 20, .map = JOB_MAP_UNEVEN, .placement = EXACT),
	SPLIT("more ranks than experts", 1, 5, 20, .n_experts = 3),
	SPLIT("replicas", 2, 3, 20, .map = JOB_MAP_REPLICAS, .top_k = 4),
	SPLIT("replicas exact", 2, 3, 20, .map = JOB_MAP_REPLICAS, .top_k = 4,
		.placement = EXACT))

JOBS(switched,
	JOB("1x1", 1, 1, 16, .switch_round = 2),
	SPLIT("2x3", 2, 3, 20, .switch_round = 3, .n_rounds = 7),
	SPLIT("2x3 uneven, in flight", 2, 3, 20, .switch_round = 3, .n_rounds = 9, .in_flight = 3,
		.map = JOB_MAP_UNEVEN),
	SPLIT("2x3 exact", 2, 3, 20, .switch_round = 3, .n_rounds = 7, .placement = EXACT))

const struct conf_case round_cases[] = {
	{"round: one rank with all roles", 1, one_rank, ANY_MEMORY},
	{"round: M x N, slot placement", 2, rank_counts, ANY_MEMORY},
	{"round: M x N, exact placement", 2, rank_counts_exact, ANY_MEMORY},
	{"round: every rank with all roles", 2, all_roles, ANY_MEMORY},
	{"round: dedup", 1, dedup, ANY_MEMORY},
	{"round: reduction at the expert", 1, reduce, ANY_MEMORY},
	{"round: scales and casts", 1, scales_and_casts, ANY_MEMORY},
	{"round: dtypes", 1, dtypes, ANY_MEMORY},
	{"round: row sizes", 1, row_sizes, ANY_MEMORY},
	{"round: routings", 1, routings, ANY_MEMORY},
	{"round: routings over many ranks", 2, routings_many, ANY_MEMORY},
	{"round: several in flight, out of order", 1, in_flight, ANY_MEMORY},
	{"round: uneven maps and replicas", 1, maps, ANY_MEMORY},
	{"round: the map switched between rounds", 1, switched, ANY_MEMORY},
	{0},
};
