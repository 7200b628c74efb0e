/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bit-identical outputs: one logical job, carried by different rank counts, placements and dedup,
 * has one digest, and that is the oracle's. Since the oracle knows no backend, the digests of
 * all backends are the same too.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/job_run.h"

static const struct job logical = {
	.name = "digest",
	.n_experts = 10,
	.top_k = 4,
	.n_tokens = 33,
	.row_bytes = 160,
	.out_row_bytes = 80,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 2,
	.n_rounds = 4,
	.seed = 10,
	.residual = 1,
	.routing = JOB_HOLES,
};

static uint64_t oracle(const struct job *job)
{
	size_t bytes = job_shared_bytes(job) - 1;
	uint8_t *all = malloc(bytes);
	uint64_t digest;
	int rank_of[JOB_MAX_TOP_K];

	for (uint32_t round = 0; round < job->n_rounds; round++) {
		for (uint32_t token = 0; token < job->n_tokens; token++) {
			if (job->reduce_at_expert)
				job_pair_ranks(job, round, 0, token, NULL, rank_of);
			job_expected(job, round, token, job_pairs(job, round, token), rank_of,
				all + ((size_t)round * job->n_tokens + token) * job->out_row_bytes);
		}
	}
	digest = job_digest(all, bytes);
	free(all);
	return digest;
}

static int same(const struct conf *conf, const struct job *job, uint64_t want)
{
	uint64_t digest = 0;
	int result;

	if (strstr(conf->backend, "self") && job_n_ranks(job) > 1)
		return 0;
	result = job_run(job, &conf->opts, &digest);
	if (!result && digest == want)
		return 0;
	printf("# %d x %d%s%s%s: digest %016llx, the oracle's is %016llx\n", job->n_sources,
		job->n_expert_ranks, job->classic ? " (all roles)" : "",
		job->placement == M2N_PLACEMENT_EXACT ? " exact" : "", job->dedup ? " dedup" : "",
		(unsigned long long)digest, (unsigned long long)want);
	return result ? result : 1;
}

static int across_ranks(const struct conf *conf)
{
	static const int counts[][3] = {
		{1, 1, 1},
		{1, 1, 0},
		{1, 4, 0},
		{4, 1, 0},
		{3, 5, 0},
		{8, 2, 0},
		{4, 4, 1},
	};
	uint64_t want = oracle(&logical);

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]) * 4; i++) {
		struct job job = logical;
		int result;

		if (i % 2 && conf->memory == M2N_MEMORY_CUDA)
			continue;
		job.n_sources = counts[i / 4][0];
		job.n_expert_ranks = counts[i / 4][1];
		job.classic = counts[i / 4][2];
		job.placement = i % 2 ? M2N_PLACEMENT_EXACT : M2N_PLACEMENT_SLOT;
		job.dedup = i / 2 % 2;
		job.registered = i / 4 % 2;
		result = same(conf, &job, want);
		if (result)
			return result;
	}
	return 0;
}

/* Reduction at the expert: the map is fixed, the sources are not. */
static int across_sources(const struct conf *conf)
{
	int n_expert_ranks = strstr(conf->backend, "self") ? 1 : 3;
	struct job job = logical;
	uint64_t want;
	int result = 0;

	job.reduce_at_expert = job.dedup = 1;
	job.n_sources = 1;
	job.n_expert_ranks = n_expert_ranks;
	want = oracle(&job);
	if (n_expert_ranks == 1) {
		job.classic = 1;
		return same(conf, &job, want);
	}
	for (int i = 0; !result && i < 6; i++) {
		if (i % 2 && conf->memory == M2N_MEMORY_CUDA)
			continue;
		job.n_sources = 1 + i / 2;
		job.registered = i / 2 % 2;
		job.placement = i % 2 ? M2N_PLACEMENT_EXACT : M2N_PLACEMENT_SLOT;
		result = same(conf, &job, want);
	}
	return result;
}

const struct conf_case digest_cases[] = {
	{"digest: the same over M x N, placements and dedup", 1, across_ranks, ANY_MEMORY},
	{"digest: the same with reduction at the expert", 1, across_sources, ANY_MEMORY},
	{0},
};
