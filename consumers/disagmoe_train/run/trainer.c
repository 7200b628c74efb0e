/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a rank's part, and steps. A step is a pass through the schedule, the sum of gradients
 * inside attention groups, one report of each rank to rank 0 and its word to all, and the update of
 * what the rank holds.
 */
#include "run/trainer.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "nn/state.h"
#include "run/costs.h"
#include "run/sides.h"

enum { MAX_DEPTH = 64 }; /* of a channel */

/* Of a rank to rank 0, and summed by it, to all. */
struct report {
	double loss, balance, square_sum;
	uint64_t bad_layer;       /* the smallest */
	int64_t begin_ns, end_ns; /* of a step's computation; 0: none */
};

static int open_parts(struct trainer *t)
{
	const struct nn_settings *s = t->p.settings;
	struct comm_params params = {.env = t->env,
		.place = &t->p.place,
		.flow = &t->flow,
		.config = &s->config,
		.seq_len = s->seq_len,
		.n_seqs = t->n_seqs,
		.timeout_ns = t->p.timeout_ns};
	int rc = nn_params_create(&s->config, place_holds, &t->p.place, &t->params);

	if (rc)
		return rc;
	nn_params_fill(t->params, s->seed);
	t->bytes = nn_params_bytes(t->params->n_values) + nn_work_bytes(&s->config, s->seq_len);
	rc = nn_work_open(&s->config, s->seq_len, &t->work);
	if (!rc)
		rc = comm_open(&params, &t->comm);
	if (!rc && t->p.place.attention >= 0)
		rc = attention_open(t);
	if (!rc && t->p.place.expert >= 0)
		rc = experts_open(t);
	return rc;
}

static int make_flow(struct trainer *t)
{
	const struct nn_settings *s = t->p.settings;
	struct train_schedule_params params = {.kind = t->p.kind,
		.p = t->p.place.p,
		.v = s->config.n_layers / t->p.place.p,
		.n_micro = s->n_micro_batches,
		.max_in_flight = t->p.max_in_flight,
		.split_weights = t->p.split_weights};

	costs_estimate(s, &t->p.place, &params.costs);
	return flow_make(&params, MAX_DEPTH, &t->flow);
}

int trainer_open(
	const struct trainer_params *params, const struct rank_env *env, struct trainer **trainer)
{
	const struct nn_settings *s = params->settings;
	struct trainer *t;
	int rc;

	if (s->step_seqs / s->n_micro_batches < params->place.n_a)
		return model_fail(-EINVAL,
			"a micro-batch of %u sequences for %u attention ranks: "
			"there would be ranks without one",
			s->step_seqs / s->n_micro_batches, params->place.n_a);
	t = calloc(1, sizeof(*t));
	if (!t)
		return model_fail(-ENOMEM, "no memory");
	t->p = *params;
	t->env = env;
	t->n_seqs = s->step_seqs / s->n_micro_batches;
	place_set_rank(&t->p.place, env->rank);
	rc = make_flow(t);
	if (!rc) {
		t->owed = calloc((size_t)t->flow.n_layers * t->flow.n_micro, sizeof(*t->owed));
		rc = t->owed ? open_parts(t) : model_fail(-ENOMEM, "no memory");
	}
	if (rc)
		trainer_close(t);
	else
		*trainer = t;
	return rc;
}

void trainer_close(struct trainer *t)
{
	if (!t)
		return;
	attention_close(t);
	experts_close(t);
	comm_close(t->comm);
	nn_params_destroy(t->params);
	nn_work_close(t->work);
	flow_free(&t->flow);
	free(t->owed);
	free(t->bubbles);
	free(t);
}

size_t trainer_bytes(const struct trainer *t)
{
	return t->bytes + comm_bytes(t->comm);
}

void trainer_span(struct trainer *t, enum timeline_kind kind, const char *label, uint32_t layer,
	uint32_t micro)
{
	int64_t now = timeline_add(t->p.timeline, (struct timeline_span){.begin_ns = t->mark,
							  .label = label,
							  .kind = (uint16_t)kind,
							  .layer = layer,
							  .micro_batch = micro});

	t->times.ns[kind] += now - t->mark;
	if (kind == TIMELINE_COMPUTE && !t->times.begin_ns)
		t->times.begin_ns = t->mark;
	if (kind == TIMELINE_COMPUTE)
		t->times.end_ns = now;
	t->mark = now;
}

uint32_t trainer_sequences(const struct trainer *t, uint32_t micro, uint32_t *first)
{
	uint32_t n_pass = t->is_training ? t->p.settings->step_seqs : t->n_left, n;

	place_sequences(&t->p.place, t->n_seqs, (uint32_t)t->p.place.attention, first, &n);
	*first += micro * t->n_seqs;
	if (*first >= n_pass)
		return 0;
	return n < n_pass - *first ? n : n_pass - *first;
}

void trainer_tokens(const struct trainer *t, uint32_t micro, uint32_t *ids, uint32_t *targets)
{
	const struct nn_settings *s = t->p.settings;
	uint32_t first, n = trainer_sequences(t, micro, &first);
	size_t n_held = nn_text_held_back(t->p.text);

	for (uint32_t i = 0; i < n; i++, ids += s->seq_len, targets += s->seq_len)
		if (t->is_training)
			nn_text_sequence(t->p.text, s->seed, t->step, first + i, ids, targets);
		else
			nn_text_held_back_sequence(
				t->p.text, (t->step + first + i) * n_held / t->n_of, ids, targets);
}

/* Gradients that several ranks have parts of: in runs of tensors that lie together. */
static int add_gradients(struct trainer *t)
{
	struct nn_params *params = t->params;
	int rc = 0;

	for (size_t i = 0, next; !rc && t->attention && i < params->n; i = next) {
		size_t n_values = 0;

		for (next = i; next < params->n && params->list[next].part != NN_EXPERT; next++)
			n_values += params->list[next].n_values;
		if (n_values)
			rc = comm_add(t->comm, params->list[i].grad, n_values);
		next += next == i;
	}
	trainer_span(t, TIMELINE_SEND, "sum", 0, 0);
	return rc;
}

static double square_sum(struct trainer *t)
{
	double sum = 0;

	for (size_t i = 0; i < t->params->n; i++) {
		const struct nn_param *param = &t->params->list[i];

		if (place_is_first(&t->p.place, param->part, param->layer, param->expert))
			sum += nn_param_square_sum(param);
	}
	return sum;
}

static void add_bubble(struct trainer *t, const struct report *all)
{
	struct trainer_bubble *bubbles =
		realloc(t->bubbles, (t->n_bubbles + 1) * sizeof(*t->bubbles));
	int64_t first[2] = {INT64_MAX, INT64_MAX}, last[2] = {0, 0};

	if (!bubbles)
		return;
	t->bubbles = bubbles;
	for (int i = 0; i < t->env->n_ranks; i++) {
		int64_t at[2] = {all[i].begin_ns, all[i].end_ns};

		for (int e = 0; e < 2; e++) {
			first[e] = at[e] < first[e] ? at[e] : first[e];
			last[e] = at[e] > last[e] ? at[e] : last[e];
		}
	}
	bubbles[t->n_bubbles++] =
		(struct trainer_bubble){last[0] - first[0], last[1] - first[1], last[1] - first[0]};
}

/* Adds everybody's report, in the order of ranks. */
static int agree(struct trainer *t, struct report *report)
{
	int n_ranks = t->env->n_ranks, rc;
	struct report *all = t->env->rank ? NULL : calloc((size_t)n_ranks, sizeof(*all));

	if (!t->env->rank && !all)
		return model_fail(-ENOMEM, "no memory");
	rc = comm_gather(t->comm, report, sizeof(*report), all);
	for (int i = 1; !rc && all && i < n_ranks; i++) {
		report->loss += all[i].loss;
		report->balance += all[i].balance;
		report->square_sum += all[i].square_sum;
		if (all[i].bad_layer < report->bad_layer)
			report->bad_layer = all[i].bad_layer;
	}
	if (!rc && all && report->begin_ns && t->p.is_aligned)
		add_bubble(t, all);
	free(all);
	if (!rc)
		rc = comm_share(t->comm, report, sizeof(*report));
	trainer_span(t, TIMELINE_WAIT, "report", 0, 0);
	return rc;
}

static int no_number(const struct trainer *t, uint64_t step, uint64_t bad_layer)
{
	unsigned long long at = step + 1, layer = bad_layer - 1;

	if (bad_layer == 0)
		return model_fail(-EDOM,
			"step %llu: the loss is no number; the embedding is the "
			"first to give such values",
			at);
	if (bad_layer > t->p.settings->config.n_layers)
		return model_fail(-EDOM,
			"step %llu: the loss is no number; the head is the first "
			"to give such values",
			at);
	return model_fail(-EDOM,
		"step %llu: the loss is no number; layer %llu is the first to give "
		"such values",
		at, layer);
}

static int begin(struct trainer *t, int is_training, uint64_t step)
{
	struct report report = {0};
	int rc = is_training && t->p.is_aligned ? agree(t, &report) : 0;

	if (rc)
		return rc;
	t->is_training = is_training;
	t->step = step;
	t->loss = t->balance = 0;
	t->bad_layer = UINT32_MAX;
	return pass_run(t);
}

int trainer_gradients(struct trainer *t, uint64_t step, struct nn_step_result *result)
{
	const struct nn_settings *s = t->p.settings;
	struct report report = {0};
	int rc;

	nn_params_zero_grads(t->params);
	rc = begin(t, 1, step);
	report.begin_ns = t->times.begin_ns;
	report.end_ns = t->times.end_ns;
	if (!rc)
		rc = add_gradients(t);
	if (rc)
		return rc;
	report.loss = t->loss;
	report.balance = t->balance;
	report.bad_layer = t->bad_layer;
	report.square_sum = square_sum(t);
	trainer_span(t, TIMELINE_COMPUTE, "norm", 0, 0);
	rc = agree(t, &report);
	if (rc)
		return rc;
	if (!isfinite(report.loss))
		return no_number(t, step, report.bad_layer);
	if (!isfinite(report.square_sum))
		return nn_no_gradient(step, report.loss / ((double)s->step_seqs * s->seq_len));
	*result = (struct nn_step_result){.loss = report.loss / ((double)s->step_seqs * s->seq_len),
		.balance = report.balance / s->step_seqs,
		.grad_norm = sqrt(report.square_sum),
		.learning_rate = nn_learning_rate(s, step)};
	return 0;
}

int trainer_step(struct trainer *t, uint64_t step, struct nn_step_result *result)
{
	const struct nn_settings *s = t->p.settings;
	int rc = trainer_gradients(t, step, result);

	if (rc)
		return rc;
	nn_adamw_step(t->params, s, step,
		nn_clip_factor(result->grad_norm * result->grad_norm, s->max_grad_norm));
	trainer_span(t, TIMELINE_COMPUTE, "update", 0, 0);
	return 0;
}

int trainer_evaluate(struct trainer *t, size_t max_seqs, double *loss)
{
	const struct nn_settings *s = t->p.settings;
	size_t n_held = nn_text_held_back(t->p.text);
	size_t n = max_seqs && max_seqs < n_held ? max_seqs : n_held;
	struct report report = {.bad_layer = UINT64_MAX};
	int rc = 0;

	t->n_of = (uint32_t)n;
	for (size_t first = 0; !rc && first < n; first += s->step_seqs) {
		t->n_left = (uint32_t)(n - first < s->step_seqs ? n - first : s->step_seqs);
		rc = begin(t, 0, first);
		report.loss += t->loss;
	}
	if (!rc)
		rc = agree(t, &report);
	if (!rc)
		*loss = report.loss / ((double)n * s->seq_len);
	return rc;
}

/* What a rank says about a part of a checkpoint. */
struct saved {
	int rc;
	char text[508];
};

/* Rank 0 hears how it went; what failed first becomes everybody's answer. */
static int agree_on(struct trainer *t, struct saved *saved)
{
	int n_ranks = t->env->n_ranks, rc;
	struct saved *all = t->env->rank ? NULL : calloc((size_t)n_ranks, sizeof(*all));

	if (saved->rc)
		strncpy(saved->text, model_error(), sizeof(saved->text) - 1);
	if (!t->env->rank && !all)
		return model_fail(-ENOMEM, "no memory");
	rc = comm_gather(t->comm, saved, sizeof(*saved), all);
	for (int i = 1; !rc && all && i < n_ranks; i++)
		if (all[i].rc && !saved->rc)
			*saved = all[i];
	free(all);
	if (!rc)
		rc = comm_share(t->comm, saved, sizeof(*saved));
	saved->text[sizeof(saved->text) - 1] = 0;
	return rc;
}

int trainer_save(struct trainer *t, const char *dir, uint64_t n_steps)
{
	uint32_t n_ranks = (uint32_t)t->env->n_ranks;
	struct nn_state state = {.settings = *t->p.settings,
		.step = n_steps,
		.text_bytes = t->p.text->n_bytes,
		.text_digest = t->p.text->digest};
	struct saved saved = {.rc = t->env->rank ? 0 : nn_state_begin(dir)};
	int rc = agree_on(t, &saved), begun = !rc && !saved.rc;

	if (begun) {
		saved.rc = nn_state_write_part(dir, t->params, place_is_first, &t->p.place,
			(uint32_t)t->env->rank, n_ranks);
		rc = agree_on(t, &saved);
	}
	if (begun && !rc && !saved.rc) {
		if (t->env->rank == 0)
			saved.rc = nn_state_commit(dir, &state, n_ranks);
		rc = agree_on(t, &saved);
	}
	if (begun && t->env->rank == 0 && (rc || saved.rc))
		nn_state_abandon(dir);
	trainer_span(t, TIMELINE_IDLE, "checkpoint", 0, 0);
	if (rc || !saved.rc)
		return rc;
	model_fail(saved.rc, "%s", saved.text);
	return 1;
}
