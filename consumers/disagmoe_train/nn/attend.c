/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Causal attention of one whole sequence and its gradient. Scores exist for a block of queries at a
 * time; backward computes them again from the logarithm of each row's sum (FlashAttention's way),
 * so that what is kept for it grows with the tokens, not with their square. Shapes of products
 * depend on places in the sequence only, and so do the bits.
 */
#include "nn/work.h"

#include <math.h>
#include <string.h>

#include <cblas.h>

/* A block of queries of one head, and the keys that any of them sees. */
struct block {
	size_t first, n;    /* queries */
	size_t key, n_keys; /* keys key .. key + n_keys - 1 */
	size_t window;      /* keys that a query sees, itself included */
};

static struct block block_at(const struct nn_work *work, size_t first)
{
	size_t left = work->seq_len - first;
	struct block b = {.first = first, .n = left < NN_QUERY_BLOCK ? left : NN_QUERY_BLOCK};

	b.window = work->config->sliding_window ? work->config->sliding_window : work->seq_len;
	b.key = first + 1 > b.window ? first + 1 - b.window : 0;
	b.n_keys = first + b.n - b.key;
	return b;
}

/* The keys of query i: from *from to *to in the block's count, *to not included. */
static void seen_keys(const struct block *b, size_t i, size_t *from, size_t *to)
{
	size_t query = b->first + i, start = query + 1 > b->window ? query + 1 - b->window : 0;

	*from = start - b->key;
	*to = query + 1 - b->key;
}

/* c[n, m] (+)= a[n, dim] b[m, dim]^T */
static void product_nt(size_t n, size_t m, size_t dim, const float *a, size_t a_stride,
	const float *b, size_t b_stride, float *c)
{
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)n, (blasint)m, (blasint)dim,
		1.0f, a, (blasint)a_stride, b, (blasint)b_stride, 0.0f, c, (blasint)m);
}

/* c[n, dim] = a[n, m] b[m, dim] */
static void product_nn(size_t n, size_t m, size_t dim, const float *a, const float *b,
	size_t b_stride, float *c, size_t c_stride)
{
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)n, (blasint)dim, (blasint)m,
		1.0f, a, (blasint)m, b, (blasint)b_stride, 0.0f, c, (blasint)c_stride);
}

/* c[m, dim] += a[n, m]^T b[n, dim] */
static void product_tn(size_t n, size_t m, size_t dim, const float *a, const float *b,
	size_t b_stride, float *c)
{
	cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)m, (blasint)dim, (blasint)n,
		1.0f, a, (blasint)m, b, (blasint)b_stride, 1.0f, c, (blasint)dim);
}

/* Products into probabilities, 0 where a query does not look. */
static void softmax_row(float *row, size_t from, size_t to, size_t n, float scale, float *log_sum)
{
	float max = -INFINITY, factor;
	double sum = 0;

	memset(row, 0, from * sizeof(row[0]));
	memset(row + to, 0, (n - to) * sizeof(row[0]));
	for (size_t i = from; i < to; i++) {
		row[i] *= scale;
		max = row[i] > max ? row[i] : max;
	}
	for (size_t i = from; i < to; i++) {
		row[i] = expf(row[i] - max);
		sum += row[i];
	}
	factor = (float)(1 / sum);
	for (size_t i = from; i < to; i++)
		row[i] *= factor;
	*log_sum = max + (float)log(sum);
}

static void attend_head(struct nn_work *work, const float *q, const float *k, const float *v,
	float *mixed, float *log_sums)
{
	const struct model_config *c = work->config;
	size_t dim = c->head_dim, q_stride = c->n_heads * dim, kv_stride = c->n_kv_heads * dim;
	float scale = 1.0f / sqrtf((float)dim);

	for (size_t first = 0; first < work->seq_len; first += NN_QUERY_BLOCK) {
		struct block b = block_at(work, first);

		product_nt(b.n, b.n_keys, dim, q + first * q_stride, q_stride,
			k + b.key * kv_stride, kv_stride, work->scores);
		for (size_t i = 0; i < b.n; i++) {
			size_t from, to;

			seen_keys(&b, i, &from, &to);
			softmax_row(work->scores + i * b.n_keys, from, to, b.n_keys, scale,
				log_sums + (first + i) * c->n_heads);
		}
		product_nn(b.n, b.n_keys, dim, work->scores, v + b.key * kv_stride, kv_stride,
			mixed + first * q_stride, q_stride);
	}
}

void nn_attend(struct nn_work *work, const float *q, const float *k, const float *v, float *mixed,
	float *log_sums)
{
	const struct model_config *c = work->config;
	uint32_t group = c->n_heads / c->n_kv_heads;

	for (uint32_t head = 0; head < c->n_heads; head++) {
		size_t at = (size_t)head * c->head_dim, kv_at = (size_t)head / group * c->head_dim;

		attend_head(work, q + at, k + kv_at, v + kv_at, mixed + at, log_sums + head);
	}
}

/*
 * Scores' products into probabilities p, and d_p into the gradients of the products: p (d_p - d)
 * scale, where d = <p, d_p>. (It is <mixed, d_mixed> too, but other roundings would be left where
 * the difference is 0.)
 */
static void softmax_row_backward(float *row, float *d_row, size_t from, size_t to, size_t n,
	float scale, float log_sum)
{
	float d;

	memset(row, 0, from * sizeof(row[0]));
	memset(row + to, 0, (n - to) * sizeof(row[0]));
	memset(d_row, 0, from * sizeof(row[0]));
	memset(d_row + to, 0, (n - to) * sizeof(row[0]));
	for (size_t i = from; i < to; i++)
		row[i] = expf(row[i] * scale - log_sum);
	d = (float)nn_dot(row + from, d_row + from, to - from);
	for (size_t i = from; i < to; i++)
		d_row[i] = row[i] * (d_row[i] - d) * scale;
}

/* q becomes its gradient block by block: nobody else needs it then. */
static void attend_head_backward(struct nn_work *work, float *q, const float *k, const float *v,
	const float *log_sums, const float *d_mixed)
{
	const struct model_config *c = work->config;
	size_t dim = c->head_dim, q_stride = c->n_heads * dim, kv_stride = c->n_kv_heads * dim;
	float scale = 1.0f / sqrtf((float)dim);

	for (size_t first = 0; first < work->seq_len; first += NN_QUERY_BLOCK) {
		struct block b = block_at(work, first);
		const float *block_k = k + b.key * kv_stride, *block_v = v + b.key * kv_stride;
		const float *d_out = d_mixed + first * q_stride;
		float *block_q = q + first * q_stride;

		product_nt(b.n, b.n_keys, dim, block_q, q_stride, block_k, kv_stride, work->scores);
		product_nt(b.n, b.n_keys, dim, d_out, q_stride, block_v, kv_stride,
			work->d_scores);
		for (size_t i = 0; i < b.n; i++) {
			size_t from, to;

			seen_keys(&b, i, &from, &to);
			softmax_row_backward(work->scores + i * b.n_keys,
				work->d_scores + i * b.n_keys, from, to, b.n_keys, scale,
				log_sums[(first + i) * c->n_heads]);
		}
		product_tn(b.n, b.n_keys, dim, work->scores, d_out, q_stride,
			work->d_v + b.key * dim);
		product_tn(b.n, b.n_keys, dim, work->d_scores, block_q, q_stride,
			work->d_k + b.key * dim);
		product_nn(b.n, b.n_keys, dim, work->d_scores, block_k, kv_stride, block_q,
			q_stride);
	}
}

void nn_attend_backward(struct nn_work *work, float *q, float *k, float *v,
	const float *log_sums, const float *d_mixed)
{
	const struct model_config *c = work->config;
	uint32_t group = c->n_heads / c->n_kv_heads;
	size_t dim = c->head_dim, kv_stride = c->n_kv_heads * dim;

	for (uint32_t kv_head = 0; kv_head < c->n_kv_heads; kv_head++) {
		float *head_k = k + kv_head * dim, *head_v = v + kv_head * dim;

		memset(work->d_k, 0, work->seq_len * dim * sizeof(float));
		memset(work->d_v, 0, work->seq_len * dim * sizeof(float));
		for (uint32_t head = kv_head * group; head < (kv_head + 1) * group; head++)
			attend_head_backward(work, q + head * dim, head_k, head_v, log_sums + head,
				d_mixed + head * dim);
		for (size_t row = 0; row < work->seq_len; row++) {
			memcpy(head_k + row * kv_stride, work->d_k + row * dim,
				dim * sizeof(float));
			memcpy(head_v + row * kv_stride, work->d_v + row * dim,
				dim * sizeof(float));
		}
	}
}

/* Hugging Face's rotate_half: value i pairs with value i + head_dim / 2. */
void nn_rotate(const struct nn_work *work, uint32_t n_heads, float direction, float *heads)
{
	size_t half = work->config->head_dim / 2;

	for (size_t row = 0; row < work->seq_len; row++) {
		const float *cosines = work->rope + row * 2 * half, *sines = cosines + half;

		for (uint32_t head = 0; head < n_heads; head++, heads += 2 * half)
			for (size_t i = 0; i < half; i++) {
				float first = heads[i], second = heads[i + half];
				float sine = direction * sines[i];

				heads[i] = first * cosines[i] - second * sine;
				heads[i + half] = second * cosines[i] + first * sine;
			}
	}
}
