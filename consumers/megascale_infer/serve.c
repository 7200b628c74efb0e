/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `megascale_infer serve`: reads requests, starts the ranks, and merges what they report. Ranks
 * 0 to M - 1 are attention ranks, the N after them expert ranks. Each reads only the weights that
 * it computes with.
 */
#include "serve.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "attention_rank.h"
#include "commands.h"
#include "expert_rank.h"
#include "model/error.h"
#include "profile.h"
#include "report/ranks.h"

#define TIMELINE_SPANS 1000000

enum { FILES_MS = 5000, FILES_NAP_MS = 10 };

void serve_path(const struct serve *serve, const char *what, int rank, char path[512])
{
	snprintf(path, 512, "%s/%s-%d", serve->work_dir, what, rank);
}

static int make_work_dir(struct serve *s)
{
	int rc;

	snprintf(s->work_dir, sizeof(s->work_dir), P_tmpdir "/megascale_infer-XXXXXX");
	if (mkdtemp(s->work_dir))
		return 0;
	rc = model_fail(-errno, "%s: %s", s->work_dir, strerror(errno));
	s->work_dir[0] = 0;
	return rc;
}

/* Everybody's clock of arrivals starts when the first attention rank is ready. */
static int agree_on_start(const struct rank_env *env, int64_t *start)
{
	char none = 0;
	int rc = ranks_share(env, "start", &none, 1);

	*start = timeline_now();
	return rc;
}

/* With a launcher every rank is a program of its own: they agree on rank 0's work directory. */
static int agree_on_dir(struct serve *s, const struct rank_env *env)
{
	int rc = 0;

	s->rank = env->rank;
	if (!s->launched)
		return 0;
	if (env->rank == 0)
		rc = make_work_dir(s);
	return rc ? rc : ranks_share(env, "dir", s->work_dir, sizeof(s->work_dir));
}

/* Rank 0 merges the files when all have written them; a lost rank is not waited for long. */
static void wait_for_files(const struct serve *s)
{
	const struct timespec nap = {.tv_nsec = FILES_NAP_MS * 1000000};
	int n = s->n_attention + s->n_expert_ranks;
	char path[512];

	for (int i = 0, ms = 0; i < n && ms < FILES_MS;) {
		serve_path(s, "report", i, path);
		if (access(path, F_OK) == 0) {
			i++;
			continue;
		}
		nanosleep(&nap, NULL);
		ms += FILES_NAP_MS;
	}
}

static void show_progress(void *arg, uint64_t n_tokens, size_t n_ended)
{
	static int64_t shown;
	const struct serve *s = arg;
	int64_t now = timeline_now();

	if (s->quiet || !isatty(STDERR_FILENO) || now - shown < 200000000)
		return;
	shown = now;
	fprintf(stderr, "\rrank 0: %zu requests, %lu tokens ", n_ended, (unsigned long)n_tokens);
}

static int be_attention(struct serve *s, const struct rank_env *env, struct transport *transport,
	const struct model *model, struct timeline *timeline, json_t **report)
{
	struct attention_params p = {.ops = s->ops,
		.transport = transport,
		.model = model,
		.row_dtype = s->row_dtype,
		.temperature = s->temperature,
		.top_p = s->top_p,
		.seed = s->seed,
		.timeline = timeline,
		.arg = s};
	const struct request **share;
	int rc = requests_divide(
		&s->list, (uint32_t)s->n_attention, (uint32_t)env->rank, &share, &p.n_requests);

	if (rc)
		return model_fail(rc, "no memory for %zu requests", s->list.n_requests);
	p.requests = share;
	p.n_pages = (s->cache_tokens + MODEL_PAGE_TOKENS - 1) / MODEL_PAGE_TOKENS;
	p.batcher = (struct batcher_params){.max_tokens = model->max_tokens,
		.sliding_window = s->config.sliding_window,
		.n_slots = s->n_micro_batches,
		.max_rows = s->max_rows,
		.chunk = s->chunk,
		.row_ns = s->row_us * 1e3,
		.key_ns = s->key_us * 1e3,
		.target_ns = s->target_us * 1e3};
	if (env->rank == 0)
		p.progress = show_progress;
	rc = agree_on_start(env, &p.start_ns);
	if (!rc)
		rc = attention_rank(&p, report);
	free(share);
	return rc;
}

static void kill_me(int signal)
{
	(void)signal;
	kill(getpid(), SIGKILL);
}

/* --kill-rank: from the start of this rank's service. */
static void kill_later(const struct serve *s)
{
	time_t whole = (time_t)s->kill_s;
	struct itimerval after = {
		.it_value = {whole, (suseconds_t)((s->kill_s - (double)whole) * 1e6) + 1}};
	struct sigaction act = {.sa_handler = kill_me};

	sigaction(SIGALRM, &act, NULL);
	setitimer(ITIMER_REAL, &after, NULL);
}

static int be_expert(struct serve *s, const struct rank_env *env, struct transport *transport,
	const struct model *model, struct timeline *timeline, json_t **report)
{
	struct expert_params p = {s->ops, transport, model, s->row_dtype,
		(uint32_t)s->n_attention * s->max_rows * s->config.top_k, s->n_micro_batches,
		timeline};

	if (env->rank == s->kill_rank && !env->incarnation)
		kill_later(s);
	return expert_rank(&p, report);
}

static json_t *stats_json(const struct transport_stats *s)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "rounds",
		(json_int_t)s->n_rounds, "resent", (json_int_t)s->n_resent, "lost",
		(json_int_t)s->n_lost, "joined", (json_int_t)s->n_joined, "placements",
		(json_int_t)s->n_placements, "stall_ms", (double)s->stall_ns / 1e6, "load_before",
		s->load_before, "load_after", s->load_after);
}

static int write_rank(const struct serve *s, const struct rank_env *env, json_t *report,
	const struct transport_stats *stats, const struct timeline *timeline)
{
	static const char *const names[TIMELINE_KINDS] = {"compute", "send", "wait", "idle"};
	struct timeline_total total;
	char path[512], whole[512];
	json_t *ns = json_object(), *n = json_object();
	int rc;

	timeline_totals(timeline, &total);
	for (int i = 0; i < TIMELINE_KINDS; i++) {
		json_object_set_new(ns, names[i], json_integer(total.ns[i]));
		json_object_set_new(n, names[i], json_integer((json_int_t)total.n[i]));
	}
	json_object_set_new(report, "rank", json_integer(env->rank));
	json_object_set_new(
		report, "role", json_string(env->rank < s->n_attention ? "attention" : "expert"));
	json_object_set_new(report, "ns", ns);
	json_object_set_new(report, "spans", n);
	json_object_set_new(report, "transport", stats_json(stats));
	serve_path(s, "timeline", env->rank, path);
	if (s->timeline_dir && (rc = timeline_save(timeline, path)))
		return rc;
	/* Whoever sees the report's name finds all of it, and the timeline. */
	serve_path(s, "part", env->rank, path);
	serve_path(s, "report", env->rank, whole);
	if (json_dump_file(report, path, JSON_COMPACT) || rename(path, whole))
		return model_fail(-EIO, "%s: cannot be written: %s", path, strerror(errno));
	return 0;
}

static int holds_none(void *arg, uint32_t layer, uint32_t expert)
{
	(void)arg;
	(void)layer;
	(void)expert;
	return 0;
}

static int be_rank(const struct rank_env *env, void *arg)
{
	struct serve *s = arg;
	int is_attention = env->rank < s->n_attention, rc;
	struct model_weights_params parts = {
		.parts = is_attention ? MODEL_PART_ATTENTION : MODEL_PART_EXPERTS,
		.wanted = holds_none};
	struct transport_params params = {.env = env,
		.config = &s->config,
		.n_attention = s->n_attention,
		.n_expert_ranks = s->n_expert_ranks,
		.n_micro_batches = s->n_micro_batches,
		.max_rows = s->max_rows,
		.row_dtype = s->row_dtype,
		.n_replicas = s->n_replicas,
		.balance_rounds = s->balance_rounds,
		.hold = expert_rank_hold};
	struct timeline *timeline = timeline_open(is_attention ? "attention" : "experts", env->rank,
		s->timeline_dir ? TIMELINE_SPANS : 0);
	struct transport_stats stats;
	struct transport *transport = NULL;
	struct model *model = NULL;
	json_t *report = NULL;

	rc = timeline ? agree_on_dir(s, env) : model_fail(-ENOMEM, "no memory for the timeline");
	if (!rc)
		rc = model_open(s->model_dir, &parts, 0, &model);
	params.arg = model;
	if (!rc)
		rc = s->ops->open(&params, &transport);
	if (!rc)
		rc = is_attention ? be_attention(s, env, transport, model, timeline, &report)
				  : be_expert(s, env, transport, model, timeline, &report);
	if (!rc) {
		s->ops->stats(transport, &stats);
		rc = write_rank(s, env, report, &stats, timeline);
	}
	json_decref(report);
	if (transport)
		s->ops->close(transport);
	model_close(model);
	timeline_close(timeline);
	return rc;
}

static int read_requests(struct serve *s)
{
	int rc;

	s->requests.vocab_size = s->config.vocab_size;
	if (s->trace_path)
		rc = requests_read_trace(s->trace_path, &s->requests, &s->list);
	else if (s->prompts_path)
		rc = requests_read_prompts(s->prompts_path, &s->requests, &s->list);
	else
		rc = requests_add_prompt(s->prompt, &s->requests, &s->list);
	for (size_t i = 0; !rc && i < s->list.n_refusals; i++)
		fprintf(stderr, "megascale_infer: refused: %s\n", s->list.refusals[i].text);
	if (!rc && !s->list.n_requests)
		rc = model_fail(-EINVAL, "there is no request to serve");
	return rc;
}

static int read_config(struct serve *s)
{
	struct model_weights_params none = {.parts = 0};
	struct model_weights *weights;
	struct profile_cost cost;
	int rc = model_weights_open(s->model_dir, &none, &weights);

	if (rc)
		return rc;
	s->config = weights->config;
	model_weights_close(weights);
	if (s->cost_path) {
		rc = profile_cost_read(s->cost_path, &cost);
		s->row_us = cost.row_us;
		s->key_us = cost.key_us;
	}
	s->ops = transport_find(s->transport);
	return rc ? rc : s->ops ? 0 : -EINVAL;
}

static void remove_work_dir(const struct serve *s)
{
	char path[512];

	for (int i = 0; i < s->n_attention + s->n_expert_ranks; i++) {
		serve_path(s, "report", i, path);
		unlink(path);
		serve_path(s, "timeline", i, path);
		unlink(path);
	}
	rmdir(s->work_dir);
}

/* All requests were served if the attention ranks ended well, whatever became of expert ranks. */
static int judge(const struct serve *s, const struct rank_result *results)
{
	int rc = 0;

	for (int i = 0; i < s->n_attention + s->n_expert_ranks; i++) {
		if (results[i].signal)
			fprintf(stderr, "megascale_infer: rank %d: ended by signal %d\n", i,
				results[i].signal);
		if (i < s->n_attention && results[i].status != 0)
			rc = 1;
	}
	return rc;
}

static int run(struct serve *s)
{
	int n = s->n_attention + s->n_expert_ranks, rc;
	struct rank_result *results = calloc((size_t)n, sizeof(*results));
	struct ranks_params params = {.n_ranks = n,
		.group = "megascale_infer",
		.go_on = 1,
		.max_restart = s->max_restart,
		.pin = !s->no_pin,
		.launched = s->launched};

	if (!results)
		return model_fail(-ENOMEM, "no memory for %d ranks", n);
	rc = ranks_run(&params, be_rank, s, results);
	if (rc > 0 && !s->launched)
		rc = judge(s, results);
	free(results);
	return rc;
}

int serve_main(int argc, char **argv)
{
	struct serve s;
	int rc;

	serve_parse(argc, argv, &s);
	rc = read_config(&s);
	if (!rc)
		rc = read_requests(&s);
	if (!rc && !s.launched)
		rc = make_work_dir(&s);
	if (!rc)
		rc = run(&s);
	if (isatty(STDERR_FILENO) && !s.quiet)
		fprintf(stderr, "\r\033[K");
	if (!rc && s.launched && s.rank == 0)
		wait_for_files(&s);
	if (!rc && s.rank == 0)
		rc = serve_report(&s);
	if (s.work_dir[0] && s.rank == 0)
		remove_work_dir(&s);
	if (rc < 0)
		fprintf(stderr, "megascale_infer serve: %s\n", model_error());
	requests_free(&s.list);
	return rc != 0;
}
