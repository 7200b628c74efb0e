/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of one attention rank and one expert rank, without what lies between them. A batch is of
 * decoding rows, each the next token of a sequence of `context` tokens with pages of its own. Time
 * is the thread's, so that others on the machine disturb less.
 */
#include "profile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/error.h"
#include "model/model.h"

/* Everything that is measured with. */
struct bench {
	const struct profile_params *params;
	struct model *model;
	struct model_scratch *scratch;
	struct model_cache *cache;
	struct model_sequence *sequences; /* [max_rows] */
	struct model_span *spans;         /* [max_rows], a row each */
	float *source, *x, *rows;         /* [max_rows, hidden] */
	int32_t *ids;                     /* [max_rows, top_k], as weights */
	float *weights;
	double *times; /* [n_repeats] */
	uint32_t max_rows;
};

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void attention(struct bench *bench, size_t turn, uint32_t n_rows)
{
	uint32_t layer = (uint32_t)(turn % bench->model->config->n_layers);

	model_attend(bench->model, bench->scratch, bench->cache, layer, bench->spans, n_rows,
		bench->x);
	model_moe_rows(bench->model, layer, bench->x, n_rows, bench->rows);
	model_route(bench->model, bench->scratch, layer, bench->rows, n_rows, bench->ids,
		bench->weights);
}

static void expert(struct bench *bench, size_t turn, uint32_t n_rows)
{
	const struct model_config *c = bench->model->config;

	model_expert(bench->model, bench->scratch, (uint32_t)(turn % c->n_layers),
		(uint32_t)(turn / c->n_layers % c->n_experts), bench->x, n_rows, c->hidden_size,
		bench->rows, c->hidden_size);
}

/* A call's median time. */
static double measure(struct bench *bench, uint32_t n_rows,
	void (*call)(struct bench *bench, size_t turn, uint32_t n_rows))
{
	size_t n = bench->params->n_repeats;
	size_t bytes = (size_t)n_rows * bench->model->config->hidden_size * sizeof(float);

	for (size_t i = 0; i < n + 1; i++) {
		double start;

		memcpy(bench->x, bench->source, bytes);
		start = now_us();
		call(bench, i, n_rows);
		if (i > 0) /* the first call tries out its products' shapes */
			bench->times[i - 1] = now_us() - start;
	}
	qsort(bench->times, n, sizeof(*bench->times), ascending);
	return n % 2 ? bench->times[n / 2] : (bench->times[n / 2 - 1] + bench->times[n / 2]) / 2;
}

static void sweep(struct bench *bench, uint32_t context,
	void (*call)(struct bench *bench, size_t turn, uint32_t n_rows),
	struct profile_points *points)
{
	for (uint32_t i = 0; i < bench->max_rows; i++)
		bench->sequences[i].n_tokens = context ? context - 1 : 0;
	for (size_t i = 0; i < bench->params->n_batches; i++) {
		uint32_t rows = bench->params->batches[i];

		points->points[points->n++] = (struct profile_point){rows, context,
			measure(bench, rows, call)};
	}
}

static int open_sequences(struct bench *bench)
{
	uint32_t context = bench->params->context;
	size_t n_pages = (size_t)(context + MODEL_PAGE_TOKENS - 1) / MODEL_PAGE_TOKENS;
	int rc = model_cache_open(bench->model->config, n_pages * bench->max_rows, &bench->cache);

	for (uint32_t i = 0; !rc && i < bench->max_rows; i++) {
		bench->spans[i] = (struct model_span){&bench->sequences[i], 1};
		rc = model_sequence_reserve(bench->cache, &bench->sequences[i], context);
	}
	return rc;
}

static int open_bench(struct bench *bench)
{
	struct model_weights_params weights = {.parts = MODEL_PART_ALL};
	const struct profile_params *params = bench->params;
	size_t n_values, n_routes;
	int rc = model_open(params->dir, &weights, 0, &bench->model);

	if (rc)
		return rc;
	if (params->context > bench->model->max_tokens)
		return model_fail(-EINVAL, "%s: a context of %u tokens; the model has %zu "
			"positions", params->dir, params->context, bench->model->max_tokens);
	for (size_t i = 0; i < params->n_batches; i++)
		if (params->batches[i] > bench->max_rows)
			bench->max_rows = params->batches[i];
	n_values = (size_t)bench->max_rows * bench->model->config->hidden_size;
	n_routes = (size_t)bench->max_rows * bench->model->config->top_k;
	bench->scratch = model_scratch_open(bench->model);
	bench->sequences = calloc(bench->max_rows, sizeof(*bench->sequences));
	bench->spans = calloc(bench->max_rows, sizeof(*bench->spans));
	bench->source = calloc(n_values, sizeof(float));
	bench->x = calloc(n_values, sizeof(float));
	bench->rows = calloc(n_values, sizeof(float));
	bench->ids = calloc(n_routes, sizeof(*bench->ids));
	bench->weights = calloc(n_routes, sizeof(float));
	bench->times = calloc(params->n_repeats, sizeof(double));
	if (!bench->scratch || !bench->sequences || !bench->spans || !bench->source || !bench->x ||
	    !bench->rows || !bench->ids || !bench->weights || !bench->times)
		return model_fail(-ENOMEM, "no memory for %u rows", bench->max_rows);
	for (size_t i = 0; i < n_values; i++)
		bench->source[i] = (float)(i * 2654435761u % 2001) * 1e-3f - 1;
	return open_sequences(bench);
}

static void close_bench(struct bench *bench)
{
	for (uint32_t i = 0; bench->cache && bench->sequences && i < bench->max_rows; i++)
		model_sequence_release(bench->cache, &bench->sequences[i]);
	model_cache_close(bench->cache);
	model_scratch_close(bench->scratch);
	model_close(bench->model);
	free(bench->sequences);
	free(bench->spans);
	free(bench->source);
	free(bench->x);
	free(bench->rows);
	free(bench->ids);
	free(bench->weights);
	free(bench->times);
}

int profile_measure(const struct profile_params *params, struct profile_points *attention_points,
	struct profile_points *expert_points)
{
	struct bench bench = {.params = params};
	int rc = open_bench(&bench);

	attention_points->n = expert_points->n = 0;
	if (!rc) {
		sweep(&bench, (params->context + 3) / 4, attention, attention_points);
		sweep(&bench, params->context, attention, attention_points);
		sweep(&bench, 0, expert, expert_points);
	}
	close_bench(&bench);
	return rc;
}
