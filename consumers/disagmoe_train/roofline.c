/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The roofline. The paper prints attention's intensity as (H(2+2/g)+4s)/(2k), where the projections
 * count multiply-adds and the scores FLOPs of all pairs; here both are FLOPs of what is computed:
 * (4H(q+kv) + 2sq) / (bytes), q and kv being the widths of all heads.
 */
#include "roofline.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "model/error.h"

static const struct plan_model models[] = {
	{"DeepSeek-MoE", 28, 2048, 1408, 64, 4, 0, 2048, 2048, 102400},
	{"GPT-OSS-120B", 36, 2880, 2880, 128, 4, 0, 4096, 512, 201088},
	{"Qwen3-235B", 94, 4096, 1536, 128, 8, 0, 8192, 512, 151936},
};

int train_model_find(const char *path, const char *name, struct plan_model *model)
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

static double n_tokens(const struct train_case *job)
{
	return job->seq * job->n_sequences;
}

double train_flops_scores(const struct train_case *job)
{
	return 2 * job->seq * job->model.q_width;
}

double train_flops_projections(const struct train_case *job)
{
	const struct plan_model *model = &job->model;

	return 4 * model->hidden * (model->q_width + model->kv_width) +
		2 * model->hidden * model->n_experts;
}

double train_flops_experts(const struct train_case *job)
{
	const struct plan_model *model = &job->model;

	return 6 * model->hidden * model->expert_hidden * (model->top_k + model->n_shared);
}

/* Mean number of nodes that k distinct experts of E lie on, the same number on each node. */
static double nodes_of_row(const struct train_case *job, double n_nodes)
{
	double experts = job->model.n_experts, none = 1;

	for (double i = 0; i < job->model.top_k; i++)
		none *= fmax(0, experts - experts / n_nodes - i) / (experts - i);
	return n_nodes * (1 - none);
}

double train_bytes(const struct train_case *job, size_t gpus_f)
{
	double copies = job->copies > 0 ? job->copies :
		nodes_of_row(job, ceil((double)gpus_f / job->gpus_per_node));

	return n_tokens(job) * copies * job->model.hidden * 2;
}

void train_roofline(const struct train_case *job, const struct train_split *split,
	struct train_times *times)
{
	double rate = job->flops * job->efficiency, bytes = 2 * train_bytes(job, split->gpus_f);
	double a = n_tokens(job) * (3 * train_flops_projections(job) +
		3.5 * train_flops_scores(job));
	double f = n_tokens(job) * 3 * train_flops_experts(job);
	struct train_times found = {
		.compute_a = a / (rate * (double)split->gpus_a),
		.compute_f = f * job->skew / (rate * (double)split->gpus_f),
		/* Either way is its own capacity: one forward and one backward transfer each. */
		.network_a = bytes / ((double)split->nics_a * job->nic_bytes_per_s),
		.network_f = bytes / ((double)split->nics_f * job->nic_bytes_per_s),
		.intensity_a = a / bytes,
		.intensity_f = f / bytes,
		.turning_point = rate * (double)(split->gpus_a + split->gpus_f) /
			((double)(split->nics_a + split->nics_f) * job->nic_bytes_per_s),
	};

	found.t_a = fmax(found.compute_a, found.network_a);
	found.t_f = fmax(found.compute_f, found.network_f);
	found.mfu = (a + f) / (fmax(found.t_a, found.t_f) *
		(double)(split->gpus_a + split->gpus_f) * job->flops);
	*times = found;
}

static void compute_costs(const struct train_case *job, double gpus_a, double gpus_f,
	struct train_costs *costs)
{
	double rate = job->flops * job->efficiency / n_tokens(job);
	double projections = train_flops_projections(job) / (rate * gpus_a);
	double scores = train_flops_scores(job) / (rate * gpus_a);
	double experts = train_flops_experts(job) * job->skew / (rate * gpus_f);

	*costs = (struct train_costs){
		.attention = {projections + scores, projections + 2.5 * scores},
		.attention_weights = projections,
		.ffn = {experts, experts},
		.ffn_weights = experts,
		.head = 6 * job->model.hidden * job->model.vocab / (rate * gpus_a),
	};
}

void train_costs_apart(const struct train_case *job, const struct train_split *split,
	struct train_costs *costs)
{
	size_t nics = split->nics_a < split->nics_f ? split->nics_a : split->nics_f;

	compute_costs(job, (double)split->gpus_a, (double)split->gpus_f, costs);
	costs->transfer[0] = costs->transfer[1] = train_bytes(job, split->gpus_f) /
		((double)nics * job->nic_bytes_per_s);
}

void train_costs_together(const struct train_case *job, size_t gpus, struct train_costs *costs)
{
	double ep = job->ep, inside = fmin(job->gpus_per_node, ep);
	double bytes = n_tokens(job) / (double)gpus * job->model.top_k * job->model.hidden * 2;
	double far = bytes * (1 - inside / ep) / job->nic_bytes_per_s;
	double near = bytes * (inside - 1) / ep / job->link_bytes_per_s;

	compute_costs(job, (double)gpus, (double)gpus, costs);
	costs->transfer[0] = costs->transfer[1] = fmax(far, near);
	costs->stage = n_tokens(job) / (double)gpus * job->model.hidden * 2 / job->nic_bytes_per_s;
}
