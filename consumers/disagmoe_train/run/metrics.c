/* SPDX-License-Identifier: Apache-2.0 */
/* Steps as they come: CSV and progress. */
#include "run/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/error.h"

int metrics_open(const struct run_options *o, struct metrics **metrics)
{
	struct metrics *m = calloc(1, sizeof(*m));
	const char *mode = o->resume ? "ae" : "we";

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
	if (o->metrics_path) {
		m->csv = fopen(o->metrics_path, mode);
		if (!m->csv) {
			int rc = model_fail(-errno, "%s: %s", o->metrics_path, strerror(errno));

			metrics_close(m);
			return rc;
		}
		if (ftell(m->csv) == 0)
			fprintf(m->csv, "step,loss,held_back,balance,grad_norm,learning_rate,"
					"seconds,tokens_per_s\n");
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

int metrics_step(struct metrics *m, uint64_t step, double held_back)
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
		return 0;
	fprintf(m->csv, "%llu,%.17g,%s,%.9g,%.9g,%.9g,%.6f,%.1f\n", (unsigned long long)step + 1,
		m->last.loss, evaluated, m->last.balance, m->last.grad_norm, m->last.learning_rate,
		seconds, rate);
	return fflush(m->csv) ? model_fail(-EIO, "%s: cannot be written", m->options->metrics_path)
			      : 0;
}
