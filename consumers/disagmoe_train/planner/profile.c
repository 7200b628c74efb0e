/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `disagmoe_train profile [--output FILE] RUN-OPTIONS TEXT`: measures the computation of a run on
 * this machine (machine.h). `disagmoe_train simulate --profile FILE [--cores N] [--trace FILE]
 * RUN-OPTIONS TEXT`: what a step of that run takes, and the memory of its ranks (local.h). Both
 * take the very options of `run`, so that a command line can be measured, foretold and run.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "commands.h"
#include "model/error.h"
#include "planner/local.h"
#include "planner/report.h"

const char *planner_take_option(int *argc, char **argv, const char *name, int has_value)
{
	size_t n = strlen(name);

	for (int i = 1; i < *argc; i++) {
		const char *value = argv[i] + n;
		int n_taken = 1;

		if (strncmp(argv[i], name, n) != 0 || (*value && (*value != '=' || !has_value)))
			continue;
		if (has_value && *value == '=')
			value++;
		else if (has_value && i + 1 < *argc)
			value = argv[i + n_taken++];
		else if (has_value)
			value = NULL;
		for (int j = i; value && j + n_taken <= *argc; j++)
			argv[j] = argv[j + n_taken];
		*argc -= value ? n_taken : 0;
		return value;
	}
	return NULL;
}

static void print_lines(const struct machine *m)
{
	size_t a = m->attention.n - 1, f = m->expert.n - 1;

	fprintf(stderr, "us: attention of %g sequences %.0f forward, %.0f backward, %.0f weights; "
		"an expert's %g rows %.0f, %.0f, %.0f\n", m->attention.size[a],
		m->attention.us[a][MACHINE_FORWARD], m->attention.us[a][MACHINE_BACKWARD],
		m->attention.us[a][MACHINE_WEIGHTS], m->expert.size[f],
		m->expert.us[f][MACHINE_FORWARD], m->expert.us[f][MACHINE_BACKWARD],
		m->expert.us[f][MACHINE_WEIGHTS]);
}

enum { N_STEPS = 12, MAX_LAYERS = 4 };

/* Steps without overlap, of one rank on either side. */
struct trial {
	struct run_options options;
	struct nn_text *text;
	double *least_us; /* shared with the parent */
};

static int try_steps(const struct rank_env *env, void *arg)
{
	struct trial *trial = arg;
	struct trainer_params params = {.settings = &trial->options.settings,
		.text = trial->text, .place = trial->options.place, .kind = TRAIN_SEQUENTIAL,
		.timeout_ns = (int64_t)(trial->options.timeout_s * 1e9)};
	struct nn_step_result result;
	struct trainer *t = NULL;
	int rc = trainer_open(&params, env, &t);

	for (uint64_t step = 0; !rc && step < N_STEPS; step++) {
		int64_t begin = timeline_now();
		double us;

		rc = trainer_step(t, step, &result);
		us = (double)(timeline_now() - begin) * 1e-3;
		/* The first one touches memory for the first time. */
		if (env->rank == 0 && step && (step == 1 || us < *trial->least_us))
			*trial->least_us = us;
	}
	trainer_close(t);
	return rc;
}

/* What such a step takes more than is known, for each of its transfers. */
static int measure_transfer(const struct run_options *options, struct machine *machine)
{
	struct trial trial = {.options = *options};
	struct nn_settings *s = &trial.options.settings;
	struct ranks_params params = {.n_ranks = 2, .group = "profile", .pin = 1};
	struct rank_result results[2];
	struct local_result known;
	double known_us = 0;
	int rc;

	s->step_seqs = s->step_seqs / s->n_micro_batches * 2;
	s->n_micro_batches = 2;
	s->config.n_layers = s->config.n_layers < MAX_LAYERS ? s->config.n_layers : MAX_LAYERS;
	trial.options.kind = TRAIN_SEQUENTIAL;
	rc = place_check(0, 1, 1, 1, &s->config, &trial.options.place);
	if (!rc)
		rc = local_run(&trial.options, machine, NULL, 2, &known);
	if (rc)
		return rc;
	known_us = known.step_us;
	local_free(&known);
	rc = nn_text_open(options->text_path, s->seq_len, s->held_back, &trial.text);
	if (rc)
		return rc;
	trial.least_us = mmap(NULL, sizeof(double), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (trial.least_us == MAP_FAILED)
		rc = model_fail(-errno, "no memory");
	if (!rc) {
		rc = ranks_run(&params, try_steps, &trial, results);
		rc = rc > 0 ? model_fail(-EIO, "the ranks that measure transfers failed") : rc;
		machine->transfer_us = fmax(0, *trial.least_us - known_us) /
			(4. * s->config.n_layers * s->n_micro_batches);
		munmap(trial.least_us, sizeof(double));
	}
	nn_text_close(trial.text);
	return rc;
}

static int profile(const struct run_options *options, const char *path)
{
	const struct nn_settings *s = &options->settings;
	FILE *out = stdout;
	struct machine machine;
	int rc = machine_measure(s, s->step_seqs / s->n_micro_batches, &machine);

	if (!rc)
		rc = measure_transfer(options, &machine);
	if (rc)
		return rc;
	if (path)
		out = fopen(path, "we");
	if (!out)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	print_lines(&machine);
	rc = machine_write(&machine, out);
	if (!rc && (ferror(out) || fflush(out)))
		rc = model_fail(-EIO, "%s could not be written", path ? path : "standard output");
	if (path)
		fclose(out);
	return rc;
}

int profile_main(int argc, char **argv)
{
	const char *path = planner_take_option(&argc, argv, "--output", 1);
	struct run_options options;
	int rc = run_options_parse(argc, argv, &options);

	if (!rc)
		rc = profile(&options, path);
	if (rc)
		fprintf(stderr, "disagmoe_train profile: %s\n", model_error());
	return rc ? 1 : 0;
}

static const char *role_of(struct place place, int rank)
{
	place_set_rank(&place, rank);
	return place.attention < 0 ? "ffn" : place.expert < 0 ? "attention" : "both";
}

static int print_json(const struct run_options *o, double n_cores, const struct local_result *r)
{
	const struct nn_settings *s = &o->settings;
	json_t *ranks = json_array();

	for (int i = 0; i < o->place.n_ranks; i++)
		json_array_append_new(ranks, json_pack("{s:s, s:f, s:f, s:I}", "role",
			role_of(o->place, i), "busy_us", r->ranks[i].busy_us, "values",
			r->ranks[i].values, "planned_bytes",
			(json_int_t)r->ranks[i].planned_bytes));
	return report_print(json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}",
		"schedule", train_schedule_name(o->kind), "groups", (int)o->n_groups,
		"micro_batches", (int)s->n_micro_batches, "cores", n_cores, "step_ms",
		r->step_us * 1e-3, "pass_ms", r->pass_us * 1e-3, "t_a_us", r->t_a_us, "t_f_us",
		r->t_f_us, "busy", r->busy, "tokens_per_s", (double)s->step_seqs * s->seq_len /
		r->step_us * 1e6, "ranks", ranks));
}

static void print_text(const struct run_options *o, double n_cores, const struct local_result *r)
{
	printf("%s, %u groups of %u:%u ranks on %g cores: step %.1f ms (%.1f ms without sums and "
		"update), cores busy for %.0f %%\n", train_schedule_name(o->kind), o->n_groups,
		o->place.n_a, o->place.n_f, n_cores, r->step_us * 1e-3, r->pass_us * 1e-3,
		r->busy * 100);
	printf("T_a %.0f us, T_f %.0f us: a layer and micro-batch of a rank\n", r->t_a_us,
		r->t_f_us);
	printf("%4s %-10s %9s %9s\n", "rank", "role", "busy ms", "MB");
	for (int i = 0; i < o->place.n_ranks; i++)
		printf("%4d %-10s %9.1f %9.1f\n", i, role_of(o->place, i),
			r->ranks[i].busy_us * 1e-3, (double)r->ranks[i].planned_bytes * 1e-6);
}

int simulate_run_main(int argc, char **argv)
{
	const char *path = planner_take_option(&argc, argv, "--profile", 1);
	const char *cores = planner_take_option(&argc, argv, "--cores", 1);
	const char *json = planner_take_option(&argc, argv, "--json", 0);
	const char *trace_path = planner_take_option(&argc, argv, "--trace", 1);
	double n_cores = cores ? atof(cores) : (double)sysconf(_SC_NPROCESSORS_ONLN);
	struct load_trace trace = {0};
	struct local_result result;
	struct run_options options;
	struct machine machine;
	int rc = run_options_parse(argc, argv, &options);

	if (!rc && !(n_cores > 0 && n_cores <= 4096))
		rc = model_fail(-EINVAL, "--cores: '%s' is no number above 0", cores);
	if (!rc)
		rc = machine_read(path, &machine);
	if (!rc && trace_path)
		rc = load_trace_read(trace_path, &trace);
	if (!rc)
		rc = local_run(&options, &machine, trace_path ? &trace : NULL, n_cores, &result);
	load_trace_free(&trace);
	if (!rc) {
		if (json)
			rc = print_json(&options, n_cores, &result);
		else
			print_text(&options, n_cores, &result);
		local_free(&result);
	}
	if (!rc && fflush(stdout))
		rc = model_fail(-errno, "standard output: %s", strerror(errno));
	if (rc)
		fprintf(stderr, "disagmoe_train simulate: %s\n", model_error());
	return rc ? 1 : 0;
}
