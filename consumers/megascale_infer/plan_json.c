/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The result for programs, units in the names. T_a = (k1 - product) * b_a + max(k2, product *
 * b_a), likewise T_e; product is 0 for measured and for straight lines.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>

#include "model/error.h"
#include "plan_report.h"

static json_t *broken_of(const struct plan_point *p)
{
	json_t *names = json_array();

	for (unsigned int bit = PLAN_BALANCE; bit <= PLAN_MEMORY; bit <<= 1)
		if (p->broken & bit)
			json_array_append_new(names, json_string(plan_bound_name(bit)));
	return names;
}

static json_t *times_of(const struct plan_point *p)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
		"k1_us", plan_slope(&p->attention) * 1e6, "k2_us", p->attention.constant * 1e6,
		"k3_us", plan_slope(&p->experts) * 1e6, "k4_us", p->experts.constant * 1e6,
		"product_a_us", p->attention.product * 1e6,
		"product_e_us", p->experts.product * 1e6,
		"t_a_us", p->t_a * 1e6, "t_e_us", p->t_e * 1e6, "t_c_us", p->t_c * 1e6,
		"period_us", p->period * 1e6, "tpot_ms", p->t_iter * 1e3,
		"t_total_ms", p->t_total * 1e3);
}

static json_t *point_of(const struct plan_args *args, const struct plan_point *p)
{
	json_t *point = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:i}",
		"gpu_a", p->gpu_a->name, "gpu_e", p->gpu_e->name, "tp_a", p->tp_a, "tp_e", p->tp_e,
		"n_a", p->n_a, "m", p->m, "batch", p->batch, "b_a", p->b_a, "b_e", p->b_e,
		"balance_n_a", plan_balance(&args->inputs, p),
		"layers", (int)args->inputs.model.n_layers);
	json_t *rates = json_pack("{s:f, s:f, s:f, s:f, s:f, s:s, s:o}",
		"tokens_per_s", p->tokens_per_s, "tokens_per_s_gpu", p->tokens_per_s_gpu,
		"tokens_per_s_cost", p->tokens_per_s_cost, "gpus", p->n_gpus, "cost", p->cost,
		"binding", plan_bound_name(p->binding), "broken", broken_of(p));
	json_t *times = times_of(p);

	json_object_update(point, rates);
	json_object_update(point, times);
	json_decref(rates);
	json_decref(times);
	return point;
}

static json_t *inputs_of(const struct plan_args *args)
{
	const struct plan_inputs *in = &args->inputs;

	return json_pack("{s:s, s:f, s:f, s:f, s:f, s:b, s:b, s:b, s:f, s:f}",
		"model", in->model.name,
		"context_tokens", in->context_tokens, "slo_ms", in->slo_s * 1e3,
		"compute_efficiency", in->compute_efficiency,
		"memory_efficiency", in->memory_efficiency, "straight", in->straight,
		"measured", in->measured.n[0] > 0, "relaxed", args->space.relaxed,
		"attention_weights_bytes", plan_weights(in, PLAN_ATTENTION),
		"expert_weights_bytes", plan_weights(in, PLAN_EXPERTS));
}

static json_t *lost_of(const struct plan_result *result)
{
	json_t *lost = json_object();

	for (int i = 0; i < PLAN_N_LOSSES; i++)
		json_object_set_new(lost, plan_loss_name(i),
			json_integer((json_int_t)result->n_lost[i]));
	return lost;
}

static void set_ratio(json_t *root, const struct plan_result *result)
{
	const struct plan_point *one = plan_best_of(result, 1), *two = plan_best_of(result, 0);

	if (one && two)
		json_object_set_new(root, "heterogeneous_over_homogeneous",
			json_real(two->tokens_per_s_cost / one->tokens_per_s_cost));
}

int plan_print_json(const struct plan_args *args, const struct plan_result *result)
{
	json_t *root = json_object(), *plans = json_array(), *pairs = json_array();
	int rc;

	json_object_set_new(root, "inputs", inputs_of(args));
	for (size_t i = 0; i < result->n_points && i < (size_t)args->n_shown; i++)
		json_array_append_new(plans, point_of(args, &result->points[i]));
	for (size_t i = 0; i < result->n_points; i++)
		if (plan_leads_pair(result, i))
			json_array_append_new(pairs, point_of(args, &result->points[i]));
	json_object_set_new(root, "plans", plans);
	json_object_set_new(root, "pairs", pairs);
	json_object_set_new(root, "n_plans", json_integer((json_int_t)result->n_points));
	json_object_set_new(root, "lost", lost_of(result));
	set_ratio(root, result);
	rc = json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
	json_decref(root);
	printf("\n");
	return rc ? model_fail(-ENOMEM, "the JSON could not be written") : 0;
}
