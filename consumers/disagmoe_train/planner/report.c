/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text and JSON. Units stand in the names of the JSON's members.
 */
#include "planner/report.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

#include "model/error.h"

const char *report_bound(double compute, double network)
{
	return compute >= network ? "computation" : "network";
}

static void print_roofline(const struct pair_roofline *r)
{
	printf("T_a %.1f us, bound by %s (%.1f computing, %.1f on the network)\n", r->t_a * 1e6,
		report_bound(r->compute_a, r->network_a), r->compute_a * 1e6, r->network_a * 1e6);
	printf("T_f %.1f us, bound by %s (%.1f computing, %.1f on the network)\n", r->t_f * 1e6,
		report_bound(r->compute_f, r->network_f), r->compute_f * 1e6, r->network_f * 1e6);
	printf("FLOP per byte: attention %.0f, turning at %.0f; experts %.0f, turning at %.0f\n",
		r->intensity_a, r->turning_a, r->intensity_f, r->turning_f);
}

static void print_split(const char *what, const struct pair_split *split)
{
	printf("%s%zu:%zu GPUs, %zu:%zu NICs\n", what, split->gpus_a, split->gpus_f, split->nics_a,
		split->nics_f);
}

static void print_point(const struct plan_point *p)
{
	const struct cluster_result *step = &p->step;
	char gpus[32], nics[32];

	snprintf(gpus, sizeof(gpus), "%zu:%zu", p->split.gpus_a, p->split.gpus_f);
	snprintf(nics, sizeof(nics), "%zu:%zu", p->split.nics_a, p->split.nics_f);
	printf("%9s %9s %9.1f %9.1f %7.1f %9.2f %9.1f %6.1f %7.1f %7.1f %7.1f  %s\n", gpus, nics,
		p->roofline.t_a * 1e6, p->roofline.t_f * 1e6, p->roofline.mfu * 100,
		step->seconds, step->tokens_per_s_gpu, step->mfu * 100, step->bubble * 100,
		step->bytes_a / 1e9, step->bytes_f / 1e9, p->fits ? "" : "does not fit");
}

void report_plan_text(const struct planner_args *args, const struct plan_found *found)
{
	const struct train_case *job = &args->job;
	const struct plan_point *best = &found->points[0];

	printf("%s, %g tokens a sequence, %g groups of each kind, %s%s\n", job->model.name,
		job->seq, job->p, args->gpu, job->trace.experts ? ", skew of a trace" : "");
	printf("phases 1 and 2, of %zu splits: ", found->n_splits);
	print_split("", &found->seed.split);
	printf("after the local search, of %zu simulated: ", found->n_points);
	print_split("", &best->split);
	print_roofline(&best->roofline);
	printf("MFU %.1f %% by the roofline, %.1f %% in the simulated step\n",
		best->roofline.mfu * 100, best->step.mfu * 100);
	printf("memory: %.1f GB of %.0f on an attention GPU, %.1f on an FFN GPU; %.0f and %.0f "
		"layers' activations\n", best->step.bytes_a / 1e9, job->gpu_bytes / 1e9,
		best->step.bytes_f / 1e9, best->step.live_a, best->step.live_f);
	printf("\n%9s %9s %9s %9s %7s %9s %9s %6s %7s %7s %7s\n", "GPUs", "NICs", "T_a us",
		"T_f us", "MFU %", "step s", "tok/s/GPU", "MFU %", "bubble", "A GB", "F GB");
	for (size_t i = 0; i < found->n_points && (double)i < args->top; i++)
		print_point(&found->points[i]);
}

json_t *report_step(const struct cluster_result *step)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
		"step_s", step->seconds, "tokens", step->tokens, "gpus", step->gpus,
		"tokens_per_s_gpu", step->tokens_per_s_gpu, "mfu", step->mfu,
		"micro_batches", step->n_micro, "busiest_rank", step->busiest,
		"computing", step->busy, "exposed", step->exposed, "bubble", step->bubble,
		"live_attention", step->live_a, "live_ffn", step->live_f,
		"bytes_attention", step->bytes_a, "bytes_ffn", step->bytes_f);
}

static json_t *roofline_of(const struct pair_roofline *r)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:s, s:f, s:f, s:f, s:f, s:f}",
		"tokens", r->tokens, "t_a_us", r->t_a * 1e6, "t_f_us", r->t_f * 1e6,
		"compute_a_us", r->compute_a * 1e6, "network_a_us", r->network_a * 1e6,
		"compute_f_us", r->compute_f * 1e6, "network_f_us", r->network_f * 1e6,
		"bound_a", report_bound(r->compute_a, r->network_a),
		"bound_f", report_bound(r->compute_f, r->network_f), "mfu", r->mfu,
		"intensity_a", r->intensity_a, "turning_a", r->turning_a,
		"intensity_f", r->intensity_f, "turning_f", r->turning_f);
}

static json_t *point_of(const struct plan_point *p)
{
	return json_pack("{s:i, s:i, s:i, s:i, s:b, s:o, s:o}",
		"attention_gpus", (int)p->split.gpus_a, "ffn_gpus", (int)p->split.gpus_f,
		"attention_nics", (int)p->split.nics_a, "ffn_nics", (int)p->split.nics_f,
		"fits", p->fits, "roofline", roofline_of(&p->roofline), "step",
		report_step(&p->step));
}

json_t *report_case(const struct planner_args *args)
{
	const struct train_case *job = &args->job;

	return json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:b, s:b, s:b}",
		"model", job->model.name, "gpu", args->gpu, "seq", job->seq, "batch", job->batch,
		"groups", job->p, "ep", job->ep, "efficiency", job->efficiency,
		"nic_bytes_per_s", job->nic_bytes_per_s, "m2n_util", job->m2n_util,
		"a2a_util", job->a2a_util, "sm_share", job->sm_share,
		"recompute", job->recompute, "head_last", job->head_last,
		"trace", job->trace.experts != NULL);
}

int report_print(json_t *root)
{
	int rc = root ? json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : -1;

	json_decref(root);
	printf("\n");
	return rc ? model_fail(-ENOMEM, "the JSON could not be written") : 0;
}

int report_plan_json(const struct planner_args *args, const struct plan_found *found)
{
	json_t *points = json_array();

	for (size_t i = 0; i < found->n_points && (double)i < args->top; i++)
		json_array_append_new(points, point_of(&found->points[i]));
	return report_print(json_pack("{s:o, s:o, s:i, s:i, s:o}", "case", report_case(args),
		"seed", point_of(&found->seed), "n_splits", (int)found->n_splits,
		"n_simulated", (int)found->n_points, "plans", points));
}
