/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of a rank. Sources keep one set of buffers for each round in flight; experts compute
 * from the batch's segments and check them, row by row, against what the sources must have sent.
 */
#include "helpers/job_run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "helpers/job_check.h"
#include "helpers/job_device.h"
#include "helpers/leak.h"

void job_channel_params(
	const struct job *job, int lists[2][JOB_MAX_RANKS], struct m2n_channel_params *params)
{
	*params = (struct m2n_channel_params)M2N_CHANNEL_PARAMS_INIT;
	for (int i = 0; i < job->n_sources; i++)
		lists[0][i] = job_source_rank(job, i);
	for (int i = 0; i < job->n_expert_ranks; i++)
		lists[1][i] = job_expert_rank(job, i);
	params->name = "job";
	params->sources = lists[0];
	params->n_sources = (size_t)job->n_sources;
	params->experts = lists[1];
	params->n_expert_ranks = (size_t)job->n_expert_ranks;
	params->n_experts = job->n_experts;
	params->top_k = job->top_k;
	params->max_tokens = job->n_tokens ? job->n_tokens : 1;
	params->row_bytes = job->row_bytes;
	params->scale_bytes = job->scale_bytes;
	params->out_row_bytes = job->out_row_bytes;
	params->dtype = job->dtype;
	params->cast = job->cast;
	params->placement = job->placement;
	params->dedup = job->dedup;
	params->reduce_at_expert = job->reduce_at_expert;
	params->depth = job->depth;
}

int job_make_map(const struct job *job, enum job_map kind, struct m2n_map **map)
{
	static _Thread_local struct job_owners owners;

	*map = NULL;
	if (kind == JOB_MAP_BLOCKS)
		return 0;
	job_owners(job, kind, &owners);
	return m2n_map_create(
		job->n_experts, (uint32_t)job->n_expert_ranks, owners.first, owners.owners, map);
}

static int index_of(const int *list, int n, int rank)
{
	for (int i = 0; i < n; i++) {
		if (list[i] == rank)
			return i;
	}
	return -1;
}

static int open_flight(struct job_rank *jr, struct job_flight *flight)
{
	const struct job *job = jr->job;
	size_t n = jr->n_tokens;
	int status = m2n_plan_create(jr->channel, &flight->plan);

	if (status)
		return status;
	flight->ids = guard_alloc(n * job->top_k * sizeof(*flight->ids));
	flight->weights = guard_alloc(n * job->top_k * sizeof(*flight->weights));
	flight->rows = guard_alloc(n * (job_given_row_bytes(job) + job->pad));
	flight->scales = guard_alloc(n * (job->scale_bytes + job->pad));
	flight->residual = guard_alloc(n * (job->out_row_bytes + job->pad));
	flight->out = guard_alloc(n * (job->out_row_bytes + job->pad));
	flight->missing = guard_alloc(n);
	if (jr->memory == M2N_MEMORY_CUDA)
		return 0;
	if (job->registered && n)
		status = m2n_mem_register(jr->ctx, flight->rows,
			n * (job_given_row_bytes(job) + job->pad), &flight->rows_mem);
	if (!status && job->registered && n && job->scale_bytes)
		status = m2n_mem_register(jr->ctx, flight->scales,
			n * (job->scale_bytes + job->pad), &flight->scales_mem);
	return status;
}

static int switch_map(struct job_rank *jr)
{
	struct m2n_map *map;
	int status;

	if (!jr->job->switch_round)
		return 0;
	status = job_make_map(jr->job, JOB_MAP_REVERSED, &map);
	if (!status)
		status = m2n_channel_set_map(jr->channel, map, jr->job->switch_round);
	m2n_map_destroy(map);
	return status;
}

int job_open(struct job_rank *jr, struct rank *rank, const struct job *job)
{
	struct m2n_channel_params params;
	struct m2n_map *map;
	int lists[2][JOB_MAX_RANKS];
	int status;

	memset(jr, 0, sizeof(*jr));
	jr->job = job;
	jr->ctx = rank->ctx;
	jr->memory = rank->memory;
	jr->timeout_ns = M2N_TIMEOUT_DEFAULT;
	job_channel_params(job, lists, &params);
	jr->source = index_of(lists[0], job->n_sources, rank->rank);
	jr->expert = index_of(lists[1], job->n_expert_ranks, rank->rank);
	jr->n_tokens = jr->source >= 0 ? job_n_tokens(job, jr->source) : 0;
	status = job_make_map(job, job->map, &map);
	params.map = map;
	params.memory = rank->memory;
	if (!status)
		status = m2n_channel_create(rank->group, &params, &jr->channel);
	m2n_map_destroy(map);
	if (!status)
		status = switch_map(jr);
	for (uint32_t i = 0; !status && jr->source >= 0 && i < job->in_flight; i++)
		status = open_flight(jr, &jr->flight[i]);
	if (!status && jr->memory == M2N_MEMORY_CUDA)
		job_device_open(jr);
	return status;
}

void job_close(struct job_rank *jr)
{
	job_device_close(jr);
	for (uint32_t i = 0; i < jr->job->in_flight; i++) {
		struct job_flight *flight = &jr->flight[i];

		m2n_plan_destroy(flight->plan);
		m2n_mem_deregister(flight->rows_mem);
		m2n_mem_deregister(flight->scales_mem);
		guard_free(flight->ids);
		guard_free(flight->weights);
		guard_free(flight->rows);
		guard_free(flight->scales);
		guard_free(flight->residual);
		guard_free(flight->out);
		guard_free(flight->missing);
	}
	m2n_channel_destroy(jr->channel);
	jr->channel = NULL;
}

static void fill_flight(struct job_rank *jr, struct job_flight *flight, uint32_t round)
{
	const struct job *job = jr->job;
	size_t stride = job_given_row_bytes(job) + job->pad;

	flight->round = round;
	for (uint32_t t = 0; t < jr->n_tokens; t++) {
		uint32_t token = job_first_token(job, jr->source) + t;

		job_ids(job, round, token, flight->ids + (size_t)t * job->top_k);
		job_weights(job, round, token, flight->weights + (size_t)t * job->top_k);
		job_row(job, round, token, flight->rows + t * stride);
		if (job->scale_bytes && !job->cast)
			job_scales(job, round, token,
				flight->scales + t * (job->scale_bytes + job->pad));
		job_residual(
			job, round, token, flight->residual + t * (job->out_row_bytes + job->pad));
	}
}

int job_route(struct job_rank *jr, uint32_t round)
{
	struct job_flight *flight = &jr->flight[round % jr->job->in_flight];
	struct m2n_route_params params = M2N_ROUTE_PARAMS_INIT;

	if (jr->memory == M2N_MEMORY_CUDA)
		job_device_reuse(jr, flight);
	fill_flight(jr, flight, round);
	if (jr->memory == M2N_MEMORY_CUDA)
		return job_device_route(jr, flight);
	params.n_tokens = jr->n_tokens;
	params.expert_ids = flight->ids;
	params.weights = jr->job->no_weights ? NULL : flight->weights;
	return m2n_plan_route(jr->channel, flight->plan, &params);
}

int job_send(struct job_rank *jr, uint32_t round)
{
	struct job_flight *flight = &jr->flight[round % jr->job->in_flight];
	struct m2n_dispatch_send_params params = M2N_DISPATCH_SEND_PARAMS_INIT;
	uint64_t started = UINT64_MAX;
	int status = job_route(jr, round);
	int sent;

	if (status < 0 || (status && !jr->tolerant))
		return status;
	params.plan = flight->plan;
	params.rows = flight->rows;
	params.row_stride = jr->job->pad ? job_given_row_bytes(jr->job) + jr->job->pad : 0;
	if (jr->job->scale_bytes && !jr->job->cast)
		params.scales = flight->scales;
	params.scale_stride = jr->job->pad ? jr->job->scale_bytes + jr->job->pad : 0;
	params.timeout_ns = jr->timeout_ns;
	params.round = &started;
	sent = jr->memory == M2N_MEMORY_CUDA ? job_device_send(jr, flight, &params)
					     : m2n_dispatch_send(jr->channel, &params);
	if (sent >= 0)
		expect_equal(started, round);
	return sent ? sent : status;
}

int job_recv_batch(struct job_rank *jr, const struct m2n_batch **batch)
{
	struct m2n_dispatch_recv_params params = M2N_DISPATCH_RECV_PARAMS_INIT;
	int status;

	if (jr->memory == M2N_MEMORY_CUDA)
		return job_device_recv_batch(jr, batch);
	params.timeout_ns = jr->timeout_ns;
	status = m2n_dispatch_recv(jr->channel, &params, batch);
	if (status >= 0 && !jr->tolerant)
		job_check_batch(jr, *batch);
	return status;
}

void job_compute(const struct job *job, const struct m2n_batch *batch, uint8_t *rows, size_t stride)
{
	for (uint32_t i = 0; i < batch->n_segments; i++) {
		const struct m2n_segment *segment = &batch->segments[i];

		for (uint32_t r = 0; r < segment->n_rows; r++) {
			const uint8_t *row, *scales;

			job_batch_row(job, segment, r, &row, &scales);
			job_expert(job, segment->expert, row, scales,
				rows + (segment->first_row + r) * stride);
		}
	}
}

/* Rows of every other source into the sink's memory, where that can be; a bitmap of 64 sources. */
static uint64_t place_rows(
	struct job_rank *jr, const struct m2n_batch *batch, uint8_t *rows, size_t stride)
{
	size_t bytes = jr->job->out_row_bytes;
	uint64_t placed = 0;

	if (jr->job->n_sources > 256)
		return 0;
	for (uint32_t source = 0; source < (uint32_t)jr->job->n_sources && source < 64; source++) {
		uint8_t *place = (batch->round + source) % 2
					 ? m2n_reply_place(jr->channel, batch, source)
					 : NULL;

		if (!place)
			continue;
		placed |= UINT64_C(1) << source;
		for (uint32_t i = 0; i < batch->n_segments; i++) {
			const struct m2n_segment *s = &batch->segments[i];

			for (uint32_t r = 0; s->source == source && r < s->n_rows; r++) {
				uint8_t *row = rows + (s->first_row + r) * stride;

				memcpy(place, row, bytes);
				place += bytes;
				memset(row, 0x5a, bytes); /* is not to be read */
			}
		}
	}
	return placed;
}

int job_answer(struct job_rank *jr, const struct m2n_batch *batch)
{
	struct m2n_combine_send_params params = M2N_COMBINE_SEND_PARAMS_INIT;
	const struct job *job = jr->job;
	size_t stride = job->out_row_bytes + job->pad;
	uint64_t placed[4] = {0};
	struct m2n_mem *mem = NULL;
	uint8_t *rows;
	int status;

	if (jr->memory == M2N_MEMORY_CUDA)
		return job_device_answer(jr, batch);
	rows = guard_alloc(batch->n_rows * stride);
	if (job->registered && batch->n_rows)
		expect_ok(m2n_mem_register(jr->ctx, rows, batch->n_rows * stride, &mem));
	job_compute(job, batch, rows, stride);
	placed[0] = place_rows(jr, batch, rows, stride);
	params.in_place = placed[0] ? placed : NULL;
	params.batch = batch;
	params.rows = rows;
	params.row_stride = job->pad ? stride : 0;
	params.timeout_ns = jr->timeout_ns;
	status = m2n_combine_send(jr->channel, &params);
	if (status >= 0) {
		int waited = m2n_reply_wait(jr->channel, M2N_TIMEOUT_DEFAULT);

		status = waited ? waited : status;
	}
	m2n_mem_deregister(mem);
	guard_free(rows);
	return status;
}

int job_serve(struct job_rank *jr)
{
	const struct m2n_batch *batch;
	int status = job_recv_batch(jr, &batch);
	int answered;

	if (status < 0)
		return status;
	answered = job_answer(jr, batch);
	return answered ? answered : status;
}

int job_combine(struct job_rank *jr, uint32_t round)
{
	struct job_flight *flight = &jr->flight[round % jr->job->in_flight];
	struct m2n_combine_recv_params params = M2N_COMBINE_RECV_PARAMS_INIT;
	const struct job *job = jr->job;
	int status;

	params.round = round % 2 ? round : M2N_ROUND_NEXT; /* both mean the oldest */
	params.plan = flight->plan;
	params.residual = job->residual ? flight->residual : NULL;
	params.residual_stride = job->pad ? job->out_row_bytes + job->pad : 0;
	params.out = flight->out;
	params.out_stride = job->pad ? job->out_row_bytes + job->pad : 0;
	params.missing = flight->missing;
	params.timeout_ns = jr->timeout_ns;
	status = jr->memory == M2N_MEMORY_CUDA ? job_device_combine(jr, flight, &params)
					       : m2n_combine_recv(jr->channel, &params);
	if (status >= 0)
		job_check_out(jr, flight);
	return status;
}

/* Answers the `n` batches that are held, the newest first when the job says so. */
static void serve_many(struct job_rank *jr, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		expect_ok(job_recv_batch(jr, &jr->held[i]));
	for (uint32_t i = 0; i < n; i++)
		expect_ok(job_answer(jr, jr->held[jr->job->out_of_order ? n - 1 - i : i]));
}

static void share_out(struct job_rank *jr, struct rank *rank, uint32_t round)
{
	const struct job *job = jr->job;
	struct job_flight *flight = &jr->flight[round % job->in_flight];
	uint8_t *to = (uint8_t *)rank->shared +
		      ((size_t)round * job->n_tokens + job_first_token(job, jr->source)) *
			      job->out_row_bytes;

	for (uint32_t t = 0; t < jr->n_tokens; t++)
		memcpy(to + t * job->out_row_bytes,
			flight->out + t * (job->out_row_bytes + job->pad), job->out_row_bytes);
}

/* In groups of `in_flight` rounds: all sent, all received, all answered, all combined. */
static void rounds_in_groups(struct job_rank *jr, struct rank *rank)
{
	uint32_t n;

	for (uint32_t first = 0; first < jr->job->n_rounds; first += n) {
		n = jr->job->n_rounds - first;
		n = n < jr->job->in_flight ? n : jr->job->in_flight;
		for (uint32_t i = 0; jr->source >= 0 && i < n; i++)
			expect_ok(job_send(jr, first + i));
		if (jr->expert >= 0)
			serve_many(jr, n);
		for (uint32_t i = 0; jr->source >= 0 && i < n; i++) {
			expect_ok(job_combine(jr, first + i));
			if (rank)
				share_out(jr, rank, first + i);
		}
	}
}

/* A window of `in_flight` rounds that moves on by one. */
static void rounds_in_window(struct job_rank *jr, struct rank *rank)
{
	uint32_t sent = 0;

	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		for (; jr->source >= 0 && sent < jr->job->n_rounds &&
			sent < round + jr->job->in_flight;
			sent++)
			expect_ok(job_send(jr, sent));
		if (jr->expert >= 0)
			expect_ok(job_serve(jr));
		if (jr->source < 0)
			continue;
		expect_ok(job_combine(jr, round));
		if (rank)
			share_out(jr, rank, round);
	}
}

static void run_rounds(struct job_rank *jr, struct rank *rank)
{
	if (jr->job->out_of_order)
		rounds_in_groups(jr, rank);
	else
		rounds_in_window(jr, rank);
}

void job_rounds(struct job_rank *jr)
{
	run_rounds(jr, NULL);
}

void job_main(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	run_rounds(&jr, rank->shared ? rank : NULL);
	rank_barrier(rank); /* who leaves early is lost to those who still answer others */
	job_close(&jr);
}

/* A job that channels in CUDA memory do not carry yet: refused, and the group is as before. */
static void refused(struct rank *rank)
{
	struct job *job = rank->arg;
	struct job_rank jr;

	expect_status(-ENOTSUP, job_open(&jr, rank, job));
	expect_text("EXACT");
	expect(jr.channel == NULL);
	rank_barrier(rank);
	job_close(&jr);
	job->placement = M2N_PLACEMENT_SLOT;
	expect_ok(job_open(&jr, rank, job));
	rank_barrier(rank);
	job_close(&jr);
}

size_t job_shared_bytes(const struct job *job)
{
	return (size_t)job->n_rounds * job->n_tokens * job->out_row_bytes + 1;
}

int job_run(const struct job *job, const struct ranks_opts *opts, uint64_t *digest)
{
	struct ranks_opts with_shared = *opts;
	struct job copy = *job;
	void *outputs;
	int result;

	if (opts->memory == M2N_MEMORY_CUDA && job->placement == M2N_PLACEMENT_EXACT) {
		if (digest)
			*digest = 0;
		return ranks_run(job_n_ranks(job), refused, &copy, opts);
	}
	with_shared.shared_bytes = job_shared_bytes(job);
	outputs = calloc(1, with_shared.shared_bytes);
	if (!outputs)
		abort();
	result = ranks_run_shared(job_n_ranks(job), job_main, &copy, &with_shared, outputs);
	if (digest)
		*digest = job_digest(outputs, with_shared.shared_bytes - 1);
	free(outputs);
	return result;
}
