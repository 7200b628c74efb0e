/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job's steps on streams. Buffers are made before the first round: freeing device memory waits
 * for the whole device, also for a wait of a peer that lives in this process. Streams of the two
 * sides are apart, since a wait on one side may need work of the other.
 */
#include "helpers/job_device.h"

#include <stdlib.h>
#include <string.h>

#include "helpers/device.h"
#include "helpers/job_check.h"
#include "helpers/leak.h"

#define SPOILT 0xf9 /* ids of this are out of range, weights and rows absurd */

static uint64_t pick(struct job_rank *jr, enum job_side side)
{
	uint64_t n = jr->device->n_picks[side]++;

	return job_random(jr->job->seed + 99, (uint64_t)(jr->source * 64 + jr->expert), side, n);
}

static void *pick_stream(struct job_rank *jr, enum job_side side)
{
	return jr->device->streams[side][pick(jr, side) % JOB_STREAMS];
}

static size_t given_stride(const struct job *job)
{
	return job_given_row_bytes(job) + job->pad;
}

static size_t out_stride(const struct job *job)
{
	return job->out_row_bytes + job->pad;
}

static void open_stage(struct job_rank *jr, struct job_stage *stage)
{
	const struct job *job = jr->job;
	size_t n = jr->n_tokens;

	stage->ids = device_alloc(n * job->top_k * sizeof(*stage->ids));
	stage->weights = device_alloc(n * job->top_k * sizeof(*stage->weights));
	stage->rows = device_alloc(n * given_stride(job));
	stage->scales = device_alloc(n * (job->scale_bytes + job->pad));
	stage->residual = device_alloc(n * out_stride(job));
	stage->out = device_alloc(n * out_stride(job));
	stage->missing = device_alloc(n);
	if (job->registered && n)
		expect_ok(m2n_mem_register(
			jr->ctx, stage->rows, n * given_stride(job), &stage->rows_mem));
	if (job->registered && n && job->scale_bytes)
		expect_ok(m2n_mem_register(jr->ctx, stage->scales,
			n * (job->scale_bytes + job->pad), &stage->scales_mem));
}

static void close_stage(struct job_stage *stage)
{
	m2n_mem_deregister(stage->rows_mem);
	m2n_mem_deregister(stage->scales_mem);
	device_free(stage->ids);
	device_free(stage->weights);
	device_free(stage->rows);
	device_free(stage->scales);
	device_free(stage->residual);
	device_free(stage->out);
	device_free(stage->missing);
}

static void open_view(struct job_rank *jr, struct job_view *view)
{
	const struct job *job = jr->job;
	size_t n_cells = (size_t)job->n_experts * (size_t)job->n_sources;

	view->segments = malloc(n_cells * sizeof(*view->segments));
	view->counts = malloc((2 * (size_t)job->n_experts + 1) * sizeof(*view->counts));
	view->rows = malloc(jr->device->max_rows * job->row_bytes + 1);
	view->scales = malloc(jr->device->max_rows * job->scale_bytes + 1);
	if (!view->segments || !view->counts || !view->rows || !view->scales)
		abort();
	view->answer = device_alloc(jr->device->max_rows * out_stride(job));
}

static void close_view(struct job_view *view)
{
	free(view->segments);
	free(view->counts);
	free(view->rows);
	free(view->scales);
	device_free(view->answer);
	guard_free(view->answer_from);
}

void job_device_open(struct job_rank *jr)
{
	const struct job *job = jr->job;
	struct job_device *device = calloc(1, sizeof(*device));

	if (!device)
		abort();
	jr->device = device;
	device->max_rows = (size_t)job->n_tokens * job->top_k;
	for (int i = 0; i < JOB_N_SIDES * JOB_STREAMS; i++)
		device->streams[i / JOB_STREAMS][i % JOB_STREAMS] = device_stream();
	for (uint32_t i = 0; jr->source >= 0 && i < job->in_flight; i++)
		open_stage(jr, &device->stages[i]);
	for (uint32_t i = 0; jr->expert >= 0 && i < job->depth; i++)
		open_view(jr, &device->views[i]);
	device->foreign_bytes = device_foreign_bytes();
}

void job_device_settle(struct job_rank *jr)
{
	for (int i = 0; jr->device && i < JOB_N_SIDES * JOB_STREAMS; i++)
		device_sync(jr->device->streams[i / JOB_STREAMS][i % JOB_STREAMS]);
}

void job_device_close(struct job_rank *jr)
{
	struct job_device *device = jr->device;

	if (!device)
		return;
	job_device_settle(jr);
	for (int i = 0; i < JOB_N_SIDES * JOB_STREAMS; i++)
		device_stream_end(device->streams[i / JOB_STREAMS][i % JOB_STREAMS]);
	for (uint32_t i = 0; i < jr->job->in_flight; i++)
		close_stage(&device->stages[i]);
	for (uint32_t i = 0; i < jr->job->depth; i++)
		close_view(&device->views[i]);
	free(device);
	jr->device = NULL;
}

static struct job_stage *stage_of(struct job_rank *jr, const struct job_flight *flight)
{
	return &jr->device->stages[flight - jr->flight];
}

/* The worse of what a call said and what the device says by now. */
static int with_check(struct job_rank *jr, int status)
{
	int checked = status < 0 ? 0 : m2n_channel_check(jr->channel);

	return checked ? checked : status;
}

void job_device_reuse(struct job_rank *jr, struct job_flight *flight)
{
	struct job_stage *stage = stage_of(jr, flight);

	if (stage->routed)
		device_sync(stage->routed);
	if (stage->sent)
		device_sync(stage->sent);
	stage->routed = stage->sent = NULL;
}

int job_device_route(struct job_rank *jr, struct job_flight *flight)
{
	struct m2n_route_params params = M2N_ROUTE_PARAMS_INIT;
	struct job_stage *stage = stage_of(jr, flight);
	void *stream = pick_stream(jr, JOB_SOURCE_SIDE);
	size_t n_pairs = (size_t)jr->n_tokens * jr->job->top_k;
	int status;

	stage->routed = stream;
	device_upload(stage->ids, flight->ids, n_pairs * sizeof(*stage->ids), stream);
	device_upload(stage->weights, flight->weights, n_pairs * sizeof(*stage->weights), stream);
	params.n_tokens = jr->n_tokens;
	params.expert_ids = stage->ids;
	params.weights = jr->job->no_weights ? NULL : stage->weights;
	params.stream = stream;
	status = m2n_plan_route(jr->channel, flight->plan, &params);
	device_fill(stage->ids, SPOILT, n_pairs * sizeof(*stage->ids), stream);
	device_fill(stage->weights, SPOILT, n_pairs * sizeof(*stage->weights), stream);
	if (status < 0 || pick(jr, JOB_SOURCE_SIDE) % 2)
		return status;
	return m2n_plan_wait(flight->plan, M2N_TIMEOUT_DEFAULT);
}

int job_device_send(
	struct job_rank *jr, struct job_flight *flight, struct m2n_dispatch_send_params *params)
{
	struct job_stage *stage = stage_of(jr, flight);
	void *stream = pick_stream(jr, JOB_SOURCE_SIDE);
	size_t bytes = jr->n_tokens * given_stride(jr->job);
	size_t scale_bytes = jr->n_tokens * (jr->job->scale_bytes + jr->job->pad);
	int status;

	stage->sent = stream;
	device_upload(stage->rows, flight->rows, bytes, stream);
	device_upload(stage->scales, flight->scales, scale_bytes, stream);
	params->rows = stage->rows;
	params->scales = params->scales ? stage->scales : NULL;
	params->stream = stream;
	status = m2n_dispatch_send(jr->channel, params);
	device_fill(stage->rows, SPOILT, bytes, stream);
	device_fill(stage->scales, SPOILT, scale_bytes, stream);
	return status;
}

/* What the library told the host: rows and segments of the batch, moved to host memory. */
static void view_told(struct job_rank *jr, struct job_view *view)
{
	const struct m2n_batch *batch = view->batch;
	const struct job *job = jr->job;

	expect(batch->n_segments <= job->n_experts * (uint32_t)job->n_sources);
	for (uint32_t i = 0; i < batch->n_segments; i++) {
		struct m2n_segment *segment = &view->segments[i];
		size_t first;

		*segment = batch->segments[i];
		first = segment->first_row;
		expect((const uint8_t *)segment->rows ==
			(const uint8_t *)batch->rows + first * job->row_bytes);
		if (job->scale_bytes)
			expect((const uint8_t *)segment->scales ==
				(const uint8_t *)batch->scales + first * job->scale_bytes);
	}
	view->host = *batch;
}

/* What is behind the device addresses of the batch; the host was told nothing. */
static void view_read(struct job_rank *jr, struct job_view *view, void *stream)
{
	const struct m2n_batch *batch = view->batch;
	uint32_t n_local = batch->n_local_experts;
	uint32_t *first = view->counts + n_local;

	expect(n_local <= jr->job->n_experts);
	device_download(view->counts, batch->device_expert_rows, n_local * 4, stream);
	device_download(first, batch->device_expert_first, (n_local + 1) * 4, stream);
	view->host = *batch;
	view->host.n_rows = first[n_local];
	view->host.expert_rows = view->counts;
	view->host.n_segments = job_predict_segments(jr, batch->round, view->segments);
	expect_equal(first[0], 0);
	for (uint32_t i = 0; i < n_local; i++)
		expect_equal(first[i + 1], first[i] + view->counts[i]);
}

/* The rows of a view's batch to the host; the stream has received it. */
static void fetch_view(struct job_rank *jr, struct job_view *view, void *stream)
{
	const struct job *job = jr->job;
	static const uint64_t none[RANKS_MAX / 64 + 1];
	struct m2n_batch *host = &view->host;

	expect(host->n_rows <= view->batch->max_rows && host->n_rows <= jr->device->max_rows);
	device_download(view->rows, view->batch->rows, host->n_rows * job->row_bytes, stream);
	if (job->scale_bytes)
		device_download(view->scales, view->batch->scales,
			host->n_rows * job->scale_bytes, stream);
	for (uint32_t i = 0; i < host->n_segments; i++) {
		struct m2n_segment *segment = &view->segments[i];

		segment->rows = view->rows + segment->first_row * job->row_bytes;
		segment->scales = job->scale_bytes
					  ? view->scales + segment->first_row * job->scale_bytes
					  : NULL;
	}
	host->segments = view->segments;
	host->rows = view->rows;
	host->scales = view->scales;
	if (!host->missing)
		host->missing = none;
}

/* NULL: none. A batch of NULL finds a view that is not in use. */
static struct job_view *view_of(struct job_rank *jr, const struct m2n_batch *batch)
{
	for (uint32_t i = 0; i < jr->job->depth; i++) {
		if (jr->device->views[i].batch == batch)
			return &jr->device->views[i];
	}
	return NULL;
}

int job_device_recv_batch(struct job_rank *jr, const struct m2n_batch **batch)
{
	struct m2n_dispatch_recv_params params = M2N_DISPATCH_RECV_PARAMS_INIT;
	void *stream = pick_stream(jr, JOB_EXPERT_SIDE);
	struct job_view *view;
	int asks = jr->tolerant || pick(jr, JOB_EXPERT_SIDE) % 2;
	int status;

	params.timeout_ns = jr->timeout_ns;
	params.stream = stream;
	status = m2n_dispatch_recv(jr->channel, &params, batch);
	if (status < 0)
		return status;
	view = view_of(jr, NULL);
	expect(view != NULL);
	view->batch = *batch;
	if (asks) {
		status = m2n_batch_wait(jr->channel, *batch, M2N_TIMEOUT_DEFAULT);
		if (status < 0)
			return status;
		view_told(jr, view);
	} else {
		device_sync(stream);
		view_read(jr, view, stream);
	}
	fetch_view(jr, view, stream);
	if (!jr->tolerant)
		job_check_batch(jr, &view->host);
	return status;
}

const struct m2n_batch *job_device_look(struct job_rank *jr, const struct m2n_batch *batch)
{
	struct job_view *view;
	int status;

	if (jr->memory == M2N_MEMORY_HOST)
		return batch;
	status = m2n_batch_wait(jr->channel, batch, M2N_TIMEOUT_DEFAULT);
	if (!jr->tolerant)
		expect_ok(status);
	view = view_of(jr, NULL);
	expect(view != NULL);
	view->batch = batch;
	view_told(jr, view);
	fetch_view(jr, view, NULL);
	return &view->host;
}

void job_device_unlook(struct job_rank *jr, const struct m2n_batch *batch)
{
	if (jr->memory == M2N_MEMORY_CUDA)
		view_of(jr, batch)->batch = NULL;
}

int job_device_answer(struct job_rank *jr, const struct m2n_batch *batch)
{
	struct m2n_combine_send_params params = M2N_COMBINE_SEND_PARAMS_INIT;
	void *stream = pick_stream(jr, JOB_EXPERT_SIDE);
	struct job_view *view = view_of(jr, batch);
	size_t bytes;
	int status;

	if (!view) {
		job_device_look(jr, batch);
		view = view_of(jr, batch);
	}
	bytes = view->host.n_rows * out_stride(jr->job);
	if (view->stream)
		device_sync(view->stream);
	guard_free(view->answer_from);
	view->answer_from = guard_alloc(bytes);
	job_compute(jr->job, &view->host, view->answer_from, out_stride(jr->job));
	device_upload(view->answer, view->answer_from, bytes, stream);
	params.batch = batch;
	params.rows = view->answer;
	params.row_stride = jr->job->pad ? out_stride(jr->job) : 0;
	params.stream = stream;
	params.timeout_ns = jr->timeout_ns;
	status = m2n_combine_send(jr->channel, &params);
	device_fill(view->answer, SPOILT, bytes, stream);
	view->stream = stream;
	if (status >= 0)
		view->batch = NULL;
	return with_check(jr, status);
}

int job_device_combine(
	struct job_rank *jr, struct job_flight *flight, struct m2n_combine_recv_params *params)
{
	struct job_stage *stage = stage_of(jr, flight);
	void *stream = pick_stream(jr, JOB_SOURCE_SIDE);
	size_t bytes = jr->n_tokens * out_stride(jr->job);
	int status, routed;

	device_upload(stage->residual, flight->residual, bytes, stream);
	params->residual = params->residual ? stage->residual : NULL;
	params->out = stage->out;
	params->missing = stage->missing;
	params->stream = stream;
	status = m2n_combine_recv(jr->channel, params);
	if (status < 0)
		return status;
	device_fill(stage->residual, SPOILT, bytes, stream);
	device_download(flight->out, stage->out, bytes, stream);
	device_download(flight->missing, stage->missing, jr->n_tokens, stream);
	routed = m2n_plan_wait(flight->plan, M2N_TIMEOUT_DEFAULT);
	if (routed < 0)
		return routed;
	return with_check(jr, status);
}
