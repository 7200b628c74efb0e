/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kept of attention: input, q, k, v, their mix, output, and the rows that go out; of the experts:
 * rows, gate, up and their product. With recomputation only the input of either.
 */
#include "planner/memory.h"

#include <math.h>

static double attention_record(const struct train_case *job, double tokens)
{
	const struct plan_model *m = &job->model;
	double values = job->recompute ? m->hidden :
					 3 * m->hidden + 2 * m->q_width + 2 * m->kv_width;

	return tokens * values * job->value_bytes;
}

/* tokens: whose rows the GPU would have if all were alike. */
static double expert_record(const struct train_case *job, double tokens)
{
	const struct plan_model *m = &job->model;
	double values = job->recompute ? m->hidden : m->hidden + 3 * m->expert_hidden;

	return tokens * (m->top_k + m->n_shared) * values * job->value_bytes;
}

static double group_layers(const struct train_case *job)
{
	return ceil(job->model.n_layers / job->p);
}

/* Embedding and head: on one group, or over all. */
static double vocab(const struct train_case *job)
{
	return case_vocab_params(job) / (job->head_last ? 1 : job->p);
}

void memory_apart(const struct train_case *job, const struct pair_split *split, double live_a,
	double live_f, double *bytes_a, double *bytes_f)
{
	double m = (double)split->gpus_a, n = (double)split->gpus_f, layers = group_layers(job);
	double a = layers * case_attention_params(job) + vocab(job);
	double f = layers * case_expert_params(job) * ceil(job->model.n_experts / n) /
		job->model.n_experts;
	double own = job->weight_bytes + job->grad_bytes, tokens = job->seq * job->n_sequences;

	*bytes_a = a * (own + job->optimizer_bytes / m) + live_a * attention_record(job, tokens);
	*bytes_f = f * (own + job->optimizer_bytes) + live_f * expert_record(job, tokens * m / n);
}

double memory_together(const struct train_case *job, double gpus, double live, double n_copies)
{
	double layers = group_layers(job), tokens = job->seq * job->n_sequences;
	double a = layers * case_attention_params(job) + vocab(job);
	double f = layers * case_expert_params(job) * ceil(job->model.n_experts / job->ep) /
		job->model.n_experts;
	double own = n_copies * (job->weight_bytes + job->grad_bytes);

	return a * (own + job->optimizer_bytes / gpus) +
		f * (own + job->optimizer_bytes * job->ep / gpus) +
		live * (attention_record(job, tokens) + expert_record(job, tokens));
}
