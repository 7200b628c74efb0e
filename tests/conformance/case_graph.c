/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds in a CUDA graph: captured once, launched again and again with other ids, weights, rows
 * and residuals in the same buffers. Experts echo their rows by a copy on the device, so that a
 * whole round of a rank, all four calls, is one graph.
 */
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/device.h"
#include "helpers/job_check.h"
#include "helpers/job_run.h"

#define N_LAUNCHES 20

static const struct job graph_job = {
	.name = "graph", .n_sources = 2, .n_expert_ranks = 2, .classic = 1, .n_experts = 6,
	.top_k = 3, .n_tokens = 18, .row_bytes = 64, .out_row_bytes = 64, .dtype = M2N_DTYPE_BF16,
	.depth = 3, .in_flight = 1, .n_rounds = N_LAUNCHES, .seed = 70, .residual = 1, .echo = 1,
};

/* One rank's buffers for as many rounds as a graph holds, and the graph. */
struct graph {
	struct job_rank jr;
	void *stream;
	void *exec;
	uint32_t n_rounds; /* in the graph */
	struct m2n_plan *plans[4];
	struct {
		int32_t *ids;
		float *weights;
		uint8_t *rows, *residual, *out, *answer;
	} on_device[4];
	size_t answer_bytes;
};

static void fill_round(struct graph *g, uint32_t i, uint32_t round)
{
	struct job_flight *flight = &g->jr.flight[0];
	const struct job *job = g->jr.job;
	size_t n = g->jr.n_tokens;

	for (uint32_t t = 0; t < n; t++) {
		uint32_t token = job_first_token(job, g->jr.source) + t;

		job_ids(job, round, token, flight->ids + (size_t)t * job->top_k);
		job_weights(job, round, token, flight->weights + (size_t)t * job->top_k);
		job_row(job, round, token, flight->rows + t * job->row_bytes);
		job_residual(job, round, token, flight->residual + t * job->row_bytes);
	}
	device_upload(g->on_device[i].ids, flight->ids, n * job->top_k * 4, g->stream);
	device_upload(g->on_device[i].weights, flight->weights, n * job->top_k * 4, g->stream);
	device_upload(g->on_device[i].rows, flight->rows, n * job->row_bytes, g->stream);
	device_upload(g->on_device[i].residual, flight->residual, n * job->row_bytes, g->stream);
	device_sync(g->stream); /* the host's buffers are used again */
}

static void check_round(struct graph *g, uint32_t i, uint32_t round)
{
	const struct job *job = g->jr.job;
	uint8_t want[256];

	expect(job->out_row_bytes <= sizeof(want));
	device_download(g->jr.flight[0].out, g->on_device[i].out,
		g->jr.n_tokens * job->out_row_bytes, g->stream);
	for (uint32_t t = 0; t < g->jr.n_tokens; t++) {
		uint32_t token = job_first_token(job, g->jr.source) + t;

		job_expected(job, round, token, job_pairs(job, round, token), NULL, want);
		if (memcmp(g->jr.flight[0].out + t * job->out_row_bytes, want, job->out_row_bytes))
			rank_fail(__FILE__, __LINE__, "round %u, token %u: wrong output", round,
				token);
	}
	expect_ok(m2n_channel_check(g->jr.channel));
}

static void open_graph(struct graph *g, struct rank *rank, const struct job *job, uint32_t n_rounds)
{
	size_t n;

	memset(g, 0, sizeof(*g));
	expect_ok(job_open(&g->jr, rank, job));
	n = g->jr.n_tokens;
	g->stream = device_stream();
	g->n_rounds = n_rounds;
	g->answer_bytes = (size_t)job->n_tokens * job->top_k * job->row_bytes;
	for (uint32_t i = 0; i < n_rounds; i++) {
		expect_ok(m2n_plan_create(g->jr.channel, &g->plans[i]));
		g->on_device[i].ids = device_alloc(n * job->top_k * 4);
		g->on_device[i].weights = device_alloc(n * job->top_k * 4);
		g->on_device[i].rows = device_alloc(n * job->row_bytes);
		g->on_device[i].residual = device_alloc(n * job->row_bytes);
		g->on_device[i].out = device_alloc(n * job->row_bytes);
		g->on_device[i].answer = device_alloc(g->answer_bytes);
	}
}

static void close_graph(struct graph *g)
{
	if (g->exec)
		device_graph_end(g->exec);
	device_stream_end(g->stream);
	for (uint32_t i = 0; i < g->n_rounds; i++) {
		m2n_plan_destroy(g->plans[i]);
		device_free(g->on_device[i].ids);
		device_free(g->on_device[i].weights);
		device_free(g->on_device[i].rows);
		device_free(g->on_device[i].residual);
		device_free(g->on_device[i].out);
		device_free(g->on_device[i].answer);
	}
	job_close(&g->jr);
}

static void queue_send(struct graph *g, uint32_t i)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;

	route.n_tokens = g->jr.n_tokens;
	route.expert_ids = g->on_device[i].ids;
	route.weights = g->on_device[i].weights;
	route.stream = g->stream;
	expect_ok(m2n_plan_route(g->jr.channel, g->plans[i], &route));
	send.plan = g->plans[i];
	send.rows = g->on_device[i].rows;
	send.stream = g->stream;
	expect_ok(m2n_dispatch_send(g->jr.channel, &send));
}

static void queue_expert(struct graph *g, uint32_t i)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;
	const struct m2n_batch *batch;
	size_t bytes;

	recv.stream = g->stream;
	expect_ok(m2n_dispatch_recv(g->jr.channel, &recv, &batch));
	bytes = batch->max_rows * g->jr.job->row_bytes;
	device_copy(g->on_device[i].answer, batch->rows,
		bytes < g->answer_bytes ? bytes : g->answer_bytes, g->stream);
	answer.batch = batch;
	answer.rows = g->on_device[i].answer;
	answer.stream = g->stream;
	expect_ok(m2n_combine_send(g->jr.channel, &answer));
}

static void queue_combine(struct graph *g, uint32_t i)
{
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;

	combine.plan = g->plans[i];
	combine.residual = g->on_device[i].residual;
	combine.out = g->on_device[i].out;
	combine.stream = g->stream;
	expect_ok(m2n_combine_recv(g->jr.channel, &combine));
}

static void queue_rounds(struct graph *g)
{
	for (uint32_t i = 0; i < g->n_rounds; i++)
		queue_send(g, i);
	for (uint32_t i = 0; i < g->n_rounds && g->jr.expert >= 0; i++)
		queue_expert(g, i);
	for (uint32_t i = 0; i < g->n_rounds; i++)
		queue_combine(g, i);
}

/*
 * A round by calls, then launches; `n` rounds in the graph. The first launch of all is from a
 * graph that was captured when the device had counted rounds already.
 */
static void launch_all(struct rank *rank, uint32_t n_rounds, int n_before)
{
	struct graph g;
	uint32_t round = 0;

	open_graph(&g, rank, rank->arg, n_rounds);
	for (int i = 0; i < n_before; i++) {
		for (uint32_t r = 0; r < n_rounds; r++)
			fill_round(&g, r, round + r);
		queue_rounds(&g);
		for (uint32_t r = 0; r < n_rounds; r++)
			check_round(&g, r, round++);
	}
	device_capture(g.stream, M2N__CU_CAPTURE_MODE_GLOBAL);
	queue_rounds(&g);
	g.exec = device_capture_end(g.stream);
	for (int i = 0; i < N_LAUNCHES; i++) {
		for (uint32_t r = 0; r < n_rounds; r++)
			fill_round(&g, r, round + r);
		device_launch(g.exec, g.stream);
		for (uint32_t r = 0; r < n_rounds; r++)
			check_round(&g, r, round++);
	}
	rank_barrier(rank);
	close_graph(&g);
}

static void check_one(struct rank *rank)
{
	launch_all(rank, 1, 0);
}

static void check_after_calls(struct rank *rank)
{
	launch_all(rank, 1, 2);
}

static void check_three(struct rank *rank)
{
	launch_all(rank, 3, 1);
}

static int one(const struct conf *conf)
{
	struct job job = graph_job;

	return ranks_run(2, check_one, &job, &conf->opts);
}

static int alone(const struct conf *conf)
{
	struct job job = graph_job;

	job.n_sources = job.n_expert_ranks = 1;
	return ranks_run(1, check_one, &job, &conf->opts);
}

static int after_calls(const struct conf *conf)
{
	struct job job = graph_job;

	job.dedup = 1;
	return ranks_run(2, check_after_calls, &job, &conf->opts);
}

static int three(const struct conf *conf)
{
	struct job job = graph_job;

	return ranks_run(2, check_three, &job, &conf->opts);
}

/* What a captured plan came to: after a launch the host may ask for it. */
static void check_numbers(struct rank *rank)
{
	struct m2n_plan_attr attr;
	struct graph g;

	open_graph(&g, rank, rank->arg, 1);
	device_capture(g.stream, M2N__CU_CAPTURE_MODE_GLOBAL);
	queue_rounds(&g);
	g.exec = device_capture_end(g.stream);
	for (uint32_t round = 0; round < 4; round++) {
		uint32_t n_rows = 0;

		fill_round(&g, 0, round);
		for (uint32_t t = 0; t < g.jr.n_tokens; t++)
			n_rows += (uint32_t)__builtin_popcountll(
				job_pairs(g.jr.job, round, t));
		device_launch(g.exec, g.stream);
		device_sync(g.stream);
		expect_ok(m2n_plan_wait(g.plans[0], M2N_TIMEOUT_DEFAULT));
		m2n_plan_query(g.plans[0], &attr);
		expect_equal(attr.n_tokens, g.jr.n_tokens);
		expect_equal(attr.n_rows, n_rows);
		check_round(&g, 0, round);
	}
	close_graph(&g);
}

static int numbers(const struct conf *conf)
{
	struct job job = graph_job;

	job.n_sources = job.n_expert_ranks = 1;
	job.routing = JOB_HOLES;
	return ranks_run(1, check_numbers, &job, &conf->opts);
}

/* A new map: the graph of the old one is captured anew. */
static void check_new_map(struct rank *rank)
{
	const struct job *job = rank->arg;
	struct m2n_map *map;
	struct graph g;
	uint32_t round = 0;

	open_graph(&g, rank, job, 1);
	for (int life = 0; life < 2; life++) {
		if (life == 1) {
			device_graph_end(g.exec);
			expect_ok(job_make_map(job, JOB_MAP_REVERSED, &map));
			expect_ok(m2n_channel_set_map(g.jr.channel, map, round));
			m2n_map_destroy(map);
		}
		device_capture(g.stream, M2N__CU_CAPTURE_MODE_GLOBAL);
		queue_rounds(&g);
		g.exec = device_capture_end(g.stream);
		for (int i = 0; i < 5; i++) {
			fill_round(&g, 0, round);
			device_launch(g.exec, g.stream);
			check_round(&g, 0, round++);
		}
		rank_barrier(rank);
	}
	close_graph(&g);
}

static int new_map(const struct conf *conf)
{
	struct job job = graph_job;

	return ranks_run(2, check_new_map, &job, &conf->opts);
}

/* While one thread captures, set-up goes on in the process, and the capture stays whole. */
static void check_set_up(struct rank *rank)
{
	struct m2n_channel_params params;
	struct m2n_channel *other = NULL;
	struct m2n_plan *plan;
	int lists[2][JOB_MAX_RANKS];
	struct graph g;

	open_graph(&g, rank, rank->arg, 1);
	job_channel_params(rank->arg, lists, &params);
	params.name = "other";
	params.memory = M2N_MEMORY_CUDA;
	device_capture(g.stream, M2N__CU_CAPTURE_MODE_GLOBAL);
	queue_send(&g, 0);
	expect_ok(m2n_channel_create(rank->group, &params, &other));
	expect_ok(m2n_plan_create(other, &plan));
	queue_expert(&g, 0);
	queue_combine(&g, 0);
	g.exec = device_capture_end(g.stream);
	for (uint32_t round = 0; round < 3; round++) {
		fill_round(&g, 0, round);
		device_launch(g.exec, g.stream);
		check_round(&g, 0, round);
	}
	m2n_plan_destroy(plan);
	m2n_channel_destroy(other);
	close_graph(&g);
}

static int set_up(const struct conf *conf)
{
	struct job job = graph_job;

	job.n_sources = job.n_expert_ranks = 1;
	return ranks_run(1, check_set_up, &job, &conf->opts);
}

const struct conf_case graph_cases[] = {
	{"graph: a round captured once, launched 20 times", 2, one, CUDA_MEMORY},
	{"graph: one rank with all roles", 1, alone, CUDA_MEMORY},
	{"graph: captured after rounds by calls, with dedup", 2, after_calls, CUDA_MEMORY},
	{"graph: three rounds in one", 2, three, CUDA_MEMORY},
	{"graph: a captured plan's numbers", 1, numbers, CUDA_MEMORY},
	{"graph: captured anew after a new map", 2, new_map, CUDA_MEMORY},
	{"graph: set-up while a thread captures", 1, set_up, CUDA_MEMORY},
	{0},
};
