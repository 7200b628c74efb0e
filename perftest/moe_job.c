/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe before and after its ranks: routing and shared memory, and the cases from their stamps.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "compare_mpi.h"
#include "moe.h"
#include "tests.h"

static bool add_mpi(struct perf_job *job, char *text, size_t text_bytes)
{
	char path[4096];

	if (!perf_mpi_find(path, sizeof(path))) {
		snprintf(text, text_bytes, "--compare: built without MPI (no m2n_perf_mpi beside "
			"m2n_perf); install libopenmpi-dev and configure again");
		return false;
	}
	perf_job_add(job, PERF_MPI);
	job->dims.extra_bytes = perf_mpi_extra_bytes(job->routing);
	return true;
}

static bool prepare(struct perf_job *job, char *text, size_t text_bytes)
{
	const struct perf_args *args = job->args;
	struct perf_routing *routing = perf_routing_make(args, text, text_bytes);

	if (routing == NULL)
		return false;
	job->routing = routing;
	job->body = moe_body;
	perf_job_add(job, PERF_OURS);
	if (args->compare & PERF_COMPARE_MEMCPY) {
		perf_job_add(job, PERF_MEMCPY);
		perf_job_add(job, PERF_STREAM);
		if (!moe_bounce_map(job)) {
			snprintf(text, text_bytes, "no memory for the memcpy yardstick: %s",
				m2n_error_text());
			return false;
		}
	}
	if ((args->compare & PERF_COMPARE_MPI) && !add_mpi(job, text, text_bytes))
		return false;
	job->dims.n_cases = MOE_N_CASES;
	job->dims.n_iters = (uint32_t)args->n_iters;
	job->n_steps =
		args->n_iters * job->dims.n_series + (args->no_check ? 0 : 2 * routing->n_variants);
	job->n_steps *= args->n_sources + args->n_expert_ranks;
	if (args->compare & PERF_COMPARE_MPI) /* the helper counts batches, not iterations */
		job->n_steps -=
			args->n_iters * (args->n_sources + args->n_expert_ranks) - args->n_reps;
	return true;
}

/* Rows of a round, the mean over the variants. */
static uint64_t mean_rows(const struct perf_routing *routing)
{
	uint64_t n_rows = 0;

	for (uint32_t v = 0; v < routing->n_variants; v++)
		n_rows += perf_routing_rows(routing, v, -1, -1);
	return n_rows / routing->n_variants;
}

static bool reduce(const struct perf_job *job, enum moe_case n_case, const char *phase,
	struct perf_case *c)
{
	const struct perf_routing *routing = job->routing;
	uint64_t row_bytes =
		n_case == MOE_DISPATCH ? job->args->row_bytes : perf_out_row_bytes(job->args);

	*c = (struct perf_case){.phase = phase, .tokens = routing->max_tokens,
		.row_bytes = row_bytes, .top_k = routing->top_k,
		.bytes = mean_rows(routing) * row_bytes};
	if (job->args->n_tokens == 0 && strncmp(job->args->routing, "trace:", 6) != 0)
		c->tokens = 0;
	if (n_case == MOE_ROUND_TRIP)
		c->bytes += mean_rows(routing) * job->args->row_bytes;
	return perf_case_reduce(job, n_case, 1, c);
}

/* The median over sources and iterations of what m2n_plan_route() took. */
static double route_us(const struct perf_job *job)
{
	size_t n = 0;
	double *samples =
		malloc(job->args->n_sources * job->dims.n_iters * sizeof(double));

	for (uint32_t s = 0; samples != NULL && s < job->args->n_sources; s++) {
		const struct page_stamp *stamps = page_stamps(job->page, s, MOE_ROUTE, 0);
		for (uint32_t i = 0; i < job->dims.n_iters; i++)
			samples[n++] = (double)(stamps[i].end - stamps[i].start) / 1000;
	}
	double median = n > 0 ? perf_median(samples, n) : -1;
	free(samples);
	return median;
}

static bool make_cases(const struct perf_job *job, struct perf_report *report)
{
	struct perf_case *cases = calloc(2, sizeof(*cases));
	bool ok = cases != NULL;

	if (ok && (job->args->round_trip || job->many_hosts)) {
		ok = reduce(job, MOE_ROUND_TRIP, "round_trip", &cases[0]);
		report->n_cases = 1;
	} else if (ok) {
		ok = reduce(job, MOE_DISPATCH, "dispatch", &cases[0]) &&
			reduce(job, MOE_COMBINE, "combine", &cases[1]);
		report->n_cases = 2;
	}
	for (size_t i = 0; ok && i < report->n_cases; i++)
		cases[i].route_us = route_us(job);
	report->cases = cases;
	return ok;
}

const struct perf_test_ops perf_moe_ops = {prepare, make_cases};
