/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CUDA driver that fails: out of device memory and other failures while a channel is made, and
 * launches that do not start. Each call says so with the driver's words, nothing is left behind,
 * another channel goes on, and the call works when it is made again. The stand-in of libcuda fails
 * where it is told to; on a GPU only memory can be short.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "doubles/cuda_double.h"
#include "fault/fault.h"
#include "helpers/device.h"
#include "helpers/job_device.h"
#include "mem/cuda.h"

static const struct job device_job = {
	.name = "device", .n_sources = 2, .n_expert_ranks = 2, .classic = 1, .n_experts = 4,
	.top_k = 2, .n_tokens = 6, .row_bytes = 32, .out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16, .depth = 2, .in_flight = 1, .n_rounds = 400, .seed = 52,
};

#define HUGE_ROW ((size_t)1 << 20)

static void fail_calls(const char *rules)
{
	int (*fail)(const char *rules);
	void *symbol = m2n_double_symbol("m2n_double_fail");

	if (!symbol)
		rank_skip("a GPU's driver does not fail when it is told to");
	memcpy(&fail, &symbol, sizeof(symbol));
	expect(fail(rules) == 0);
}

static size_t count_blocks(struct rank *rank)
{
	size_t (*blocks)(void);
	void *symbol = m2n_double_symbol("m2n_double_blocks");

	memcpy(&blocks, &symbol, sizeof(symbol));
	m2n__cuda_trim(rank->ctx->cuda); /* what is kept for the next is not lost */
	return blocks();
}

static void one_round(struct job_rank *jr, uint32_t round)
{
	expect_ok(job_send(jr, round));
	expect_ok(job_serve(jr));
	expect_ok(job_combine(jr, round));
}

static int create_another(struct rank *rank, size_t row_bytes, struct m2n_channel **channel)
{
	struct m2n_channel_params params;
	int lists[2][JOB_MAX_RANKS];

	job_channel_params(rank->arg, lists, &params);
	params.name = "another";
	params.row_bytes = row_bytes;
	params.out_row_bytes = 0;
	if (row_bytes == HUGE_ROW)
		params.max_tokens = 1 << 20;
	params.memory = M2N_MEMORY_CUDA;
	return m2n_channel_create(rank->group, &params, channel);
}

/* Every call of `symbol` that create makes fails once, in turn, on a channel of this rank alone. */
static void fail_each(struct rank *rank, struct job_rank *jr, const char *symbol, int result)
{
	struct m2n_channel *channel = NULL;
	size_t before = count_blocks(rank);
	uint32_t n = 0;
	int status = -1;

	while (status) {
		char rule[96];

		snprintf(rule, sizeof(rule), "%s:%u:%d", symbol, ++n, result);
		expect(n < 300);
		fail_calls(rule);
		status = create_another(rank, 4096, &channel);
		fail_calls("");
		one_round(jr, (uint32_t)rank->word[0]++);
		if (!status)
			break;
		if (status != (result == M2N__CU_OUT_OF_MEMORY ? -ENOMEM : M2N_ERR_BACKEND))
			rank_fail(__FILE__, __LINE__, "%s: %d (%s)", rule, status,
				m2n_error_text());
		expect(m2n_error_text()[0]);
		expect(!channel);
		if (count_blocks(rank) != before)
			rank_fail(__FILE__, __LINE__, "%s: %zu blocks are left", rule,
				count_blocks(rank) - before);
	}
	m2n_channel_destroy(channel);
	expect_equal(count_blocks(rank), before);
}

static void check_create(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	fail_calls("");
	fail_each(rank, &jr, "cuMemAlloc_v2", M2N__CU_OUT_OF_MEMORY);
	fail_each(rank, &jr, "cuMemCreate", M2N__CU_OUT_OF_MEMORY);
	fail_each(rank, &jr, "cuMemHostAlloc", M2N__CU_OUT_OF_MEMORY);
	fail_each(rank, &jr, "cuMemcpyHtoDAsync_v2", M2N__CU_NOT_PERMITTED);
	fail_each(rank, &jr, "cuEventCreate", M2N__CU_NOT_PERMITTED);
	job_close(&jr);
}

static int create(const struct conf *conf)
{
	struct job job = device_job;

	job.n_sources = job.n_expert_ranks = 1;
	return ranks_run(1, check_create, &job, &conf->opts);
}

/* More than any device has. Both ranks are told, and the channel that is there goes on. */
static void check_huge(struct rank *rank)
{
	struct m2n_channel *channel = NULL;
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	one_round(&jr, 0);
	expect_status(-ENOMEM, create_another(rank, HUGE_ROW, &channel));
	expect_text("cuda 0");
	expect(!channel);
	one_round(&jr, 1);
	rank_barrier(rank);
	job_close(&jr);
}

static int huge(const struct conf *conf)
{
	struct job job = device_job;

	return ranks_run(2, check_huge, &job, &conf->opts);
}

/* The first launch of each call fails: refused, nothing queued, and made again it works. */
static void check_launches(struct rank *rank)
{
	const struct m2n_batch *batch;
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	one_round(&jr, 0);
	fail_calls("cuLaunchKernel:1:999");
	expect_status(M2N_ERR_BACKEND, job_route(&jr, 1));
	expect_text("launch");
	fail_calls("");
	fail_calls("cuLaunchKernel:2:999"); /* the first one is the plan's */
	expect_status(M2N_ERR_BACKEND, job_send(&jr, 1));
	fail_calls("");
	expect_ok(job_send(&jr, 1));
	fail_calls("cuLaunchKernel:1:999");
	expect_status(M2N_ERR_BACKEND, job_recv_batch(&jr, &batch));
	fail_calls("");
	expect_ok(job_recv_batch(&jr, &batch));
	fail_calls("cuLaunchKernel:1:999");
	expect_status(M2N_ERR_BACKEND, job_answer(&jr, batch));
	fail_calls("");
	expect_ok(job_answer(&jr, batch));
	fail_calls("cuLaunchKernel:1:999");
	expect_status(M2N_ERR_BACKEND, job_combine(&jr, 1));
	fail_calls("");
	expect_ok(job_combine(&jr, 1));
	one_round(&jr, 2);
	rank_barrier(rank);
	job_close(&jr);
}

static int launches(const struct conf *conf)
{
	struct job job = device_job;

	return ranks_run(2, check_launches, &job, &conf->opts);
}

/* A device whose context is broken, by whatever program: its calls say so, and it can only go. */
static void break_device(struct job_rank *jr)
{
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;

	fail_calls("cuLaunchKernel:1+:700");
	route.n_tokens = jr->n_tokens;
	route.expert_ids = jr->device->stages[0].ids;
	expect_status(M2N_ERR_BACKEND, m2n_plan_route(jr->channel, jr->flight[0].plan, &route));
	expect_text("CUDA_ERROR_ILLEGAL_ADDRESS");
	expect_status(M2N_ERR_BACKEND, m2n_channel_check(jr->channel));
	expect_text("CUDA_ERROR_ILLEGAL_ADDRESS");
	rank_done();
}

static void check_broken(struct rank *rank)
{
	struct job_rank jr;
	int status = 0;

	expect_ok(job_open(&jr, rank, rank->arg));
	one_round(&jr, 0);
	rank_barrier(rank);
	jr.tolerant = 1;
	if (rank->rank == 1)
		break_device(&jr);
	jr.dead = 1 << 1;
	for (uint32_t round = 1; round < 60; round++) {
		const struct m2n_batch *batch;

		expect_went_on(job_send(&jr, round));
		expect_went_on(job_recv_batch(&jr, &batch));
		expect_went_on(job_answer(&jr, batch));
		status = job_combine(&jr, round);
		expect_went_on(status);
	}
	job_close(&jr);
}

static int broken(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;
	struct job job = device_job;

	opts.no_leak_check = 1;
	return ranks_run(2, check_broken, &job, &opts);
}

const struct conf_case device_fault_cases[] = {
	{"device: each failure while a channel is made", 1, create, CUDA_MEMORY},
	{"device: more memory than it has", 2, huge, CUDA_MEMORY},
	{"device: launches that fail", 2, launches, CUDA_MEMORY},
	{"device: one that broke takes its rank along, not the others", 2, broken, CUDA_MEMORY},
	{0},
};
