/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channels in CUDA memory: what they refuse and how they say so, what the host may ask, deadlines
 * that the device counts, and that no byte of a row passes through host memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/device.h"
#include "helpers/job_device.h"

static const struct job device_job = {
	.name = "device", .n_sources = 1, .n_expert_ranks = 1, .classic = 1, .n_experts = 4,
	.top_k = 2, .n_tokens = 6, .row_bytes = 32, .scale_bytes = 4, .out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16, .depth = 2, .in_flight = 2, .n_rounds = 4, .seed = 50,
};

/* One whole round: what came before it did no harm. */
static void one_round(struct job_rank *jr, uint32_t round)
{
	expect_ok(job_send(jr, round));
	expect_ok(job_serve(jr));
	expect_ok(job_combine(jr, round));
}

/* ---- addresses ----------------------------------------------------------------------------- */

/* The kinds of address that no call takes. */
static const void *bad_address(unsigned kind)
{
	static const uint8_t in_host[4096];
	void *freed;

	if (kind == 0)
		return in_host;
	freed = device_alloc(4096);
	device_free(freed);
	return freed;
}

static void expect_refused(int status, const char *field)
{
	expect_equal(status, -EINVAL);
	expect_text(field);
	expect_text("device");
}

static void bad_sources(struct job_rank *jr, const void *bad, uint32_t round)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	struct job_stage *stage = &jr->device->stages[round % 2];
	struct m2n_plan *plan = jr->flight[round % 2].plan;

	route.n_tokens = jr->n_tokens;
	route.expert_ids = bad;
	expect_refused(m2n_plan_route(jr->channel, plan, &route), "expert_ids");
	route.expert_ids = stage->ids;
	route.weights = bad;
	expect_refused(m2n_plan_route(jr->channel, plan, &route), "weights");
	expect_ok(job_route(jr, round));
	send.plan = plan;
	send.rows = bad;
	send.scales = stage->scales;
	expect_refused(m2n_dispatch_send(jr->channel, &send), "rows");
	send.rows = stage->rows;
	send.scales = bad;
	expect_refused(m2n_dispatch_send(jr->channel, &send), "scales");
	send.scales = stage->scales;
	send.row_weights = bad;
	expect_refused(m2n_dispatch_send(jr->channel, &send), "row_weights");
}

static void bad_answer(struct job_rank *jr, const void *bad)
{
	struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;

	expect_ok(job_recv_batch(jr, &answer.batch));
	answer.rows = bad;
	expect_refused(m2n_combine_send(jr->channel, &answer), "rows");
	expect_ok(job_answer(jr, answer.batch));
}

static void bad_combine(struct job_rank *jr, const void *bad, uint32_t round)
{
	struct m2n_combine_recv_params good = M2N_COMBINE_RECV_PARAMS_INIT, combine;
	struct job_stage *stage = &jr->device->stages[round % 2];
	void *writable = (void *)(uintptr_t)bad;

	good.plan = jr->flight[round % 2].plan;
	good.out = stage->out;
	combine = good;
	combine.out = writable;
	expect_refused(m2n_combine_recv(jr->channel, &combine), "out");
	combine = good;
	combine.residual = bad;
	expect_refused(m2n_combine_recv(jr->channel, &combine), "residual");
	combine = good;
	combine.weights = bad;
	expect_refused(m2n_combine_recv(jr->channel, &combine), "weights");
	combine = good;
	combine.replies = writable;
	expect_refused(m2n_combine_recv(jr->channel, &combine), "replies");
	combine = good;
	combine.missing = writable;
	expect_refused(m2n_combine_recv(jr->channel, &combine), "missing");
	expect_ok(job_combine(jr, round));
}

static void check_addresses(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, &device_job));
	for (uint32_t kind = 0; kind < 2; kind++) {
		const void *bad = bad_address(kind);

		bad_sources(&jr, bad, 2 * kind);
		expect_ok(job_send(&jr, 2 * kind));
		bad_answer(&jr, bad);
		bad_combine(&jr, bad, 2 * kind);
		one_round(&jr, 2 * kind + 1);
	}
	job_close(&jr);
}

static int addresses(const struct conf *conf)
{
	return ranks_run(1, check_addresses, NULL, &conf->opts);
}

/* The reverse: device memory where a channel in host memory reads or writes. */
static void check_host_channel(struct rank *rank)
{
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	struct job job = device_job;
	void *device = device_alloc(4096);
	struct job_rank jr;

	job.scale_bytes = 0;
	rank->memory = M2N_MEMORY_HOST;
	expect_ok(job_open(&jr, rank, &job));
	route.n_tokens = jr.n_tokens;
	route.expert_ids = device;
	expect_refused(m2n_plan_route(jr.channel, jr.flight[0].plan, &route), "expert_ids");
	expect_ok(job_route(&jr, 0));
	send.plan = jr.flight[0].plan;
	send.rows = device;
	expect_refused(m2n_dispatch_send(jr.channel, &send), "rows");
	expect_ok(job_send(&jr, 0));
	expect_ok(job_recv_batch(&jr, &answer.batch));
	answer.rows = device;
	expect_refused(m2n_combine_send(jr.channel, &answer), "rows");
	expect_ok(job_answer(&jr, answer.batch));
	combine.plan = jr.flight[0].plan;
	combine.out = device;
	expect_refused(m2n_combine_recv(jr.channel, &combine), "out");
	expect_ok(job_combine(&jr, 0));
	one_round(&jr, 1);
	job_close(&jr);
	device_free(device);
}

static int host_channel(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;

	opts.backend = "auto"; /* not every backend for device memory carries host memory */
	return ranks_run(1, check_host_channel, NULL, &opts);
}

/* ---- what is not there yet ----------------------------------------------------------------- */

static void check_not_yet(struct rank *rank)
{
	static const int zero;
	struct m2n_channel *channel = NULL;
	struct m2n_channel_params params;
	struct job job = device_job;
	int lists[2][JOB_MAX_RANKS];
	struct job_rank jr;
	uint8_t packed[256] = {0};
	size_t used;

	job_channel_params(&job, lists, &params);
	params.memory = M2N_MEMORY_CUDA;
	params.sinks = &zero;
	params.n_sinks = 1;
	expect_status(-ENOTSUP, m2n_channel_create(rank->group, &params, &channel));
	expect_text("sinks");
	params.sinks = NULL;
	params.n_sinks = 0;
	params.placement = M2N_PLACEMENT_EXACT;
	expect_status(-ENOTSUP, m2n_channel_create(rank->group, &params, &channel));
	expect_text("EXACT");
	expect(channel == NULL);
	expect_ok(job_open(&jr, rank, &job));
	expect_ok(job_route(&jr, 0));
	expect_status(-ENOTSUP, m2n_plan_pack(jr.flight[0].plan, packed, sizeof(packed), &used));
	expect_text("CUDA");
	expect_status(-ENOTSUP,
		m2n_plan_unpack(jr.channel, jr.flight[0].plan, packed, sizeof(packed), 0));
	expect_text("CUDA");
	one_round(&jr, 0);
	job_close(&jr);
}

static int not_yet(const struct conf *conf)
{
	return ranks_run(1, check_not_yet, NULL, &conf->opts);
}

/* A context without a device. */
static void check_no_device(struct rank *rank)
{
	struct m2n_channel *channel = NULL;
	struct m2n_channel_params params;
	struct job job = device_job;
	int lists[2][JOB_MAX_RANKS];
	struct m2n_mem *mem = NULL;
	void *base;

	setenv("M2N_CUDA_DEVICE", "none", 1);
	rank->backend = "auto";
	expect_ok(rank_open(rank));
	expect_status(M2N_ERR_BACKEND,
		m2n_mem_alloc_on(rank->ctx, M2N_MEMORY_CUDA, 4096, &mem, &base));
	expect_text("CUDA_DEVICE");
	job_channel_params(&job, lists, &params);
	params.memory = M2N_MEMORY_CUDA;
	expect_status(M2N_ERR_BACKEND, m2n_channel_create(rank->group, &params, &channel));
	expect_text("CUDA_DEVICE");
	expect(!channel && !mem);
	rank->memory = M2N_MEMORY_HOST;
	job_main(rank);
	rank_close(rank);
	setenv("M2N_CUDA_DEVICE", "99", 1);
	expect(rank_open(rank) < 0);
	expect_text("99");
	setenv("M2N_CUDA_DEVICE", "first", 1);
	expect_status(M2N_ERR_OPTION, rank_open(rank));
	expect_text("first");
}

static int no_device(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;
	struct job job = device_job;

	opts.bare = 1;
	return ranks_run(1, check_no_device, &job, &opts);
}

/* ---- what the host may ask ----------------------------------------------------------------- */

static void check_asking(struct rank *rank)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	const struct m2n_batch *batch;
	struct job_rank jr;
	struct m2n_plan_attr attr;

	expect_ok(job_open(&jr, rank, &device_job));
	expect_ok(m2n_plan_wait(jr.flight[1].plan, 0)); /* never routed: nothing to wait for */
	recv.stream = device_stream();
	recv.timeout_ns = 20000000000;
	expect_ok(m2n_dispatch_recv(jr.channel, &recv, &batch));
	expect_status(-EAGAIN, m2n_batch_wait(jr.channel, batch, 0));
	expect_status(-ETIMEDOUT, m2n_batch_wait(jr.channel, batch, 5000000));
	expect_text("round 0");
	expect_status(-EINVAL, m2n_batch_wait(jr.channel, NULL, 0));
	expect_status(-EINVAL, m2n_batch_wait(NULL, batch, 0));
	expect_status(-EINVAL, m2n_plan_wait(NULL, 0));
	expect_status(-EINVAL, m2n_channel_check(NULL));
	expect_ok(job_send(&jr, 0));
	expect_ok(m2n_plan_wait(jr.flight[0].plan, M2N_TIMEOUT_DEFAULT));
	m2n_plan_query(jr.flight[0].plan, &attr);
	expect_equal(attr.n_tokens, jr.n_tokens);
	expect_equal(attr.n_rows, jr.n_tokens * 2);
	expect_ok(m2n_batch_wait(jr.channel, batch, M2N_TIMEOUT_DEFAULT));
	expect_equal(batch->n_rows, jr.n_tokens * 2);
	expect(batch->max_rows >= batch->n_rows);
	device_sync(recv.stream);
	expect_ok(job_answer(&jr, batch));
	expect_ok(job_combine(&jr, 0));
	device_stream_end(recv.stream);
	one_round(&jr, 1);
	job_close(&jr);
}

static int asking(const struct conf *conf)
{
	return ranks_run(1, check_asking, NULL, &conf->opts);
}

/* ---- deadlines ----------------------------------------------------------------------------- */

static const struct job late_job = {
	.name = "late", .n_sources = 2, .n_expert_ranks = 1, .n_experts = 4, .top_k = 2,
	.n_tokens = 12, .row_bytes = 32, .out_row_bytes = 32, .dtype = M2N_DTYPE_BF16, .depth = 3,
	.in_flight = 1, .n_rounds = 12, .seed = 51,
};
#define LATE_ROUND 4
enum { GIVEN_UP };

static void await_loss(struct rank *rank, int peer)
{
	struct m2n_peer_attr attr;

	do {
		(void)m2n_ctx_progress(rank->ctx);
		expect_ok(m2n_group_peer(rank->group, peer, &attr));
	} while (attr.state == M2N_PEER_LIVE);
}

/* Comes too late for LATE_ROUND: the expert rank has dropped it, and its calls end. */
static void come_late(struct rank *rank, struct job_rank *jr)
{
	word_wait(&rank->word[GIVEN_UP], 1);
	jr->tolerant = 1;
	jr->dead = 1;
	jr->timeout_ns = 50000000;
	for (uint32_t round = LATE_ROUND; round < LATE_ROUND + 3; round++) {
		uint64_t before = jr->n_missing + jr->n_dropped;
		int status = job_send(jr, round);

		if (status < 0)
			rank_fail(__FILE__, __LINE__, "send: %s", m2n_error_text());
		status = job_combine(jr, round);
		if (status)
			expect_rank_named(2);
		/* Without a result of this kind its rows had nowhere to go from the start. */
		expect(status == -ETIMEDOUT || jr->n_missing + jr->n_dropped > before);
	}
	await_loss(rank, 2);
}

static void give_up(struct rank *rank, struct job_rank *jr)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	const struct m2n_batch *batch;

	recv.timeout_ns = 2000000000; /* the other source must not be late */
	expect_ok(m2n_dispatch_recv(jr->channel, &recv, &batch));
	expect_status(-ETIMEDOUT, m2n_batch_wait(jr->channel, batch, M2N_TIMEOUT_DEFAULT));
	expect_text("round 4");
	expect_rank_named(1);
	expect_equal(batch->missing[0], 2);
	expect_status(-ETIMEDOUT, m2n_channel_check(jr->channel));
	expect_text("round 4");
	expect_rank_named(1);
	expect_ok(m2n_channel_check(jr->channel)); /* told once */
	jr->tolerant = 1;
	await_loss(rank, 1); /* the device went on; its thread may drop the source later */
	word_set(&rank->word[GIVEN_UP], 1);
	(void)job_answer(jr, batch);
}

static void serve_late(struct rank *rank, struct job_rank *jr)
{
	for (uint32_t round = 0; round < late_job.n_rounds; round++) {
		const struct m2n_batch *batch;
		int status;

		if (round == LATE_ROUND) {
			give_up(rank, jr);
			continue;
		}
		status = job_recv_batch(jr, &batch);
		expect(round < LATE_ROUND ? status == 0 : status >= 0);
		if (round > LATE_ROUND)
			expect_equal(batch->missing[0], 2);
		expect(job_answer(jr, batch) >= 0);
	}
}

static void check_deadlines(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, &late_job));
	if (jr.expert >= 0)
		serve_late(rank, &jr);
	for (uint32_t round = 0; jr.source >= 0 && round < late_job.n_rounds; round++) {
		if (round == LATE_ROUND && jr.source == 1) {
			come_late(rank, &jr);
			break;
		}
		expect_ok(job_send(&jr, round));
		expect_ok(job_combine(&jr, round));
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int deadlines(const struct conf *conf)
{
	return ranks_run(3, check_deadlines, NULL, &conf->opts);
}

/* ---- copies -------------------------------------------------------------------------------- */

static void check_copies(struct rank *rank)
{
	struct m2n_channel_attr attr;
	struct job_rank jr;
	uint64_t before;

	expect_ok(job_open(&jr, rank, rank->arg));
	rank_barrier(rank);
	before = device_foreign_bytes();
	job_rounds(&jr);
	expect_equal(device_foreign_bytes() - before, 0);
	expect_ok(m2n_channel_query(jr.channel, &attr));
	expect_equal(attr.staged_bytes, 0);
	rank_barrier(rank);
	job_close(&jr);
}

static int copies(const struct conf *conf)
{
	struct job job = late_job;
	int result;

	job.n_expert_ranks = 2;
	job.row_bytes = job.out_row_bytes = 4096;
	result = ranks_run(4, check_copies, &job, &conf->opts);
	job.cast = M2N_CAST_BF16_FP8;
	job.scale_bytes = 128;
	job.dedup = job.reduce_at_expert = 1;
	return result ? result : ranks_run(4, check_copies, &job, &conf->opts);
}

/* ---- life of objects ----------------------------------------------------------------------- */

/* Plans and channels end while the device has their work before it. */
static void check_ends(struct rank *rank)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	const struct m2n_batch *batch;
	struct job_rank jr;

	for (int life = 0; life < 4; life++) {
		expect_ok(job_open(&jr, rank, &device_job));
		one_round(&jr, 0);
		expect_ok(job_send(&jr, 1));
		if (life % 2) {
			recv.stream = jr.device->streams[JOB_EXPERT_SIDE][0];
			expect_ok(m2n_dispatch_recv(jr.channel, &recv, &batch));
		}
		for (int i = 0; i < 2; i++) {
			m2n_plan_destroy(jr.flight[i].plan);
			jr.flight[i].plan = NULL;
		}
		m2n_channel_destroy(jr.channel);
		jr.channel = NULL;
		job_close(&jr);
	}
}

static int ends(const struct conf *conf)
{
	return ranks_run(1, check_ends, NULL, &conf->opts);
}

const struct conf_case device_cases[] = {
	{"device: addresses of host memory and of freed memory", 1, addresses, CUDA_MEMORY},
	{"device: its addresses on a channel in host memory", 1, host_channel, CUDA_MEMORY},
	{"device: what is not there yet is refused in words", 1, not_yet, CUDA_MEMORY},
	{"device: none, or one that is not there", 1, no_device, CUDA_MEMORY},
	{"device: what the host may ask", 1, asking, CUDA_MEMORY},
	{"device: a source that is late goes without", 3, deadlines, CUDA_MEMORY},
	{"device: no byte of a row passes through host memory", 4, copies, CUDA_MEMORY},
	{"device: plans and channels that end under work", 1, ends, CUDA_MEMORY},
	{0},
};
