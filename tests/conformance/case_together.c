/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Things side by side: two channels on one group, a channel made again under its name, source and
 * expert calls of one channel in two threads, a round in one call, and a backend that is forced
 * and cannot reach a peer.
 */
#include <pthread.h>
#include <string.h>

#include "conformance/conformance.h"
#include "core/group.h"
#include "helpers/device.h"
#include "helpers/job_run.h"
#include "helpers/leak.h"
#include "mem/cuda.h"

static const struct job pair_job = {
	.name = "pair", .n_sources = 2, .n_expert_ranks = 2, .classic = 1, .n_experts = 6,
	.top_k = 3, .n_tokens = 20, .row_bytes = 64, .out_row_bytes = 64,
	.dtype = M2N_DTYPE_BF16, .depth = 3, .in_flight = 2, .n_rounds = 6, .seed = 60,
};

/* job_open() names every channel alike; the second one needs another name. */
static void open_named(struct job_rank *jr, struct rank *rank, const struct job *job,
	const char *name)
{
	struct m2n_channel_params params;
	int lists[2][JOB_MAX_RANKS];

	expect_ok(job_open(jr, rank, job));
	rank_barrier(rank);
	job_channel_params(job, lists, &params);
	params.name = name;
	params.memory = rank->memory;
	for (uint32_t i = 0; i < job->in_flight; i++)
		m2n_plan_destroy(jr->flight[i].plan);
	m2n_channel_destroy(jr->channel);
	rank_barrier(rank);
	expect_ok(m2n_channel_create(rank->group, &params, &jr->channel));
	for (uint32_t i = 0; i < job->in_flight; i++)
		expect_ok(m2n_plan_create(jr->channel, &jr->flight[i].plan));
}

static void check_two_channels(struct rank *rank)
{
	struct job_rank first, second;
	struct job other = pair_job;

	other.seed++;
	other.row_bytes = 100;
	other.in_flight = 1;
	if (rank->memory == M2N_MEMORY_HOST)
		other.placement = M2N_PLACEMENT_EXACT;
	open_named(&second, rank, &other, "second");
	expect_ok(job_open(&first, rank, &pair_job));
	for (uint32_t round = 0; round < pair_job.n_rounds; round++) {
		expect_ok(job_send(&first, round));
		expect_ok(job_send(&second, round));
		expect_ok(job_serve(&second));
		expect_ok(job_serve(&first));
		expect_ok(job_combine(&first, round));
		expect_ok(job_combine(&second, round));
	}
	rank_barrier(rank);
	job_close(&first);
	job_close(&second);
}

static int two_channels(const struct conf *conf)
{
	return ranks_run(2, check_two_channels, NULL, &conf->opts);
}

/*
 * What a life held goes when the peer has answered, for which both make progress until both have
 * nothing left. Blocks of the device that wait for the next channel are no leak: they go, too.
 */
static void await_end(struct rank *rank, uint32_t turn)
{
	int is_over = 0;

	while (atomic_load(&rank->word[0]) < turn * (uint32_t)rank->n_ranks) {
		(void)m2n_ctx_progress(rank->ctx);
		m2n__ctx_lock(rank->ctx);
		if (!is_over && !rank->group->graves) {
			is_over = 1;
			word_add(&rank->word[0], 1);
		}
		m2n__ctx_unlock(rank->ctx);
	}
	if (rank->ctx->cuda)
		m2n__cuda_trim(rank->ctx->cuda);
}

static void check_again(struct rank *rank)
{
	/* A driver may keep something for the next use, up to a number. */
	int n_first = rank->memory == M2N_MEMORY_CUDA ? 20 : 1;
	struct leak_state before;
	struct job_rank jr;

	for (int i = 0; i < n_first + 10; i++) {
		expect_ok(job_open(&jr, rank, &pair_job));
		job_rounds(&jr);
		rank_barrier(rank);
		job_close(&jr);
		if (i != n_first - 1)
			continue;
		await_end(rank, 1);
		leak_take(&before);
	}
	await_end(rank, 2);
	leak_check(&before);
}

static int again(const struct conf *conf)
{
	return ranks_run(2, check_again, NULL, &conf->opts);
}

static void *be_expert(void *arg)
{
	struct job_rank *jr = arg;

	for (uint32_t round = 0; round < jr->job->n_rounds; round++)
		expect_ok(job_serve(jr));
	return NULL;
}

/* One thread per direction. The expert thread has a job_rank of its own around the same channel. */
static void check_threads(struct rank *rank)
{
	struct job_rank jr, expert;
	struct job job = pair_job;
	pthread_t thread;

	job.n_rounds = 60;
	job.placement = *(enum m2n_placement *)rank->arg;
	expect_ok(job_open(&jr, rank, &job));
	expert = jr;
	expect(pthread_create(&thread, NULL, be_expert, &expert) == 0);
	for (uint32_t round = 0; round < job.n_rounds; round++) {
		expect_ok(job_send(&jr, round));
		expect_ok(job_combine(&jr, round));
	}
	expect(pthread_join(thread, NULL) == 0);
	rank_barrier(rank);
	job_close(&jr);
}

static int threads(const struct conf *conf)
{
	enum m2n_placement slot = M2N_PLACEMENT_SLOT, exact = M2N_PLACEMENT_EXACT;

	return ranks_run(2, check_threads, &slot, &conf->opts) ||
	       (conf->memory == M2N_MEMORY_HOST &&
		       ranks_run(2, check_threads, &exact, &conf->opts));
}

static void check_round_trip(struct rank *rank)
{
	struct job job = pair_job;
	struct job_rank jr;

	job.classic = 0;
	job.in_flight = 1;
	expect_ok(job_open(&jr, rank, &job));
	for (uint32_t round = 0; round < job.n_rounds; round++) {
		struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
		struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
		struct job_flight *flight = &jr.flight[0];
		uint8_t want[64];

		if (jr.source < 0) {
			expect_ok(job_serve(&jr));
			continue;
		}
		expect_ok(job_route(&jr, round));
		send.plan = flight->plan;
		expect(m2n_plan_wait(flight->plan, M2N_TIMEOUT_DEFAULT) == 0);
		send.rows = space_in(rank, flight->rows, jr.n_tokens * sizeof(want));
		combine.out = space_out(rank, flight->out, jr.n_tokens * sizeof(want));
		combine.missing = space_out(rank, flight->missing, jr.n_tokens);
		expect_ok(m2n_round_trip(jr.channel, &send, &combine));
		space_fetch(rank);
		for (uint32_t t = 0; t < jr.n_tokens; t++) {
			uint32_t token = job_first_token(&job, jr.source) + t;

			job_expected(&job, round, token, job_pairs(&job, round, token), NULL, want);
			expect(!memcmp(flight->out + t * sizeof(want), want, sizeof(want)));
			expect_equal(flight->missing[t], 0);
		}
	}
	rank_barrier(rank);
	space_end(rank);
	job_close(&jr);
}

static int round_trip(const struct conf *conf)
{
	return ranks_run(4, check_round_trip, NULL, &conf->opts);
}

/* A backend that is forced fails where it cannot reach a peer: nothing falls back. */
static void check_forced(struct rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange = NULL;
	int peer = 1 - rank->rank, status;

	params.name = "forced";
	params.send_to = params.recv_from = &peer;
	params.n_send = params.n_recv = 1;
	params.max_bytes = 8;
	params.timeout_ns = 2000000000;
	status = m2n_exchange_create(rank->group, &params, &exchange);
	expect_equal(status, M2N_ERR_BACKEND);
	expect_text("self");
	expect(exchange == NULL);
	rank_barrier(rank);
}

static int forced(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;

	opts.backend = "self";
	return ranks_run(2, check_forced, NULL, &opts);
}

const struct conf_case together_cases[] = {
	{"together: two channels on one group", 2, two_channels, ANY_MEMORY},
	{"together: a channel made again under its name", 2, again, ANY_MEMORY},
	{"together: source and expert calls in two threads", 2, threads, ANY_MEMORY},
	{"together: a round in one call", 4, round_trip, ANY_MEMORY},
	{"together: a forced backend does not fall back", 2, forced, HOST_MEMORY},
	{0},
};
