/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shows that each wait of a channel in CUDA memory is needed: a job whose inputs are destroyed
 * behind each call, on many streams, with a driver that delays work and takes it in any order
 * that is legal, is run once as it is, and then without one wait. It must fail then: a case
 * passes when the job did not. Needs the stand-in of libcuda, which can leave calls out.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "doubles/cuda_double.h"
#include "helpers/device.h"
#include "helpers/job_device.h"

enum role { NOBODY, SOURCES, EXPERTS };

struct wait {
	struct job job;
	enum role role; /* whose */
	const char *rules; /* as m2n_double_leave_out() takes them */
};

static const struct job wait_job = {
	.name = "waits", .n_sources = 2, .n_expert_ranks = 2, .n_experts = 6, .top_k = 3,
	.n_tokens = 40, .row_bytes = 2048, .out_row_bytes = 2048, .dtype = M2N_DTYPE_BF16,
	.depth = 3, .in_flight = 3, .n_rounds = 40, .seed = 90, .residual = 1, .echo = 1,
};

static void leave_out(const char *rules)
{
	void *symbol = m2n_double_symbol("m2n_double_leave_out");
	int (*leave)(const char *rules);

	if (!symbol)
		rank_skip("a GPU's driver leaves nothing out");
	memcpy(&leave, &symbol, sizeof(symbol));
	expect(leave(rules) == 0);
}

/* All rounds of an expert rank, each on a stream of its own; the host waits for none of them. */
static void serve_queued(struct job_rank *jr)
{
	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
		struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;
		size_t n_rows = jr->device->max_rows;
		uint8_t *rows = jr->device->views[round % jr->job->depth].answer;

		recv.stream = jr->device->streams[JOB_EXPERT_SIDE][round % JOB_STREAMS];
		recv.timeout_ns = jr->timeout_ns;
		expect_ok(m2n_dispatch_recv(jr->channel, &recv, &answer.batch));
		n_rows = answer.batch->max_rows < n_rows ? answer.batch->max_rows : n_rows;
		device_copy(rows, answer.batch->rows, n_rows * jr->job->row_bytes, recv.stream);
		answer.rows = rows;
		answer.stream = recv.stream;
		expect_ok(m2n_combine_send(jr->channel, &answer));
	}
	job_device_settle(jr);
	expect_ok(m2n_channel_check(jr->channel));
}

static void run_rank(struct rank *rank)
{
	const struct wait *wait = rank->arg;
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, &wait->job));
	rank_barrier(rank);
	if (wait->role != NOBODY)
		jr.timeout_ns = 1000000000;
	leave_out("");
	if (wait->role == (jr.source >= 0 ? SOURCES : EXPERTS))
		leave_out(wait->rules);
	if (jr.expert >= 0)
		serve_queued(&jr);
	else
		job_rounds(&jr);
	leave_out("");
	rank_barrier(rank);
	job_close(&jr);
}

/* 0 or 1 as the job went; RANKS_SKIP. */
static int run_without(const struct conf *conf, enum role role, const char *rules)
{
	struct wait wait = {wait_job, role, rules};
	struct ranks_opts opts = conf->opts;

	setenv("M2N_DOUBLE_DELAY_US", "300", 1);
	return ranks_run(job_n_ranks(&wait.job), run_rank, &wait, &opts);
}

static int needed(const struct conf *conf, enum role role, const char *rules)
{
	int result = run_without(conf, role, rules);

	if (result == 0)
		printf("# nobody missed it\n");
	return result == RANKS_SKIP ? RANKS_SKIP : result == 0;
}

static int whole(const struct conf *conf)
{
	return run_without(conf, NOBODY, "");
}

static int await_rows(const struct conf *conf)
{
	return needed(conf, EXPERTS, "m2n_await_rows:5");
}

static int await_replies(const struct conf *conf)
{
	return needed(conf, SOURCES, "m2n_await_replies:5");
}

static int source_streams(const struct conf *conf)
{
	return needed(conf, SOURCES, "cuStreamWaitEvent:1+");
}

static int expert_streams(const struct conf *conf)
{
	return needed(conf, EXPERTS, "cuStreamWaitEvent:1+");
}

static int source_events(const struct conf *conf)
{
	return needed(conf, SOURCES, "cuEventRecord:1+");
}

static int expert_events(const struct conf *conf)
{
	return needed(conf, EXPERTS, "cuEventRecord:1+");
}

static const struct conf_case wait_cases[] = {
	{"waits: with all of them the job is right", 4, whole, CUDA_MEMORY},
	{"waits: needed: for the rows of a round", 4, await_rows, CUDA_MEMORY},
	{"waits: needed: for the replies of a round", 4, await_replies, CUDA_MEMORY},
	{"waits: needed: between streams of a source", 4, source_streams, CUDA_MEMORY},
	{"waits: needed: between streams of an expert rank", 4, expert_streams, CUDA_MEMORY},
	{"waits: needed: events behind a source's calls", 4, source_events, CUDA_MEMORY},
	{"waits: needed: events behind an expert rank's calls", 4, expert_events, CUDA_MEMORY},
	{0},
};

int main(int argc, char **argv)
{
	static const struct conf_case *const lists[] = {wait_cases, NULL};

	return suite_main(argc, argv, lists);
}
