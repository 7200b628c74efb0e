/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an FFN rank does with a micro-batch: the rows of its experts are computed expert by expert,
 * and stay with them until the weights' gradients are made. Batches come in the order of rounds and
 * are held until their operation's turn.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "run/memory.h"
#include "run/pool.h"
#include "run/sides.h"

struct slot {
	struct slot *next;
	const struct m2n_batch *batch[FLOW_WAYS]; /* held by the channel until it is answered */
	struct nn_expert_record *records;         /* [n_local] */
	void **memory;                            /* [n_local] of the records, from the pool */
};

struct expert_side {
	uint32_t first, n_local;
	struct slot **slots; /* [n_layers * n_micro] */
	struct slot *free, **all;
	size_t n_all;
	struct pool pool; /* all that the schedule has alive at a time */
	float *out;       /* [out_rows, hidden] */
	size_t out_rows;
	uint64_t n_taken[FLOW_WAYS]; /* in this pass */
};

static struct slot *make_slot(struct trainer *t)
{
	struct expert_side *e = t->experts;
	struct slot **all = realloc(e->all, (e->n_all + 1) * sizeof(*all));
	struct slot *slot = calloc(1, sizeof(*slot));

	if (all)
		e->all = all;
	if (!all || !slot) {
		free(slot);
		model_fail(-ENOMEM, "no memory for activations");
		return NULL;
	}
	e->all[e->n_all++] = slot;
	slot->records = calloc(e->n_local, sizeof(*slot->records));
	slot->memory = calloc(e->n_local, sizeof(*slot->memory));
	if (slot->records && slot->memory)
		return slot;
	model_fail(-ENOMEM, "no memory for activations");
	return NULL;
}

static void give_memory(struct expert_side *e, struct slot *slot)
{
	for (uint32_t i = 0; slot->memory && i < e->n_local; i++) {
		if (slot->memory[i])
			pool_give(&e->pool, slot->memory[i]);
		slot->memory[i] = NULL;
	}
}

/* Memory that is not there is missed at once. */
static int open_pool(struct trainer *t)
{
	size_t bytes = t->flow.max_records_of[t->p.place.attention < 0] *
		       memory_expert_slot(t->p.settings, &t->p.place);

	if (pool_open(&t->experts->pool, bytes))
		return model_fail(-ENOMEM, "no memory for rows of %zu bytes", bytes);
	t->bytes += bytes;
	return 0;
}

int experts_open(struct trainer *t)
{
	const struct model_config *c = &t->p.settings->config;
	struct expert_side *e = calloc(1, sizeof(*e));
	uint32_t each = c->top_k;

	t->experts = e;
	if (!e)
		return model_fail(-ENOMEM, "no memory");
	place_experts(&t->p.place, (uint32_t)t->p.place.expert, &e->first, &e->n_local);
	each = each < e->n_local ? each : e->n_local;
	e->slots = calloc((size_t)c->n_layers * t->flow.n_micro, sizeof(*e->slots));
	e->out_rows = (size_t)t->n_seqs * t->p.settings->seq_len * each;
	e->out = comm_alloc(t->comm, e->out_rows * c->hidden_size * sizeof(float));
	if (!e->slots || !e->out)
		return model_fail(-ENOMEM, "no memory for %zu replies", e->out_rows);
	t->bytes += e->out_rows * c->hidden_size * sizeof(float);
	return open_pool(t);
}

void experts_close(struct trainer *t)
{
	struct expert_side *e = t->experts;

	if (!e)
		return;
	for (size_t i = 0; i < e->n_all; i++) {
		give_memory(e, e->all[i]);
		free(e->all[i]->memory);
		free(e->all[i]->records);
		free(e->all[i]);
	}
	pool_close(&e->pool);
	free(e->all);
	free(e->slots);
	free(e);
	t->experts = NULL;
}

void experts_begin(struct trainer *t)
{
	memset(t->experts->n_taken, 0, sizeof(t->experts->n_taken));
}

static struct slot *slot_of(struct trainer *t, uint32_t key)
{
	struct expert_side *e = t->experts;
	struct slot *slot = e->slots[key];

	if (slot)
		return slot;
	slot = e->free;
	if (slot)
		e->free = slot->next;
	else
		slot = make_slot(t);
	e->slots[key] = slot;
	return slot;
}

static void release_slot(struct trainer *t, uint32_t layer, uint32_t micro)
{
	struct expert_side *e = t->experts;
	uint32_t key = flow_key(&t->flow, layer, micro);
	struct slot *slot = e->slots[key];

	give_memory(e, slot);
	slot->next = e->free;
	e->free = slot;
	e->slots[key] = NULL;
}

/* Room for the rows that came. */
static int lay_out(struct trainer *t, struct slot *slot)
{
	const struct model_config *c = &t->p.settings->config;
	const uint32_t *n_rows = slot->batch[FLOW_FORWARD]->expert_rows;
	struct pool *pool = &t->experts->pool;
	size_t before = pool_bytes(pool);

	for (uint32_t i = 0; i < t->experts->n_local; i++) {
		slot->memory[i] = pool_take(pool, nn_expert_record_bytes(c, n_rows[i]));
		if (!slot->memory[i])
			return model_fail(-ENOMEM, "no memory for %u rows", n_rows[i]);
		nn_expert_record_init(c, n_rows[i], slot->memory[i], &slot->records[i]);
	}
	t->bytes += pool_bytes(pool) - before;
	return 0;
}

/* The batch of a layer and micro-batch; those that come before it are held. */
static int take_batch(struct trainer *t, enum flow_way way, uint32_t layer, uint32_t micro,
	int64_t timeout_ns, struct slot **slot)
{
	const struct flow *flow = &t->flow;
	struct expert_side *e = t->experts;
	uint32_t key = flow_key(flow, layer, micro), group = (uint32_t)t->p.place.group;

	*slot = slot_of(t, key);
	while (*slot && !(*slot)->batch[way]) {
		uint32_t sent = flow->sent[way][group * flow->n_rounds + e->n_taken[way]];
		struct slot *other = slot_of(t, sent);
		int rc = other ? comm_take_batch(t->comm, way, timeout_ns, &other->batch[way])
			       : -ENOMEM;

		if (rc)
			return rc;
		e->n_taken[way]++;
	}
	if (!*slot)
		return -ENOMEM;
	if ((*slot)->batch[way]->n_rows > e->out_rows)
		return model_fail(-EPROTO, "%u rows came, %zu at most can",
			(*slot)->batch[way]->n_rows, e->out_rows);
	trainer_span(t, TIMELINE_WAIT, way == FLOW_FORWARD ? "rows" : "gradients", layer, micro);
	return 0;
}

static int answer(
	struct trainer *t, enum flow_way way, struct slot *slot, uint32_t layer, uint32_t micro)
{
	int rc = comm_answer(t->comm, way, slot->batch[way], t->experts->out);

	slot->batch[way] = NULL;
	trainer_span(t, TIMELINE_SEND, way == FLOW_FORWARD ? "replies" : "gradients", layer, micro);
	return rc;
}

int experts_forward(struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns)
{
	size_t h = t->p.settings->config.hidden_size;
	struct expert_side *e = t->experts;
	const struct m2n_batch *batch;
	struct slot *slot;
	int rc = take_batch(t, FLOW_FORWARD, layer, micro, timeout_ns, &slot);

	if (!rc)
		rc = lay_out(t, slot);
	if (rc)
		return rc;
	batch = slot->batch[FLOW_FORWARD];
	for (uint32_t i = 0; i < batch->n_segments; i++) {
		const struct m2n_segment *s = &batch->segments[i];

		nn_expert_forward(t->params, t->work, layer, (uint32_t)s->expert,
			&slot->records[s->local_expert], s->rows, s->n_rows, h,
			e->out + s->first_row * h, h);
	}
	trainer_span(t, TIMELINE_COMPUTE, "forward", layer, micro);
	rc = answer(t, FLOW_FORWARD, slot, layer, micro);
	if (!t->is_training)
		release_slot(t, layer, micro);
	return rc;
}

/* Rows of gradients are those of the forward round, in the same order. */
static int backward_input(struct trainer *t, struct slot *slot, uint32_t layer)
{
	const struct m2n_batch *batch = slot->batch[FLOW_BACKWARD];
	size_t h = t->p.settings->config.hidden_size, first = 0;
	struct expert_side *e = t->experts;

	for (uint32_t i = 0; i < e->n_local; i++)
		if (batch->expert_rows[i] != slot->records[i].n_rows)
			return model_fail(-EPROTO, "layer %u, expert %u: %u gradients for %zu rows",
				layer, e->first + i, batch->expert_rows[i],
				slot->records[i].n_rows);
	for (uint32_t i = 0; i < batch->n_segments; i++) {
		const struct m2n_segment *s = &batch->segments[i];

		if (i == 0 || s->local_expert != s[-1].local_expert)
			first = 0;
		nn_expert_backward_input(t->params, t->work, layer, (uint32_t)s->expert,
			&slot->records[s->local_expert], first, s->rows, s->n_rows, h,
			e->out + s->first_row * h, h);
		first += s->n_rows;
	}
	return 0;
}

static void make_weights(struct trainer *t, struct slot *slot, uint32_t layer)
{
	for (uint32_t i = 0; i < t->experts->n_local; i++)
		nn_expert_backward_weights(
			t->params, t->work, layer, t->experts->first + i, &slot->records[i]);
}

int experts_backward(
	struct trainer *t, uint32_t layer, uint32_t micro, int weights, int64_t timeout_ns)
{
	struct slot *slot;
	int rc = take_batch(t, FLOW_BACKWARD, layer, micro, timeout_ns, &slot);

	if (!rc)
		rc = backward_input(t, slot, layer);
	if (rc)
		return rc;
	if (weights == WEIGHTS_FIRST)
		make_weights(t, slot, layer);
	trainer_span(t, TIMELINE_COMPUTE, "backward", layer, micro);
	rc = answer(t, FLOW_BACKWARD, slot, layer, micro);
	if (weights == WEIGHTS_FIRST)
		release_slot(t, layer, micro);
	return rc || weights != WEIGHTS_AFTER ? rc : experts_weights(t, layer, micro);
}

int experts_weights(struct trainer *t, uint32_t layer, uint32_t micro)
{
	make_weights(t, t->experts->slots[flow_key(&t->flow, layer, micro)], layer);
	trainer_span(t, TIMELINE_COMPUTE, "weights", layer, micro);
	release_slot(t, layer, micro);
	return 0;
}
