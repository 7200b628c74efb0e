/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A decoder-only mixture-of-experts transformer (Mixtral), cut where a disaggregated pipeline cuts
 * it. One layer of a batch of rows x is
 *
 *     model_attend      x += attention(norm(x))                        attention rank
 *     model_moe_rows    rows = norm(x)                                 attention rank
 *     model_route       ids, weights = top-k of softmax(router(rows))  attention rank
 *     model_expert      reply = w2(silu(w1 row) * w3 row)              expert rank
 *     model_combine     x += sum_k weight_k * reply_k                  m2n_combine_recv, or here
 *
 * between model_embed and model_logits. Every row's bits depend on its own sequence only, not on
 * the batch, its grouping, the prefill chunks or the pages: product.h. All values are fp32; rows
 * that travel in bf16 are rounded by model_round() where they leave, residual included.
 *
 * Functions take what is right by model_config_check() and by the calls before; ids and lengths
 * from outside are checked by model_check_ids() and model_sequence_reserve(). Several threads may
 * use one model, each with its own scratch; a cache belongs to one thread at a time.
 */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "cache.h"
#include "weights.h"

struct model {
	struct model_weights *weights;
	const struct model_config *config; /* of weights */
	size_t max_tokens;                 /* of one sequence */
	float *rope;                       /* [max_tokens, head_dim]: cosines, then sines */
};

struct model_scratch;

/* New tokens of one sequence: rows in a batch, at positions n_tokens, n_tokens + 1, ... */
struct model_span {
	struct model_sequence *sequence;
	size_t n_rows;
};

/*
 * Sequences are bounded by max_tokens (0: max_positions of the config). model_open() reads weights
 * from a directory; model_create() takes them, also when it fails.
 */
int model_open(const char *dir, const struct model_weights_params *params, size_t max_tokens,
	struct model **model);
int model_create(struct model_weights *weights, size_t max_tokens, struct model **model);
void model_close(struct model *model);
/* Memory that the functions below work in, for one thread. NULL: no memory. */
struct model_scratch *model_scratch_open(const struct model *model);
void model_scratch_close(struct model_scratch *scratch);

/* Whether all ids are tokens; -EINVAL with a text that names the first that is not. */
int model_check_ids(const struct model *model, const uint32_t *ids, size_t n_ids);
/* x: [n_ids, hidden] */
void model_embed(const struct model *model, const uint32_t *ids, size_t n_ids, float *x);

/*
 * Adds the attention part of a layer to the spans' rows, x: [sum of n_rows, hidden], and writes
 * their keys and values into pages that must be reserved. n_tokens of the sequences stays; the
 * caller raises it after the last layer.
 */
void model_attend(const struct model *model, struct model_scratch *scratch,
	struct model_cache *cache, uint32_t layer, const struct model_span *spans, size_t n_spans,
	float *x);
/* rows: [n_rows, hidden], what router and experts see of x */
void model_moe_rows(const struct model *model, uint32_t layer, const float *x, size_t n_rows,
	float *rows);
/* ids, weights: [n_rows, top_k], by falling weight, equal ones by rising id; weights sum to 1 */
void model_route(const struct model *model, struct model_scratch *scratch, uint32_t layer,
	const float *rows, size_t n_rows, int32_t *ids, float *weights);
/* rows, replies: [n_rows] rows of hidden values, the strides apart. They must not overlap. */
void model_expert(const struct model *model, struct model_scratch *scratch, uint32_t layer,
	uint32_t expert, const float *rows, size_t n_rows, size_t stride, float *replies,
	size_t reply_stride);
/*
 * x += sum_k weights[k] * replies[k] with fused multiply-add, k ascending: the bits that
 * m2n_combine_recv gives with x as residual. replies: [n_rows, top_k, hidden].
 */
void model_combine(const struct model *model, const float *replies, const float *weights,
	size_t n_rows, float *x);

/* logits: [n_rows, vocab_size] */
void model_logits(const struct model *model, struct model_scratch *scratch, const float *x,
	size_t n_rows, float *logits);
/* The largest, the lowest id among equals. */
uint32_t model_argmax(const float *logits, size_t n_logits);
/*
 * One token by chance: temperature 0 is model_argmax(); top_p keeps the likeliest tokens up to
 * that sum. state: any number, moved on. order: [n_logits] scratch.
 */
uint32_t model_sample(const float *logits, size_t n_logits, float temperature, float top_p,
	uint64_t *state, uint32_t *order);

#endif
