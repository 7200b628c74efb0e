/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop of an expert rank. Rows of one expert that come from several attention ranks, or in
 * bf16, are gathered first: one product over all of them reads the weights once. Fp32 rows from one
 * rank are used where they arrived, and replies are written where they leave.
 */
#include "expert_rank.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

struct experts {
	struct expert_params p;
	size_t hidden, row_bytes;
	struct model_scratch *scratch;
	float *rows, *results; /* [max_rows, hidden] */
	void *replies[2];      /* in turn: one may be on its way */
	uint64_t n_rounds, n_empty, n_rows;
	int64_t mark;
};

struct wanted {
	uint32_t layer, expert;
};

static int is_wanted(void *arg, uint32_t layer, uint32_t expert)
{
	const struct wanted *wanted = arg;

	return layer == wanted->layer && expert == wanted->expert;
}

int expert_rank_hold(void *arg, uint32_t layer, uint32_t expert)
{
	struct model *model = arg;
	struct wanted wanted = {layer, expert};
	struct model_weights_params params = {
		.parts = MODEL_PART_EXPERTS, .wanted = is_wanted, .arg = &wanted};

	if (model_weights_has_expert(model->weights, layer, expert))
		return 0;
	return model_weights_load(model->weights, &params);
}

static void span(struct experts *e, enum timeline_kind kind, const char *label, uint32_t layer)
{
	struct timeline_span span = {.begin_ns = e->mark,
		.label = label,
		.kind = (uint16_t)kind,
		.layer = layer,
		.micro_batch = (uint32_t)(e->n_rounds % e->p.n_micro_batches)};

	e->mark = timeline_add(e->p.timeline, span);
}

/* n_parts parts of one expert, whose rows follow each other in the replies. How many rows. */
static uint32_t run(
	struct experts *e, const struct transport_part *parts, uint32_t n_parts, uint8_t *replies)
{
	int is_f32 = e->p.row_dtype == MODEL_F32;
	const float *rows = is_f32 && n_parts == 1 ? parts[0].rows : e->rows;
	uint8_t *to = replies + parts[0].first_reply * e->row_bytes;
	uint32_t n_rows = 0;

	for (uint32_t i = 0; i < n_parts; i++) {
		if (rows == e->rows)
			model_to_f32(e->p.row_dtype, parts[i].rows, parts[i].n_rows * e->hidden,
				e->rows + n_rows * e->hidden);
		n_rows += parts[i].n_rows;
	}
	model_expert(e->p.model, e->scratch, parts[0].layer, parts[0].expert, rows, n_rows,
		e->hidden, is_f32 ? (float *)(void *)to : e->results, e->hidden);
	if (!is_f32)
		model_from_f32(e->p.row_dtype, e->results, n_rows * e->hidden, to);
	return n_rows;
}

static void run_all(struct experts *e, const struct transport_work *work, uint8_t *replies)
{
	for (uint32_t from = 0, to; from < work->n_parts; from = to) {
		const struct transport_part *part = &work->parts[from];

		for (to = from + 1; to < work->n_parts && work->parts[to].layer == part->layer &&
				    work->parts[to].expert == part->expert;
			to++)
			;
		e->n_rows += run(e, part, to - from, replies);
	}
}

static int serve_round(struct experts *e)
{
	uint8_t *replies;
	const struct transport_work *work;
	uint32_t layer;
	int rc = e->p.ops->take(e->p.transport, &work);

	if (rc)
		return rc;
	layer = work->n_parts ? work->parts[0].layer : 0;
	span(e, work->n_rows ? TIMELINE_WAIT : TIMELINE_IDLE, "rows", layer);
	if (work->n_rows > e->p.max_rows)
		return model_fail(-EPROTO, "round %lu: %u rows, at most %u can come",
			(unsigned long)work->round, work->n_rows, e->p.max_rows);
	replies = e->p.ops->place ? e->p.ops->place(e->p.transport, work) : NULL;
	if (!replies)
		replies = e->replies[e->n_rounds % 2];
	run_all(e, work, replies);
	if (work->n_rows)
		span(e, TIMELINE_COMPUTE, "experts", layer);
	rc = e->p.ops->answer(e->p.transport, work, replies);
	if (work->n_rows)
		span(e, TIMELINE_SEND, "replies", layer);
	e->n_empty += !work->n_rows;
	e->n_rounds++;
	return rc;
}

int expert_rank(const struct expert_params *params, json_t **report)
{
	struct experts e = {.p = *params, .hidden = params->model->config->hidden_size};
	size_t n_values = params->max_rows * e.hidden;
	int rc = 0;

	e.row_bytes = e.hidden * model_dtype_bytes(params->row_dtype);
	e.scratch = model_scratch_open(params->model);
	e.rows = malloc(n_values * sizeof(float));
	e.results = malloc(n_values * sizeof(float));
	for (int i = 0; i < 2; i++)
		e.replies[i] =
			params->ops->alloc(params->transport, params->max_rows * e.row_bytes);
	if (!e.scratch || !e.rows || !e.results || !e.replies[0] || !e.replies[1])
		rc = model_fail(-ENOMEM, "no memory for rounds of %u rows", params->max_rows);
	e.mark = timeline_now();
	while (!rc)
		rc = serve_round(&e);
	model_scratch_close(e.scratch);
	free(e.rows);
	free(e.results);
	if (rc != TRANSPORT_END)
		return rc;
	*report = json_pack("{s:I, s:I, s:I}", "rounds", (json_int_t)e.n_rounds, "empty_rounds",
		(json_int_t)e.n_empty, "rows", (json_int_t)e.n_rows);
	return *report ? 0 : model_fail(-ENOMEM, "no memory for the report");
}
