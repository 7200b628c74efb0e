/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The router: softmax over all experts, the k likeliest, their probabilities divided by their sum;
 * and the load-balancing loss, taken sequence by sequence so that it does not depend on how a step
 * is distributed.
 */
#include "nn/work.h"

#include <math.h>
#include <string.h>

static int is_chosen(const int32_t *ids, uint32_t n, uint32_t expert)
{
	for (uint32_t k = 0; k < n; k++)
		if (ids[k] == (int32_t)expert)
			return 1;
	return 0;
}

/* The likeliest that is not chosen yet, the first of equal ones. Distinct also if all are NaN. */
static uint32_t next_best(const float *probs, uint32_t n_experts, const int32_t *ids, uint32_t n)
{
	uint32_t best = n_experts;

	for (uint32_t i = 0; i < n_experts; i++)
		if ((best == n_experts || probs[i] > probs[best]) && !is_chosen(ids, n, i))
			best = i;
	return best;
}

void nn_route_row(const struct model_config *config, float *logits, int32_t *ids, float *weights)
{
	uint32_t n_experts = config->n_experts, top_k = config->top_k;
	float max = logits[0];
	double sum = 0, chosen = 0;

	for (uint32_t i = 1; i < n_experts; i++)
		max = logits[i] > max ? logits[i] : max;
	for (uint32_t i = 0; i < n_experts; i++) {
		logits[i] = expf(logits[i] - max);
		sum += logits[i];
	}
	for (uint32_t i = 0; i < n_experts; i++)
		logits[i] = (float)(logits[i] / sum);
	for (uint32_t k = 0; k < top_k; k++) {
		uint32_t best = next_best(logits, n_experts, ids, k);

		ids[k] = (int32_t)best;
		weights[k] = logits[best];
		chosen += logits[best];
	}
	for (uint32_t k = 0; k < top_k; k++)
		weights[k] = (float)(weights[k] / chosen);
}

/* The share of a sequence's choices that fall on each expert. */
static void count_choices(const struct model_config *config, size_t seq_len, const int32_t *ids,
	float *shares)
{
	size_t n = seq_len * config->top_k;

	memset(shares, 0, config->n_experts * sizeof(shares[0]));
	for (size_t i = 0; i < n; i++)
		shares[ids[i]] += 1;
	for (uint32_t i = 0; i < config->n_experts; i++)
		shares[i] /= (float)n;
}

double nn_attention_balance_loss(const struct model_config *config,
	const struct nn_attention_record *record)
{
	size_t seq_len = record->n_rows / record->n_seqs;
	double choices = (double)seq_len * config->top_k, sum = 0;

	for (uint32_t seq = 0; seq < record->n_seqs; seq++) {
		const float *probs = record->probs + seq * seq_len * config->n_experts;
		const int32_t *ids = record->ids + seq * seq_len * config->top_k;

		for (uint32_t expert = 0; expert < config->n_experts; expert++) {
			double mean = 0;
			size_t n = 0;

			for (size_t row = 0; row < seq_len; row++)
				mean += probs[row * config->n_experts + expert];
			for (size_t i = 0; i < seq_len * config->top_k; i++)
				n += ids[i] == (int32_t)expert;
			sum += config->n_experts * (double)n / choices * mean / (double)seq_len;
		}
	}
	return sum;
}

/*
 * The chosen have c together and weights w_k = p_k / c, so d_p_k = (d_w_k - sum_j w_j d_w_j) / c;
 * the balancing loss adds d_balance to all; then the softmax: p (d_p - <p, d_p>).
 */
static void route_row_backward(const struct model_config *config, float *probs,
	const int32_t *ids, const float *weights, const float *d_weights, const float *d_balance,
	float *d_probs)
{
	double chosen = 0, mean = 0, sum = 0;

	memcpy(d_probs, d_balance, config->n_experts * sizeof(d_probs[0]));
	for (uint32_t k = 0; k < config->top_k; k++) {
		chosen += probs[ids[k]];
		mean += (double)weights[k] * d_weights[k];
	}
	for (uint32_t k = 0; k < config->top_k; k++)
		d_probs[ids[k]] += (float)((d_weights[k] - mean) / chosen);
	for (uint32_t i = 0; i < config->n_experts; i++)
		sum += (double)probs[i] * d_probs[i];
	for (uint32_t i = 0; i < config->n_experts; i++)
		probs[i] *= (float)(d_probs[i] - sum);
}

void nn_route_backward(struct nn_work *work, float *probs, const int32_t *ids,
	const float *weights, const float *d_weights, double balance_scale)
{
	const struct model_config *c = work->config;
	float *d_balance = work->experts, *d_probs = work->experts + c->n_experts;

	count_choices(c, work->seq_len, ids, d_balance);
	for (uint32_t i = 0; i < c->n_experts; i++)
		d_balance[i] *= (float)(balance_scale * c->n_experts / work->seq_len);
	for (size_t row = 0; row < work->seq_len; row++)
		route_row_backward(c, probs + row * c->n_experts, ids + row * c->top_k,
			weights + row * c->top_k, d_weights + row * c->top_k, d_balance, d_probs);
}
