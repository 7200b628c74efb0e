/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A walk along the schedule: who sends when, what has come, what is alive.
 */
#include "run/flow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

struct walk {
	uint32_t *n_sent[FLOW_WAYS];  /* [p] */
	uint32_t *oldest[FLOW_WAYS];  /* [p] first round that has not come */
	uint8_t *has_come[FLOW_WAYS]; /* [n_layers * n_micro] */
	uint32_t *n_alive;            /* [n_workers] */
};

static int make_arrays(struct flow *flow, struct walk *walk)
{
	size_t n = (size_t)flow->n_layers * flow->n_micro;

	walk->n_alive = calloc(flow->schedule.n_workers, sizeof(*walk->n_alive));
	if (!walk->n_alive)
		return -ENOMEM;
	for (int way = 0; way < FLOW_WAYS; way++) {
		flow->sent[way] = calloc(n, sizeof(uint32_t));
		flow->round_of[way] = calloc(n, sizeof(uint32_t));
		walk->n_sent[way] = calloc(flow->p, sizeof(uint32_t));
		walk->oldest[way] = calloc(flow->p, sizeof(uint32_t));
		walk->has_come[way] = calloc(n, 1);
		if (!flow->sent[way] || !flow->round_of[way] || !walk->n_sent[way] ||
			!walk->oldest[way] || !walk->has_come[way])
			return -ENOMEM;
	}
	return 0;
}

static void free_walk(struct walk *walk)
{
	for (int way = 0; way < FLOW_WAYS; way++) {
		free(walk->n_sent[way]);
		free(walk->oldest[way]);
		free(walk->has_come[way]);
	}
	free(walk->n_alive);
}

/* The rows or gradients of a layer leave for its experts. */
static void note_sent(
	struct flow *flow, struct walk *walk, enum flow_way way, size_t layer, size_t micro)
{
	uint32_t group = (uint32_t)(layer % flow->p), round = walk->n_sent[way][group]++;
	uint32_t key = flow_key(flow, (uint32_t)layer, (uint32_t)micro);
	uint32_t n = round - walk->oldest[way][group] + 1;

	flow->sent[way][group * flow->n_rounds + round] = key;
	flow->round_of[way][key] = round;
	flow->depth = n > flow->depth ? n : flow->depth;
}

/* Replies of a layer have come to their sink. */
static void note_come(
	struct flow *flow, struct walk *walk, enum flow_way way, size_t layer, size_t micro)
{
	uint32_t group = (uint32_t)(layer % flow->p), *oldest = &walk->oldest[way][group];

	walk->has_come[way][flow_key(flow, (uint32_t)layer, (uint32_t)micro)] = 1;
	while (*oldest < walk->n_sent[way][group] &&
		walk->has_come[way][flow->sent[way][group * flow->n_rounds + *oldest]])
		++*oldest;
}

static void walk_op(struct flow *flow, struct walk *walk, const struct train_op *op, int split)
{
	int is_attention = (uint32_t)op->worker < flow->p;
	uint32_t *n_alive = &walk->n_alive[op->worker];
	uint32_t *most = &flow->max_records_of[!is_attention];

	if (op->kind == TRAIN_FORWARD)
		++*n_alive;
	*most = *n_alive > *most ? *n_alive : *most;
	if (op->kind == (split ? TRAIN_WEIGHTS : TRAIN_BACKWARD))
		--*n_alive;
	if (!is_attention)
		return;
	if ((op->kind == TRAIN_FORWARD || op->kind == TRAIN_HEAD) && op->layer > 0)
		note_come(flow, walk, FLOW_FORWARD, op->layer - 1, op->micro);
	if (op->kind == TRAIN_FORWARD)
		note_sent(flow, walk, FLOW_FORWARD, op->layer, op->micro);
	if (op->kind == TRAIN_BACKWARD)
		note_come(flow, walk, FLOW_BACKWARD, op->layer, op->micro);
	if ((op->kind == TRAIN_BACKWARD || op->kind == TRAIN_HEAD) && op->layer > 0)
		note_sent(flow, walk, FLOW_BACKWARD, op->layer - 1, op->micro);
}

int flow_make(const struct train_schedule_params *params, uint32_t max_depth, struct flow *flow)
{
	struct flow made = {.p = (uint32_t)params->p,
		.n_micro = (uint32_t)params->n_micro,
		.n_layers = (uint32_t)(params->p * params->v),
		.n_rounds = (uint32_t)(params->v * params->n_micro)};
	struct walk walk = {0};
	int rc = train_schedule_make(params, &made.schedule);

	if (rc)
		return model_fail(rc,
			"no schedule for %zu groups of %zu layers and %zu "
			"micro-batches",
			params->p, params->v, params->n_micro);
	rc = make_arrays(&made, &walk);
	for (size_t i = 0; !rc && i < made.schedule.n_ops; i++)
		walk_op(&made, &walk, &made.schedule.ops[i], params->split_weights);
	free_walk(&walk);
	if (rc)
		model_fail(rc, "no memory for a schedule");
	else if (made.depth > max_depth)
		rc = model_fail(-EINVAL,
			"the schedule has %u rounds in flight, %u at most can be: "
			"choose a smaller --in-flight",
			made.depth, max_depth);
	if (rc)
		flow_free(&made);
	else
		*flow = made;
	return rc;
}

void flow_free(struct flow *flow)
{
	train_schedule_free(&flow->schedule);
	for (int way = 0; way < FLOW_WAYS; way++) {
		free(flow->sent[way]);
		free(flow->round_of[way]);
	}
	*flow = (struct flow){0};
}
