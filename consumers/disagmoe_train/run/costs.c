/* SPDX-License-Identifier: Apache-2.0 */
/* FLOPs of a micro-batch, two for each multiply-add; backward as in planner/costs.h. */
#include "run/costs.h"

/*
 * Of a core, in FLOP/s: forward products keep a row's bits (model/product.h), which costs half of
 * what plain ones give backward; attention's scores go query block by query block. Measured on the
 * machine of docs/perf.md; the proportions are what matters.
 */
#define PRODUCT 47e9
#define PLAIN 85e9
#define SCORES 30e9
#define BYTES 5e9 /* per second, between processes */

void costs_estimate(
	const struct nn_settings *s, const struct place *place, struct train_costs *costs)
{
	const struct model_config *c = &s->config;
	double h = c->hidden_size, heads = (double)c->n_heads * c->head_dim;
	double kv = (double)c->n_kv_heads * c->head_dim;
	double rows = (double)s->step_seqs / s->n_micro_batches * s->seq_len;
	double a_rows = rows / place->n_a, f_rows = rows * c->top_k / place->n_f;
	double matrices = 2 * h * (2 * heads + 2 * kv + c->n_experts) * a_rows;
	double scores = 2 * s->seq_len * heads * a_rows / SCORES; /* of half of the pairs */
	double experts = 6 * h * c->intermediate_size * f_rows;
	double head = 2 * h * c->vocab_size * a_rows;

	*costs = (struct train_costs){
		.attention = {matrices / PRODUCT + scores, matrices / PLAIN + 2 * scores},
		.ffn = {experts / PRODUCT, experts / PLAIN},
		.attention_weights = matrices / PLAIN,
		.ffn_weights = experts / PLAIN,
		.head = head / PRODUCT + 2 * head / PLAIN,
	};
	costs->transfer[0] = costs->transfer[1] = a_rows * c->top_k * h * sizeof(float) / BYTES;
}
