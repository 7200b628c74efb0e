/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The executor, one for all schedules: a rank goes through its worker's list. Where an operation
 * has to wait for others, weights' gradients that are owed are made meanwhile, oldest first, which
 * is the order in which the list has them: the sums' bits do not depend on who was quicker.
 */
#include <errno.h>

#include "run/sides.h"

static int weights_of(const struct trainer *t)
{
	if (t->p.kind == TRAIN_SEQUENTIAL)
		return WEIGHTS_FIRST;
	return t->p.split_weights ? WEIGHTS_LATER : WEIGHTS_AFTER;
}

static int run_forward(struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns)
{
	int rc = t->attention ? attention_forward(t, layer, micro, timeout_ns) : 0;

	if (!rc && t->experts)
		rc = experts_forward(t, layer, micro, t->attention ? t->p.timeout_ns : timeout_ns);
	return rc;
}

static int run_backward(struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns)
{
	int weights = weights_of(t);
	int rc = t->experts ? experts_backward(t, layer, micro, weights, timeout_ns) : 0;

	if (!rc && t->attention)
		rc = attention_backward(
			t, layer, micro, weights, t->experts ? t->p.timeout_ns : timeout_ns);
	if (!rc && weights == WEIGHTS_LATER) {
		uint32_t n = t->flow.n_layers * t->flow.n_micro;

		t->owed[(t->first_owed + t->n_owed++) % n] = flow_key(&t->flow, layer, micro);
	}
	return rc;
}

/* The oldest that are owed. */
static int run_weights(struct trainer *t)
{
	uint32_t key = t->owed[t->first_owed], n = t->flow.n_layers * t->flow.n_micro;
	uint32_t layer = key / t->flow.n_micro, micro = key % t->flow.n_micro;
	int64_t before = t->times.ns[TIMELINE_COMPUTE];
	int rc = t->attention ? attention_weights(t, layer, micro) : 0;

	t->first_owed = (t->first_owed + 1) % n;
	t->n_owed--;
	if (!rc && t->experts)
		rc = experts_weights(t, layer, micro);
	t->times.ops_ns[TRAIN_WEIGHTS] += t->times.ns[TIMELINE_COMPUTE] - before;
	t->times.n_ops[TRAIN_WEIGHTS]++;
	return rc;
}

static int try_op(struct trainer *t, const struct train_op *op, int64_t timeout_ns)
{
	uint32_t layer = (uint32_t)op->layer, micro = (uint32_t)op->micro;
	int64_t before = t->times.ns[TIMELINE_COMPUTE], sent = t->times.ns[TIMELINE_SEND];
	int rc = 0;

	if (op->kind == TRAIN_FORWARD)
		rc = run_forward(t, layer, micro, timeout_ns);
	else if (op->kind == TRAIN_HEAD)
		rc = attention_head(t, micro, timeout_ns);
	else if (op->kind == TRAIN_BACKWARD)
		rc = run_backward(t, layer, micro, timeout_ns);
	t->times.ops_ns[op->kind] += t->times.ns[TIMELINE_COMPUTE] - before;
	t->times.n_ops[op->kind] += rc != -EAGAIN;
	t->times.sent_ns += t->times.ns[TIMELINE_SEND] - sent;
	t->times.n_sent += t->times.ns[TIMELINE_SEND] > sent;
	return rc;
}

static int run_op(struct trainer *t, const struct train_op *op)
{
	int rc = try_op(t, op, 0);

	while (rc == -EAGAIN && t->n_owed) {
		rc = run_weights(t);
		if (!rc)
			rc = try_op(t, op, 0);
	}
	return rc == -EAGAIN ? try_op(t, op, t->p.timeout_ns) : rc;
}

int pass_run(struct trainer *t)
{
	const struct place *place = &t->p.place;
	const struct train_schedule *s = &t->flow.schedule;
	size_t worker = (size_t)place->group + (t->attention ? 0 : place->p);
	uint32_t n_weights = 0, n_backward = 0; /* entries of the list so far */
	int rc = 0;

	if (t->attention)
		attention_begin(t);
	if (t->experts)
		experts_begin(t);
	t->mark = timeline_now();
	t->times.begin_ns = 0;
	for (size_t i = s->first[worker]; !rc && i < s->first[worker + 1]; i++) {
		const struct train_op *op = &s->ops[s->by_worker[i]];

		if (!t->is_training && op->kind != TRAIN_FORWARD && op->kind != TRAIN_HEAD)
			continue;
		n_backward += op->kind == TRAIN_BACKWARD;
		n_weights += op->kind == TRAIN_WEIGHTS;
		if (op->kind != TRAIN_WEIGHTS)
			rc = run_op(t, op);
		else if (n_backward - t->n_owed < n_weights)
			rc = run_weights(t);
	}
	if (!rc)
		t->n_passes++;
	if (!rc && t->is_training)
		t->n_steps++;
	return rc;
}
