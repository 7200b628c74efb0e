/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an attention rank does with a micro-batch. All it keeps of a layer and micro-batch is a
 * slot, from the residual's arrival to the weights' gradients. Residuals and gradients come in the
 * order in which the other side sent them, which need not be the order in which they are used: they
 * are taken until the one that is wanted has come, each into its own slot.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "run/sides.h"

struct slot {
	struct slot *next; /* of those that are free */
	struct nn_attention_record record;
	struct comm_record link;
	void *memory;
	int has_gradient;
};

struct attention_side {
	struct slot **slots; /* [(n_layers + 1) * n_micro]; layer n_layers: the head's input */
	struct slot *free, **all;
	size_t n_all;
	struct nn_head_record head;
	float *d_rows; /* [n_rows, hidden] */
	uint32_t *ids, *targets;
	uint64_t n_residuals, n_gradients; /* taken in this pass */
};

static size_t max_rows(const struct trainer *t)
{
	uint32_t first, n;

	place_sequences(&t->p.place, t->n_seqs, (uint32_t)t->p.place.attention, &first, &n);
	return (size_t)n * t->p.settings->seq_len;
}

static struct slot *make_slot(struct trainer *t)
{
	const struct model_config *c = &t->p.settings->config;
	size_t n = max_rows(t), bytes = nn_attention_record_bytes(c, t->p.settings->seq_len,
					(uint32_t)(n / t->p.settings->seq_len));
	struct attention_side *a = t->attention;
	struct slot **all = realloc(a->all, (a->n_all + 1) * sizeof(*all));
	struct slot *slot = calloc(1, sizeof(*slot));

	if (all)
		a->all = all;
	if (!all || !slot) {
		free(slot);
		model_fail(-ENOMEM, "no memory for activations");
		return NULL;
	}
	a->all[a->n_all++] = slot;
	slot->memory = comm_alloc(t->comm, bytes);
	if (!slot->memory || comm_record_open(t->comm, &slot->link))
		return NULL;
	t->bytes += bytes + comm_record_bytes(t->comm);
	return slot;
}

/* All that the schedule has alive at a time: memory that is not there is missed at once. */
static int make_slots(struct trainer *t)
{
	size_t n = t->flow.max_records_of[0] + (t->p.place.group == 0);

	for (size_t i = 0; i < n; i++) {
		struct slot *slot = make_slot(t);

		if (!slot)
			return -ENOMEM;
		slot->next = t->attention->free;
		t->attention->free = slot;
	}
	return 0;
}

int attention_open(struct trainer *t)
{
	const struct model_config *c = &t->p.settings->config;
	size_t n = max_rows(t), head_bytes = nn_head_record_bytes(c, n);
	size_t n_slots = (size_t)(c->n_layers + 1) * t->flow.n_micro;
	struct attention_side *a = calloc(1, sizeof(*a));
	void *memory;

	t->attention = a;
	if (!a)
		return model_fail(-ENOMEM, "no memory");
	a->slots = calloc(n_slots, sizeof(*a->slots));
	a->ids = malloc(n * sizeof(*a->ids));
	a->targets = malloc(n * sizeof(*a->targets));
	a->d_rows = comm_alloc(t->comm, n * c->hidden_size * sizeof(float));
	if (!a->slots || !a->ids || !a->targets || !a->d_rows)
		return model_fail(-ENOMEM, "no memory for micro-batches of %zu rows", n);
	t->bytes += n * c->hidden_size * sizeof(float);
	if (t->p.place.group != 0)
		return make_slots(t);
	memory = comm_alloc(t->comm, head_bytes);
	if (!memory)
		return -ENOMEM;
	nn_head_record_init(c, n, memory, &a->head);
	t->bytes += head_bytes;
	return make_slots(t);
}

void attention_close(struct trainer *t)
{
	struct attention_side *a = t->attention;

	if (!a)
		return;
	for (size_t i = 0; i < a->n_all; i++) {
		comm_record_close(&a->all[i]->link);
		free(a->all[i]);
	}
	free(a->all);
	free(a->slots);
	free(a->ids);
	free(a->targets);
	free(a);
	t->attention = NULL;
}

void attention_begin(struct trainer *t)
{
	t->attention->n_residuals = t->attention->n_gradients = 0;
}

/* A slot for a layer's input. */
static int take_slot(struct trainer *t, uint32_t layer, uint32_t micro, struct slot **taken)
{
	struct attention_side *a = t->attention;
	struct slot *slot = a->free;
	uint32_t first;

	if (slot)
		a->free = slot->next;
	else
		slot = make_slot(t);
	if (!slot)
		return -ENOMEM;
	nn_attention_record_init(&t->p.settings->config, t->p.settings->seq_len,
		trainer_sequences(t, micro, &first), slot->memory, &slot->record);
	slot->link.x = slot->record.x;
	slot->has_gradient = 0;
	a->slots[flow_key(&t->flow, layer, micro)] = slot;
	*taken = slot;
	return 0;
}

static int release_slot(struct trainer *t, uint32_t layer, uint32_t micro)
{
	struct attention_side *a = t->attention;
	uint32_t key = flow_key(&t->flow, layer, micro);

	a->slots[key]->next = a->free;
	a->free = a->slots[key];
	a->slots[key] = NULL;
	return comm_flush(t->comm);
}

/* Where NaN and infinity were seen first: 0 the embedding, 1 + l layer l, 2 + n_layers the head. */
static void report_finite(struct trainer *t, uint32_t layer, const float *x, size_t n_rows)
{
	if (layer < t->bad_layer && !nn_all_finite(x, n_rows * t->p.settings->config.hidden_size))
		t->bad_layer = layer;
}

/* The input of a layer (or of the head) that is not the first: residual and replies. */
static int take_input(
	struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns, struct slot **slot)
{
	const struct flow *flow = &t->flow;
	struct attention_side *a = t->attention;
	uint32_t key = flow_key(flow, layer, micro), n_layers = t->p.settings->config.n_layers;
	uint32_t before = place_before(&t->p.place, (uint32_t)t->p.place.group);
	uint64_t base = t->n_passes * flow->n_rounds;
	int rc = 0;

	while (!rc && !a->slots[key]) {
		uint32_t sent = flow->sent[FLOW_FORWARD][before * flow->n_rounds + a->n_residuals];
		uint32_t to = sent / flow->n_micro + 1, of = sent % flow->n_micro;
		struct slot *other = NULL;

		rc = take_slot(t, to, of, &other);
		if (!rc)
			rc = comm_take_residual(t->comm, &other->link, base + a->n_residuals,
				other->record.n_rows, timeout_ns);
		if (rc && other) {
			a->slots[sent + flow->n_micro] = NULL;
			other->next = a->free;
			a->free = other;
		}
		a->n_residuals += !rc;
	}
	if (!rc)
		rc = comm_take_replies(t->comm, &a->slots[key]->link,
			base + flow->round_of[FLOW_FORWARD][key - flow->n_micro], timeout_ns);
	if (rc)
		return rc;
	*slot = a->slots[key];
	trainer_span(t, TIMELINE_WAIT, layer < n_layers ? "rows" : "head", layer, micro);
	timeline_add(
		t->p.timeline, (struct timeline_span){(*slot)->link.sent_ns, t->mark, "away",
				       TIMELINE_SEND, (uint16_t)(1 + micro % 8), layer - 1, micro});
	report_finite(t, layer, (*slot)->record.x, (*slot)->record.n_rows);
	return 0;
}

static int embed(struct trainer *t, uint32_t micro, struct slot **slot)
{
	struct attention_side *a = t->attention;
	int rc = take_slot(t, 0, micro, slot);

	if (rc)
		return rc;
	trainer_tokens(t, micro, a->ids, a->targets);
	nn_embedding_forward(t->params, a->ids, (*slot)->record.n_rows, (*slot)->record.x);
	report_finite(t, 0, (*slot)->record.x, (*slot)->record.n_rows);
	return 0;
}

static void note_routing(
	struct trainer *t, uint32_t layer, uint32_t micro, const struct nn_attention_record *record)
{
	uint32_t first;

	t->balance += nn_attention_balance_loss(&t->p.settings->config, record);
	trainer_sequences(t, micro, &first);
	if (t->p.routed)
		t->p.routed(t->p.arg, layer, first, record);
}

int attention_forward(struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns)
{
	struct slot *slot;
	int rc = layer ? take_input(t, layer, micro, timeout_ns, &slot) : embed(t, micro, &slot);

	if (rc)
		return rc;
	nn_attention_forward(t->params, t->work, layer, &slot->record);
	if (t->is_training)
		note_routing(t, layer, micro, &slot->record);
	trainer_span(t, TIMELINE_COMPUTE, "forward", layer, micro);
	rc = comm_send_rows(t->comm, &slot->link, &slot->record);
	if (!rc && !t->is_training)
		rc = release_slot(t, layer, micro);
	trainer_span(t, TIMELINE_SEND, "dispatch", layer, micro);
	return rc;
}

static int head_backward(struct trainer *t, struct slot *slot, uint32_t micro)
{
	const struct nn_settings *s = t->p.settings;
	struct attention_side *a = t->attention;
	int is_first = t->p.kind == TRAIN_SEQUENTIAL, rc;

	nn_head_backward_input(t->params, t->work, &a->head, a->targets,
		1 / ((double)s->step_seqs * s->seq_len), slot->link.dx);
	if (is_first)
		nn_head_backward_weights(t->params, t->work, &a->head);
	trainer_span(t, TIMELINE_COMPUTE, "head", s->config.n_layers, micro);
	rc = comm_send_gradient(t->comm, &slot->link, slot->record.n_rows);
	trainer_span(t, TIMELINE_SEND, "gradient", s->config.n_layers, micro);
	if (!is_first)
		nn_head_backward_weights(t->params, t->work, &a->head);
	return rc;
}

int attention_head(struct trainer *t, uint32_t micro, int64_t timeout_ns)
{
	uint32_t n_layers = t->p.settings->config.n_layers;
	struct attention_side *a = t->attention;
	struct slot *slot;
	double loss;
	int rc = take_input(t, n_layers, micro, timeout_ns, &slot);

	if (rc)
		return rc;
	a->head.n_rows = slot->record.n_rows;
	a->head.x = slot->record.x;
	trainer_tokens(t, micro, a->ids, a->targets);
	loss = nn_head_forward(t->params, t->work, &a->head, a->targets);
	t->loss += loss;
	if (!nn_all_finite(&(float){(float)loss}, 1) && n_layers + 1 < t->bad_layer)
		t->bad_layer = n_layers + 1;
	if (t->is_training)
		rc = head_backward(t, slot, micro);
	trainer_span(t, TIMELINE_COMPUTE, "head", n_layers, micro);
	return rc ? rc : release_slot(t, n_layers, micro);
}

/* dx and d_weights from the next stage, d_rows from the experts. */
static int take_gradients(struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns)
{
	const struct flow *flow = &t->flow;
	struct attention_side *a = t->attention;
	uint32_t key = flow_key(flow, layer, micro), group = (uint32_t)t->p.place.group;
	uint64_t base = t->n_steps * flow->n_rounds;
	struct slot *slot = a->slots[key];
	int rc = 0;

	while (!rc && !slot->has_gradient) {
		uint32_t sent = flow->sent[FLOW_BACKWARD][group * flow->n_rounds + a->n_gradients];
		struct slot *other = a->slots[sent];

		rc = comm_take_gradient(t->comm, &other->link, other->record.n_rows, timeout_ns);
		a->n_gradients += !rc;
		other->has_gradient = !rc;
	}
	if (!rc)
		rc = comm_take_row_gradients(t->comm, &slot->link,
			base + flow->round_of[FLOW_BACKWARD][key], a->d_rows, timeout_ns);
	if (!rc)
		trainer_span(t, TIMELINE_WAIT, "gradients", layer, micro);
	return rc;
}

static void backward_input(struct trainer *t, struct slot *slot, uint32_t layer, uint32_t micro)
{
	const struct nn_settings *s = t->p.settings;
	struct attention_side *a = t->attention;

	nn_attention_backward_input(t->params, t->work, layer, &slot->record, a->d_rows,
		slot->link.d_weights, slot->link.dx, s->balance / s->step_seqs, slot->link.dx);
	if (layer > 0)
		return;
	trainer_tokens(t, micro, a->ids, a->targets);
	nn_embedding_backward(t->params, a->ids, slot->record.n_rows, slot->link.dx);
}

int attention_backward(
	struct trainer *t, uint32_t layer, uint32_t micro, int weights, int64_t timeout_ns)
{
	struct slot *slot = t->attention->slots[flow_key(&t->flow, layer, micro)];
	int rc = take_gradients(t, layer, micro, timeout_ns);

	if (rc)
		return rc;
	backward_input(t, slot, layer, micro);
	if (weights == WEIGHTS_FIRST)
		nn_attention_backward_weights(t->params, t->work, layer, &slot->record);
	trainer_span(t, TIMELINE_COMPUTE, "backward", layer, micro);
	if (layer > 0) {
		rc = comm_send_gradient(t->comm, &slot->link, slot->record.n_rows);
		trainer_span(t, TIMELINE_SEND, "gradient", layer, micro);
	}
	if (weights == WEIGHTS_FIRST)
		return rc ? rc : release_slot(t, layer, micro);
	return rc || weights == WEIGHTS_LATER ? rc : attention_weights(t, layer, micro);
}

int attention_weights(struct trainer *t, uint32_t layer, uint32_t micro)
{
	struct slot *slot = t->attention->slots[flow_key(&t->flow, layer, micro)];

	nn_attention_backward_weights(t->params, t->work, layer, &slot->record);
	trainer_span(t, TIMELINE_COMPUTE, "weights", layer, micro);
	return release_slot(t, layer, micro);
}
