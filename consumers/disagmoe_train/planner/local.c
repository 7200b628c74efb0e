/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events in a world of shared cores: while more processes compute than there are cores, all of them
 * go slower by the same factor. Copies between ranks are work of the rank that copies: rows,
 * replies and residuals of a layer are counted in bytes as run/comm_round.c moves them.
 */
#include "planner/local.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "run/costs.h"
#include "run/memory.h"

enum { MAX_DEPTH = 64 }; /* as run/trainer.c has it */

enum act_kind { ACT_FORWARD, ACT_HEAD, ACT_BACKWARD, ACT_WEIGHTS, ACT_BEGIN, ACT_END, ACT_UPDATE };

struct act {
	enum act_kind kind;
	int experts; /* of that side */
	uint32_t layer, micro;
	double us;
	int owed; /* weights' gradients that may be made where the rank would wait */
};

struct rank {
	struct place place;
	struct act *acts; /* [n_acts] in order; owned */
	size_t n_acts, at;
	size_t *owed, n_owed, first_owed; /* acts whose backward is done; owned */
	size_t n_made; /* weights' gradients that were made before their turn */
	double left_us; /* of what it computes; < 0: it waits */
	const struct act *now;
};

struct world {
	const struct run_options *o;
	const struct machine *m;
	const struct load_trace *trace;
	struct flow flow;
	struct rank *ranks;
	size_t n_ranks, n_ended;
	/* How many ranks of a group are through: [n_layers + 1, n_micro] */
	uint32_t *done[2][3]; /* [experts][forward, head, backward] */
	uint8_t *own[3]; /* [n_layers + 1, n_micro, n_a] attention rank by rank */
};

static uint32_t own_sequences(const struct world *w, const struct place *place)
{
	uint32_t first, n = 0;

	place_sequences(place, w->o->settings.step_seqs / w->o->settings.n_micro_batches,
		(uint32_t)place->attention, &first, &n);
	return n;
}

/* Megabytes of an attention rank's rows, once. */
static double row_megabytes(const struct world *w, const struct place *place)
{
	return own_sequences(w, place) * (double)w->o->settings.seq_len *
		w->o->settings.config.hidden_size * sizeof(float) * 1e-6;
}

static double attention_us(const struct world *w, const struct place *place,
	const struct act *act)
{
	const struct machine *m = w->m;
	double n = own_sequences(w, place), mb = row_megabytes(w, place);
	double k = w->o->settings.config.top_k;
	/* A residual is copied twice; replies are kept and added. */
	double half = m->transfer_us / 2;
	double in = act->layer ? mb * (m->copy_us + k * m->combine_us) + half : 0;
	double back = act->layer ? mb * (k * m->combine_us + m->copy_us) + half : 0;

	switch (act->kind) {
	case ACT_FORWARD:
		return machine_us(&m->attention, MACHINE_FORWARD, n) + in + half +
			mb * (k + 1) * m->copy_us;
	case ACT_HEAD:
		return n * (m->head_us + m->head_weights_us) + in + back;
	case ACT_BACKWARD:
		return machine_us(&m->attention, MACHINE_BACKWARD, n) + back + half +
			mb * (m->copy_us + k * m->combine_us);
	default:
		return machine_us(&m->attention, MACHINE_WEIGHTS, n);
	}
}

/* Rows of an expert in a layer and micro-batch. */
static double expert_rows(const struct world *w, const struct act *act, uint32_t expert)
{
	const struct nn_settings *s = &w->o->settings;
	size_t tokens = (size_t)(s->step_seqs / s->n_micro_batches) * s->seq_len;
	double even = (double)tokens * s->config.top_k / s->config.n_experts;

	if (!w->trace)
		return even;
	return even * load_trace_share(w->trace, act->layer, act->micro * tokens, tokens, expert) *
		s->config.n_experts / (double)w->trace->n_experts;
}

static double experts_us(const struct world *w, const struct place *place, const struct act *act)
{
	static const enum machine_part parts[] = {[ACT_FORWARD] = MACHINE_FORWARD,
		[ACT_BACKWARD] = MACHINE_BACKWARD, [ACT_WEIGHTS] = MACHINE_WEIGHTS};
	const struct machine *m = w->m;
	double us = act->kind == ACT_WEIGHTS ? 0 : m->transfer_us;
	/* Each source's rows are a call of their own. */
	double n_calls = act->kind == ACT_WEIGHTS ? 1 : place->n_a;
	double row_us = act->kind == ACT_WEIGHTS ? 0 : w->o->settings.config.hidden_size *
		sizeof(float) * 1e-6 * m->copy_us;
	uint32_t first, n;

	place_experts(place, (uint32_t)place->expert, &first, &n);
	for (uint32_t expert = first; expert < first + n; expert++) {
		double rows = expert_rows(w, act, expert);

		us += n_calls * machine_us(&m->expert, parts[act->kind], rows / n_calls) +
			rows * row_us;
	}
	return us;
}

static double step_us(const struct world *w, struct place *place, enum act_kind kind)
{
	const struct machine *m = w->m;
	double values = (double)nn_params_count(&w->o->settings.config, place_holds, place) * 1e-6;
	int summed = place->attention >= 0 && place->n_a > 1;

	if (kind == ACT_BEGIN)
		return values * m->zero_us;
	if (kind == ACT_UPDATE)
		return values * m->update_us;
	return values * (m->norm_us +
		(summed ? sizeof(float) * (m->copy_us + m->combine_us) : 0));
}

static void add(struct world *w, struct rank *rank, struct act act)
{
	if (act.kind >= ACT_BEGIN)
		act.us = step_us(w, &rank->place, act.kind);
	else if (act.experts)
		act.us = experts_us(w, &rank->place, &act);
	else
		act.us = attention_us(w, &rank->place, &act);
	rank->acts[rank->n_acts++] = act;
}

/* As run/pass.c and the sides have it: which acts an operation is, in which order. */
static void add_op(struct world *w, struct rank *rank, const struct train_op *op)
{
	int split = !w->o->join_weights, first = w->o->kind == TRAIN_SEQUENTIAL;
	int both[2] = {rank->place.attention >= 0, rank->place.expert >= 0};
	struct act act = {.layer = (uint32_t)op->layer, .micro = (uint32_t)op->micro};

	if (op->kind == TRAIN_HEAD) {
		act.kind = ACT_HEAD;
		add(w, rank, act);
		return;
	}
	for (int i = 0; i < 2; i++) {
		act.experts = op->kind == TRAIN_BACKWARD ? !i : i;
		if (!both[act.experts])
			continue;
		act.kind = op->kind == TRAIN_FORWARD ? ACT_FORWARD :
			op->kind == TRAIN_BACKWARD ? ACT_BACKWARD : ACT_WEIGHTS;
		act.owed = op->kind == TRAIN_WEIGHTS;
		add(w, rank, act);
		if (op->kind != TRAIN_BACKWARD || (split && !first))
			continue;
		act.kind = ACT_WEIGHTS;
		add(w, rank, act);
		if (first) { /* one act: others get the input's gradient after it */
			rank->n_acts--;
			rank->acts[rank->n_acts - 1].us += rank->acts[rank->n_acts].us;
		}
	}
}

static int open_rank(struct world *w, struct rank *rank, int idx)
{
	const struct train_schedule *s = &w->flow.schedule;
	size_t worker, n;

	rank->place = w->o->place;
	place_set_rank(&rank->place, idx);
	worker = (size_t)rank->place.group + (rank->place.attention >= 0 ? 0 : rank->place.p);
	n = s->first[worker + 1] - s->first[worker];
	rank->acts = calloc(4 * n + 4, sizeof(*rank->acts));
	rank->owed = calloc(4 * n + 4, sizeof(*rank->owed));
	if (!rank->acts || !rank->owed)
		return model_fail(-ENOMEM, "no memory");
	rank->left_us = -1;
	add(w, rank, (struct act){.kind = ACT_BEGIN});
	for (size_t i = s->first[worker]; i < s->first[worker + 1]; i++)
		add_op(w, rank, &s->ops[s->by_worker[i]]);
	add(w, rank, (struct act){.kind = ACT_END});
	add(w, rank, (struct act){.kind = ACT_UPDATE});
	return 0;
}

static size_t key_of(const struct world *w, uint32_t layer, uint32_t micro)
{
	return (size_t)layer * w->flow.n_micro + micro;
}

static int is_own(const struct world *w, int kind, uint32_t layer, uint32_t micro, int i)
{
	return w->own[kind][key_of(w, layer, micro) * w->o->place.n_a + (size_t)i];
}

/* Whether all that the act waits for has been done. */
static int is_ready(const struct world *w, const struct rank *rank, const struct act *act)
{
	const struct place *place = &rank->place;
	uint32_t l = act->layer, m = act->micro, last = w->flow.n_layers;
	int head = l + 1 == last, i = place->attention;
	size_t key = key_of(w, l, m), next = key_of(w, l + 1, m);

	if (act->kind == ACT_UPDATE)
		return w->n_ended == w->n_ranks;
	if (act->kind >= ACT_WEIGHTS)
		return 1;
	if (act->kind == ACT_BACKWARD && act->experts)
		return w->done[0][head ? ACT_HEAD : ACT_BACKWARD][next] == place->n_a;
	if (act->kind == ACT_BACKWARD)
		return w->done[1][ACT_BACKWARD][key] == place->n_f &&
			is_own(w, head ? ACT_HEAD : ACT_BACKWARD, l + 1, m, i);
	if (act->experts)
		return w->done[0][ACT_FORWARD][key] == place->n_a;
	return !l || (w->done[1][ACT_FORWARD][key_of(w, l - 1, m)] == place->n_f &&
		is_own(w, ACT_FORWARD, l - 1, m, i));
}

static void start(struct rank *rank, const struct act *act)
{
	rank->now = act;
	rank->left_us = act->us;
}

/* What an idle rank does next, if anything. */
static void choose(const struct world *w, struct rank *rank)
{
	while (rank->at < rank->n_acts) {
		const struct act *act = &rank->acts[rank->at];

		if (act->owed && rank->n_made) { /* was made while the rank would have waited */
			rank->n_made--;
			rank->at++;
			continue;
		}
		if (act->owed) {
			rank->first_owed++;
			rank->n_owed--;
		}
		if (is_ready(w, rank, act)) {
			rank->at++;
			start(rank, act);
		} else if (rank->n_owed) {
			act = &rank->acts[rank->owed[rank->first_owed++]];
			rank->n_owed--;
			rank->n_made++;
			start(rank, act);
		}
		return;
	}
}

/* The weights' gradients of a backward that is done may be made now. */
static void owe(struct rank *rank, const struct act *act)
{
	for (size_t i = rank->at; i < rank->n_acts; i++) {
		const struct act *other = &rank->acts[i];

		if (other->owed && other->layer == act->layer && other->micro == act->micro &&
			other->experts == act->experts) {
			rank->owed[rank->first_owed + rank->n_owed++] = i;
			return;
		}
	}
}

static void finish(struct world *w, struct rank *rank)
{
	const struct act *act = rank->now;
	uint32_t layer = act->layer;
	size_t key = key_of(w, layer, act->micro);

	rank->left_us = -1;
	w->n_ended += act->kind == ACT_END;
	if (act->kind > ACT_BACKWARD)
		return;
	w->done[act->experts][act->kind][key]++;
	if (!act->experts)
		w->own[act->kind][key * w->o->place.n_a + (size_t)rank->place.attention] = 1;
	if (act->kind == ACT_BACKWARD)
		owe(rank, act);
}

/* Until the next rank is through with what it does; 0: nobody does anything. */
static double advance(struct world *w, double n_cores)
{
	double n = 0, least = INFINITY, rate;

	for (size_t i = 0; i < w->n_ranks; i++) {
		if (w->ranks[i].left_us < 0)
			choose(w, &w->ranks[i]);
		if (w->ranks[i].left_us < 0)
			continue;
		n++;
		least = fmin(least, w->ranks[i].left_us);
	}
	if (n <= 0)
		return -1;
	rate = fmin(1, n_cores / n);
	for (size_t i = 0; i < w->n_ranks; i++) {
		struct rank *rank = &w->ranks[i];

		if (rank->left_us < 0)
			continue;
		rank->left_us -= least;
		if (rank->left_us <= 1e-9)
			finish(w, rank);
	}
	return least / rate;
}

static int play(struct world *w, double n_cores, struct local_result *result)
{
	for (;;) {
		double us;
		size_t n_ended = w->n_ended;

		us = advance(w, n_cores);
		if (us < 0)
			break;
		result->step_us += us;
		if (n_ended < w->n_ranks)
			result->pass_us = result->step_us;
	}
	for (size_t i = 0; i < w->n_ranks; i++)
		if (w->ranks[i].at < w->ranks[i].n_acts)
			return model_fail(-EDEADLK, "rank %zu waits for ever", i);
	return 0;
}

static int open_world(struct world *w)
{
	const struct nn_settings *s = &w->o->settings;
	size_t n = ((size_t)w->flow.n_layers + 1) * w->flow.n_micro;
	int rc = 0;

	for (int kind = 0; kind < 3; kind++) {
		w->own[kind] = calloc(n * w->o->place.n_a, 1);
		for (int side = 0; side < 2; side++) {
			w->done[side][kind] = calloc(n, sizeof(uint32_t));
			rc = w->done[side][kind] ? rc : -ENOMEM;
		}
		rc = w->own[kind] ? rc : -ENOMEM;
	}
	w->n_ranks = (size_t)w->o->place.n_ranks;
	w->ranks = calloc(w->n_ranks, sizeof(*w->ranks));
	if (rc || !w->ranks)
		return model_fail(-ENOMEM, "no memory for %u layers and %u micro-batches",
			s->config.n_layers, s->n_micro_batches);
	for (size_t i = 0; !rc && i < w->n_ranks; i++)
		rc = open_rank(w, &w->ranks[i], (int)i);
	return rc;
}

static void close_world(struct world *w)
{
	for (size_t i = 0; w->ranks && i < w->n_ranks; i++) {
		free(w->ranks[i].acts);
		free(w->ranks[i].owed);
	}
	free(w->ranks);
	for (int kind = 0; kind < 3; kind++) {
		free(w->own[kind]);
		free(w->done[0][kind]);
		free(w->done[1][kind]);
	}
	flow_free(&w->flow);
}

static int make_flow(struct world *w)
{
	const struct run_options *o = w->o;
	struct train_schedule_params params = {.kind = o->kind, .p = o->place.p,
		.v = o->settings.config.n_layers / o->place.p,
		.n_micro = o->settings.n_micro_batches, .max_in_flight = o->max_in_flight,
		.split_weights = !o->join_weights && o->kind != TRAIN_SEQUENTIAL};

	costs_estimate(&o->settings, &o->place, &params.costs);
	return flow_make(&params, MAX_DEPTH, &w->flow);
}

/* A profile of other sizes would give times of another model. */
static int check(const struct run_options *o, const struct machine *m)
{
	const struct model_config *c = &o->settings.config;
	const struct {
		const char *name;
		double run, profile;
	} sizes[] = {
		{"hidden", c->hidden_size, m->hidden}, {"heads", c->n_heads, m->heads},
		{"intermediate", c->intermediate_size, m->intermediate},
		{"kv-heads", c->n_kv_heads, m->kv_heads}, {"head-dim", c->head_dim, m->head_dim},
		{"experts", c->n_experts, m->experts}, {"top-k", c->top_k, m->top_k},
		{"vocab", c->vocab_size, m->vocab}, {"seq", o->settings.seq_len, m->seq},
	};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		if (sizes[i].run < sizes[i].profile || sizes[i].run > sizes[i].profile)
			return model_fail(-EINVAL, "%s is %g, the profile was measured with %g",
				sizes[i].name, sizes[i].run, sizes[i].profile);
	return 0;
}

static int sum_up(struct world *w, double n_cores, struct local_result *result)
{
	double sum = 0;
	int rc = 0;

	result->ranks = calloc(w->n_ranks, sizeof(*result->ranks));
	if (!result->ranks)
		return model_fail(-ENOMEM, "no memory");
	for (size_t i = 0; !rc && i < w->n_ranks; i++) {
		struct rank *rank = &w->ranks[i];
		struct local_rank *out = &result->ranks[i];
		struct memory_plan memory;

		for (size_t j = 0; j < rank->n_acts; j++)
			out->busy_us += rank->acts[j].us;
		sum += out->busy_us;
		out->values = (double)nn_params_count(&w->o->settings.config, place_holds,
			&rank->place);
		rc = memory_plan(&w->o->settings, &rank->place, &w->flow, &memory);
		out->planned_bytes = rc ? 0 : memory_sum(&memory);
	}
	result->busy = sum / (n_cores * result->step_us);
	return rc;
}

/* Of the first ranks, a layer that is not the first. */
static void layer_times(const struct world *w, struct local_result *result)
{
	struct place place = w->o->place;
	struct act act = {.layer = 1};

	for (int i = 0; i < 3; i++) {
		act.kind = (const enum act_kind[]){ACT_FORWARD, ACT_BACKWARD, ACT_WEIGHTS}[i];
		place_set_rank(&place, 0);
		result->t_a_us += attention_us(w, &place, &act);
		place_set_rank(&place, place_ffn_rank(&place, 0, 0));
		result->t_f_us += experts_us(w, &place, &act);
	}
}

int local_run(const struct run_options *options, const struct machine *machine,
	const struct load_trace *trace, double n_cores, struct local_result *result)
{
	struct world w = {.o = options, .m = machine, .trace = trace};
	struct local_result found = {0};
	int rc = check(options, machine);

	if (!rc && trace && trace->n_experts > options->settings.config.n_experts)
		rc = model_fail(-EINVAL, "the trace has %zu experts, the model %u",
			trace->n_experts, options->settings.config.n_experts);
	if (!rc)
		rc = make_flow(&w);
	if (!rc)
		rc = open_world(&w);
	if (!rc)
		rc = play(&w, n_cores, &found);
	if (!rc)
		rc = sum_up(&w, n_cores, &found);
	if (!rc)
		layer_times(&w, &found);
	close_world(&w);
	if (rc)
		local_free(&found);
	else
		*result = found;
	return rc;
}

void local_free(struct local_result *result)
{
	free(result->ranks);
	*result = (struct local_result){0};
}
