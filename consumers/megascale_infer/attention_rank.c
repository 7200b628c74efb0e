/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop of an attention rank. Batches are received in the order in which they were sent: the
 * oldest ends its layer, goes through the next one's attention and is sent again, while the others
 * are with the experts. A rank that has nothing to do keeps the rounds of the others going with
 * empty ones.
 */
#include "attention_rank.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/error.h"

#define SHORT_NS 50000 /* an empty round that was faster: nobody else has anything either */
#define NAP_NS 200000

enum { LOGITS_ROWS = 8 }; /* at once: a product of few rows costs about as much as of one */

/* A micro-batch. */
struct micro {
	struct batcher_batch batch;
	int is_active;
	uint32_t layer;
	int64_t begun_ns, sent_ns; /* of the iteration, of the layer's rows */
	float *x, *sum;            /* [max_rows, hidden] fp32; sum: what the combine gives */
	void *rows;                /* [max_rows, hidden] as they travel */
	void *residual, *out;      /* bf16: the same as x and sum, as they travel */
	int32_t *ids;              /* [max_rows, top_k] */
	float *weights;
};

struct attention {
	struct attention_params p;
	const struct model_config *config;
	struct model_scratch *scratch;
	struct model_cache *cache;
	struct batcher *batcher;
	struct micro micros[BATCHER_MAX_SLOTS];
	uint32_t queue[BATCHER_MAX_SLOTS]; /* in flight, the oldest first */
	uint32_t n_queued;
	float *rows, *logits;
	uint32_t *order, *tokens;
	uint64_t n_tokens;
	uint64_t n_idle_rounds;
	uint64_t n_iterations[BATCHER_MAX_SLOTS];
	int64_t iteration_ns[BATCHER_MAX_SLOTS]; /* sums */
	int64_t mark;                            /* the end of the last span */
};

static void span(struct attention *a, enum timeline_kind kind, const char *label, uint32_t slot)
{
	a->mark = timeline_add(a->p.timeline, (struct timeline_span){.begin_ns = a->mark,
						      .label = label,
						      .kind = (uint16_t)kind,
						      .layer = a->micros[slot].layer,
						      .micro_batch = slot});
}

/* A lane of its own: rows with the expert side. */
static void show_flight(struct attention *a, uint32_t slot)
{
	struct timeline_span flight = {.begin_ns = a->micros[slot].sent_ns,
		.label = "flight",
		.kind = TIMELINE_WAIT,
		.lane = (uint16_t)(1 + slot),
		.layer = a->micros[slot].layer,
		.micro_batch = slot};

	timeline_add(a->p.timeline, flight);
}

static int64_t elapsed(const struct attention *a)
{
	return timeline_now() - a->p.start_ns;
}

static int open_micro(struct attention *a, struct micro *m)
{
	size_t n_rows = a->p.batcher.max_rows, n = n_rows * a->config->hidden_size;
	int is_f32 = a->p.row_dtype == MODEL_F32;

	m->x = malloc(n * sizeof(float));
	m->sum = malloc(n * sizeof(float));
	m->ids = malloc(n_rows * a->config->top_k * sizeof(int32_t));
	m->weights = malloc(n_rows * a->config->top_k * sizeof(float));
	m->rows = a->p.ops->alloc(a->p.transport, n * model_dtype_bytes(a->p.row_dtype));
	m->residual = is_f32 ? m->x : malloc(n * 2);
	m->out = is_f32 ? m->sum : malloc(n * 2);
	if (!m->x || !m->sum || !m->ids || !m->weights || !m->rows || !m->residual || !m->out)
		return model_fail(-ENOMEM, "no memory for a micro-batch of %zu rows", n_rows);
	return 0;
}

static void close_micro(const struct attention *a, struct micro *m)
{
	if (a->p.row_dtype != MODEL_F32) {
		free(m->residual);
		free(m->out);
	}
	free(m->x);
	free(m->sum);
	free(m->ids);
	free(m->weights);
}

/* Attention of the layer that the micro-batch is in; its rows, experts and weights. */
static void attend(struct attention *a, struct micro *m)
{
	const struct batcher_batch *b = &m->batch;
	size_t n = (size_t)b->n_rows * a->config->hidden_size;
	int is_f32 = a->p.row_dtype == MODEL_F32;
	float *rows = is_f32 ? m->rows : a->rows;

	model_attend(a->p.model, a->scratch, a->cache, m->layer, b->spans, b->n_spans, m->x);
	model_round(a->p.row_dtype, m->x, n);
	model_moe_rows(a->p.model, m->layer, m->x, b->n_rows, rows);
	model_round(a->p.row_dtype, rows, n);
	model_route(a->p.model, a->scratch, m->layer, rows, b->n_rows, m->ids, m->weights);
	if (is_f32) {
		m->residual = m->x;
		m->out = m->sum;
	} else {
		model_from_f32(a->p.row_dtype, rows, n, m->rows);
		model_from_f32(a->p.row_dtype, m->x, n, m->residual);
	}
}

static int send(struct attention *a, uint32_t slot)
{
	struct micro *m = &a->micros[slot];
	struct transport_batch batch = {m->layer, m->batch.n_rows, m->rows, m->ids, m->weights};
	int rc = a->p.ops->send(a->p.transport, &batch);

	span(a, TIMELINE_SEND, "dispatch", slot);
	m->sent_ns = a->mark;
	if (!rc)
		a->queue[a->n_queued++] = slot;
	return rc;
}

static int attend_and_send(struct attention *a, uint32_t slot)
{
	attend(a, &a->micros[slot]);
	span(a, TIMELINE_COMPUTE, "attention", slot);
	return send(a, slot);
}

/* The next iteration of a micro-batch, if there is anything to do. */
static int begin(struct attention *a, uint32_t slot)
{
	struct micro *m = &a->micros[slot];
	int rc = batcher_next(a->batcher, slot, elapsed(a), &m->batch);

	if (rc || !m->batch.n_rows)
		return rc;
	m->is_active = 1;
	m->layer = 0;
	m->begun_ns = a->mark;
	model_embed(a->p.model, m->batch.ids, m->batch.n_rows, m->x);
	return attend_and_send(a, slot);
}

/* By chance, but the same whatever batch the token is in: from the request and its place. */
static uint32_t draw(struct attention *a, size_t record, const float *logits)
{
	const struct batcher_record *r = &batcher_records(a->batcher)[record];
	uint64_t state = a->p.seed + (r->request->number << 32) + r->n_tokens;

	return model_sample(
		logits, a->config->vocab_size, a->p.temperature, a->p.top_p, &state, a->order);
}

/* Tokens of the rows that end a sequence so far; the sequences go on. */
static void sample(struct attention *a, uint32_t slot)
{
	struct micro *m = &a->micros[slot];
	size_t hidden = a->config->hidden_size, n_vocab = a->config->vocab_size;

	for (uint32_t i = 0, n; i < m->batch.n_samples; i += n) {
		n = m->batch.n_samples - i < LOGITS_ROWS ? m->batch.n_samples - i : LOGITS_ROWS;
		for (uint32_t j = 0; j < n; j++)
			memcpy(a->rows + j * hidden, m->x + m->batch.sample_rows[i + j] * hidden,
				hidden * sizeof(float));
		model_logits(a->p.model, a->scratch, a->rows, n, a->logits);
		for (uint32_t j = 0; j < n; j++)
			a->tokens[i + j] =
				draw(a, m->batch.sample_records[i + j], a->logits + j * n_vocab);
	}
	a->n_tokens += m->batch.n_samples;
	batcher_done(a->batcher, slot, elapsed(a), a->tokens);
	m->is_active = 0;
	span(a, TIMELINE_COMPUTE, "sample", slot);
	a->n_iterations[slot]++;
	a->iteration_ns[slot] += a->mark - m->begun_ns;
	if (a->p.progress) {
		struct batcher_stats stats;

		batcher_stats(a->batcher, &stats);
		a->p.progress(a->p.arg, a->n_tokens, stats.n_ended);
	}
}

/* The oldest batch in flight ends its layer. */
static int advance(struct attention *a)
{
	uint32_t slot = a->queue[0];
	struct micro *m = &a->micros[slot];
	float *x = m->x;
	int rc = a->p.ops->receive(a->p.transport, m->residual, m->out);

	memmove(a->queue, a->queue + 1, --a->n_queued * sizeof(*a->queue));
	span(a, TIMELINE_WAIT, "combine", slot);
	show_flight(a, slot);
	if (rc == TRANSPORT_RESEND)
		return send(a, slot);
	if (rc)
		return rc;
	if (a->p.row_dtype == MODEL_F32) {
		m->x = m->sum;
		m->sum = x;
	} else {
		model_to_f32(a->p.row_dtype, m->out,
			(size_t)m->batch.n_rows * a->config->hidden_size, m->x);
	}
	if (++m->layer < a->config->n_layers)
		return attend_and_send(a, slot);
	sample(a, slot);
	return begin(a, slot);
}

/* Nothing to do until the next request: the others' rounds want ours all the same. */
static int idle_round(struct attention *a)
{
	const struct timespec nap = {.tv_nsec = NAP_NS};
	struct transport_batch none = {.rows = a->micros[0].rows,
		.ids = a->micros[0].ids,
		.weights = a->micros[0].weights};
	int64_t begun = a->mark;
	int rc = a->p.ops->send(a->p.transport, &none);

	if (!rc)
		rc = a->p.ops->receive(a->p.transport, a->micros[0].residual, a->micros[0].out);
	if (timeline_now() - begun < SHORT_NS &&
		elapsed(a) + NAP_NS < batcher_next_arrival(a->batcher))
		nanosleep(&nap, NULL);
	a->n_idle_rounds++;
	span(a, TIMELINE_IDLE, "idle", 0);
	return rc == TRANSPORT_RESEND ? 0 : rc;
}

static int serve(struct attention *a)
{
	int rc = 0;

	a->mark = timeline_now();
	while (!rc && !batcher_is_over(a->batcher)) {
		for (uint32_t slot = 0; !rc && slot < a->p.batcher.n_slots; slot++)
			if (!a->micros[slot].is_active)
				rc = begin(a, slot);
		if (!rc && a->n_queued)
			rc = advance(a);
		else if (!rc && !batcher_is_over(a->batcher))
			rc = idle_round(a);
	}
	return rc;
}

static int open_all(struct attention *a)
{
	size_t n_rows = a->p.batcher.max_rows, n_vocab = a->config->vocab_size;
	int rc = model_cache_open(a->config, a->p.n_pages, &a->cache);

	if (rc)
		return rc;
	a->scratch = model_scratch_open(a->p.model);
	a->rows = malloc(n_rows * a->config->hidden_size * sizeof(float));
	a->logits = malloc(LOGITS_ROWS * n_vocab * sizeof(float));
	a->order = malloc(n_vocab * sizeof(*a->order));
	a->tokens = malloc(n_rows * sizeof(*a->tokens));
	if (!a->scratch || !a->rows || !a->logits || !a->order || !a->tokens)
		return model_fail(-ENOMEM, "no memory for batches of %zu rows", n_rows);
	a->p.batcher.cache = a->cache;
	for (uint32_t i = 0; !rc && i < a->p.batcher.n_slots; i++)
		rc = open_micro(a, &a->micros[i]);
	return rc ? rc : batcher_open(&a->p.batcher, a->p.requests, a->p.n_requests, &a->batcher);
}

static void close_all(struct attention *a)
{
	if (a->batcher)
		batcher_close(a->batcher);
	for (uint32_t i = 0; i < a->p.batcher.n_slots; i++)
		close_micro(a, &a->micros[i]);
	model_scratch_close(a->scratch);
	model_cache_close(a->cache);
	free(a->rows);
	free(a->logits);
	free(a->order);
	free(a->tokens);
}

static json_t *record_json(const struct batcher_record *r)
{
	json_t *tokens = json_array(), *times = json_array(), *one;

	for (uint32_t i = 0; i < r->n_tokens; i++) {
		json_array_append_new(tokens, json_integer(r->tokens[i]));
		json_array_append_new(times, json_integer(r->token_ns[i]));
	}
	one = json_pack("{s:I, s:I, s:I, s:I, s:o, s:o}", "request", (json_int_t)r->request->number,
		"prompt_tokens", (json_int_t)r->request->n_prompt, "arrival_ns",
		(json_int_t)r->request->arrival_ns, "admitted_ns", (json_int_t)r->admitted_ns,
		"tokens", tokens, "token_ns", times);
	if (r->refused)
		json_object_set_new(one, "refused", json_string(r->refused));
	return one;
}

static json_t *make_report(const struct attention *a)
{
	const struct batcher_record *records = batcher_records(a->batcher);
	json_t *requests = json_array(), *iterations = json_array();
	struct batcher_stats s;

	batcher_stats(a->batcher, &s);
	for (size_t i = 0; i < a->p.n_requests; i++)
		json_array_append_new(requests, record_json(&records[i]));
	for (uint32_t i = 0; i < a->p.batcher.n_slots; i++) {
		double ns = a->n_iterations[i]
				    ? (double)a->iteration_ns[i] / (double)a->n_iterations[i]
				    : 0;

		json_array_append_new(iterations, json_real(ns / 1e3));
	}
	return json_pack("{s:I, s:o, s:I, s:I, s:I, s:f, s:f, s:f, s:o}", "iterations",
		(json_int_t)s.n_iterations, "iteration_us", iterations, "rows",
		(json_int_t)s.n_rows, "prefill_rows", (json_int_t)s.n_prefill_rows, "idle_rounds",
		(json_int_t)a->n_idle_rounds, "expected_mean_ns", s.mean_ns,
		"expected_deviation_ns", s.deviation_ns, "expected_max_ns", s.max_ns, "requests",
		requests);
}

int attention_rank(const struct attention_params *params, json_t **report)
{
	struct attention a = {.p = *params, .config = params->model->config};
	int rc = open_all(&a);

	if (!rc)
		rc = serve(&a);
	if (!rc && !(*report = make_report(&a)))
		rc = model_fail(-ENOMEM, "no memory for the report");
	close_all(&a);
	return rc;
}
