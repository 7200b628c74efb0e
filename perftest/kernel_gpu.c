/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device kernels, through the calls that launch them: one rank that is its own source, expert
 * rank and sink. Each phase of a round lies between two events on one stream, everything is queued
 * ahead of the device, and a copy on the device of the same bytes (read and written ones both
 * counted) runs in the same queue: the ratio is the quotient of the two rates, above 1 is ahead.
 * Phases are what a user gets, the short kernels that wait and signal included.
 */
#include <errno.h>
#include <ftw.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu.h"
#include "page.h"
#include "routing.h"
#include "tests.h"

enum phase { COPY, DISPATCH, RECEIVE, REPLY, COMBINE, N_PHASES };
#define N_ROUTES 20 /* between two events: one takes little more than an event */

struct kernel_gpu_case {
	const char *kernel;
	uint64_t tokens, row_bytes, top_k, experts;
	uint64_t bytes; /* read and written; 0: not counted */
	struct perf_stats us;
	double gbps, copy_gbps, ratio;
};

struct bench {
	const struct perf_args *args;
	FILE *file;
	struct perf_gpu gpu;
	struct m2n_ctx *ctx;
	struct m2n_group *group;
	char store[64];
	/* one shape */
	uint64_t n_tokens, top_k, n_experts;
	size_t row_bytes;
	struct m2n_channel *channel;
	struct m2n_plan *plan;
	void *ids, *rows, *outputs, *sums, *copies[2];
	uint64_t copy_bytes;
	m2n__cu_event events[N_PHASES + 1];
	double *samples[N_PHASES]; /* [n_iters] */
	const void *batch_rows;
	struct kernel_gpu_case cases[64];
	unsigned n_cases;
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static int open_bench(struct bench *b)
{
	const char *const options[] = {"CUDA_DEVICE=0", NULL};
	struct m2n_ctx_params ctx = M2N_CTX_PARAMS_INIT;
	struct m2n_group_params group = M2N_GROUP_PARAMS_INIT;
	int ordinal = 0, status = 0;

	strcpy(b->store, "dir:/tmp/m2n_perf.XXXXXX");
	if (mkdtemp(b->store + 4) == NULL)
		status = -errno;
	ctx.backend = b->args->backend;
	ctx.options = options;
	if (status == 0)
		status = m2n_ctx_open(&ctx, &b->ctx);
	if (status == 0)
		status = perf_gpu_of(b->ctx, &ordinal);
	if (status == 0)
		status = perf_gpu_open(ordinal, &b->gpu);
	group.rank = 0;
	group.n_ranks = 1;
	group.store = b->store;
	if (status == 0)
		status = m2n_group_join(b->ctx, &group, &b->group);
	for (unsigned i = 0; status == 0 && i <= N_PHASES; i++)
		status = perf_gpu_event(&b->gpu, &b->events[i]);
	for (unsigned i = 0; status == 0 && i < N_PHASES; i++) {
		b->samples[i] = calloc(b->args->n_iters, sizeof(double));
		status = b->samples[i] != NULL ? 0 : -ENOMEM;
	}
	return status;
}

static void close_bench(struct bench *b)
{
	for (unsigned i = 0; i < N_PHASES; i++)
		free(b->samples[i]);
	for (unsigned i = 0; i <= N_PHASES; i++)
		if (b->events[i] != NULL)
			b->gpu.cu->event_destroy(b->events[i]);
	m2n_group_leave(b->group);
	m2n_ctx_close(b->ctx);
	perf_gpu_close(&b->gpu);
	nftw(b->store + 4, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static int make_channel(struct bench *b)
{
	static const int rank0 = 0;
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;

	params.name = "kernel";
	params.sources = params.experts = &rank0;
	params.n_sources = params.n_expert_ranks = 1;
	params.n_experts = (uint32_t)b->n_experts;
	params.top_k = (uint32_t)b->top_k;
	params.max_tokens = (uint32_t)b->n_tokens;
	params.row_bytes = b->row_bytes;
	params.dtype = b->args->dtype;
	params.depth = 2;
	params.memory = M2N_MEMORY_CUDA;
	int status = m2n_channel_create(b->group, &params, &b->channel);
	return status != 0 ? status : m2n_plan_create(b->channel, &b->plan);
}

/* Distinct experts for each token. */
static int load_ids(struct bench *b)
{
	int32_t *ids = malloc(b->n_tokens * b->top_k * sizeof(*ids));

	if (ids == NULL)
		return -ENOMEM;
	for (uint64_t pair = 0; pair < b->n_tokens * b->top_k; pair++) {
		uint64_t token = pair / b->top_k, k = pair % b->top_k;
		uint64_t first = perf_mix(b->args->seed + token) % b->n_experts;
		ids[pair] = (int32_t)((first + k * (b->n_experts / b->top_k)) % b->n_experts);
	}
	int status = perf_gpu_upload(&b->gpu, b->ids, ids, b->n_tokens * b->top_k * sizeof(*ids));
	free(ids);
	return status;
}

static int open_shape(struct bench *b)
{
	uint64_t rows = b->n_tokens * b->row_bytes, outputs = rows * b->top_k;
	int status = make_channel(b);

	b->copy_bytes = (rows + outputs) / 2;
	if (status == 0)
		status = perf_gpu_alloc(&b->gpu, b->n_tokens * b->top_k * sizeof(int32_t), &b->ids);
	if (status == 0)
		status = perf_gpu_alloc(&b->gpu, rows, &b->rows);
	if (status == 0)
		status = perf_gpu_alloc(&b->gpu, rows, &b->sums);
	if (status == 0)
		status = perf_gpu_alloc(&b->gpu, outputs, &b->outputs);
	for (unsigned i = 0; status == 0 && i < 2; i++)
		status = perf_gpu_alloc(&b->gpu, b->copy_bytes, &b->copies[i]);
	return status == 0 ? load_ids(b) : status;
}

static void close_shape(struct bench *b)
{
	void **all[] = {&b->ids, &b->rows, &b->sums, &b->outputs, &b->copies[0], &b->copies[1]};

	m2n_plan_destroy(b->plan);
	m2n_channel_destroy(b->channel);
	b->plan = NULL;
	b->channel = NULL;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		perf_gpu_free(&b->gpu, *all[i]);
		*all[i] = NULL;
	}
}

static int route(struct bench *b)
{
	struct m2n_route_params params = M2N_ROUTE_PARAMS_INIT;

	params.n_tokens = (uint32_t)b->n_tokens;
	params.expert_ids = b->ids;
	params.stream = b->gpu.stream;
	return m2n_plan_route(b->channel, b->plan, &params);
}

static int send_rows(struct bench *b)
{
	struct m2n_dispatch_send_params params = M2N_DISPATCH_SEND_PARAMS_INIT;

	params.plan = b->plan;
	params.rows = b->rows;
	params.stream = b->gpu.stream;
	return m2n_dispatch_send(b->channel, &params);
}

static int receive_sums(struct bench *b)
{
	struct m2n_combine_recv_params params = M2N_COMBINE_RECV_PARAMS_INIT;

	params.plan = b->plan;
	params.out = b->sums;
	params.stream = b->gpu.stream;
	return m2n_combine_recv(b->channel, &params);
}

/* What one phase queues. */
static int queue_phase(struct bench *b, enum phase phase, const struct m2n_batch **batch)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_combine_send_params reply = M2N_COMBINE_SEND_PARAMS_INIT;

	recv.stream = reply.stream = b->gpu.stream;
	switch (phase) {
	case COPY:
		return perf_gpu_copy(&b->gpu, b->copies[1], b->copies[0], b->copy_bytes);
	case DISPATCH:
		return send_rows(b);
	case RECEIVE:
		return m2n_dispatch_recv(b->channel, &recv, batch);
	case REPLY:
		reply.batch = *batch;
		reply.rows = b->outputs;
		return m2n_combine_send(b->channel, &reply);
	default:
		return receive_sums(b);
	}
}

static int queue_round(struct bench *b)
{
	const struct m2n_batch *batch = NULL;
	/* So that the device is busy while the rest is queued. */
	int status = queue_phase(b, COPY, &batch);

	if (status == 0)
		status = perf_gpu_record(&b->gpu, b->events[0]);
	for (unsigned i = 0; status == 0 && i < N_PHASES; i++) {
		status = queue_phase(b, (enum phase)i, &batch);
		if (status == 0)
			status = perf_gpu_record(&b->gpu, b->events[i + 1]);
	}
	return status;
}

static int time_rounds(struct bench *b)
{
	int64_t n = (int64_t)b->args->n_iters;
	int status = route(b);

	for (int64_t i = -(int64_t)b->args->n_warmup; status == 0 && i < n; i++) {
		status = queue_round(b);
		if (status == 0)
			status = perf_gpu_sync(&b->gpu);
		for (unsigned p = 0; status == 0 && i >= 0 && p < N_PHASES; p++)
			status = perf_gpu_elapsed(
				&b->gpu, b->events[p], b->events[p + 1], &b->samples[p][i]);
	}
	return status == 0 ? m2n_channel_check(b->channel) : status;
}

static struct kernel_gpu_case *add_case(struct bench *b, const char *kernel, double *samples)
{
	struct kernel_gpu_case *c = &b->cases[b->n_cases++];

	*c = (struct kernel_gpu_case){.kernel = kernel,
		.tokens = b->n_tokens,
		.row_bytes = b->row_bytes,
		.top_k = b->top_k,
		.experts = b->n_experts};
	perf_stats_of(samples, b->args->n_iters, &c->us);
	return c;
}

static void add_rounds(struct bench *b)
{
	static const char *const names[] = {"copy", "dispatch", "receive", "reply", "combine"};
	uint64_t rows = b->n_tokens * b->row_bytes, copies = rows * b->top_k;
	const uint64_t bytes[] = {
		2 * b->copy_bytes, rows + copies, 2 * copies, 2 * copies, rows + copies};
	double copy_gbps = 0;

	for (unsigned p = 0; p < N_PHASES; p++) {
		struct kernel_gpu_case *c = add_case(b, names[p], b->samples[p]);
		c->bytes = bytes[p];
		c->gbps = c->us.p50 > 0 ? (double)bytes[p] / c->us.p50 / 1000 : 0;
		if (p == COPY)
			copy_gbps = c->gbps;
		c->copy_gbps = copy_gbps;
		c->ratio = copy_gbps > 0 ? c->gbps / copy_gbps : 0;
	}
}

static int run_rounds(struct bench *b, uint64_t n_tokens)
{
	b->n_tokens = n_tokens;
	b->top_k = b->args->top_k;
	b->n_experts = b->args->n_experts > b->top_k ? b->args->n_experts : b->top_k;
	b->row_bytes = b->args->row_bytes;
	int status = open_shape(b);

	if (status == 0)
		status = time_rounds(b);
	if (status == 0)
		add_rounds(b);
	close_shape(b);
	return status;
}

static int time_plans(struct bench *b)
{
	int64_t n = (int64_t)b->args->n_iters;
	int status = 0;

	for (int64_t i = -(int64_t)b->args->n_warmup; status == 0 && i < n; i++) {
		double us = 0;
		status = perf_gpu_record(&b->gpu, b->gpu.begin);
		for (unsigned k = 0; status == 0 && k < N_ROUTES; k++)
			status = route(b);
		if (status == 0)
			status = perf_gpu_record(&b->gpu, b->gpu.end);
		if (status == 0)
			status = perf_gpu_sync(&b->gpu);
		if (status == 0)
			status = perf_gpu_elapsed(&b->gpu, b->gpu.begin, b->gpu.end, &us);
		if (i >= 0)
			b->samples[0][i] = us / N_ROUTES;
	}
	return status == 0 ? m2n_plan_wait(b->plan, M2N_TIMEOUT_DEFAULT) : status;
}

/* 4,096 tokens, top-8 of 256 experts, unless told otherwise; rows are as short as they may be. */
static int run_plan(struct bench *b)
{
	b->n_tokens = b->args->tokens_given ? b->args->n_tokens : 4096;
	b->top_k = b->args->top_k;
	b->n_experts = b->args->experts_given ? b->args->n_experts : 256;
	b->row_bytes = 16;
	int status = open_shape(b);

	if (status == 0)
		status = time_plans(b);
	if (status == 0)
		add_case(b, "plan", b->samples[0]);
	close_shape(b);
	return status;
}

static void print_rows(FILE *file, const struct bench *b, bool csv)
{
	char gpu[160];

	perf_gpu_describe(0, gpu, sizeof(gpu));
	if (csv)
		fprintf(file,
			"test,kernel,table,tokens,row_bytes,top_k,experts,bytes,p50_us,p99_us,"
			"gbps,copy_gbps,ratio\n");
	else
		fprintf(file,
			"# %s; bytes are those read and written\n%-9s %-5s %7s %9s %5s %7s "
			"%11s %10s %10s %9s %9s %6s\n",
			gpu, "kernel", "table", "tokens", "row_bytes", "top_k", "experts", "bytes",
			"p50_us", "p99_us", "GB/s", "copy GB/s", "ratio");
	for (unsigned i = 0; i < b->n_cases; i++) {
		const struct kernel_gpu_case *c = &b->cases[i];
		fprintf(file,
			csv ? "kernel,%s,%s,%llu,%llu,%llu,%llu,%llu,%.3f,%.3f,%.3f,%.3f,"
			      "%.3f\n"
			    : "%-9s %-5s %7llu %9llu %5llu %7llu %11llu %10.3f %10.3f %9.2f "
			      "%9.2f %6.2f\n",
			c->kernel, "cuda", (unsigned long long)c->tokens,
			(unsigned long long)c->row_bytes, (unsigned long long)c->top_k,
			(unsigned long long)c->experts, (unsigned long long)c->bytes, c->us.p50,
			c->us.p99, c->gbps, c->copy_gbps, c->ratio);
	}
}

static bool print_json(FILE *file, const struct bench *b)
{
	json_t *cases = json_array();

	for (unsigned i = 0; i < b->n_cases; i++) {
		const struct kernel_gpu_case *c = &b->cases[i];
		json_array_append_new(cases,
			json_pack(
				"{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f}",
				"test", "kernel", "kernel", c->kernel, "table", "cuda", "tokens",
				(json_int_t)c->tokens, "row_bytes", (json_int_t)c->row_bytes,
				"top_k", (json_int_t)c->top_k, "experts", (json_int_t)c->experts,
				"bytes", (json_int_t)c->bytes, "p50_us", c->us.p50, "p99_us",
				c->us.p99, "gbps", c->gbps, "copy_gbps", c->copy_gbps, "ratio",
				c->ratio));
	}
	return perf_report_json_cases(file, b->args, cases);
}

int perf_kernel_gpu_run(const struct perf_args *args, FILE *file)
{
	static const uint64_t sweep[] = {128, 512, 1024, 2048, 4096};
	struct bench *b = calloc(1, sizeof(*b));
	int status = b != NULL ? 0 : -ENOMEM;

	if (b != NULL) {
		b->args = args;
		status = open_bench(b);
	}
	if (status == 0)
		status = run_plan(b);
	for (unsigned i = 0; status == 0 && i < sizeof(sweep) / sizeof(sweep[0]); i++)
		if (!args->tokens_given || i == 0)
			status = run_rounds(b, args->tokens_given ? args->n_tokens : sweep[i]);
	if (status != 0)
		fprintf(stderr, "m2n_perf: kernel: %s: %s\n", m2n_strerror(status),
			m2n_error_text());
	else if (args->format != PERF_JSON)
		print_rows(file, b, args->format == PERF_CSV);
	else if (!print_json(file, b))
		status = -1;
	if (b != NULL)
		close_bench(b);
	free(b);
	return status == 0 ? 0 : 1;
}
