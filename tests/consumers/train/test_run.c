/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Distributed steps against the one-process reference: gradients of every parameter, curves of many
 * steps, evaluation, for each number of groups and ranks and each schedule. Ranks are processes
 * that compare what they hold with what the parent computed before it started them.
 *
 *	test_train_run [short]     short: two layers of each group only, no curves
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "run/trainer.h"
#include "train/job_text.h"

enum { N_CURVE = 50 };
#define BOUND 1e-5
#define CURVE_BOUND 1e-4

struct layout {
	enum train_schedule_kind kind;
	uint32_t p, v, n_a, n_f;
	int split;
};

struct job {
	struct layout layout;
	struct nn_settings settings;
	struct nn_text *text;
	struct nn_reference *reference; /* with the gradients of step 0 */
	struct nn_step_result expected;
	double evaluated;
	double curve[N_CURVE];
	int n_curve;
};

static void set(struct nn_settings *s, uint32_t n_layers)
{
	nn_settings_named("tiny", s);
	s->config.n_layers = n_layers;
	s->config.n_experts = 6; /* of which 5 ranks have one or two */
	s->step_seqs = 15; /* for 3 micro-batches: of 5 sequences, which 2 ranks do not divide */
	s->n_micro_batches = 3;
	s->seq_len = 16;
	s->balance = 0.05;
}

static int open_trainer(const struct job *job, const struct rank_env *env, struct trainer **t)
{
	const struct layout *l = &job->layout;
	struct trainer_params params = {.settings = &job->settings,
		.text = job->text,
		.kind = l->kind,
		.split_weights = l->split,
		.timeout_ns = 60000000000};
	int rc = place_check(
		l->kind == TRAIN_1F1B, l->p, l->n_a, l->n_f, &job->settings.config, &params.place);

	return rc ? rc : trainer_open(&params, env, t);
}

static double worst_gradient(const struct job *job, const struct trainer *t, const char **name)
{
	double worst = 0;

	*name = "";
	for (size_t i = 0; i < t->params->n; i++) {
		const struct nn_param *mine = &t->params->list[i];
		const struct nn_param *known = nn_params_find(job->reference->params, mine->name);
		double largest = 0, error = 0;

		for (size_t j = 0; j < mine->n_values; j++) {
			largest = fmax(largest, fabs((double)known->grad[j]));
			error = fmax(error, fabs((double)known->grad[j] - mine->grad[j]));
		}
		if (!(error <= worst * largest)) {
			worst = error / largest;
			*name = mine->name;
		}
	}
	return worst;
}

static int close_to(double a, double b, double bound)
{
	return fabs(a - b) <= bound * fmax(fabs(a), fabs(b));
}

static int check_gradients(const struct job *job, struct trainer *t)
{
	struct nn_step_result result;
	const char *name;
	double evaluated, worst;
	int rc = trainer_gradients(t, 0, &result);

	if (rc)
		return rc;
	worst = worst_gradient(job, t, &name);
	if (!(worst <= BOUND))
		return model_fail(-1, "gradient of %s is off by %g", name, worst);
	if (!close_to(result.loss, job->expected.loss, 1e-6) ||
		!close_to(result.balance, job->expected.balance, 1e-6) ||
		!close_to(result.grad_norm, job->expected.grad_norm, BOUND))
		return model_fail(-1, "loss %.9g, balance %.9g, norm %.9g, not %.9g, %.9g, %.9g",
			result.loss, result.balance, result.grad_norm, job->expected.loss,
			job->expected.balance, job->expected.grad_norm);
	/* 17 sequences: a whole pass, and one with ranks that have none. */
	rc = trainer_evaluate(t, 17, &evaluated);
	if (!rc && !close_to(evaluated, job->evaluated, 1e-6))
		return model_fail(-1, "evaluated %.9g, not %.9g", evaluated, job->evaluated);
	return rc;
}

static int check_curve(const struct job *job, struct trainer *t)
{
	struct nn_step_result result;

	for (int step = 0; step < job->n_curve; step++) {
		int rc = trainer_step(t, (uint64_t)step, &result);

		if (rc)
			return rc;
		if (!close_to(result.loss, job->curve[step], CURVE_BOUND))
			return model_fail(-1, "step %d: loss %.9g, not %.9g", step, result.loss,
				job->curve[step]);
	}
	return 0;
}

static int be_rank(const struct rank_env *env, void *arg)
{
	const struct job *job = arg;
	struct trainer *t = NULL;
	int rc = open_trainer(job, env, &t);

	if (!rc)
		rc = job->n_curve ? check_curve(job, t) : check_gradients(job, t);
	trainer_close(t);
	return rc;
}

static int n_cases, n_failed;

static void run(struct job *job)
{
	const struct layout *l = &job->layout;
	struct rank_result results[64];
	struct ranks_params params = {.group = "train", .grace_ms = 1000};
	struct place place;
	int rc = place_check(
		l->kind == TRAIN_1F1B, l->p, l->n_a, l->n_f, &job->settings.config, &place);

	params.n_ranks = place.n_ranks;
	if (!rc)
		rc = ranks_run(&params, be_rank, job, results);
	n_failed += rc != 0;
	printf("%s %d - %s%s, p %u, v %u, %u:%u%s\n", rc ? "not ok" : "ok", ++n_cases,
		train_schedule_name(l->kind), l->split ? " split" : "", l->p, l->v, l->n_a, l->n_f,
		job->n_curve ? ", curve" : "");
	fflush(stdout);
}

static void open_reference(struct job *job, uint32_t n_layers)
{
	set(&job->settings, n_layers);
	if (nn_text_open(job_text(), job->settings.seq_len, job->settings.held_back, &job->text) ||
		nn_reference_open(&job->settings, &job->reference)) {
		fprintf(stderr, "%s\n", model_error());
		exit(1);
	}
}

static void close_reference(struct job *job)
{
	nn_reference_close(job->reference);
	nn_text_close(job->text);
}

static void run_gradients(uint32_t p, uint32_t v)
{
	static const uint32_t splits[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 3}};
	static const struct {
		enum train_schedule_kind kind;
		int split;
	} kinds[] = {{TRAIN_AFPIPE, 1}, {TRAIN_AFPIPE, 0}, {TRAIN_1F1B, 1}, {TRAIN_1F1B, 0},
		{TRAIN_SEQUENTIAL, 0}};
	struct job job = {.n_curve = 0};

	open_reference(&job, p * v);
	nn_reference_gradients(job.reference, job.text, 0, &job.expected);
	job.evaluated = nn_reference_evaluate(job.reference, job.text, 17);
	for (size_t i = 0; i < sizeof(splits) / sizeof(splits[0]); i++)
		for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
			job.layout = (struct layout){
				kinds[k].kind, p, v, splits[i][0], splits[i][1], kinds[k].split};
			run(&job);
		}
	close_reference(&job);
}

static void run_curves(void)
{
	static const struct layout layouts[] = {{TRAIN_AFPIPE, 2, 2, 2, 2, 1},
		{TRAIN_1F1B, 2, 2, 1, 1, 0}, {TRAIN_AFPIPE, 1, 4, 1, 1, 1}};
	struct job job = {.n_curve = 0};

	open_reference(&job, 4);
	for (int step = 0; step < N_CURVE; step++) {
		struct nn_step_result result;

		nn_reference_step(job.reference, job.text, (uint64_t)step, &result);
		job.curve[step] = result.loss;
	}
	job.n_curve = N_CURVE;
	for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
		job.layout = layouts[i];
		run(&job);
	}
	close_reference(&job);
}

int main(int argc, char **argv)
{
	int is_short = argc > 1 && !strcmp(argv[1], "short");

	for (uint32_t p = 1; p <= 2; p++)
		for (uint32_t v = 1; v <= 3; v++)
			if (!is_short || v == 2)
				run_gradients(p, v);
	if (!is_short)
		run_curves();
	printf("1..%d\n", n_cases);
	return n_failed != 0;
}
