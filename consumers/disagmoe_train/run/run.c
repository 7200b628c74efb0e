/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `disagmoe_train run`: starts the ranks, and what each does from the first step to the last. A
 * rank that is lost ends the run: the others say which one and leave, and the last checkpoint is
 * what --resume goes on from.
 */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include "commands.h"
#include "model/error.h"
#include "nn/state.h"
#include "run/dump.h"
#include "run/memory.h"
#include "run/metrics.h"

enum { TIMELINE_SPANS = 200000, KILL_US = 2000 };

struct run {
	struct run_options options;
	struct nn_text *text;
	/* Of one rank. */
	struct trainer *trainer;
	struct timeline *timeline;
	struct metrics *metrics; /* rank 0 */
	struct dump *dump;       /* in the last step, attention ranks */
	int checkpoint_failed;
	uint64_t resident_before;
};

static void kill_me(int signal)
{
	(void)signal;
	kill(getpid(), SIGKILL);
}

static void kill_soon(void)
{
	struct itimerval after = {.it_value = {0, KILL_US}};
	struct sigaction act = {.sa_handler = kill_me};

	sigaction(SIGALRM, &act, NULL);
	setitimer(ITIMER_REAL, &after, NULL);
}

static void note_routing(
	void *arg, uint32_t layer, uint32_t first_seq, const struct nn_attention_record *record)
{
	struct run *r = arg;

	if (r->dump)
		dump_add(r->dump, layer, first_seq, record);
}

static int save(struct run *r, uint64_t n_steps)
{
	int rc = trainer_save(r->trainer, r->options.checkpoint_dir, n_steps);

	r->checkpoint_failed = rc > 0;
	if (rc > 0 && r->trainer->env->rank == 0)
		fprintf(stderr,
			"disagmoe_train run: step %llu: no checkpoint: %s; the one before "
			"stays\n",
			(unsigned long long)n_steps, model_error());
	return rc < 0 ? rc : 0;
}

static int train_step(struct run *r, uint64_t step, struct nn_step_result *result)
{
	const struct run_options *o = &r->options;
	struct trainer *t = r->trainer;
	int is_last = step + 1 == o->n_steps, rc = 0;

	if (t->env->rank == o->kill_rank && step + 1 == o->kill_step)
		kill_soon();
	if (step == o->first_step + 1) /* the first touches memory for the first time */
		t->times = (struct trainer_times){0};
	t->p.timeline = step + 1 == o->timeline_step ? r->timeline : NULL;
	t->p.is_aligned =
		step + 1 >= o->timeline_step && step + 1 - o->timeline_step < o->n_aligned;
	if (is_last && o->dump_path && t->attention)
		rc = dump_open(o->dump_path, t->env->rank, &o->settings.config, &r->dump);
	if (!rc)
		rc = trainer_step(t, step, result);
	if (r->dump) {
		int closed = dump_close(r->dump);

		r->dump = NULL;
		rc = rc ? rc : closed;
	}
	t->p.timeline = NULL;
	return rc;
}

/* A step, and what is due after it. */
static int go_one_step(struct run *r, uint64_t step)
{
	const struct run_options *o = &r->options;
	int is_last = step + 1 == o->n_steps, rc;
	struct nn_step_result result;
	double held_back = NAN;

	if (r->metrics)
		metrics_begin_step(r->metrics);
	rc = train_step(r, step, &result);
	if (!rc && r->metrics)
		metrics_end_step(r->metrics, &result);
	if (!rc && (is_last || (step + 1) % o->evaluate_every == 0))
		rc = trainer_evaluate(r->trainer, o->evaluate_seqs, &held_back);
	if (!rc && r->metrics)
		metrics_step(r->metrics, step, held_back);
	if (!rc && o->checkpoint_dir &&
		(is_last || (o->checkpoint_every && (step + 1) % o->checkpoint_every == 0)))
		rc = save(r, step + 1);
	return rc;
}

static void timeline_path(const struct run *r, int rank, char path[4200])
{
	snprintf(path, 4200, "%s/timeline.part-%d", r->options.timeline_dir, rank);
}

static int merge_timelines(struct run *r)
{
	int n = r->trainer->env->n_ranks, rc = 0;
	char(*paths)[4200] = calloc((size_t)n + 2, sizeof(*paths)), title[128];
	const char **list = calloc((size_t)n, sizeof(*list));

	if (!paths || !list)
		rc = model_fail(-ENOMEM, "no memory");
	for (int i = 0; !rc && i < n; i++) {
		timeline_path(r, i, paths[i]);
		list[i] = paths[i];
	}
	if (!rc) {
		snprintf(paths[n], sizeof(*paths), "%s/timeline.json", r->options.timeline_dir);
		snprintf(paths[n + 1], sizeof(*paths), "%s/timeline.svg", r->options.timeline_dir);
		snprintf(title, sizeof(title), "%s, step %llu",
			train_schedule_name(r->options.kind),
			(unsigned long long)r->options.timeline_step);
		rc = timeline_merge(list, (size_t)n, paths[n], paths[n + 1], title, 0, 0);
	}
	if (!rc)
		rc = timeline_exposed(list, (size_t)n, &r->metrics->exposed);
	for (int i = 0; list && i < n; i++)
		if (list[i])
			unlink(list[i]);
	free(paths);
	free(list);
	return rc;
}

static uint64_t most_resident(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (uint64_t)usage.ru_maxrss * 1024;
}

static struct metrics_rank describe(struct run *r)
{
	struct trainer *t = r->trainer;
	struct metrics_rank mine = {.times = t->times,
		.bytes = trainer_bytes(t),
		.resident_bytes = most_resident() - r->resident_before,
		.group = t->p.place.group,
		.attention = t->p.place.attention,
		.expert = t->p.place.expert};
	struct memory_plan plan;

	if (!memory_plan(t->p.settings, &t->p.place, &t->flow, &plan))
		mine.planned_bytes = memory_sum(&plan);
	return mine;
}

/* Rank 0 gets what all have to tell, when their files are written. */
static int finish(struct run *r)
{
	const struct run_options *o = &r->options;
	struct trainer *t = r->trainer;
	struct metrics_rank mine = describe(r);
	struct metrics_rank *all =
		r->metrics ? calloc((size_t)t->env->n_ranks, sizeof(*all)) : NULL;
	char path[4200];
	int rc = r->metrics && !all ? model_fail(-ENOMEM, "no memory") : 0;

	timeline_path(r, t->env->rank, path);
	if (!rc && r->timeline && o->timeline_dir)
		rc = timeline_save(r->timeline, path);
	if (!rc)
		rc = comm_gather(t->comm, &mine, sizeof(mine), all);
	if (!rc && all && o->timeline_dir)
		rc = merge_timelines(r);
	if (!rc && all && o->dump_path)
		rc = dump_merge(o->dump_path, t->env->n_ranks, &o->settings.config);
	if (!rc && all)
		rc = metrics_report(r->metrics, t, all);
	free(all);
	return rc;
}

static int open_rank(struct run *r, const struct rank_env *env)
{
	const struct run_options *o = &r->options;
	struct trainer_params params = {.settings = &o->settings,
		.text = r->text,
		.place = o->place,
		.kind = o->kind,
		.max_in_flight = o->max_in_flight,
		.split_weights = o->kind != TRAIN_SEQUENTIAL && !o->join_weights,
		.timeout_ns = (int64_t)(o->timeout_s * 1e9),
		.routed = note_routing,
		.arg = r};
	int rc = trainer_open(&params, env, &r->trainer);

	if (!rc && o->resume)
		rc = nn_state_read_params(o->checkpoint_dir, r->trainer->params);
	if (!rc && o->timeline_dir) {
		char name[32];

		snprintf(name, sizeof(name), "%s-%d",
			o->place.together       ? "both"
			: r->trainer->attention ? "attention"
						: "ffn",
			r->trainer->p.place.group);
		r->timeline = timeline_open(name, env->rank, TIMELINE_SPANS);
		if (!r->timeline)
			rc = model_fail(-ENOMEM, "no memory for the timeline");
	}
	if (!rc && env->rank == 0)
		rc = metrics_open(o, &r->metrics);
	return rc;
}

/* What is no number all ranks see alike. */
static void advise(void)
{
	char text[1024];

	snprintf(text, sizeof(text), "%s", model_error());
	model_fail(-EDOM, "%s; try a smaller --learning-rate", text);
}

static int be_rank(const struct rank_env *env, void *arg)
{
	struct run *r = arg;
	const struct run_options *o = &r->options;
	char where[64] = "start";
	int rc, is_partial;

	r->resident_before = most_resident();
	rc = open_rank(r, env);
	for (uint64_t step = o->first_step; !rc && step < o->n_steps; step++) {
		snprintf(where, sizeof(where), "step %llu", (unsigned long long)step + 1);
		rc = go_one_step(r, step);
	}
	if (!rc) {
		snprintf(where, sizeof(where), "end");
		rc = finish(r);
	}
	if (rc == -EDOM)
		advise();
	else if (rc < 0)
		comm_abandon(env, rc, where);
	is_partial = r->checkpoint_failed || (r->metrics && r->metrics->has_failed);
	metrics_close(r->metrics);
	timeline_close(r->timeline);
	trainer_close(r->trainer);
	return rc < 0 ? rc : is_partial;
}

static int check_text(const struct run *r)
{
	struct nn_state state;
	int rc = nn_state_read(r->options.checkpoint_dir, &state);

	if (!rc && (state.text_bytes != r->text->n_bytes || state.text_digest != r->text->digest))
		rc = model_fail(-EINVAL, "%s: the checkpoint was trained on another text",
			r->options.text_path);
	return rc;
}

/* After a failure: what is there to go on from. */
static void name_checkpoint(const struct run_options *o)
{
	struct nn_state state;

	if (o->checkpoint_dir && !o->launched && !nn_state_read(o->checkpoint_dir, &state))
		fprintf(stderr,
			"disagmoe_train run: %s: whole, of step %llu; --resume goes on from it, on "
			"any number of ranks\n",
			o->checkpoint_dir, (unsigned long long)state.step);
}

static int run_all(struct run *r)
{
	const struct run_options *o = &r->options;
	struct ranks_params params = {.n_ranks = o->place.n_ranks,
		.group = "disagmoe_train",
		.launched = o->launched,
		.go_on = 1,
		.pin = !o->no_pin};
	struct rank_result *results = calloc((size_t)o->place.n_ranks, sizeof(*results));
	int rc = results ? 0 : model_fail(-ENOMEM, "no memory");

	if (!rc)
		rc = ranks_run(&params, be_rank, r, results);
	for (int i = 0; rc > 0 && i < o->place.n_ranks; i++)
		if (results[i].signal)
			fprintf(stderr, "disagmoe_train run: rank %d was ended by signal %d\n", i,
				results[i].signal);
	free(results);
	if (rc > 0)
		name_checkpoint(o);
	return rc;
}

int run_main(int argc, char **argv)
{
	static struct run run;
	int rc = run_options_parse(argc, argv, &run.options);

	/* A limit on files' sizes is an error like a full disk. */
	signal(SIGXFSZ, SIG_IGN);
	if (!rc)
		rc = nn_text_open(run.options.text_path, run.options.settings.seq_len,
			run.options.settings.held_back, &run.text);
	if (!rc && run.options.resume)
		rc = check_text(&run);
	if (!rc)
		rc = run_all(&run);
	if (rc < 0)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	nn_text_close(run.text);
	return rc != 0;
}
