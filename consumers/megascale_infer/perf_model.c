/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The equations. By the roofline a product lasts as long as the longer of reading its weights,
 * which is k2 or k4 whatever the batch, and of its operations, which grow with it; keys and values
 * and the all-reduce inside the node come on top of either. k1 and k3 are the slopes of large
 * batches. `straight` adds the weights to the operations, so that T_a = k1 * b_a + k2 to the
 * letter: at most twice the roofline, reached where both are equal.
 */
#include "perf_model.h"

#include <math.h>

enum { VALUE_BYTES = 2 };

/* A ring's all-reduce of one row of `hidden` values. */
static double reduce_seconds(const struct plan_inputs *inputs, const struct plan_gpu *gpu, int tp)
{
	double bytes = 2.0 * (tp - 1) / tp * inputs->model.hidden * VALUE_BYTES;

	return bytes / (gpu->link_bytes_per_s * inputs->memory_efficiency);
}

/* Parameters of one layer that every token of that side is multiplied with. */
static double layer_parameters(const struct plan_model *m, enum plan_side side)
{
	double expert = 3 * m->hidden * m->expert_hidden; /* SwiGLU: gate, up, down */

	if (side == PLAN_EXPERTS)
		return expert;
	return m->hidden * (m->q_width + 2 * m->kv_width) + m->q_width * m->hidden +
		m->hidden * m->n_experts + m->n_shared * expert;
}

static void roofline(const struct plan_inputs *inputs, enum plan_side side,
	const struct plan_gpu *gpu, int tp, struct plan_line *line)
{
	const struct plan_model *m = &inputs->model;
	double flops = gpu->flops * inputs->compute_efficiency * tp;
	double bytes_per_s = gpu->mem_bytes_per_s * inputs->memory_efficiency * tp;
	double parameters = layer_parameters(m, side);

	line->constant = parameters * VALUE_BYTES / bytes_per_s;
	line->slope = reduce_seconds(inputs, gpu, tp);
	line->product = 2 * parameters / flops;
	if (side == PLAN_ATTENTION) {
		double read = 2 * m->kv_width * inputs->context_tokens * VALUE_BYTES;
		double scores = 4 * m->q_width * inputs->context_tokens;

		line->slope += fmax(read / bytes_per_s, scores / flops);
	}
	if (inputs->straight) {
		line->slope += line->product;
		line->product = 0;
	}
}

int plan_line_find(const struct plan_inputs *inputs, enum plan_side side,
	const struct plan_gpu *gpu, int tp, struct plan_line *line)
{
	if (inputs->measured.n[side])
		return plan_measured_find(&inputs->measured, side, gpu->name, tp, line);
	roofline(inputs, side, gpu, tp, line);
	return 0;
}

double plan_weights(const struct plan_inputs *inputs, enum plan_side side)
{
	const struct plan_model *m = &inputs->model;
	double values = m->n_layers * layer_parameters(m, side);

	if (side == PLAN_ATTENTION)
		values += 2 * m->vocab * m->hidden; /* the embedding and the head */
	return values * VALUE_BYTES;
}

double plan_slope(const struct plan_line *line)
{
	return line->slope + line->product;
}

static double seconds(const struct plan_line *line, double n_tokens)
{
	return line->slope * n_tokens + fmax(line->constant, line->product * n_tokens);
}

double plan_balance(const struct plan_inputs *inputs, const struct plan_point *point)
{
	return plan_slope(&point->attention) * inputs->model.n_experts /
		(plan_slope(&point->experts) * inputs->model.top_k);
}

static double sequence_bytes(const struct plan_inputs *inputs)
{
	const struct plan_model *m = &inputs->model;

	return 2 * VALUE_BYTES * inputs->context_tokens * m->kv_width * m->n_layers;
}

double plan_memory_batch(const struct plan_inputs *inputs, const struct plan_point *point)
{
	double memory = point->tp_a * point->gpu_a->mem_bytes;

	return (memory - plan_weights(inputs, PLAN_ATTENTION)) /
		(point->m * sequence_bytes(inputs));
}

/* (6): both directions at once, the slower GPU counts. */
static double communication(const struct plan_inputs *inputs, const struct plan_point *point)
{
	double row = inputs->model.hidden * VALUE_BYTES;
	double sent = point->b_a * row * inputs->model.top_k / point->tp_a;
	double received = point->b_e * row / point->tp_e;

	return fmax(plan_util_seconds(&inputs->util, sent, point->gpu_a->nic_bytes_per_s),
		plan_util_seconds(&inputs->util, received, point->gpu_e->nic_bytes_per_s));
}

static unsigned int check(const struct plan_inputs *inputs, const struct plan_point *point)
{
	unsigned int broken = 0;

	if (fabs(point->t_a - point->t_e) > inputs->balance_tolerance * point->t_f)
		broken |= PLAN_BALANCE;
	if (point->t_c >= point->t_f)
		broken |= PLAN_COMMUNICATION;
	if (point->m * point->t_f < 2 * (point->t_f + point->t_c))
		broken |= PLAN_OVERLAP;
	if (point->t_iter > inputs->slo_s)
		broken |= PLAN_SLO;
	if (point->b_a >= plan_memory_batch(inputs, point) ||
	    plan_weights(inputs, PLAN_EXPERTS) >= point->tp_e * point->gpu_e->mem_bytes)
		broken |= PLAN_MEMORY;
	return broken;
}

void plan_evaluate(const struct plan_inputs *inputs, struct plan_point *point)
{
	const struct plan_model *m = &inputs->model;
	double n_a = (double)point->tp_a * point->n_a, n_e = point->tp_e * m->n_experts;
	double way, slowest;

	point->batch = point->b_a * point->m * point->n_a;
	point->b_e = point->batch * m->top_k / (point->m * m->n_experts);
	point->t_a = seconds(&point->attention, point->b_a);
	point->t_e = seconds(&point->experts, point->b_e);
	point->t_f = fmax(point->t_a, point->t_e);
	point->t_c = communication(inputs, point);
	way = point->t_a + point->t_e + 2 * point->t_c;
	slowest = fmax(point->t_f, point->t_c); /* a direction of the network is a stage, too */
	point->period = fmax(point->m * slowest, way);
	point->t_iter = point->period * m->n_layers; /* upper end of (4) */
	/* (5): m * T_f * (L - 1) + way + (m - 1) * T_f where (2) and (3) hold. */
	point->t_total = way + point->period * (m->n_layers - 1) + (point->m - 1) * slowest;
	point->n_gpus = n_a + n_e;
	point->cost = n_a * point->gpu_a->price + n_e * point->gpu_e->price;
	point->tokens_per_s = point->batch / point->t_total;
	point->tokens_per_s_cost = point->tokens_per_s / point->cost;
	point->tokens_per_s_gpu = point->tokens_per_s / point->n_gpus;
	point->broken = check(inputs, point);
}
