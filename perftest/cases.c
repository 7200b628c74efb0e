/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From stamps to figures: a sample is the last end less the first start over all ranks of an
 * iteration; a yardstick's ratio is the median over the alternations of the quotient of the two
 * medians, so that a slow spell of the machine weighs on one alternation only.
 */
#include "cases.h"

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

bool perf_case_reduce(
	const struct perf_job *job, uint32_t n_case, double scale, struct perf_case *c)
{
	static const struct {
		const char *name, *how;
	} kinds[] = {
		{"m2n", NULL}, {"memcpy", "plain"}, {"memcpy", "nt"}, {"mpi", NULL}, {"ucx", NULL}};
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
	for (uint32_t s = 1; s < job->dims.n_series; s++) {
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
		if (report->backend[0] == '\0')
			report->backend = rank->backend;
	}
}
