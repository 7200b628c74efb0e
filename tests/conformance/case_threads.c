/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks as threads of one process, each with a context and a group of its own: a supported way to
 * run, most of all with several ranks on one GPU.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/job_run.h"

#define MAX_THREADS 8

struct thread {
	pthread_t id;
	struct rank rank;
	rank_fn fn;
};

static void *run_thread(void *arg)
{
	struct thread *thread = arg;

	expect_ok(rank_open(&thread->rank));
	thread->fn(&thread->rank);
	rank_close(&thread->rank);
	return NULL;
}

/* This process becomes `n` ranks that run fn. */
static void become_ranks(struct rank *process, int n, rank_fn fn)
{
	struct thread threads[MAX_THREADS];

	for (int i = 0; i < n; i++) {
		threads[i].rank = *process;
		threads[i].rank.rank = i;
		threads[i].rank.n_ranks = n;
		threads[i].fn = fn;
		expect(pthread_create(&threads[i].id, NULL, run_thread, &threads[i]) == 0);
	}
	for (int i = 0; i < n; i++)
		expect(pthread_join(threads[i].id, NULL) == 0);
}

static void run_job(struct rank *process)
{
	become_ranks(process, job_n_ranks(process->arg), job_main);
}

static int as_threads(const struct conf *conf, const struct job *job)
{
	struct ranks_opts opts = conf->opts;
	struct job copy = *job;

	opts.bare = 1;
	opts.shared_bytes = job_shared_bytes(job);
	return ranks_run(1, run_job, &copy, &opts);
}

static const struct job split_job = {
	.name = "threads", .n_sources = 3, .n_expert_ranks = 2, .n_experts = 7, .top_k = 3,
	.n_tokens = 24, .row_bytes = 96, .out_row_bytes = 64, .dtype = M2N_DTYPE_BF16, .depth = 3,
	.in_flight = 2, .n_rounds = 20, .seed = 80, .residual = 1,
};

static int split(const struct conf *conf)
{
	return as_threads(conf, &split_job);
}

static int all_roles(const struct conf *conf)
{
	struct job job = split_job;

	job.classic = 1;
	job.n_sources = job.n_expert_ranks = 4;
	job.n_experts = 8;
	job.dedup = 1;
	return as_threads(conf, &job);
}

/* Two processes of two ranks each: peers of the same process and of the other one in a channel. */
static void run_half(struct rank *process)
{
	struct thread threads[2];

	for (int i = 0; i < 2; i++) {
		threads[i].rank = *process;
		threads[i].rank.rank = 2 * process->rank + i;
		threads[i].rank.n_ranks = 4;
		threads[i].fn = job_main;
		expect(pthread_create(&threads[i].id, NULL, run_thread, &threads[i]) == 0);
	}
	for (int i = 0; i < 2; i++)
		expect(pthread_join(threads[i].id, NULL) == 0);
}

static int halves(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;
	struct job job = split_job;

	job.classic = 1;
	job.n_sources = job.n_expert_ranks = 4;
	opts.bare = 1;
	opts.shared_bytes = job_shared_bytes(&job);
	return ranks_run(2, run_half, &job, &opts);
}

const struct conf_case threads_cases[] = {
	{"threads: sources and expert ranks in one process", 2, split, ANY_MEMORY},
	{"threads: every rank with all roles in one process", 2, all_roles, ANY_MEMORY},
	{"threads: two ranks in each of two processes", 2, halves, ANY_MEMORY},
	{0},
};
