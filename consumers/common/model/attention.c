/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The attention part of a layer over paged keys and values.
 *
 * Projections run over up to 64 rows at once; then each row attends alone, page by page, with one
 * product of fixed shape for the heads that share a key/value head. A row's arithmetic is thus a
 * function of its position and of the pages' contents, whatever else is in the batch. Places of a
 * page that a row must not see (later tokens, tokens out of the window) get the weight 0.
 */
#include <math.h>

#include <cblas.h>

#include "scratch.h"

/* Hugging Face's rotate_half: value i pairs with value i + head_dim / 2. */
static void rotate(const struct model *model, size_t position, uint32_t n_heads, float *heads)
{
	size_t half = model->config->head_dim / 2;
	const float *cosines = model->rope + position * 2 * half, *sines = cosines + half;

	for (uint32_t head = 0; head < n_heads; head++, heads += 2 * half) {
		for (size_t i = 0; i < half; i++) {
			float first = heads[i], second = heads[i + half];

			heads[i] = first * cosines[i] - second * sines[i];
			heads[i + half] = second * cosines[i] + first * sines[i];
		}
	}
}

/* Row `row` of the chunk's keys and values into its place in the cache. */
static void store(const struct model *model, const struct model_scratch *scratch,
	struct model_cache *cache, uint32_t layer, const struct model_sequence *sequence,
	size_t position, size_t row)
{
	const struct model_config *c = model->config;
	uint32_t page = sequence->pages[position / MODEL_PAGE_TOKENS];
	size_t at = position % MODEL_PAGE_TOKENS * c->head_dim;

	for (uint32_t head = 0; head < c->n_kv_heads; head++) {
		size_t from = (row * c->n_kv_heads + head) * c->head_dim;
		float *keys = model_cache_keys(cache, page, layer, head) + at;
		float *values = model_cache_values(cache, page, layer, head) + at;

		for (uint32_t i = 0; i < c->head_dim; i++) {
			keys[i] = scratch->k[from + i];
			values[i] = scratch->v[from + i];
		}
	}
}

/* Scores into probabilities over places first..last of a row of n; 0 elsewhere. */
static void softmax(float *scores, size_t n, size_t first, size_t last, float scale)
{
	float max = -INFINITY, factor;
	double sum = 0;

	for (size_t i = 0; i < first; i++)
		scores[i] = 0;
	for (size_t i = last + 1; i < n; i++)
		scores[i] = 0;
	for (size_t i = first; i <= last; i++) {
		scores[i] *= scale;
		max = scores[i] > max ? scores[i] : max;
	}
	for (size_t i = first; i <= last; i++) {
		scores[i] = expf(scores[i] - max);
		sum += scores[i];
	}
	factor = (float)(1 / sum);
	for (size_t i = first; i <= last; i++)
		scores[i] *= factor;
}

/* The heads of one key/value head for one row: q, out [group, head_dim]. */
static void attend_group(const struct model *model, struct model_scratch *scratch,
	struct model_cache *cache, uint32_t layer, const struct model_sequence *sequence,
	size_t position, uint32_t head, const float *q, float *out)
{
	const struct model_config *c = model->config;
	blasint group = (blasint)(c->n_heads / c->n_kv_heads), dim = (blasint)c->head_dim;
	size_t window = c->sliding_window ? c->sliding_window : position + 1;
	size_t first = position + 1 > window ? position + 1 - window : 0;
	size_t page0 = first / MODEL_PAGE_TOKENS, page1 = position / MODEL_PAGE_TOKENS + 1;
	size_t start = page0 * MODEL_PAGE_TOKENS, n = page1 * MODEL_PAGE_TOKENS - start;

	for (size_t page = page0; page < page1; page++)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, group, MODEL_PAGE_TOKENS, dim,
			1.0f, q, dim, model_cache_keys(cache, sequence->pages[page], layer, head),
			dim, 0.0f, scratch->scores + page * MODEL_PAGE_TOKENS - start, (blasint)n);
	for (blasint i = 0; i < group; i++)
		softmax(scratch->scores + (size_t)i * n, n, first - start, position - start,
			1.0f / sqrtf((float)dim));
	for (size_t page = page0; page < page1; page++)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, group, dim,
			MODEL_PAGE_TOKENS, 1.0f, scratch->scores + page * MODEL_PAGE_TOKENS - start,
			(blasint)n, model_cache_values(cache, sequence->pages[page], layer, head),
			dim, page > page0 ? 1.0f : 0.0f, out, dim);
}

/* Up to MODEL_CHUNK_ROWS new rows of one sequence, the first at `position`. */
static void attend_rows(const struct model *model, struct model_scratch *s,
	struct model_cache *cache, uint32_t layer, const struct model_sequence *sequence,
	size_t position, size_t n_rows, size_t row0)
{
	const struct model_config *c = model->config;
	size_t group_values = (size_t)c->n_heads / c->n_kv_heads * c->head_dim;
	size_t q_values = (size_t)c->n_heads * c->head_dim;
	size_t kv_values = (size_t)c->n_kv_heads * c->head_dim;

	for (size_t row = row0; row < row0 + n_rows; row++) {
		rotate(model, position + row - row0, c->n_heads, s->q + row * q_values);
		rotate(model, position + row - row0, c->n_kv_heads, s->k + row * kv_values);
		store(model, s, cache, layer, sequence, position + row - row0, row);
	}
	for (size_t row = row0; row < row0 + n_rows; row++)
		for (uint32_t head = 0; head < c->n_kv_heads; head++)
			attend_group(model, s, cache, layer, sequence, position + row - row0, head,
				s->q + row * q_values + head * group_values,
				s->mixed + row * q_values + head * group_values);
}

static void project(const struct model *model, struct model_scratch *scratch, uint32_t layer,
	enum model_layer_tensor which, const float *x, size_t n_rows, float *y)
{
	struct model_matrix matrix = model_weights_matrix(model->weights,
		model_layer_index(model->config, layer, which));

	model_product(scratch->work, &matrix, x, n_rows, matrix.n_in, y, matrix.n_out);
}

/* Where the next row of a batch of spans comes from. */
struct cursor {
	const struct model_span *span;
	size_t done; /* rows of it */
};

/* The chunk's rows go through their sequences, span by span. */
static void attend_chunk(const struct model *model, struct model_scratch *scratch,
	struct model_cache *cache, uint32_t layer, struct cursor *cursor, size_t n_rows)
{
	for (size_t row = 0, n; row < n_rows; row += n) {
		const struct model_span *span = cursor->span;

		n = span->n_rows - cursor->done;
		n = n < n_rows - row ? n : n_rows - row;
		attend_rows(model, scratch, cache, layer, span->sequence,
			span->sequence->n_tokens + cursor->done, n, row);
		cursor->done += n;
		if (cursor->done == span->n_rows)
			*cursor = (struct cursor){span + 1, 0};
	}
}

void model_attend(const struct model *model, struct model_scratch *scratch,
	struct model_cache *cache, uint32_t layer, const struct model_span *spans, size_t n_spans,
	float *x)
{
	const struct model_config *c = model->config;
	struct cursor cursor = {spans, 0};
	size_t n_rows = 0;

	for (size_t i = 0; i < n_spans; i++)
		n_rows += spans[i].n_rows;
	for (size_t row = 0, n; row < n_rows; row += n, x += n * c->hidden_size) {
		n = n_rows - row < MODEL_CHUNK_ROWS ? n_rows - row : MODEL_CHUNK_ROWS;
		model_norm(model, model_layer_index(c, layer, MODEL_INPUT_NORM), x, n,
			scratch->normed);
		project(model, scratch, layer, MODEL_Q, scratch->normed, n, scratch->q);
		project(model, scratch, layer, MODEL_K, scratch->normed, n, scratch->k);
		project(model, scratch, layer, MODEL_V, scratch->normed, n, scratch->v);
		attend_chunk(model, scratch, cache, layer, &cursor, n);
		project(model, scratch, layer, MODEL_O, scratch->mixed, n, scratch->added);
		for (size_t i = 0; i < n * c->hidden_size; i++)
			x[i] += scratch->added[i];
	}
}
