/* SPDX-License-Identifier: Apache-2.0 */
/*
 * m2n_perf: measures libm2n. Reads the command line, prepares the test, runs its ranks, and
 * reports. Exit status: 0, 1 when a rank, the measurement or a yardstick failed, 2 for wrong
 * arguments or a yardstick that is not installed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "mem/mem.h"
#include "run.h"
#include "tests.h"

static const struct perf_test_ops *ops_of(const struct perf_args *args)
{
	static const struct perf_test_ops *const all[] = {
		NULL, &perf_bw_ops, &perf_lat_ops, &perf_moe_ops, &perf_init_ops, NULL};

	if (args->memory == M2N_MEMORY_CUDA)
		return &perf_moe_gpu_ops;
	return all[args->test];
}

/* 0, or the exit status after saying what is wrong with being a rank of this launcher's job. */
static int check_launch(const struct perf_args *args, const struct perf_rank *rank)
{
	uint64_t wanted = perf_n_ranks(args);
	const char *text = NULL;

	if ((args->compare & ~PERF_COMPARE_TOOLS) != 0)
		text = "--compare memcpy, mpi, nccl and ucx need ranks that are forked here; add "
		       "--local";
	if (args->test == PERF_INIT)
		text = "init needs ranks that are forked here; add --local";
	if (args->threads)
		text = "--threads needs ranks that are started here; add --local";
	if ((uint64_t)rank->n_ranks != wanted) {
		fprintf(stderr,
			"m2n_perf: the launcher started %d ranks, -M %" PRIu64 " -N %" PRIu64
			" are %" PRIu64 "; start as many, or add --local\n",
			rank->n_ranks, args->n_sources, args->n_expert_ranks, wanted);
		return 2;
	}
	if (text == NULL)
		return 0;
	if (rank->rank == 0)
		fprintf(stderr, "m2n_perf: %s\n", text);
	return 2;
}

static int print(FILE *file, const struct perf_report *report)
{
	switch (report->args->format) {
	case PERF_JSON:
		return perf_report_json(file, report) ? 0 : 1;
	case PERF_CSV:
		perf_report_csv(file, report);
		break;
	default:
		perf_report_table(file, report);
		if (report->args->test == PERF_INIT)
			perf_report_memory(file, report);
		if (report->args->matrix)
			perf_report_matrix(file, report);
	}
	return 0;
}

static int make_report(const struct perf_job *job, FILE *file)
{
	struct perf_report report = {.args = job->args, .job = job};
	int status = 1;

	perf_report_gather(&report);
	if (ops_of(job->args)->cases(job, &report))
		status = print(file, &report);
	else
		fprintf(stderr, "m2n_perf: no memory for the results\n");
	if (status == 0)
		status = report.tool_status;
	for (size_t i = 0; report.cases != NULL && i < report.n_cases; i++)
		free(report.cases[i].samples);
	free(report.cases);
	return status;
}

static int run(struct perf_job *job, struct perf_rank *rank, bool launched, FILE *file)
{
	char text[512] = "";

	job->dims.n_ranks = (uint32_t)perf_n_ranks(job->args);
	job->dims.n_reps = (uint32_t)job->args->n_reps;
	if (!ops_of(job->args)->prepare(job, text, sizeof(text))) {
		fprintf(stderr, "m2n_perf: %s\n", text);
		return 2;
	}
	job->page = page_create(&job->dims, !launched);
	if (job->page == NULL) {
		fprintf(stderr, "m2n_perf: no memory for the results: %s\n", strerror(errno));
		return 1;
	}
	int status = launched ? perf_run_launched(job, rank) : perf_run_fork(job);
	if (status == 0 && (!launched || rank->rank == 0))
		status = make_report(job, file);
	page_free(job->page);
	return status;
}

int main(int argc, char **argv)
{
	struct perf_args args;
	struct perf_rank rank = {0};
	struct perf_job job = {.args = &args};
	FILE *file = stdout;
	int status = 0;

	perf_args_parse(argc, argv, &args);
	int launched = 0;
	if (args.test != PERF_KERNEL && !args.local)
		launched = perf_launch_join(&args, &rank);
	if (launched < 0)
		return 1;
	if (launched > 0)
		status = check_launch(&args, &rank);
	if (status != 0) {
		perf_rank_leave(&rank);
		return status;
	}
	if (args.output != NULL && rank.rank == 0)
		file = fopen(args.output, "we");
	if (file == NULL) {
		fprintf(stderr, "m2n_perf: --output: %s: %s\n", args.output, strerror(errno));
		perf_rank_leave(&rank);
		return 2;
	}
	if (args.test != PERF_KERNEL)
		status = run(&job, &rank, launched > 0, file);
	else if (args.memory == M2N_MEMORY_CUDA)
		status = perf_kernel_gpu_run(&args, file);
	else
		status = perf_kernel_run(&args, file);
	free((void *)(uintptr_t)job.routing);
	m2n__mem_free(job.bounce_mem);
	perf_rank_leave(&rank);
	if (fflush(file) != 0 || (file != stdout && fclose(file) != 0)) {
		fprintf(stderr, "m2n_perf: cannot write the results: %s\n", strerror(errno));
		status = status == 0 ? 1 : status;
	}
	return status;
}
