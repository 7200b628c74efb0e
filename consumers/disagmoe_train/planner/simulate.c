/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `disagmoe_train simulate`: a step under AF-Pipe and under the other schedules on the same GPUs,
 * beside what the paper measured. Without a split given, the plan's is taken. With --profile it is
 * a run on this machine instead, see profile.c.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "model/error.h"
#include "planner/report.h"

/* How much faster AF-Pipe was, as the paper's figures have it (systems.md, second-hand notes). */
static const char *const paper[CLUSTER_N_KINDS] = {
	[CLUSTER_AFPIPE] = "",
	[CLUSTER_1F1B] = "1.59 to 1.81",
	[CLUSTER_DUALPIPE] = "1.05 to 1.13",
	[CLUSTER_CHUNKS_2] = "1.2 to 1.5 (Tutel)",
	[CLUSTER_CHUNKS_16] = "1.2 to 1.5 (Comet)",
};
static const char *const paper_exposed[CLUSTER_N_KINDS] = {
	[CLUSTER_AFPIPE] = "",
	[CLUSTER_1F1B] = "",
	[CLUSTER_DUALPIPE] = ", -45 %",
	[CLUSTER_CHUNKS_2] = ", -88 %",
	[CLUSTER_CHUNKS_16] = ", -75 %",
};

struct simulated {
	struct plan_found found;
	struct cluster_result steps[CLUSTER_N_KINDS];
	int wanted[CLUSTER_N_KINDS];
};

static int choose(const struct planner_args *args, struct simulated *s)
{
	int any = 0;

	for (int kind = 0; kind < CLUSTER_N_KINDS; kind++) {
		s->wanted[kind] = !args->schedule ||
			!strcmp(args->schedule, cluster_name((enum cluster_kind)kind));
		any |= s->wanted[kind];
	}
	if (!any)
		return model_fail(-EINVAL, "--schedule: '%s' is none of afpipe, 1f1b, dualpipe, "
			"chunks-2, chunks-16", args->schedule);
	s->wanted[CLUSTER_AFPIPE] = 1;
	return 0;
}

static int simulate(const struct planner_args *args, struct simulated *s)
{
	struct plan_space space = args->space;
	int rc = choose(args, s);

	space.any_memory = 1; /* memory is reported */
	if (!rc)
		rc = plan_search(&args->job, &space, &s->found);
	if (rc)
		return rc;
	s->steps[CLUSTER_AFPIPE] = s->found.points[0].step;
	for (int kind = 1; !rc && kind < CLUSTER_N_KINDS; kind++)
		if (s->wanted[kind])
			rc = cluster_run(&args->job, &s->found.points[0].split,
				(enum cluster_kind)kind, &s->steps[kind]);
	return rc;
}

static double speed_up(const struct simulated *s, int kind)
{
	return s->steps[CLUSTER_AFPIPE].tokens_per_s_gpu / s->steps[kind].tokens_per_s_gpu;
}

/* Communication that shows in AF-Pipe over that of the other, for each token. */
static double less_exposed(const struct simulated *s, int kind)
{
	double own = s->steps[CLUSTER_AFPIPE].exposed / s->steps[CLUSTER_AFPIPE].tokens_per_s_gpu;
	double other = s->steps[kind].exposed / s->steps[kind].tokens_per_s_gpu;

	return other > 0 ? own / other - 1 : 0;
}

static void print_text(const struct planner_args *args, const struct simulated *s)
{
	const struct train_case *job = &args->job;
	const struct pair_split *split = &s->found.points[0].split;

	printf("%s, %g tokens a sequence, %g pairs of %zu:%zu %s with %zu:%zu NICs%s\n",
		job->model.name, job->seq, job->p, split->gpus_a, split->gpus_f, args->gpu,
		split->nics_a, split->nics_f, job->trace.experts ? ", skew of a trace" : "");
	printf("%-10s %8s %9s %6s %9s %8s %7s %8s %8s  %-9s %-20s %s\n", "schedule", "step s",
		"tok/s/GPU", "MFU %", "computing", "exposed", "bubble", "A GB", "F GB", "speed-up",
		"the paper's", "exposed, the paper's");
	for (int kind = 0; kind < CLUSTER_N_KINDS; kind++) {
		const struct cluster_result *step = &s->steps[kind];

		if (!s->wanted[kind])
			continue;
		printf("%-10s %8.2f %9.1f %6.1f %7.1f %% %6.1f %% %5.1f %% %8.1f %8.1f  ",
			cluster_name((enum cluster_kind)kind), step->seconds,
			step->tokens_per_s_gpu, step->mfu * 100, step->busy * 100,
			step->exposed * 100, step->bubble * 100, step->bytes_a / 1e9,
			step->bytes_f / 1e9);
		if (kind)
			printf("%-9.2f %-20s %+.0f %%%s", speed_up(s, kind), paper[kind],
				less_exposed(s, kind) * 100, paper_exposed[kind]);
		printf("\n");
	}
	printf("busiest expert rank over the mean: %.2f in AF-Pipe's groups\n",
		s->steps[CLUSTER_AFPIPE].busiest);
}

static int print_json(const struct planner_args *args, const struct simulated *s)
{
	const struct pair_split *split = &s->found.points[0].split;
	json_t *steps = json_object();

	for (int kind = 0; kind < CLUSTER_N_KINDS; kind++) {
		json_t *step = s->wanted[kind] ? report_step(&s->steps[kind]) : NULL;

		if (!step)
			continue;
		json_object_set_new(step, "afpipe_speed_up", json_real(speed_up(s, kind)));
		json_object_set_new(step, "afpipe_exposed_change",
			json_real(less_exposed(s, kind)));
		json_object_set_new(steps, cluster_name((enum cluster_kind)kind), step);
	}
	return report_print(json_pack("{s:o, s:i, s:i, s:i, s:i, s:o}", "case", report_case(args),
		"attention_gpus", (int)split->gpus_a, "ffn_gpus", (int)split->gpus_f,
		"attention_nics", (int)split->nics_a, "ffn_nics", (int)split->nics_f, "schedules",
		steps));
}

int simulate_main(int argc, char **argv)
{
	struct planner_args args;
	struct simulated s = {0};
	int rc;

	for (int i = 1; i < argc; i++)
		if (!strncmp(argv[i], "--profile", strlen("--profile")))
			return simulate_run_main(argc, argv);
	rc = planner_args_parse(argc, argv, "Simulates a training step of a cluster under "
		"AF-Pipe and other schedules.", &args);

	if (rc)
		return rc;
	rc = simulate(&args, &s);
	if (!rc && args.json)
		rc = print_json(&args, &s);
	else if (!rc)
		print_text(&args, &s);
	if (!rc && fflush(stdout))
		rc = model_fail(-errno, "standard output: %s", strerror(errno));
	plan_found_free(&s.found);
	case_free(&args.job);
	if (rc)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	return rc ? 1 : 0;
}
