/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds in CUDA memory. Ranks route, meet, and then each queues all its calls of a round at once,
 * without looking at the device in between: a rank that is source and expert sends, receives,
 * answers and sums on one stream. Outputs lie ready, as an expert's kernels would have left them.
 * Yardsticks run in the same places: one copy on the device of half the bytes that the round has
 * to read and write, and the exchange by NCCL.
 */
#include "moe_gpu.h"

#include <stdlib.h>
#include <string.h>

static void stamp(struct moe_gpu *g, enum moe_gpu_case n_case, unsigned series, int64_t iter,
	int64_t start, int64_t end)
{
	struct page_stamp *at = moe_stamp(g->moe, (enum moe_case)n_case, series, iter);

	at->start = start;
	at->end = end;
}

/* A duration: those of all ranks begin together, so that the longest is the sample. */
static void stamp_ns(
	struct moe_gpu *g, enum moe_gpu_case n_case, unsigned series, int64_t iter, double ns)
{
	stamp(g, n_case, series, iter, 1, 1 + (int64_t)ns);
}

static void check(struct moe_gpu *g, int status, const char *what)
{
	perf_rank_check(g->moe->rank, status, what);
}

static void load_variant(struct moe_gpu *g, uint32_t variant)
{
	const struct perf_routing *routing = g->moe->routing;
	uint32_t source = (uint32_t)g->moe->rank->source;
	size_t n = (size_t)*perf_routing_tokens(routing, variant, source) * routing->top_k;

	if (g->variant == variant)
		return;
	check(g,
		perf_gpu_upload(&g->gpu, g->ids, perf_routing_ids(routing, variant, source),
			n * sizeof(int32_t)),
		"ids");
	check(g,
		perf_gpu_upload(&g->gpu, g->weights, perf_routing_weights(routing, variant, source),
			n * sizeof(float)),
		"weights");
	g->variant = variant;
}

void moe_gpu_route(struct moe_gpu *g, uint32_t variant, int64_t iter)
{
	struct moe *moe = g->moe;
	struct m2n_route_params params = M2N_ROUTE_PARAMS_INIT;
	double us = 0;

	if (moe->rank->source < 0)
		return;
	load_variant(g, variant);
	params.n_tokens = *perf_routing_tokens(moe->routing, variant, (uint32_t)moe->rank->source);
	params.expert_ids = g->ids;
	params.weights = g->weights;
	params.stream = g->gpu.stream;
	check(g, perf_gpu_record(&g->gpu, g->gpu.begin), "event");
	check(g, m2n_plan_route(moe->channel, moe->plan, &params), "m2n_plan_route");
	check(g, perf_gpu_record(&g->gpu, g->gpu.end), "event");
	check(g, m2n_plan_wait(moe->plan, M2N_TIMEOUT_DEFAULT), "m2n_plan_wait");
	check(g, perf_gpu_sync(&g->gpu), "m2n_plan_route");
	check(g, perf_gpu_elapsed(&g->gpu, g->gpu.begin, g->gpu.end, &us), "event");
	stamp_ns(g, MOE_GPU_PLAN, 0, iter, 1000 * us);
}

static void send_rows(struct moe_gpu *g)
{
	struct m2n_dispatch_send_params params = M2N_DISPATCH_SEND_PARAMS_INIT;

	params.plan = g->moe->plan;
	params.rows = g->rows;
	params.stream = g->gpu.stream;
	check(g, m2n_dispatch_send(g->moe->channel, &params), "m2n_dispatch_send");
}

static void answer(struct moe_gpu *g, bool look)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_combine_send_params send = M2N_COMBINE_SEND_PARAMS_INIT;
	const struct m2n_batch *batch = NULL;

	recv.stream = send.stream = g->gpu.stream;
	check(g, m2n_dispatch_recv(g->moe->channel, &recv, &batch), "m2n_dispatch_recv");
	if (look)
		check(g, m2n_batch_wait(g->moe->channel, batch, M2N_TIMEOUT_DEFAULT),
			"m2n_batch_wait");
	g->batch_rows = batch->rows;
	g->batch_scales = batch->scales;
	send.batch = batch;
	send.rows = g->outputs;
	check(g, m2n_combine_send(g->moe->channel, &send), "m2n_combine_send");
}

static void receive_sums(struct moe_gpu *g)
{
	struct m2n_combine_recv_params params = M2N_COMBINE_RECV_PARAMS_INIT;

	params.plan = g->moe->plan;
	params.out = g->out;
	params.stream = g->gpu.stream;
	check(g, m2n_combine_recv(g->moe->channel, &params), "m2n_combine_recv");
}

static void call_round(struct moe_gpu *g, bool look)
{
	const struct perf_rank *rank = g->moe->rank;

	if (rank->source >= 0)
		send_rows(g);
	if (rank->expert >= 0)
		answer(g, look);
	if (rank->source >= 0)
		receive_sums(g);
}

void moe_gpu_round(struct moe_gpu *g, bool look)
{
	if (g->exec == NULL) {
		call_round(g, look);
		return;
	}
	m2n__cu_result result = g->gpu.cu->graph_launch(g->exec, g->gpu.stream);
	if (result != M2N__CU_SUCCESS)
		check(g, m2n__cuda_error(g->gpu.cuda, result, "cuGraphLaunch"), "graph");
}

void moe_gpu_finish(struct moe_gpu *g)
{
	check(g, perf_gpu_sync(&g->gpu), "round");
	check(g, m2n_channel_check(g->moe->channel), "m2n_channel_check");
}

/* A round as a graph; nothing is in flight then. */
static void capture(struct moe_gpu *g)
{
	void *exec = NULL;

	perf_rank_barrier(g->moe->rank);
	check(g, perf_gpu_capture_begin(&g->gpu), "capture");
	call_round(g, false);
	check(g, perf_gpu_capture_end(&g->gpu, &exec), "capture");
	g->exec = exec;
	perf_rank_barrier(g->moe->rank);
}

static void run_series(struct moe_gpu *g, unsigned series, int64_t iter)
{
	switch (g->moe->rank->job->kinds[series]) {
	case PERF_MEMCPY:
		check(g, perf_gpu_copy(&g->gpu, g->copy_to, g->copy_from, g->copy_bytes), "copy");
		break;
	case PERF_NCCL:
		moe_nccl_step(g, moe_variant(g->moe, iter));
		break;
	default:
		moe_gpu_round(g, false);
	}
}

static void step(void *arg, unsigned series, int64_t iter)
{
	struct moe_gpu *g = arg;
	bool ours = g->moe->rank->job->kinds[series] == PERF_OURS;
	double us = 0;

	if (ours)
		moe_gpu_route(g, moe_variant(g->moe, iter), iter);
	perf_rank_barrier(g->moe->rank);
	int64_t start = perf_now();
	check(g, perf_gpu_record(&g->gpu, g->gpu.begin), "event");
	int64_t first = perf_now();
	run_series(g, series, iter);
	int64_t last = perf_now();
	check(g, perf_gpu_record(&g->gpu, g->gpu.end), "event");
	check(g, perf_gpu_sync(&g->gpu), "round");
	stamp(g, MOE_GPU_ROUND_TRIP, series, iter, start, perf_now());
	check(g, perf_gpu_elapsed(&g->gpu, g->gpu.begin, g->gpu.end, &us), "event");
	stamp_ns(g, MOE_GPU_DEVICE, series, iter, 1000 * us);
	stamp_ns(g, MOE_GPU_HOST, series, iter, (double)(last - first));
	if (ours)
		check(g, m2n_channel_check(g->moe->channel), "m2n_channel_check");
}

uint64_t moe_gpu_moved(const struct perf_args *args, const struct perf_routing *routing,
	uint32_t variant, int source, int expert, bool unpack)
{
	uint64_t row = args->row_bytes, out = perf_out_row_bytes(args), bytes = 0;

	if (source >= 0) {
		uint64_t n_tokens = *perf_routing_tokens(routing, variant, (uint32_t)source);
		uint64_t n_rows = perf_routing_rows(routing, variant, source, -1);
		bytes += (n_tokens + n_rows) * (row + out);
	}
	if (expert >= 0) {
		uint64_t n_rows = perf_routing_rows(routing, variant, -1, expert);
		bytes += 2 * n_rows * (out + (unpack ? row : 0));
	}
	return bytes;
}

static void alloc(struct moe_gpu *g, size_t bytes, void *at)
{
	void *base = NULL;

	check(g, perf_gpu_alloc(&g->gpu, bytes, &base), "device memory");
	memcpy(at, &base, sizeof(base));
}

/* The host's side, where data are made and looked at. */
static char *shadow(struct moe_gpu *g, size_t bytes)
{
	char *base = calloc(bytes > 0 ? bytes : 1, 1);

	if (base == NULL)
		perf_rank_fail(g->moe->rank, 0, "no memory for the data check");
	return base;
}

static void open_source(struct moe_gpu *g)
{
	struct moe *moe = g->moe;
	size_t n = moe->routing->max_tokens, pairs = n * moe->routing->top_k;

	check(g, m2n_plan_create(moe->channel, &moe->plan), "m2n_plan_create");
	alloc(g, pairs * sizeof(int32_t), &g->ids);
	alloc(g, pairs * sizeof(float), &g->weights);
	alloc(g, n * moe->in_row_bytes, &g->rows);
	alloc(g, n * moe->out_row_bytes, &g->out);
	moe->rows = shadow(g, n * moe->in_row_bytes);
	moe->out = shadow(g, n * moe->out_row_bytes);
	check(g, perf_gpu_upload(&g->gpu, g->rows, moe->rows, n * moe->in_row_bytes), "rows");
	perf_rank_note_backend(moe->rank, moe->args->classic
						  ? (int)(moe->rank->rank + 1) % moe->rank->n_ranks
						  : (int)moe->args->n_sources);
}

static void open_expert(struct moe_gpu *g)
{
	struct moe *moe = g->moe;

	for (uint32_t v = 0; v < moe->routing->n_variants; v++) {
		uint64_t n = perf_routing_rows(moe->routing, v, -1, moe->rank->expert);
		if (n > moe->max_rows)
			moe->max_rows = (uint32_t)n;
	}
	alloc(g, moe->max_rows * moe->out_row_bytes, &g->outputs);
	moe->outputs = shadow(g, moe->max_rows * moe->out_row_bytes);
	check(g,
		perf_gpu_upload(
			&g->gpu, g->outputs, moe->outputs, moe->max_rows * moe->out_row_bytes),
		"outputs");
	if (moe->rank->source < 0)
		perf_rank_note_backend(moe->rank, 0);
}

static void open_yardsticks(struct moe_gpu *g)
{
	const struct perf_rank *rank = g->moe->rank;

	if (perf_job_has(rank->job, PERF_MEMCPY)) {
		g->copy_bytes = moe_gpu_moved(g->moe->args, g->moe->routing, 0, rank->source,
					rank->expert, false) /
				2;
		alloc(g, g->copy_bytes, &g->copy_from);
		alloc(g, g->copy_bytes, &g->copy_to);
	}
	if (perf_job_has(rank->job, PERF_NCCL))
		moe_nccl_open(g);
}

static void open_all(struct moe_gpu *g)
{
	struct moe *moe = g->moe;
	struct m2n_channel_params params;
	int ordinal = 0;

	check(g, perf_gpu_of(moe->rank->ctx, &ordinal), "CUDA device");
	check(g, perf_gpu_open(ordinal, &g->gpu), "CUDA device");
	moe_channel_params(moe->args, moe->routing, &params);
	check(g, m2n_channel_create(moe->rank->group, &params, &moe->channel),
		"m2n_channel_create");
	if (moe->rank->source >= 0)
		open_source(g);
	if (moe->rank->expert >= 0)
		open_expert(g);
	open_yardsticks(g);
}

static void close_all(struct moe_gpu *g)
{
	struct moe *moe = g->moe;
	struct m2n_channel_attr attr;

	/* Peers would see links close while they are still in their last round. */
	perf_rank_barrier(moe->rank);
	if (m2n_channel_query(moe->channel, &attr) == 0)
		page_rank(moe->rank->page, (uint32_t)moe->rank->rank)->staged_bytes =
			attr.staged_bytes;
	if (g->exec != NULL)
		g->gpu.cu->graph_exec_destroy(g->exec);
	moe_nccl_close(g);
	m2n_plan_destroy(moe->plan);
	m2n_channel_destroy(moe->channel);
	void *all[] = {g->ids, g->weights, g->rows, g->out, g->outputs, g->copy_from, g->copy_to};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		perf_gpu_free(&g->gpu, all[i]);
	free(moe->rows);
	free(moe->out);
	free(moe->outputs);
	perf_gpu_close(&g->gpu);
}

void moe_gpu_body(struct perf_rank *rank)
{
	const struct perf_args *args = rank->args;
	struct moe moe = {.rank = rank,
		.args = args,
		.routing = rank->job->routing,
		.row_bytes = args->row_bytes,
		.out_row_bytes = perf_out_row_bytes(args)};
	struct moe_gpu g = {.moe = &moe, .variant = UINT32_MAX};

	moe.in_row_bytes = args->cast_fp8 ? 2 * args->row_bytes : args->row_bytes;
	open_all(&g);
	if (!args->no_check)
		moe_gpu_check(&g, 0);
	if (args->graph) {
		moe_gpu_route(&g, 0, -1);
		capture(&g);
	}
	perf_rank_loop(rank, step, &g);
	if (!args->no_check)
		moe_gpu_check(&g, 1);
	close_all(&g);
}
