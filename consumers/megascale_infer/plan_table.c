/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The result for people.
 */
#include <stdio.h>
#include <string.h>

#include "plan_report.h"

const char *plan_bound_name(enum plan_bound bound)
{
	switch (bound) {
	case PLAN_BALANCE:
		return "(1) T_a ~ T_e";
	case PLAN_COMMUNICATION:
		return "(2) T_c < T_f";
	case PLAN_OVERLAP:
		return "(3) m T_f >= 2 (T_f + T_c)";
	case PLAN_SLO:
		return "(7) SLO";
	case PLAN_MEMORY:
		return "(8) memory";
	default:
		return "given batch or limit of the search";
	}
}

const char *plan_loss_name(enum plan_loss loss)
{
	static const char *const names[PLAN_N_LOSSES] = {"weights do not fit", "(8) memory",
		"(7) SLO", "(2) T_c < T_f", "(3) m T_f >= 2 (T_f + T_c)", "B not divisible",
		"no measurement"};

	return names[loss];
}

const struct plan_point *plan_best_of(const struct plan_result *result, int homogeneous)
{
	for (size_t i = 0; i < result->n_points; i++) {
		const struct plan_point *point = &result->points[i];

		if ((strcmp(point->gpu_a->name, point->gpu_e->name) == 0) == homogeneous)
			return point;
	}
	return NULL;
}

int plan_leads_pair(const struct plan_result *result, size_t idx)
{
	const struct plan_point *points = result->points;

	for (size_t i = 0; i < idx; i++)
		if (points[i].gpu_a == points[idx].gpu_a && points[i].gpu_e == points[idx].gpu_e)
			return 0;
	return 1;
}

static void print_header(void)
{
	printf("%-16s %-16s %4s %4s %4s %2s %7s %8s %8s %8s %8s %9s %8s %9s  %s\n", "attention",
		"experts", "tp_a", "tp_e", "n_a", "m", "B", "T_a us", "T_e us", "T_c us",
		"TPOT ms", "tokens/s", "per GPU", "per cost", "bound by");
}

static void print_point(const struct plan_point *p)
{
	printf("%-16s %-16s %4d %4d %4d %2d %7.0f %8.1f %8.1f %8.1f %8.2f %9.0f %8.1f %9.2f  %s\n",
		p->gpu_a->name, p->gpu_e->name, p->tp_a, p->tp_e, p->n_a, p->m, p->batch,
		p->t_a * 1e6, p->t_e * 1e6, p->t_c * 1e6, p->t_iter * 1e3, p->tokens_per_s,
		p->tokens_per_s_gpu, p->tokens_per_s_cost, plan_bound_name(p->binding));
}

static void print_broken(const struct plan_point *p)
{
	for (unsigned int bit = PLAN_BALANCE; bit <= PLAN_MEMORY; bit <<= 1)
		if (p->broken & bit)
			printf("does not hold: %s\n", plan_bound_name(bit));
}

static void print_chosen(const struct plan_args *args, const struct plan_point *p)
{
	double n_experts = args->inputs.model.n_experts;

	printf("tp_a %d, tp_e %d, n_a %d, m %d, B %.0f: %d %s for attention, %.0f %s for experts\n",
		p->tp_a, p->tp_e, p->n_a, p->m, p->batch, p->tp_a * p->n_a, p->gpu_a->name,
		p->tp_e * n_experts, p->gpu_e->name);
	printf("T_a %.1f us at b_a %.0f: k1 %.4g us, k2 %.4g us\n", p->t_a * 1e6, p->b_a,
		plan_slope(&p->attention) * 1e6, p->attention.constant * 1e6);
	printf("T_e %.1f us at b_e %.1f: k3 %.4g us, k4 %.4g us; balance k1 E / (k3 K) = %.2f\n",
		p->t_e * 1e6, p->b_e, plan_slope(&p->experts) * 1e6, p->experts.constant * 1e6,
		plan_balance(&args->inputs, p));
	printf("T_c %.1f us; T_c / T_f %.2f; T_total %.2f ms; TPOT %.2f ms\n", p->t_c * 1e6,
		p->t_c / p->t_f, p->t_total * 1e3, p->t_iter * 1e3);
	printf("%.0f tokens/s, %.1f per GPU, %.2f per cost of an L20; bound by %s\n",
		p->tokens_per_s, p->tokens_per_s_gpu, p->tokens_per_s_cost,
		plan_bound_name(p->binding));
	print_broken(p);
}

/* What the paper found, beside what was found here. */
static void print_paper(const struct plan_result *result)
{
	const struct plan_point *best = &result->points[0];
	const struct plan_point *two = plan_best_of(result, 0);

	printf("\n%-44s %-28s %s\n", "", "the paper", "here");
	printf("%-44s %-28s %d\n", "micro-batches", "3, or 4 if T_c >= T_f / 2", best->m);
	printf("%-44s %-28s %s + %s\n", "GPUs for attention + experts", "H20 + L40S",
		best->gpu_a->name, best->gpu_e->name);
	if (two)
		printf("%-44s %-28s", "two types of GPU, throughput per cost over",
			"vLLM 3.24x, TensorRT 1.86x");
	for (size_t i = 0; two && i < result->n_points; i++) {
		const struct plan_point *one = &result->points[i];

		if (plan_leads_pair(result, i) && !strcmp(one->gpu_a->name, one->gpu_e->name))
			printf(" %s alone %.2fx", one->gpu_a->name,
				two->tokens_per_s_cost / one->tokens_per_s_cost);
	}
	printf("\n");
}

void plan_print_table(const struct plan_args *args, const struct plan_result *result)
{
	size_t n_shown = (size_t)args->n_shown;

	printf("%s, sequences of %.0f tokens, SLO %.0f ms; coefficients %s\n\n",
		args->inputs.model.name, args->inputs.context_tokens, args->inputs.slo_s * 1e3,
		args->inputs.measured.n[0] ? "measured" :
		args->inputs.straight ? "by the roofline's asymptotes" : "by the roofline");
	if (result->n_points) {
		print_chosen(args, &result->points[0]);
		printf("\n");
		print_header();
		for (size_t i = 0; i < result->n_points && i < n_shown; i++)
			print_point(&result->points[i]);
		printf("\nthe best of each pair\n");
		for (size_t i = 0; i < result->n_points; i++)
			if (plan_leads_pair(result, i))
				print_point(&result->points[i]);
		print_paper(result);
	}
	printf("\n%zu plans; without one:", result->n_points);
	for (int i = 0; i < PLAN_N_LOSSES; i++)
		if (result->n_lost[i])
			printf(" %s %zu;", plan_loss_name(i), result->n_lost[i]);
	printf("\n");
}
