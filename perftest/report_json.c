/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results for programs: one object with schema, env, args and cases. Keys stay as they are while
 * the schema's number does.
 */
#include "cases.h"

#include <jansson.h>
#include <math.h>

#include "gpu.h"

#define SCHEMA "m2n_perf/1"

/* Three digits behind the point of a microsecond are all that a clock gives. */
static json_t *real(double value)
{
	return json_real(round(value * 1000) / 1000);
}

static json_t *env_json(const struct perf_args *args)
{
	struct perf_env env;

	perf_env_get(&env);
	json_t *object = json_pack("{s:s, s:i, s:s, s:s, s:s, s:s, s:s}", "cpu", env.cpu, "cores",
		(int)env.cores, "kernel", env.kernel, "compiler", env.compiler, "version",
		env.version, "commit", env.commit, "date", env.date);
	if (args->memory == M2N_MEMORY_CUDA) {
		char gpu[160];
		perf_gpu_describe(0, gpu, sizeof(gpu));
		json_object_set_new(object, "gpu", json_string(gpu));
	}
	return object;
}

static json_t *args_json(const struct perf_args *args)
{
	json_t *names = json_array();

	for (unsigned i = 0; i < PERF_N_COMPARE; i++)
		if (args->compare & (1u << i))
			json_array_append_new(names, json_string(perf_compare_name(i)));
	json_t *object = json_pack(
		"{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s?, s:I, s:I, s:I, s:I, s:s, s:o}", "test",
		perf_test_name(args->test), "M", (json_int_t)args->n_sources, "N",
		(json_int_t)args->n_expert_ranks, "tokens", (json_int_t)args->n_tokens, "row_bytes",
		(json_int_t)args->row_bytes, "top_k", (json_int_t)args->top_k, "experts",
		(json_int_t)args->n_experts, "backend", args->backend, "iters",
		(json_int_t)args->n_iters, "warmup", (json_int_t)args->n_warmup, "reps",
		(json_int_t)args->n_reps, "seed", (json_int_t)args->seed, "routing", args->routing,
		"compare", names);
	json_t *more = json_pack(
		"{s:s, s:s, s:b, s:b, s:b, s:s, s:b, s:b, s:I, s:I, s:s, s:b, s:b}", "memory",
		args->memory == M2N_MEMORY_CUDA ? "cuda" : "host", "ranks",
		args->threads ? "threads" : "processes", "classic", args->classic, "graph",
		args->graph, "check", !args->no_check, "placement",
		args->placement == M2N_PLACEMENT_EXACT ? "exact" : "slot", "dedup", args->dedup,
		"reduce_at_expert", args->reduce_at_expert, "depth", (json_int_t)args->depth,
		"capacity", (json_int_t)args->capacity, "dtype", perf_dtype_name(args->dtype),
		"cast_fp8", args->cast_fp8, "pin", !args->no_pin);
	json_object_update(object, more);
	json_decref(more);
	return object;
}

static json_t *compare_json(const struct perf_case *c)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < c->n_compare; i++) {
		const struct perf_compare *compare = &c->compare[i];
		json_t *object = json_pack("{s:s, s:s?, s:o, s:o, s:o, s:o, s:o, s:o}", "name",
			compare->name, "how", compare->how, "p50_us", real(compare->us.p50),
			"p99_us", compare->us.p99 > 0 ? real(compare->us.p99) : json_null(), "gbps",
			real(compare->gbps), "ratio", real(compare->ratio), "ratio_min",
			real(compare->ratio_min), "ratio_max", real(compare->ratio_max));
		if (compare->command != NULL)
			json_object_set_new(object, "command", json_string(compare->command));
		json_array_append_new(list, object);
	}
	return list;
}

static void add_optional(json_t *object, const struct perf_args *args, const struct perf_case *c)
{
	if (c->phase != NULL)
		json_object_set_new(object, "phase", json_string(c->phase));
	if (c->bytes_unpacked > 0)
		json_object_set_new(object, "bytes_unpacked",
			json_integer((json_int_t)c->bytes_unpacked));
	if (c->route_us >= 0)
		json_object_set_new(object, "route_us", real(c->route_us));
	if (c->n_messages > 0 && c->us.p50 > 0)
		json_object_set_new(
			object, "messages_per_s", real(c->n_messages / c->us.p50 * 1e6));
	if (args->compare != 0)
		json_object_set_new(object, "compare", compare_json(c));
	if (!args->samples)
		return;
	json_t *samples = json_array();
	for (size_t i = 0; i < c->n_samples; i++)
		json_array_append_new(samples, real(c->samples[i]));
	json_object_set_new(object, "samples_us", samples);
}

static json_t *case_json(const struct perf_report *report, const struct perf_case *c)
{
	const struct perf_args *args = report->args;
	json_t *object = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "test",
		perf_test_name(args->test), "backend", report->backend, "M",
		(json_int_t)args->n_sources, "N", (json_int_t)args->n_expert_ranks, "tokens",
		(json_int_t)c->tokens, "row_bytes", (json_int_t)c->row_bytes, "top_k",
		(json_int_t)c->top_k, "bytes", (json_int_t)c->bytes);
	json_t *more = json_pack(
		"{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:I, s:I, s:o, s:o}", "min_us",
		real(c->us.min), "p50_us", real(c->us.p50), "p90_us", real(c->us.p90), "p99_us",
		real(c->us.p99), "p999_us", real(c->us.p999), "max_us", real(c->us.max), "gbps",
		real(c->gbps), "verified", report->n_verified > 0, "checked",
		(json_int_t)report->n_verified, "staged_bytes", (json_int_t)report->staged_bytes,
		"puts_per_round", real(c->puts_per_round), "staged_per_round",
		real(c->staged_per_round));

	json_object_update(object, more);
	json_decref(more);
	add_optional(object, args, c);
	return object;
}

static json_t *memory_json(const struct perf_report *report)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < report->job->dims.n_ranks; i++) {
		const struct page_rank *rank = page_rank(report->job->page, i);
		json_array_append_new(
			list, json_pack("{s:i, s:s, s:I, s:I, s:I}", "rank", (int)i, "role",
				      i < report->args->n_sources ? "source" : "expert",
				      "predicted_bytes", (json_int_t)rank->memory_predicted,
				      "share_bytes", (json_int_t)rank->memory_share,
				      "mapped_bytes", (json_int_t)rank->memory_mapped));
	}
	return list;
}

static json_t *matrix_json(const struct perf_report *report)
{
	static const char *const flows[] = {
		"dispatch_sent", "dispatch_received", "combine_sent", "combine_received"};
	json_t *list = json_array();
	uint32_t n = report->job->dims.n_ranks;

	for (uint32_t i = 0; i < n * n * PAGE_N_FLOWS; i++) {
		uint32_t flow = i % PAGE_N_FLOWS, peer = i / PAGE_N_FLOWS % n;
		uint32_t rank = i / PAGE_N_FLOWS / n;
		const struct page_peer *p =
			page_peer(report->job->page, rank, peer, (enum page_flow)flow);
		if (p->n_rounds == 0)
			continue;
		json_array_append_new(list,
			json_pack("{s:i, s:i, s:s, s:I, s:I, s:I, s:o}", "rank", (int)rank, "peer",
				(int)peer, "flow", flows[flow], "rounds", (json_int_t)p->n_rounds,
				"rows", (json_int_t)p->n_rows, "bytes", (json_int_t)p->bytes,
				"waited_us", real((double)p->wait_ns / 1000)));
	}
	return list;
}

static json_t *root_json(const struct perf_args *args, json_t *cases)
{
	return json_pack("{s:s, s:o, s:o, s:o}", "schema", SCHEMA, "env", env_json(args), "args",
		args_json(args), "cases", cases);
}

/* Takes `root`. */
static bool write_json(FILE *file, json_t *root)
{
	bool ok = root != NULL &&
		  json_dumpf(root, file, 1) == 0;

	json_decref(root);
	return ok && fputc('\n', file) != EOF;
}

bool perf_report_json_cases(FILE *file, const struct perf_args *args, struct json_t *cases)
{
	return write_json(file, root_json(args, cases));
}

bool perf_report_json(FILE *file, const struct perf_report *report)
{
	json_t *cases = json_array();

	for (size_t i = 0; i < report->n_cases; i++)
		json_array_append_new(cases, case_json(report, &report->cases[i]));
	json_t *root = root_json(report->args, cases);
	if (root != NULL && report->job->nccl_how[0] != '\0' &&
		!perf_job_has(report->job, PERF_NCCL))
		json_object_set_new(root, "left_out",
			json_pack("{s:s}", "nccl", report->job->nccl_how));
	if (root != NULL && report->args->matrix)
		json_object_set_new(root, "matrix", matrix_json(report));
	if (root != NULL && report->args->test == PERF_INIT)
		json_object_set_new(root, "memory", memory_json(report));
	return write_json(file, root);
}
