/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From stamps to figures: a sample is the last end less the first start over all ranks of an
 * iteration; a yardstick's ratio is the median over the alternations of the quotient of the two
 * medians, so that a slow spell of the machine weighs on one alternation only.
 */
#include "cases.h"
#include "compare_tool.h"

#include <stdlib.h>
#include <string.h>

static double sample_us(const struct perf_job *job, uint32_t n_case, uint32_t series, uint32_t iter)
{
	int64_t start = INT64_MAX;
	int64_t end = 0;

	for (uint32_t rank = 0; rank < job->dims.n_ranks; rank++) {
		const struct page_stamp *stamp =
			page_stamps(job->page, rank, n_case, series) + iter;
		if (stamp->start != 0 && stamp->start < start)
			start = stamp->start;
		if (stamp->end > end)
			end = stamp->end;
	}
	return end > start ? (double)(end - start) / 1000 : 0;
}

static void take_samples(const struct perf_job *job, uint32_t n_case, double scale,
	uint32_t series, double *samples)
{
	for (uint32_t i = 0; i < job->dims.n_iters; i++)
		samples[i] = sample_us(job, n_case, series, i) / scale;
}

/* Medians of each alternation. `sorted` is scratch of n_iters. */
static void batch_medians(
	const struct perf_args *args, const double *samples, double *sorted, double *medians)
{
	for (uint64_t rep = 0; rep < args->n_reps; rep++) {
		int64_t first, last;
		perf_batch(args, rep, &first, &last);
		memcpy(sorted, samples + first, (size_t)(last - first) * sizeof(double));
		medians[rep] = perf_median(sorted, (size_t)(last - first));
	}
}

static void add_compare(struct perf_case *c, const struct perf_compare *compare)
{
	struct perf_compare *at = &c->compare[c->n_compare];

	if (c->n_compare > 0 && strcmp(at[-1].name, compare->name) == 0) {
		if (compare->us.p50 < at[-1].us.p50)
			at[-1] = *compare;
		return;
	}
	*at = *compare;
	c->n_compare++;
}

static double rate(double bytes, double us)
{
	return us > 0 ? bytes / us / 1000 : 0;
}

/* One yardstick: its samples, and per alternation against the medians of ours. */
static void measure_yardstick(const struct perf_job *job, double *samples, double *sorted,
	const double *ours, double *theirs, double *ratios, struct perf_compare *compare)
{
	uint64_t n_reps = job->args->n_reps;

	batch_medians(job->args, samples, sorted, theirs);
	for (uint64_t rep = 0; rep < n_reps; rep++)
		ratios[rep] = ours[rep] > 0 ? theirs[rep] / ours[rep] : 0;
	compare->ratio = perf_median(ratios, n_reps);
	compare->ratio_min = ratios[0];
	compare->ratio_max = ratios[n_reps - 1];
	perf_stats_of(samples, job->dims.n_iters, &compare->us);
}

/*
 * What a program said in an alternation, in us of a sample: the GB/s of sources that ran at once
 * are summed. 0: one said nothing.
 */
static double tool_us(const struct perf_job *job, uint32_t n_case, uint32_t series, uint64_t rep,
	double bytes, double *p99)
{
	uint64_t n_sources = perf_tool_sources(job->args);
	double sum = 0;

	for (uint64_t source = 0; source < n_sources; source++) {
		const struct page_figure *figure =
			page_figures(job->page, (uint32_t)source, n_case, series) + rep;
		if (figure->value <= 0)
			return 0;
		sum += figure->value;
		*p99 = figure->p99;
	}
	return job->args->test == PERF_BW ? bytes / sum / 1000 : sum;
}

/*
 * A yardstick that is a program, over the alternations in which it said something; left out when
 * there is none. `theirs`, `ratios`, `p99`: scratch of n_reps.
 */
static void measure_tool(const struct perf_job *job, uint32_t n_case, uint32_t series,
	const double *ours, double *theirs, double *ratios, double *p99, struct perf_case *c)
{
	struct perf_compare *compare = &c->compare[c->n_compare];
	size_t n = 0;

	*compare = (struct perf_compare){.command = job->page->commands[series]};
	compare->name = perf_tool_name(job->kinds[series], &compare->how);
	for (uint64_t rep = 0; rep < job->args->n_reps; rep++) {
		theirs[n] = tool_us(job, n_case, series, rep, (double)c->bytes, &p99[n]);
		if (theirs[n] <= 0 || ours[rep] <= 0)
			continue;
		ratios[n] = theirs[n] / ours[rep];
		n++;
	}
	if (n == 0)
		return;
	compare->us.p99 = perf_median(p99, n);
	compare->us.p50 = perf_median(theirs, n);
	compare->ratio = perf_median(ratios, n);
	compare->ratio_min = ratios[0];
	compare->ratio_max = ratios[n - 1];
	compare->gbps = rate((double)c->bytes, compare->us.p50);
	c->n_compare++;
}

static void add_cost(const struct perf_job *job, uint32_t n_case, struct perf_case *c)
{
	struct page_cost sum = {0};

	for (uint32_t rank = 0; rank < job->dims.n_ranks; rank++) {
		const struct page_cost *cost = page_cost(job->page, rank, n_case);
		sum.n_rounds += cost->n_rounds;
		sum.n_puts += cost->n_puts;
		sum.staged_bytes += cost->staged_bytes;
	}
	if (sum.n_rounds == 0)
		return;
	c->puts_per_round = (double)sum.n_puts / (double)sum.n_rounds;
	c->staged_per_round = (double)sum.staged_bytes / (double)sum.n_rounds;
}

bool perf_case_reduce(
	const struct perf_job *job, uint32_t n_case, double scale, struct perf_case *c)
{
	bool gpu = job->args->memory == M2N_MEMORY_CUDA;
	const struct {
		const char *name, *how;
	} kinds[] = {
		{"m2n", NULL}, {"memcpy", gpu ? "cuMemcpyDtoDAsync" : "plain"},
		{"memcpy", "nt"}, {"mpi", NULL}, {"ucx", NULL},
		{"nccl", job->nccl_how}};
	uint32_t n = job->dims.n_iters;
	uint64_t n_reps = job->args->n_reps;
	double *work = malloc((2 * (size_t)n + 3 * n_reps) * sizeof(double));
	double *sorted = work + n;
	double *ours = sorted + n, *theirs = ours + n_reps, *ratios = theirs + n_reps;

	c->samples = malloc(n * sizeof(double));
	if (work == NULL || c->samples == NULL) {
		free(work);
		return false;
	}
	c->n_samples = n;
	take_samples(job, n_case, scale, 0, c->samples);
	batch_medians(job->args, c->samples, sorted, ours);
	memcpy(sorted, c->samples, n * sizeof(double));
	perf_stats_of(sorted, n, &c->us);
	c->gbps = rate((double)c->bytes, c->us.p50);
	add_cost(job, n_case, c);
	for (uint32_t s = 1; s < job->dims.n_series; s++) {
		if (job->kinds[s] >= PERF_FIRST_TOOL) {
			measure_tool(job, n_case, s, ours, theirs, ratios, work, c);
			continue;
		}
		struct perf_compare compare = {
			.name = kinds[job->kinds[s]].name, .how = kinds[job->kinds[s]].how};
		take_samples(job, n_case, scale, s, work);
		measure_yardstick(job, work, sorted, ours, theirs, ratios, &compare);
		compare.gbps = rate((double)c->bytes, compare.us.p50);
		add_compare(c, &compare);
	}
	free(work);
	return true;
}

void perf_report_gather(struct perf_report *report)
{
	report->backend = "";
	for (uint32_t i = 0; i < report->job->dims.n_ranks; i++) {
		const struct page_rank *rank = page_rank(report->job->page, i);
		report->n_verified += rank->verified;
		report->staged_bytes += rank->staged_bytes;
		if (rank->tool_status != 0 && report->tool_status != 1)
			report->tool_status = (int)rank->tool_status;
		if (report->backend[0] == '\0')
			report->backend = rank->backend;
	}
}
