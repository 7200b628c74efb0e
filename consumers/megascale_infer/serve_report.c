/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report of a run: what every rank wrote, latencies over all requests, and the table.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/error.h"
#include "report/timeline.h"
#include "serve.h"

struct samples {
	double *ms;
	size_t n, room;
};

static int add(struct samples *s, double ms)
{
	if (s->n == s->room) {
		double *more = realloc(s->ms, (s->room * 2 + 256) * sizeof(*more));

		if (!more)
			return model_fail(-ENOMEM, "no memory for latencies");
		s->ms = more;
		s->room = s->room * 2 + 256;
	}
	s->ms[s->n++] = ms;
	return 0;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Nearest rank; the samples are sorted. */
static double percentile(const struct samples *s, double p)
{
	size_t rank = (size_t)ceil(p / 100 * (double)s->n);

	return s->n ? s->ms[rank ? rank - 1 : 0] : 0;
}

enum { PICTURE_ROUNDS = 24 };

/* A mean over ranks. */
struct mean {
	double sum, n;
};

struct totals {
	json_t *ranks;
	struct mean t_a_us, t_e_us;    /* computation of a micro-batch in a layer */
	struct mean iteration_us;      /* of a micro-batch, all layers */
	double exposed;                /* communication, a share of the time; -1: not known */
	struct samples first, between; /* ms */
	uint64_t n_tokens, n_prompt_tokens, n_ended, n_refused;
	int64_t last_ns;
};

static json_int_t whole(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static int add_request(struct totals *t, const json_t *request, FILE *tokens_file)
{
	json_t *times = json_object_get(request, "token_ns");
	json_int_t before = whole(request, "arrival_ns"), at;
	size_t n = json_array_size(times);
	int rc = 0;

	if (json_object_get(request, "refused")) {
		t->n_refused++;
		fprintf(stderr, "megascale_infer: refused: request %d: %s\n",
			(int)whole(request, "request"),
			json_string_value(json_object_get(request, "refused")));
		return 0;
	}
	for (size_t i = 0; !rc && i < n; i++, before = at) {
		at = json_integer_value(json_array_get(times, i));
		rc = add(i ? &t->between : &t->first, (double)(at - before) / 1e6);
		t->last_ns = at > t->last_ns ? at : t->last_ns;
	}
	t->n_tokens += n;
	t->n_prompt_tokens += (uint64_t)whole(request, "prompt_tokens");
	t->n_ended++;
	if (tokens_file) {
		char *text = json_dumps(json_object_get(request, "tokens"), JSON_COMPACT);

		fprintf(tokens_file, "{\"request\": %d, \"tokens\": %s}\n",
			(int)whole(request, "request"), text ? text : "null");
		free(text);
	}
	return rc;
}

static double of(struct mean mean)
{
	return mean.n > 0 ? mean.sum / mean.n : 0;
}

static void add_means(struct totals *t, const json_t *rank, int is_attention)
{
	const json_t *one, *ns = json_object_get(rank, "ns");
	struct mean *mean = is_attention ? &t->t_a_us : &t->t_e_us;
	size_t i;

	mean->sum += (double)whole(ns, "compute") / 1e3;
	mean->n += (double)whole(json_object_get(rank, "spans"), "send");
	json_array_foreach(json_object_get(rank, "iteration_us"), i, one)
	{
		t->iteration_us.sum += json_real_value(one);
		t->iteration_us.n += json_real_value(one) > 0;
	}
}

static int read_ranks(const struct serve *s, struct totals *t, FILE *tokens_file)
{
	int rc = 0;

	for (int rank = 0; !rc && rank < s->n_attention + s->n_expert_ranks; rank++) {
		json_t *report, *request;
		json_error_t error;
		char path[512];
		size_t i;

		serve_path(s, "report", rank, path);
		report = json_load_file(path, 0, &error);
		if (!report && rank >= s->n_attention)
			continue; /* it was killed */
		if (!report)
			return model_fail(-EIO, "%s: %s", path, error.text);
		json_array_foreach(json_object_get(report, "requests"), i, request) if (!rc) rc =
			add_request(t, request, tokens_file);
		add_means(t, report, rank < s->n_attention);
		if (json_array_append_new(t->ranks, report))
			rc = model_fail(-ENOMEM, "no memory for the report");
	}
	if (t->first.n)
		qsort(t->first.ms, t->first.n, sizeof(double), by_value);
	if (t->between.n)
		qsort(t->between.ms, t->between.n, sizeof(double), by_value);
	return rc;
}

static json_t *latency_json(const struct samples *s)
{
	return json_pack("{s:f, s:f, s:f, s:I}", "p50_ms", percentile(s, 50), "p90_ms",
		percentile(s, 90), "p99_ms", percentile(s, 99), "samples", (json_int_t)s->n);
}

static void add_figures(const struct totals *t, json_t *report)
{
	double seconds = (double)t->last_ns / 1e9;
	double rate = seconds > 0 ? (double)t->n_prompt_tokens / seconds : 0;

	json_object_set_new(report, "prompt_tokens_per_s", json_real(rate));
	json_object_set_new(report, "t_a_us", json_real(of(t->t_a_us)));
	json_object_set_new(report, "t_e_us", json_real(of(t->t_e_us)));
	json_object_set_new(report, "iteration_us", json_real(of(t->iteration_us)));
	if (t->exposed >= 0)
		json_object_set_new(report, "exposed_communication", json_real(t->exposed));
}

static json_t *whole_report(const struct serve *s, const struct totals *t)
{
	double seconds = (double)t->last_ns / 1e9;
	json_t *report;

	report = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:s, s:I, s:I, s:I, "
			   "s:I, s:f, s:f, s:o, s:o, s:O}",
		"schema", "megascale_infer serve 1", "model", s->model_dir, "attention_ranks",
		s->n_attention, "expert_ranks", s->n_expert_ranks, "micro_batches",
		(int)s->n_micro_batches, "batch", (int)s->max_rows, "chunk", (int)s->chunk,
		"replicas", (int)s->n_replicas, "balance_rounds", (int)s->balance_rounds, "rows",
		model_dtype_name(s->row_dtype), "transport", s->transport, "requests",
		(json_int_t)t->n_ended, "refused", (json_int_t)(t->n_refused + s->list.n_refusals),
		"tokens", (json_int_t)t->n_tokens, "prompt_tokens", (json_int_t)t->n_prompt_tokens,
		"seconds", seconds, "tokens_per_s", seconds > 0 ? (double)t->n_tokens / seconds : 0,
		"ttft", latency_json(&t->first), "tbt", latency_json(&t->between), "ranks",
		t->ranks);
	if (report)
		add_figures(t, report);
	return report;
}

static void print_latency(const char *what, const struct samples *s)
{
	printf("%-22s p50 %9.3f  p90 %9.3f  p99 %9.3f ms\n", what, percentile(s, 50),
		percentile(s, 90), percentile(s, 99));
}

static void print_rank(const json_t *rank)
{
	const json_t *ns = json_object_get(rank, "ns"), *n = json_object_get(rank, "spans");
	const json_t *stats = json_object_get(rank, "transport");
	double compute = (double)whole(ns, "compute"), send = (double)whole(ns, "send");
	double wait = (double)whole(ns, "wait"), idle = (double)whole(ns, "idle");
	double all = fmax(compute + send + wait + idle, 1); /* nothing, if there was no round */
	double spans = (double)whole(n, "send");

	printf("%4d %-9s %6.1f%% %6.1f%% %6.1f%% %6.1f%% %9ld %12.1f", (int)whole(rank, "rank"),
		json_string_value(json_object_get(rank, "role")), 100 * compute / all,
		100 * send / all, 100 * wait / all, 100 * idle / all, (long)whole(stats, "rounds"),
		spans > 0 ? compute / spans / 1e3 : 0);
	if (whole(stats, "lost"))
		printf("  lost %d, resent %d, stall %.1f ms, joined %d", (int)whole(stats, "lost"),
			(int)whole(stats, "resent"),
			json_real_value(json_object_get(stats, "stall_ms")),
			(int)whole(stats, "joined"));
	if (whole(stats, "placements"))
		printf("  %d placements, load max/mean %.2f -> %.2f",
			(int)whole(stats, "placements"),
			json_real_value(json_object_get(stats, "load_before")),
			json_real_value(json_object_get(stats, "load_after")));
	printf("\n");
}

static void print_report(const struct serve *s, const struct totals *t)
{
	double seconds = (double)t->last_ns / 1e9;
	json_t *rank;
	size_t i;

	printf("%d attention x %d expert ranks, %u micro-batches of up to %u rows, %s rows\n",
		s->n_attention, s->n_expert_ranks, s->n_micro_batches, s->max_rows,
		model_dtype_name(s->row_dtype));
	printf("%lu requests (%lu refused), %lu prompt tokens, %lu tokens in %.3f s: %.1f "
	       "tokens/s, %.1f of prompts\n",
		(unsigned long)t->n_ended, (unsigned long)(t->n_refused + s->list.n_refusals),
		(unsigned long)t->n_prompt_tokens, (unsigned long)t->n_tokens, seconds,
		seconds > 0 ? (double)t->n_tokens / seconds : 0,
		seconds > 0 ? (double)t->n_prompt_tokens / seconds : 0);
	print_latency("time to first token", &t->first);
	print_latency("time between tokens", &t->between);
	printf("a micro-batch in a layer: T_a %.1f us, T_e %.1f us; an iteration %.1f us",
		of(t->t_a_us), of(t->t_e_us), of(t->iteration_us));
	if (t->exposed >= 0)
		printf("; exposed communication %.1f%%", 100 * t->exposed);
	printf("\nrank role      compute   send   wait   idle    rounds  us per round\n");
	json_array_foreach(t->ranks, i, rank) print_rank(rank);
}

/* A picture of so many rounds can still be read. */
static int64_t picture_ns(const struct totals *t)
{
	json_int_t rounds =
		whole(json_object_get(json_array_get(t->ranks, 0), "transport"), "rounds");

	return rounds > PICTURE_ROUNDS ? t->last_ns / rounds * PICTURE_ROUNDS : 0;
}

static int write_timeline(const struct serve *s, struct totals *t)
{
	int n = s->n_attention + s->n_expert_ranks, rc;
	char(*paths)[512] = calloc((size_t)n, sizeof(*paths)), chrome[512], svg[512];
	const char **list = calloc((size_t)n, sizeof(*list));
	size_t n_found = 0;

	if (mkdir(s->timeline_dir, 0777) && errno != EEXIST) {
		rc = model_fail(-errno, "%s: %s", s->timeline_dir, strerror(errno));
	} else if (!paths || !list) {
		rc = model_fail(-ENOMEM, "no memory for %d timelines", n);
	} else {
		for (int i = 0; i < n; i++) {
			struct stat st;

			serve_path(s, "timeline", i, paths[i]);
			if (!stat(paths[i], &st))
				list[n_found++] = paths[i];
		}
		snprintf(chrome, sizeof(chrome), "%s/timeline.json", s->timeline_dir);
		snprintf(svg, sizeof(svg), "%s/timeline.svg", s->timeline_dir);
		rc = timeline_merge(
			list, n_found, chrome, svg, "megascale_infer serve", 0.5, picture_ns(t));
		if (!rc)
			rc = timeline_exposed(list, n_found, &t->exposed);
	}
	free(paths);
	free(list);
	return rc;
}

static int write_json(const struct serve *s, const struct totals *t)
{
	json_t *report = whole_report(s, t);
	int rc = 0;

	if (!report)
		return model_fail(-ENOMEM, "no memory for the report");
	if (json_dump_file(report, s->json_path, JSON_INDENT(1)))
		rc = model_fail(-EIO, "%s: cannot be written: %s", s->json_path, strerror(errno));
	json_decref(report);
	return rc;
}

int serve_report(const struct serve *s)
{
	struct totals t = {.ranks = json_array(), .exposed = -1};
	FILE *tokens_file = s->tokens_path ? fopen(s->tokens_path, "we") : NULL;
	int rc = 0;

	if (s->tokens_path && !tokens_file)
		rc = model_fail(-errno, "%s: %s", s->tokens_path, strerror(errno));
	if (!rc)
		rc = read_ranks(s, &t, tokens_file);
	if (tokens_file && fclose(tokens_file) && !rc)
		rc = model_fail(-errno, "%s: %s", s->tokens_path, strerror(errno));
	if (!rc && s->timeline_dir)
		rc = write_timeline(s, &t);
	if (!rc)
		print_report(s, &t);
	if (!rc && s->json_path)
		rc = write_json(s, &t);
	json_decref(t.ranks);
	free(t.first.ms);
	free(t.between.ms);
	return rc;
}
