/* SPDX-License-Identifier: Apache-2.0 */
/* Sums; comm.c gives the shape of channels, so that slots are asked for as they are made. */
#include "run/memory.h"

#include <math.h>

#include "run/comm.h"

static uint32_t own_sequences(const struct nn_settings *s, const struct place *place)
{
	uint32_t first, n = 0;

	if (place->attention >= 0)
		place_sequences(place, s->step_seqs / s->n_micro_batches,
			(uint32_t)place->attention, &first, &n);
	return n;
}

/* Rows of top_k, with the plan in bytes: 8 for each choice, 1 for each token, and a head. */
static size_t record_bytes(const struct nn_settings *s, uint32_t n_seqs)
{
	size_t n = (size_t)n_seqs * s->seq_len, h = s->config.hidden_size, k = s->config.top_k;

	return nn_attention_record_bytes(&s->config, s->seq_len, n_seqs) +
	       (n * h * (k + 1) + 2 * n * k) * sizeof(float) + n * k * 8;
}

static size_t attention_bytes(
	const struct nn_settings *s, const struct place *place, uint32_t n_records)
{
	uint32_t n_seqs = own_sequences(s, place);
	size_t n = (size_t)n_seqs * s->seq_len, bytes = n_records * record_bytes(s, n_seqs);

	bytes += n * s->config.hidden_size * sizeof(float);
	/* The head's input is a record while it is computed. */
	if (place->group == 0)
		bytes += nn_head_record_bytes(&s->config, n) + record_bytes(s, n_seqs);
	return bytes;
}

/* Rows of a micro-batch that can come to a rank. */
static size_t most_rows(const struct nn_settings *s, uint32_t n_local)
{
	size_t n = (size_t)(s->step_seqs / s->n_micro_batches) * s->seq_len;

	return n * (s->config.top_k < n_local ? s->config.top_k : n_local);
}

size_t memory_expert_slot(const struct nn_settings *s, const struct place *place)
{
	size_t n = (size_t)(s->step_seqs / s->n_micro_batches) * s->seq_len, rows, most;
	uint32_t first, n_local;

	place_experts(place, (uint32_t)place->expert, &first, &n_local);
	rows = (size_t)((1 + MEMORY_SKEW / sqrt(n_local)) *
			(double)(n * s->config.top_k * n_local) / s->config.n_experts);
	most = most_rows(s, n_local);
	rows = rows < most ? rows : most;
	return n_local * nn_expert_record_bytes(&s->config, (rows + n_local - 1) / n_local);
}

static size_t expert_bytes(
	const struct nn_settings *s, const struct place *place, uint32_t n_records)
{
	uint32_t first, n_local;

	place_experts(place, (uint32_t)place->expert, &first, &n_local);
	return n_records * memory_expert_slot(s, place) +
	       most_rows(s, n_local) * s->config.hidden_size * sizeof(float);
}

int memory_plan(const struct nn_settings *s, struct place *place, const struct flow *flow,
	struct memory_plan *plan)
{
	struct comm_params comm = {.place = place,
		.flow = flow,
		.config = &s->config,
		.seq_len = s->seq_len,
		.n_seqs = s->step_seqs / s->n_micro_batches};
	uint32_t n_records = flow->max_records_of[place->attention >= 0 ? 0 : 1];

	*plan = (struct memory_plan){.work = nn_work_bytes(&s->config, s->seq_len),
		.parameters = nn_params_bytes(nn_params_count(&s->config, place_holds, place))};
	if (place->attention >= 0)
		plan->activations += attention_bytes(s, place, n_records);
	if (place->expert >= 0)
		plan->activations += expert_bytes(s, place, n_records);
	return comm_plan_bytes(&comm, &plan->slots);
}

size_t memory_sum(const struct memory_plan *plan)
{
	return plan->parameters + plan->activations + plan->slots + plan->work;
}
