/* SPDX-License-Identifier: Apache-2.0 */
/* The report: where the time went, bubbles beside their formula, memory beside the plan. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "model/error.h"
#include "run/metrics.h"

static const char *const kind_names[TIMELINE_KINDS] = {"compute", "send", "wait", "idle"};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Of all steps but the first, which touches memory for the first time. */
static double median_step(struct metrics *m)
{
	uint64_t skip = m->n_steps > 1, n = m->n_steps - skip;

	if (!m->n_steps)
		return NAN;
	qsort(m->seconds + skip, n, sizeof(*m->seconds), by_value);
	return m->seconds[skip + n / 2];
}

/* Mean time of an operation over the ranks of a kind, us. */
static double mean_op(const struct metrics *m, const struct metrics_rank *ranks, int experts,
	enum train_op_kind op)
{
	double ns = 0, n = 0;

	for (int i = 0; i < m->options->place.n_ranks; i++)
		if ((experts ? ranks[i].expert : ranks[i].attention) >= 0) {
			ns += (double)ranks[i].times.ops_ns[op];
			n += (double)ranks[i].times.n_ops[op];
		}
	return n > 0 ? ns / n / 1e3 : 0;
}

/* One way between two computations: what a rank takes to hand rows over, us. */
static double mean_send(const struct metrics *m, const struct metrics_rank *ranks)
{
	double ns = 0, n = 0;

	for (int i = 0; i < m->options->place.n_ranks; i++) {
		ns += (double)ranks[i].times.sent_ns;
		n += (double)ranks[i].times.n_sent;
	}
	return n > 0 ? ns / n / 1e3 : 0;
}

/*
 * The schedule with the times of this run: what a rank hands over is part of its operations, as it
 * does it itself, and nothing else takes time on the way.
 */
static double simulate(
	const struct metrics *m, const struct trainer *t, const struct metrics_rank *ranks)
{
	const struct run_options *o = m->options;
	int split = t->p.split_weights, both = o->place.together;
	struct train_schedule_params params = {.kind = o->kind,
		.p = o->place.p,
		.v = o->settings.config.n_layers / o->place.p,
		.n_micro = o->settings.n_micro_batches,
		.max_in_flight = t->flow.schedule.max_in_flight,
		.split_weights = split};
	double send = mean_send(m, ranks) / 1e6;
	struct train_schedule made;

	for (int way = 0; way < 2; way++) {
		enum train_op_kind op = way ? TRAIN_BACKWARD : TRAIN_FORWARD;

		params.costs.attention[way] = mean_op(m, ranks, 0, op) / 1e6 + send;
		params.costs.ffn[way] = both ? 0 : mean_op(m, ranks, 1, op) / 1e6 + send;
	}
	params.costs.head = mean_op(m, ranks, 0, TRAIN_HEAD) / 1e6 + send;
	params.costs.attention_weights = split ? mean_op(m, ranks, 0, TRAIN_WEIGHTS) / 1e6 : 0;
	params.costs.ffn_weights = split && !both ? mean_op(m, ranks, 1, TRAIN_WEIGHTS) / 1e6 : 0;
	if (train_schedule_make(&params, &made))
		return NAN;
	send = made.seconds;
	train_schedule_free(&made);
	return send * 1e6;
}

struct bubble {
	double simulated;                /* us, of the span */
	double warm_up, cool_down, span; /* us, medians of aligned steps */
	double formula;                  /* (2p - 1) (max(T_a, T_f) + T_m2n) */
	double exact;                    /* p T_a + (p - 1) T_f + (2p - 1) T_m2n */
	double t_a, t_f, t_c;
};

/* Of a member of the bubbles of all aligned steps, us; 0: there are none. */
static double median_bubble(const struct trainer *t, size_t offset)
{
	double *values = calloc(t->n_bubbles + 1, sizeof(*values)), median;

	if (!values)
		return 0;
	for (size_t i = 0; i < t->n_bubbles; i++)
		values[i] = (double)*(const int64_t *)(const void *)((const char *)&t->bubbles[i] +
								     offset) /
			    1e3;
	qsort(values, t->n_bubbles, sizeof(*values), by_value);
	median = values[t->n_bubbles / 2];
	free(values);
	return median;
}

static struct bubble measure_bubble(
	const struct metrics *m, const struct trainer *t, const struct metrics_rank *ranks)
{
	double p = m->options->place.p;
	struct bubble b = {.simulated = simulate(m, t, ranks),
		.warm_up = median_bubble(t, offsetof(struct trainer_bubble, warm_up_ns)),
		.cool_down = median_bubble(t, offsetof(struct trainer_bubble, cool_down_ns)),
		.span = median_bubble(t, offsetof(struct trainer_bubble, span_ns)),
		.t_a = mean_op(m, ranks, 0, TRAIN_FORWARD),
		.t_f = mean_op(m, ranks, 1, TRAIN_FORWARD),
		.t_c = mean_send(m, ranks)};

	if (m->options->place.together) { /* one operation has both */
		b.formula = b.exact = (p - 1) * (b.t_a + b.t_c);
		return b;
	}
	b.formula = (2 * p - 1) * (fmax(b.t_a, b.t_f) + b.t_c);
	b.exact = p * b.t_a + (p - 1) * b.t_f + (2 * p - 1) * b.t_c;
	return b;
}

static json_t *rank_json(const struct metrics_rank *r, int rank)
{
	json_t *ns = json_object(), *us = json_object();

	for (int i = 0; i < TIMELINE_KINDS; i++)
		json_object_set_new(ns, kind_names[i], json_integer(r->times.ns[i]));
	for (int i = 0; i < TRAIN_N_OPS; i++)
		json_object_set_new(us, train_op_name((enum train_op_kind)i),
			json_real(r->times.n_ops[i] ? (double)r->times.ops_ns[i] / 1e3 /
							      (double)r->times.n_ops[i]
						    : 0));
	return json_pack("{s:i, s:i, s:b, s:b, s:o, s:o, s:I, s:I, s:I}", "rank", rank, "group",
		r->group, "attention", r->attention >= 0, "experts", r->expert >= 0, "ns", ns,
		"op_us", us, "bytes", (json_int_t)r->bytes, "planned_bytes",
		(json_int_t)r->planned_bytes, "resident_bytes", (json_int_t)r->resident_bytes);
}

static int write_json(const struct metrics *m, const struct bubble *b, double step,
	const struct metrics_rank *ranks)
{
	const struct run_options *o = m->options;
	const struct nn_settings *s = &o->settings;
	json_t *list = json_array(), *all;
	int rc = 0;

	for (int i = 0; i < o->place.n_ranks; i++)
		json_array_append_new(list, rank_json(&ranks[i], i));
	all = json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:I, s:f, s:f, s:f, s:o?, s:o?, s:o, s:o}",
		"schedule", train_schedule_name(o->kind), "groups", (int)o->n_groups, "attention",
		(int)o->n_attention, "ffn", (int)o->n_ffn, "layers", (int)s->config.n_layers,
		"micro_batches", (int)s->n_micro_batches, "steps", (json_int_t)m->n_steps,
		"step_ms", step * 1e3, "tokens_per_s", (double)s->step_seqs * s->seq_len / step,
		"loss", m->last.loss, "held_back",
		isnan(m->held_back) ? NULL : json_real(m->held_back), "exposed_communication",
		isnan(m->exposed) ? NULL : json_real(m->exposed), "bubble",
		json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "simulated_us",
			b->simulated, "warm_up_us", b->warm_up, "cool_down_us", b->cool_down,
			"span_us", b->span, "formula_us", b->formula, "exact_us", b->exact,
			"t_a_us", b->t_a, "t_f_us", b->t_f, "t_m2n_us", b->t_c),
		"ranks", list);
	if (!all || json_dump_file(all, o->json_path, JSON_INDENT(1)))
		rc = model_fail(-EIO, "%s: cannot be written", o->json_path);
	json_decref(all);
	return rc;
}

static void print_ranks(const struct metrics *m, const struct metrics_rank *ranks)
{
	printf("\n%4s %-10s %8s %8s %8s %8s %10s %10s\n", "rank", "role", "compute", "send", "wait",
		"idle", "memory", "planned");
	for (int i = 0; i < m->options->place.n_ranks; i++) {
		const struct metrics_rank *r = &ranks[i];
		char role[32];
		double sum = 0;

		snprintf(role, sizeof(role), "%s%d",
			r->attention < 0 ? "ffn-"
			: r->expert < 0  ? "attn-"
					 : "both-",
			r->group);
		for (int k = 0; k < TIMELINE_KINDS; k++)
			sum += (double)r->times.ns[k];
		printf("%4d %-10s", i, role);
		for (int k = 0; k < TIMELINE_KINDS; k++)
			printf(" %6.1f %%", sum > 0 ? 100 * (double)r->times.ns[k] / sum : 0);
		printf(" %7.1f MB %7.1f MB\n", (double)r->bytes / 1e6,
			(double)r->planned_bytes / 1e6);
	}
}

int metrics_report(struct metrics *m, const struct trainer *t, const struct metrics_rank *ranks)
{
	struct bubble b = measure_bubble(m, t, ranks);
	const struct nn_settings *s = &m->options->settings;
	double step = median_step(m);

	if (!m->options->quiet) {
		print_ranks(m, ranks);
		printf("\n%s: step %.1f ms (median), %.0f tokens/s; T_a %.0f us, T_f %.0f us, "
		       "T_m2n %.0f us\n",
			train_schedule_name(m->options->kind), step * 1e3,
			(double)s->step_seqs * s->seq_len / step, b.t_a, b.t_f, b.t_c);
		printf("bubble: warm-up %.0f us (formula %.0f us), cool-down %.0f us, of %.0f us "
		       "(simulated %.0f us)\n",
			b.warm_up, b.formula, b.cool_down, b.span, b.simulated);
		if (!isnan(m->exposed))
			printf("exposed communication: %.1f %%\n", 100 * m->exposed);
	}
	return m->options->json_path ? write_json(m, &b, step, ranks) : 0;
}
