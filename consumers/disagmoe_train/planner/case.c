/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counting. Shared experts are computed where the routed ones are. Sliding windows, which
 * GPT-OSS-120B has in every other layer, are not in the tables and not counted.
 */
#include "planner/case.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "model/error.h"

static const struct plan_model models[] = {
	{"DeepSeek-MoE", 28, 2048, 1408, 64, 4, 0, 2048, 2048, 102400},
	{"GPT-OSS-120B", 36, 2880, 2880, 128, 4, 0, 4096, 512, 201088},
	{"Qwen3-235B", 94, 4096, 1536, 128, 8, 0, 8192, 512, 151936},
};

int case_find_model(const char *path, const char *name, struct plan_model *model)
{
	if (path)
		return plan_model_find(path, name, model);
	for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++)
		if (!strcmp(models[i].name, name)) {
			*model = models[i];
			return 0;
		}
	return model_fail(-ENOENT, "no model '%s' is built in; there are %s, %s, %s; others: "
		"--models FILE", name, models[0].name, models[1].name, models[2].name);
}

void case_free(struct train_case *job)
{
	load_trace_free(&job->trace);
}

double case_scores(const struct train_case *job)
{
	return 2 * job->seq * job->model.q_width;
}

double case_projections(const struct train_case *job)
{
	const struct plan_model *model = &job->model;

	return 4 * model->hidden * (model->q_width + model->kv_width) +
		2 * model->hidden * model->n_experts;
}

double case_experts(const struct train_case *job)
{
	const struct plan_model *model = &job->model;

	return 6 * model->hidden * model->expert_hidden * (model->top_k + model->n_shared);
}

double case_head(const struct train_case *job)
{
	return 2 * job->model.hidden * job->model.vocab;
}

double case_attention_params(const struct train_case *job)
{
	const struct plan_model *model = &job->model;

	return 2 * model->hidden * (model->q_width + model->kv_width) +
		model->hidden * model->n_experts + 2 * model->hidden;
}

double case_expert_params(const struct train_case *job)
{
	const struct plan_model *model = &job->model;

	return 3 * model->hidden * model->expert_hidden * (model->n_experts + model->n_shared);
}

double case_vocab_params(const struct train_case *job)
{
	return 2 * job->model.hidden * job->model.vocab + job->model.hidden;
}

double case_places(const struct train_case *job, double n_places)
{
	double experts = job->model.n_experts, none = 1;

	if (n_places > experts)
		n_places = experts;
	for (double i = 0; i < job->model.top_k; i++)
		none *= fmax(0, experts - experts / n_places - i) / (experts - i);
	return n_places * (1 - none);
}

double case_row_bytes(const struct train_case *job)
{
	return job->value_bytes * job->model.hidden;
}

double case_rows(const struct train_case *job, double n_ranks)
{
	if (job->copies == CASE_PER_EXPERT)
		return job->model.top_k;
	if (job->copies == CASE_PER_RANK)
		return case_places(job, n_ranks);
	return case_places(job, ceil(n_ranks / job->gpus_per_node));
}

/* What part of expert `i` of n lies on the rank, when the ranks cut 0 to n into equal pieces. */
static double overlap(double i, double n, double rank, double n_ranks)
{
	double from = fmax(i, rank * n / n_ranks), to = fmin(i + 1, (rank + 1) * n / n_ranks);

	return fmax(0, to - from);
}

/* Whole experts on whole ranks: the busiest has one more than others where they do not divide. */
static double uneven(const struct train_case *job, size_t n_ranks)
{
	double each = job->model.n_experts / (double)n_ranks;

	return ceil(each - 1e-9) / each;
}

/* Tokens of the window whose choices fall on each expert of the trace. */
static void count_choices(const struct train_case *job, size_t layer, size_t micro, double *counts)
{
	const struct load_trace *trace = &job->trace;
	size_t window = (size_t)job->window, n = trace->n_tokens, k = trace->top_k;
	const uint16_t *rows = trace->experts + layer % trace->n_layers * n * k;

	memset(counts, 0, trace->n_experts * sizeof(*counts));
	for (size_t i = 0; i < window; i++)
		for (size_t choice = 0; choice < k; choice++)
			counts[rows[(micro * window + i) % n * k + choice]]++;
}

double case_busiest(const struct train_case *job, size_t n_ranks, size_t layer, size_t micro)
{
	double counts[4096], n = (double)job->trace.n_experts, ranks = (double)n_ranks, most = 0;

	if (!job->trace.experts)
		return uneven(job, n_ranks);
	count_choices(job, layer, micro, counts);
	for (double rank = 0; rank < ranks; rank++) {
		double load = 0;

		for (double i = floor(rank * n / ranks); i < n && i * ranks < (rank + 1) * n; i++)
			load += counts[(size_t)i] * overlap(i, n, rank, ranks);
		most = fmax(most, load);
	}
	return most * ranks / (job->window * (double)job->trace.top_k);
}

double case_mean_busiest(const struct train_case *job, size_t n_ranks, size_t n_micro)
{
	size_t n_layers = (size_t)job->model.n_layers;
	double sum = 0;

	if (!job->trace.experts)
		return uneven(job, n_ranks);
	/* Both repeat: the trace has few layers, and its windows come round. */
	n_layers = n_layers < job->trace.n_layers ? n_layers : job->trace.n_layers;
	n_micro = n_micro < 64 ? n_micro : 64;
	for (size_t layer = 0; layer < n_layers; layer++)
		for (size_t micro = 0; micro < n_micro; micro++)
			sum += case_busiest(job, n_ranks, layer, micro);
	return sum / (double)(n_layers * n_micro);
}
