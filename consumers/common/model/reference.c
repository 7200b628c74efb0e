/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one-process run: the calls of model.h in a row.
 */
#include "reference.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

int model_reference_open(const struct model *model, enum model_dtype row_dtype, size_t max_rows,
	size_t n_pages, struct model_reference **reference)
{
	size_t n_values = max_rows * model->config->hidden_size, top_k = model->config->top_k;
	struct model_reference *opened = calloc(1, sizeof(*opened));
	int rc;

	if (!opened)
		return model_fail(-ENOMEM, "no memory");
	opened->model = model;
	opened->row_dtype = row_dtype;
	opened->max_rows = max_rows;
	opened->scratch = model_scratch_open(model);
	opened->x = calloc(n_values, sizeof(float));
	opened->rows = calloc(n_values, sizeof(float));
	opened->sent = calloc(n_values * top_k, sizeof(float));
	opened->returned = calloc(n_values * top_k, sizeof(float));
	opened->replies = calloc(n_values * top_k, sizeof(float));
	opened->weights = calloc(max_rows * top_k, sizeof(float));
	opened->ids = calloc(max_rows * top_k, sizeof(int32_t));
	rc = model_cache_open(model->config, n_pages, &opened->cache);
	if (!rc && !(opened->scratch && opened->x && opened->rows && opened->sent &&
			   opened->returned && opened->replies && opened->weights && opened->ids))
		rc = model_fail(-ENOMEM, "no memory for steps of %zu rows", max_rows);
	if (rc) {
		model_reference_close(opened);
		return rc;
	}
	*reference = opened;
	return 0;
}

void model_reference_close(struct model_reference *reference)
{
	if (!reference)
		return;
	model_scratch_close(reference->scratch);
	model_cache_close(reference->cache);
	free(reference->x);
	free(reference->rows);
	free(reference->sent);
	free(reference->returned);
	free(reference->replies);
	free(reference->weights);
	free(reference->ids);
	free(reference);
}

/* One expert over the rows that chose it; their replies to where the combine looks for them. */
static void run_expert(struct model_reference *r, uint32_t layer, uint32_t expert, size_t n_rows)
{
	size_t hidden = r->model->config->hidden_size, top_k = r->model->config->top_k, n = 0;
	size_t bytes = hidden * sizeof(float);

	for (size_t i = 0; i < n_rows * top_k; i++)
		if (r->ids[i] == (int32_t)expert)
			memcpy(r->sent + n++ * hidden, r->rows + i / top_k * hidden, bytes);
	if (n == 0)
		return;
	model_expert(r->model, r->scratch, layer, expert, r->sent, n, hidden, r->returned, hidden);
	n = 0;
	for (size_t i = 0; i < n_rows * top_k; i++)
		if (r->ids[i] == (int32_t)expert)
			memcpy(r->replies + i * hidden, r->returned + n++ * hidden, bytes);
}

static void run_layer(struct model_reference *r, uint32_t layer, const struct model_span *spans,
	size_t n_spans, size_t n_rows)
{
	const struct model_config *c = r->model->config;
	size_t n_values = n_rows * c->hidden_size;

	model_attend(r->model, r->scratch, r->cache, layer, spans, n_spans, r->x);
	model_round(r->row_dtype, r->x, n_values);
	model_moe_rows(r->model, layer, r->x, n_rows, r->rows);
	model_round(r->row_dtype, r->rows, n_values);
	model_route(r->model, r->scratch, layer, r->rows, n_rows, r->ids, r->weights);
	for (uint32_t expert = 0; expert < c->n_experts; expert++)
		run_expert(r, layer, expert, n_rows);
	model_round(r->row_dtype, r->replies, n_values * c->top_k);
	model_combine(r->model, r->replies, r->weights, n_rows, r->x);
	model_round(r->row_dtype, r->x, n_values);
}

int model_reference_step(struct model_reference *r, const struct model_span *spans,
	size_t n_spans, const uint32_t *ids)
{
	size_t n_rows = 0;
	int rc = 0;

	for (size_t i = 0; i < n_spans; i++) {
		if (spans[i].sequence->n_tokens + spans[i].n_rows > r->model->max_tokens)
			return model_fail(-EINVAL, "a sequence of %zu tokens; at most %zu",
				spans[i].sequence->n_tokens + spans[i].n_rows,
				r->model->max_tokens);
		n_rows += spans[i].n_rows;
	}
	if (n_rows > r->max_rows)
		return model_fail(-EINVAL, "a step of %zu rows; at most %zu", n_rows, r->max_rows);
	rc = model_check_ids(r->model, ids, n_rows);
	for (size_t i = 0; !rc && i < n_spans; i++)
		rc = model_sequence_reserve(r->cache, spans[i].sequence,
			spans[i].sequence->n_tokens + spans[i].n_rows);
	if (rc)
		return rc;
	model_embed(r->model, ids, n_rows, r->x);
	for (uint32_t layer = 0; layer < r->model->config->n_layers; layer++)
		run_layer(r, layer, spans, n_spans, n_rows);
	for (size_t i = 0; i < n_spans; i++)
		spans[i].sequence->n_tokens += spans[i].n_rows;
	return 0;
}
