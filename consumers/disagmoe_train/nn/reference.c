/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one-process step: rows are grouped by expert as an expert rank would have them, replies and
 * gradients are added in the order of m2n_combine_recv.
 */
#include "nn/reference.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "model/model.h"
#include "nn/work.h"

/* Arrays of a micro-batch of n_seqs sequences. */
static size_t lay_out(struct nn_reference *r, uint32_t n_seqs, void *memory)
{
	const struct model_config *c = &r->settings.config;
	size_t n = (size_t)n_seqs * r->settings.seq_len, h = c->hidden_size;
	size_t bytes = nn_attention_record_bytes(c, r->settings.seq_len, n_seqs);
	struct nn_carve carve = {memory, 0};

	for (uint32_t layer = 0; layer < c->n_layers; layer++) {
		nn_attention_record_init(c, r->settings.seq_len, n_seqs,
			nn_carve(&carve, bytes / sizeof(float)), &r->attention[layer]);
		/* All experts share what all choices need, and what rounding up adds. */
		r->expert_memory[layer] = nn_carve(&carve, nn_expert_record_bytes(c,
			n * c->top_k) / sizeof(float));
		for (uint32_t i = 0; i < c->n_experts; i++)
			nn_carve(&carve, nn_expert_record_bytes(c, 1) / sizeof(float));
	}
	nn_head_record_init(c, n, nn_carve(&carve, nn_head_record_bytes(c, n) / sizeof(float)),
		&r->head);
	r->replies = nn_carve(&carve, c->n_layers * n * c->top_k * h);
	r->d_replies = nn_carve(&carve, n * c->top_k * h);
	r->batch = nn_carve(&carve, 2 * n * c->top_k * h);
	r->d_rows = nn_carve(&carve, n * h);
	r->dx = nn_carve(&carve, n * h);
	r->d_weights = nn_carve(&carve, n * c->top_k);
	r->ids = nn_carve(&carve, n);
	r->targets = nn_carve(&carve, n);
	return carve.bytes;
}

static int make_arrays(struct nn_reference *r)
{
	const struct model_config *c = &r->settings.config;
	size_t bytes;

	r->attention = calloc(c->n_layers, sizeof(r->attention[0]));
	r->expert_memory = calloc(c->n_layers, sizeof(r->expert_memory[0]));
	r->experts = calloc((size_t)c->n_layers * c->n_experts, sizeof(r->experts[0]));
	if (!r->attention || !r->expert_memory || !r->experts)
		return model_fail(-ENOMEM, "no memory for %u layers", c->n_layers);
	bytes = lay_out(r, r->n_seqs, NULL);
	if (posix_memalign(&r->memory, 64, bytes) != 0) {
		r->memory = NULL;
		return model_fail(-ENOMEM, "no memory for micro-batches of %u sequences, %zu bytes",
			r->n_seqs, bytes);
	}
	memset(r->memory, 0, bytes);
	lay_out(r, r->n_seqs, r->memory);
	return 0;
}

int nn_reference_open(const struct nn_settings *settings, struct nn_reference **reference)
{
	struct nn_reference *opened;
	int rc = nn_settings_check(settings);

	if (rc)
		return rc;
	opened = calloc(1, sizeof(*opened));
	if (!opened)
		return model_fail(-ENOMEM, "no memory");
	opened->settings = *settings;
	opened->n_seqs = settings->step_seqs / settings->n_micro_batches;
	rc = nn_params_create(&settings->config, NULL, NULL, &opened->params);
	if (!rc)
		rc = nn_work_open(&settings->config, settings->seq_len, &opened->work);
	if (!rc)
		rc = make_arrays(opened);
	if (rc) {
		nn_reference_close(opened);
		return rc;
	}
	nn_params_fill(opened->params, settings->seed);
	*reference = opened;
	return 0;
}

void nn_reference_close(struct nn_reference *reference)
{
	if (!reference)
		return;
	nn_params_destroy(reference->params);
	nn_work_close(reference->work);
	free(reference->memory);
	free(reference->attention);
	free(reference->expert_memory);
	free(reference->experts);
	free(reference);
}

/* src's rows that chose the expert, one after another; every: how many choices share a row. */
static size_t gather(const struct nn_reference *r, uint32_t layer, uint32_t expert,
	const float *src, size_t every, float *dst)
{
	size_t h = r->settings.config.hidden_size, n = 0;
	size_t n_choices = r->head.n_rows * r->settings.config.top_k;

	for (size_t i = 0; i < n_choices; i++)
		if (r->attention[layer].ids[i] == (int32_t)expert)
			memcpy(dst + n++ * h, src + i / every * h, h * sizeof(float));
	return n;
}

static void scatter(const struct nn_reference *r, uint32_t layer, uint32_t expert,
	const float *src, float *dst)
{
	size_t h = r->settings.config.hidden_size, n = 0;
	size_t n_choices = r->head.n_rows * r->settings.config.top_k;

	for (size_t i = 0; i < n_choices; i++)
		if (r->attention[layer].ids[i] == (int32_t)expert)
			memcpy(dst + i * h, src + n++ * h, h * sizeof(float));
}

/* dst[t] += sum_k weights[t, k] src[t, k]; weights NULL: 1 */
static void combine(const struct nn_reference *r, const float *src, const float *weights,
	float *dst)
{
	size_t h = r->settings.config.hidden_size, top_k = r->settings.config.top_k;

	for (size_t i = 0; i < r->head.n_rows * top_k; i++) {
		float weight = weights ? weights[i] : 1.0f, *to = dst + i / top_k * h;

		for (size_t j = 0; j < h; j++)
			to[j] = fmaf(weight, src[i * h + j], to[j]);
	}
}

static void forward_layer(struct nn_reference *r, uint32_t layer)
{
	const struct model_config *c = &r->settings.config;
	size_t n_values = r->head.n_rows * c->hidden_size;
	struct nn_attention_record *a = &r->attention[layer];
	float *returned = r->batch + n_values * c->top_k;
	float *replies = r->replies + layer * n_values * c->top_k;
	float *next = layer + 1 < c->n_layers ? a[1].x : r->head.x;
	char *memory = r->expert_memory[layer];

	nn_attention_forward(r->params, r->work, layer, a);
	for (uint32_t expert = 0; expert < c->n_experts; expert++) {
		struct nn_expert_record *e = &r->experts[layer * c->n_experts + expert];
		size_t n = gather(r, layer, expert, a->rows, c->top_k, r->batch);

		nn_expert_record_init(c, n, memory, e);
		memory += nn_expert_record_bytes(c, n);
		nn_expert_forward(r->params, r->work, layer, expert, e, r->batch, n, c->hidden_size,
			returned, c->hidden_size);
		scatter(r, layer, expert, returned, replies);
	}
	memcpy(next, a->y, n_values * sizeof(float));
	combine(r, replies, a->weights, next);
}

void nn_reference_forward(struct nn_reference *reference)
{
	nn_embedding_forward(reference->params, reference->ids, reference->head.n_rows,
		reference->attention[0].x);
	for (uint32_t layer = 0; layer < reference->settings.config.n_layers; layer++)
		forward_layer(reference, layer);
	nn_head_forward(reference->params, reference->work, &reference->head, NULL);
}

/* Backward of combine: gradients of the layer's replies and weights from that of its output. */
static void backward_combine(struct nn_reference *r, uint32_t layer, const float *dx)
{
	size_t h = r->settings.config.hidden_size, top_k = r->settings.config.top_k;
	const float *weights = r->attention[layer].weights;
	const float *replies = r->replies + layer * r->head.n_rows * top_k * h;

	for (size_t i = 0; i < r->head.n_rows * top_k; i++) {
		const float *dy = dx + i / top_k * h, *reply = replies + i * h;
		double sum = 0;

		for (size_t j = 0; j < h; j++) {
			r->d_replies[i * h + j] = weights[i] * dy[j];
			sum += (double)dy[j] * reply[j];
		}
		r->d_weights[i] = (float)sum;
	}
}

static void backward_layer(struct nn_reference *r, uint32_t layer, double balance_scale)
{
	const struct model_config *c = &r->settings.config;
	size_t h = c->hidden_size, n_values = r->head.n_rows * h;
	struct nn_attention_record *a = &r->attention[layer];

	backward_combine(r, layer, r->dx);
	for (uint32_t expert = 0; expert < c->n_experts; expert++) {
		struct nn_expert_record *e = &r->experts[layer * c->n_experts + expert];
		size_t n = gather(r, layer, expert, r->d_replies, 1, r->batch);

		nn_expert_backward_input(r->params, r->work, layer, expert, e, 0, r->batch, n, h,
			r->batch, h);
		scatter(r, layer, expert, r->batch, r->d_replies);
		nn_expert_backward_weights(r->params, r->work, layer, expert, e);
	}
	memset(r->d_rows, 0, n_values * sizeof(float));
	combine(r, r->d_replies, NULL, r->d_rows);
	nn_attention_backward_input(r->params, r->work, layer, a, r->d_rows, r->d_weights, r->dx,
		balance_scale, r->dx);
	nn_attention_backward_weights(r->params, r->work, layer, a);
}

static double forward_loss(struct nn_reference *r)
{
	nn_embedding_forward(r->params, r->ids, r->head.n_rows, r->attention[0].x);
	for (uint32_t layer = 0; layer < r->settings.config.n_layers; layer++)
		forward_layer(r, layer);
	return nn_head_forward(r->params, r->work, &r->head, r->targets);
}

void nn_reference_backward(struct nn_reference *reference, double loss_scale,
	double balance_scale, double *loss_sum, double *balance_sum)
{
	struct nn_reference *r = reference;
	const struct model_config *c = &r->settings.config;

	*loss_sum = forward_loss(r);
	*balance_sum = 0;
	for (uint32_t layer = 0; layer < c->n_layers; layer++)
		*balance_sum += nn_attention_balance_loss(c, &r->attention[layer]);
	if (!isfinite(*loss_sum))
		return;
	nn_head_backward_input(r->params, r->work, &r->head, r->targets, loss_scale, r->dx);
	nn_head_backward_weights(r->params, r->work, &r->head);
	for (uint32_t layer = c->n_layers; layer-- > 0;)
		backward_layer(r, layer, balance_scale);
	nn_embedding_backward(r->params, r->ids, r->head.n_rows, r->dx);
}

/* Where numbers stopped being finite. */
static int no_number(const struct nn_reference *r, uint64_t step)
{
	size_t n_values = r->head.n_rows * r->settings.config.hidden_size;
	uint32_t n_layers = r->settings.config.n_layers, layer = 0;

	if (!nn_all_finite(r->attention[0].x, n_values))
		return model_fail(-EDOM, "step %llu: the loss is no number; the embedding is the "
			"first to give such values", (unsigned long long)step + 1);
	while (layer < n_layers && nn_all_finite(layer + 1 < n_layers ?
		r->attention[layer + 1].x : r->head.x, n_values))
		layer++;
	if (layer == n_layers)
		return model_fail(-EDOM, "step %llu: the loss is no number; the head is the first "
			"to give such values", (unsigned long long)step + 1);
	return model_fail(-EDOM, "step %llu: the loss is no number; layer %u is the first to give "
		"such values", (unsigned long long)step + 1, layer);
}

int nn_no_gradient(uint64_t step, double loss)
{
	return model_fail(-EDOM, "step %llu: the loss is %g, but the norm of its gradients is no "
		"number", (unsigned long long)step + 1, loss);
}

/* Gives the arrays another number of sequences, at most n_seqs. */
static void set_batch(struct nn_reference *r, uint32_t n_seqs)
{
	if (r->attention[0].n_seqs != n_seqs)
		lay_out(r, n_seqs, r->memory);
}

int nn_reference_gradients(struct nn_reference *reference, const struct nn_text *text,
	uint64_t step, struct nn_step_result *result)
{
	struct nn_reference *r = reference;
	const struct nn_settings *s = &r->settings;
	double n_tokens = (double)s->step_seqs * s->seq_len, loss = 0, balance = 0, norm;

	set_batch(r, r->n_seqs);
	nn_params_zero_grads(r->params);
	for (uint32_t batch = 0; batch < s->n_micro_batches; batch++) {
		double loss_sum, balance_sum;

		for (uint32_t i = 0; i < r->n_seqs; i++)
			nn_text_sequence(text, s->seed, step, batch * r->n_seqs + i,
				r->ids + (size_t)i * s->seq_len,
				r->targets + (size_t)i * s->seq_len);
		nn_reference_backward(r, 1 / n_tokens, s->balance / s->step_seqs, &loss_sum,
			&balance_sum);
		if (!isfinite(loss_sum))
			return no_number(r, step);
		loss += loss_sum;
		balance += balance_sum;
	}
	norm = sqrt(nn_params_square_sum(r->params));
	if (!isfinite(norm))
		return nn_no_gradient(step, loss / n_tokens);
	*result = (struct nn_step_result){.loss = loss / n_tokens,
		.balance = balance / s->step_seqs,
		.grad_norm = norm,
		.learning_rate = nn_learning_rate(s, step)};
	return 0;
}

int nn_reference_step(struct nn_reference *reference, const struct nn_text *text, uint64_t step,
	struct nn_step_result *result)
{
	const struct nn_settings *s = &reference->settings;
	int rc = nn_reference_gradients(reference, text, step, result);

	if (!rc)
		nn_adamw_step(reference->params, s, step, nn_clip_factor(
			result->grad_norm * result->grad_norm, s->max_grad_norm));
	return rc;
}

double nn_reference_evaluate(struct nn_reference *reference, const struct nn_text *text,
	size_t max_seqs)
{
	struct nn_reference *r = reference;
	size_t n_held = nn_text_held_back(text), seq_len = r->settings.seq_len;
	size_t n = max_seqs && max_seqs < n_held ? max_seqs : n_held;
	double sum = 0;

	for (size_t first = 0; first < n; first += r->n_seqs) {
		set_batch(r, (uint32_t)(n - first < r->n_seqs ? n - first : r->n_seqs));
		for (uint32_t i = 0; i < r->attention[0].n_seqs; i++)
			nn_text_held_back_sequence(text, (first + i) * n_held / n,
				r->ids + i * seq_len, r->targets + i * seq_len);
		sum += forward_loss(r);
	}
	return sum / (double)(n * seq_len);
}

int nn_reference_generate(struct nn_reference *reference, uint32_t *tokens, size_t n_prompt,
	size_t n_new)
{
	struct nn_reference *r = reference;
	size_t seq_len = r->settings.seq_len, vocab = r->settings.config.vocab_size;

	if (n_prompt == 0)
		return model_fail(-EINVAL, "a prompt needs a token");
	if (n_prompt > seq_len || n_new > seq_len - n_prompt)
		return model_fail(-EINVAL, "%zu tokens and %zu new ones are more than a sequence, "
			"%zu", n_prompt, n_new, seq_len);
	for (size_t i = 0; i < n_prompt; i++)
		if (tokens[i] >= vocab)
			return model_fail(-EINVAL, "token %zu is %u; the vocabulary has %zu", i,
				tokens[i], vocab);
	set_batch(r, 1);
	for (size_t i = n_prompt; i < n_prompt + n_new; i++) {
		memset(r->ids, 0, seq_len * sizeof(r->ids[0]));
		memcpy(r->ids, tokens, i * sizeof(tokens[0]));
		nn_reference_forward(r);
		tokens[i] = model_argmax(r->head.logits + (i - 1) * vocab, vocab);
	}
	return 0;
}
