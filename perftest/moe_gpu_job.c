/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe in CUDA memory before and after its ranks: routing and yardsticks, and the cases from their
 * stamps. The process that forks must not touch CUDA before it has: what NCCL is there is asked
 * without it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_gpu.h"
#include "tests.h"

static bool prepare(struct perf_job *job, char *text, size_t text_bytes)
{
	const struct perf_args *args = job->args;
	struct perf_routing *routing = perf_routing_make(args, text, text_bytes);

	if (routing == NULL)
		return false;
	job->routing = routing;
	job->body = moe_gpu_body;
	perf_job_add(job, PERF_OURS);
	if (args->compare & PERF_COMPARE_MEMCPY)
		perf_job_add(job, PERF_MEMCPY);
	bool forced = args->backend != NULL && strstr(args->backend, "nccl") != NULL;
	bool usable = (forced || (args->compare & PERF_COMPARE_NCCL)) && moe_nccl_usable(job);
	if (args->compare & PERF_COMPARE_NCCL) {
		if (usable)
			perf_job_add(job, PERF_NCCL);
		else
			fprintf(stderr, "m2n_perf: --compare nccl is left out: %s\n",
				job->nccl_how);
		job->dims.extra_bytes = moe_nccl_extra_bytes();
	}
	job->dims.n_cases = MOE_GPU_N_CASES;
	job->dims.n_iters = (uint32_t)args->n_iters;
	job->n_steps =
		args->n_iters * job->dims.n_series + (args->no_check ? 0 : 2 * routing->n_variants);
	job->n_steps *= perf_n_ranks(args);
	return true;
}

/* Of all ranks together, the mean over the variants. */
static uint64_t mean_moved(const struct perf_job *job, bool unpack)
{
	const struct perf_routing *routing = job->routing;
	uint64_t bytes = 0;

	for (uint32_t v = 0; v < routing->n_variants; v++) {
		for (uint32_t s = 0; s < routing->n_sources; s++)
			bytes += moe_gpu_moved(job->args, routing, v, (int)s, -1, unpack);
		for (uint32_t e = 0; e < routing->n_expert_ranks; e++)
			bytes += moe_gpu_moved(job->args, routing, v, -1, (int)e, unpack);
	}
	return bytes / routing->n_variants;
}

static uint64_t mean_payload(const struct perf_job *job)
{
	uint64_t n_rows = 0;

	for (uint32_t v = 0; v < job->routing->n_variants; v++)
		n_rows += perf_routing_rows(job->routing, v, -1, -1);
	return n_rows / job->routing->n_variants *
	       (job->args->row_bytes + perf_out_row_bytes(job->args));
}

/* All ranks' samples of a case that each has for itself, in one heap. */
static bool pool(const struct perf_job *job, uint32_t n_case, struct perf_case *c)
{
	size_t n_iters = job->dims.n_iters, n = 0;
	double *sorted = malloc(job->dims.n_ranks * n_iters * sizeof(double));

	c->samples = malloc(job->dims.n_ranks * n_iters * sizeof(double));
	for (uint32_t r = 0; sorted != NULL && c->samples != NULL && r < job->dims.n_ranks; r++) {
		const struct page_stamp *stamps = page_stamps(job->page, r, n_case, 0);
		for (size_t i = 0; i < n_iters; i++) {
			if (stamps[i].end == 0)
				continue;
			sorted[n] = (double)(stamps[i].end - stamps[i].start) / 1000;
			c->samples[n] = sorted[n];
			n++;
		}
	}
	bool ok = sorted != NULL && c->samples != NULL;
	c->n_samples = n;
	if (ok)
		perf_stats_of(sorted, n, &c->us);
	free(sorted);
	return ok;
}

static bool make_cases(const struct perf_job *job, struct perf_report *report)
{
	const struct perf_args *args = job->args;
	struct perf_case *cases = calloc(MOE_GPU_N_CASES, sizeof(*cases));
	static const char *const names[] = {"round_trip", "device", "host_calls", "plan"};
	bool ok = cases != NULL;

	for (unsigned i = 0; ok && i < MOE_GPU_N_CASES; i++)
		cases[i] = (struct perf_case){.phase = names[i],
			.tokens = job->routing->max_tokens,
			.row_bytes = args->row_bytes,
			.top_k = job->routing->top_k,
			.route_us = -1};
	if (ok) {
		cases[MOE_GPU_HOST].phase = args->graph ? "launch" : "host_calls";
		cases[MOE_GPU_ROUND_TRIP].bytes = mean_payload(job);
		cases[MOE_GPU_DEVICE].bytes = mean_moved(job, false);
		cases[MOE_GPU_DEVICE].bytes_unpacked = mean_moved(job, true);
		ok = perf_case_reduce(job, MOE_GPU_ROUND_TRIP, 1, &cases[MOE_GPU_ROUND_TRIP]) &&
		     perf_case_reduce(job, MOE_GPU_DEVICE, 1, &cases[MOE_GPU_DEVICE]) &&
		     pool(job, MOE_GPU_HOST, &cases[MOE_GPU_HOST]) &&
		     pool(job, MOE_GPU_PLAN, &cases[MOE_GPU_PLAN]);
		report->n_cases = MOE_GPU_N_CASES;
	}
	report->cases = cases;
	return ok;
}

const struct perf_test_ops perf_moe_gpu_ops = {prepare, make_cases};
