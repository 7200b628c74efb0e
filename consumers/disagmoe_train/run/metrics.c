/* SPDX-License-Identifier: Apache-2.0 */
/* Steps as they come: CSV and progress. */
#include "run/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/error.h"

/* The steps after a checkpoint are done again: their lines go. */
static int cut_csv(FILE *csv, uint64_t n_steps)
{
	char *line = NULL;
	size_t room = 0;
	off_t end = 0;

	while (getline(&line, &room, csv) > 0 && (end == 0 || strtoull(line, NULL, 10) <= n_steps))
		end = ftello(csv);
	free(line);
	return ftruncate(fileno(csv), end) || fseeko(csv, 0, SEEK_END);
}

static int open_csv(struct metrics *m)
{
	const struct run_options *o = m->options;

	m->csv = o->resume ? fopen(o->metrics_path, "r+e") : NULL;
	if (!m->csv)
		m->csv = fopen(o->metrics_path, "we");
	if (!m->csv || cut_csv(m->csv, o->first_step))
		return model_fail(-errno, "%s: %s", o->metrics_path, strerror(errno));
	if (ftello(m->csv) == 0)
		fprintf(m->csv, "step,loss,held_back,balance,grad_norm,learning_rate,seconds,"
				"tokens_per_s\n");
	return 0;
}

int metrics_open(const struct run_options *o, struct metrics **metrics)
{
	struct metrics *m = calloc(1, sizeof(*m));
	int rc;

	if (m)
		m->seconds = calloc(o->n_steps - o->first_step, sizeof(*m->seconds));
	if (!m || !m->seconds) {
		metrics_close(m);
		return model_fail(-ENOMEM, "no memory for the times of %llu steps",
			(unsigned long long)o->n_steps);
	}
	m->options = o;
	m->held_back = m->exposed = NAN;
	m->begin_ns = timeline_now();
	rc = o->metrics_path ? open_csv(m) : 0;
	if (rc) {
		metrics_close(m);
		return rc;
	}
	if (!o->quiet)
		printf("%8s %9s %9s %9s %9s %10s\n", "step", "loss", "held-back", "norm", "rate",
			"tokens/s");
	*metrics = m;
	return 0;
}

void metrics_close(struct metrics *m)
{
	if (!m)
		return;
	if (m->csv)
		fclose(m->csv);
	free(m->seconds);
	free(m);
}

void metrics_begin_step(struct metrics *m)
{
	m->step_ns = timeline_now();
}

void metrics_end_step(struct metrics *m, const struct nn_step_result *result)
{
	m->seconds[m->n_steps++] = (double)(timeline_now() - m->step_ns) / 1e9;
	m->last = *result;
}

static void print_step(const struct metrics *m, uint64_t step, double held_back, double rate)
{
	const struct run_options *o = m->options;
	int is_line = !isnan(held_back) || step + 1 == o->n_steps;

	if (o->quiet || (!is_line && !isatty(STDOUT_FILENO)))
		return;
	printf("%s%8llu %9.4f ", is_line ? "" : "\r", (unsigned long long)step + 1, m->last.loss);
	if (isnan(held_back))
		printf("%9s ", "");
	else
		printf("%9.4f ", held_back);
	printf("%9.3f %9.2g %10.0f%s", m->last.grad_norm, m->last.learning_rate, rate,
		is_line ? "\n" : "");
	fflush(stdout);
}

/* A full disk is no reason to stop. */
static void give_up_csv(struct metrics *m, uint64_t step)
{
	fprintf(stderr, "disagmoe_train run: step %llu: %s: %s; no more steps are written there\n",
		(unsigned long long)step + 1, m->options->metrics_path, strerror(errno));
	fclose(m->csv);
	m->csv = NULL;
	m->has_failed = 1;
}

void metrics_step(struct metrics *m, uint64_t step, double held_back)
{
	const struct nn_settings *s = &m->options->settings;
	double seconds = m->seconds[m->n_steps - 1];
	double rate = (double)s->step_seqs * s->seq_len / seconds;
	char evaluated[32] = "";

	if (!isnan(held_back)) {
		m->held_back = held_back;
		snprintf(evaluated, sizeof(evaluated), "%.9g", held_back);
	}
	print_step(m, step, held_back, rate);
	if (!m->csv)
		return;
	fprintf(m->csv, "%llu,%.17g,%s,%.9g,%.9g,%.9g,%.6f,%.1f\n", (unsigned long long)step + 1,
		m->last.loss, evaluated, m->last.balance, m->last.grad_norm, m->last.learning_rate,
		seconds, rate);
	if (fflush(m->csv))
		give_up_csv(m, step);
}
