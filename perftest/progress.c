/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress line, from counters that the ranks keep in the page.
 */
#include "run.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static bool shown;

uint64_t perf_progress_sum(const struct perf_job *job)
{
	uint64_t sum = 0;

	for (uint32_t rank = 0; rank < job->dims.n_ranks; rank++)
		sum += atomic_load_explicit(
			&page_rank(job->page, rank)->progress, memory_order_relaxed);
	return sum + atomic_load(&job->page->mpi_done);
}

void perf_progress_show(const struct perf_job *job, uint64_t n_steps)
{
	if (!isatty(STDERR_FILENO) || job->n_steps == 0)
		return;
	uint64_t percent = n_steps >= job->n_steps ? 100 : 100 * n_steps / job->n_steps;
	fprintf(stderr, "\rm2n_perf %s %" PRIu64 "x%" PRIu64 ": %3" PRIu64 " %%",
		perf_test_name(job->args->test), job->args->n_sources, job->args->n_expert_ranks,
		percent);
	shown = true;
}

void perf_progress_clear(void)
{
	if (shown)
		fprintf(stderr, "\r%60s\r", "");
	shown = false;
}
