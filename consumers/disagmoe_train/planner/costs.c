/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cost model. Every product runs at the same share of the peak; what is bound by memory (norms,
 * rotary embedding, permutation, optimizer) is in that share. Each weight costs one forward for the
 * input's gradient and one for its own.
 */
#include "planner/costs.h"

#include <math.h>

static double attention_rate(const struct train_case *job)
{
	return job->flops * (job->attention_efficiency > 0 ? job->attention_efficiency :
							     job->efficiency);
}

/* A profile's times: so many sequences on a rank, so many rows of each of its experts. */
static void look_up(const struct train_case *job, double tokens, double gpus_a, double gpus_f,
	double busiest, struct train_costs *costs)
{
	const struct machine *m = job->machine;
	double n = tokens / gpus_a / job->seq, experts = job->model.n_experts;
	double rows = tokens * job->model.top_k / experts, own = experts / gpus_f * busiest * 1e-6;
	double head = n * (m->head_us + m->head_weights_us) * 1e-6;

	*costs = (struct train_costs){
		.attention = {machine_us(&m->attention, MACHINE_FORWARD, n) * 1e-6,
			machine_us(&m->attention, MACHINE_BACKWARD, n) * 1e-6},
		.attention_weights = machine_us(&m->attention, MACHINE_WEIGHTS, n) * 1e-6,
		.ffn = {own * machine_us(&m->expert, MACHINE_FORWARD, rows),
			own * machine_us(&m->expert, MACHINE_BACKWARD, rows)},
		.ffn_weights = own * machine_us(&m->expert, MACHINE_WEIGHTS, rows),
		.head = job->head_last ? head : 0,
	};
	if (!job->head_last)
		costs->attention[1] += head / job->model.n_layers;
	if (job->recompute) {
		costs->attention[1] += costs->attention[0];
		costs->ffn[1] += costs->ffn[0];
	}
}

void costs_compute(const struct train_case *job, double tokens, double gpus_a, double gpus_f,
	double busiest, struct train_costs *costs)
{
	double rate = job->flops * job->efficiency / tokens, own = attention_rate(job) / tokens;
	double projections = case_projections(job) / (own * gpus_a);
	double scores = case_scores(job) / (own * gpus_a);
	double experts = case_experts(job) * busiest / (rate * gpus_f);
	double head = 3 * case_head(job) / (rate * gpus_a);
	double again = job->recompute ? 1 : 0;

	if (job->machine) {
		look_up(job, tokens, gpus_a, gpus_f, busiest, costs);
		return;
	}
	*costs = (struct train_costs){
		.attention = {projections + scores, projections + CASE_SCORES_BACKWARD * scores +
				again * (projections + scores)},
		.attention_weights = projections,
		.ffn = {experts, experts + again * experts},
		.ffn_weights = experts,
		.head = job->head_last ? head : 0,
	};
	/* A vocabulary that all groups share: as much in each of their layers. */
	if (!job->head_last)
		costs->attention[1] += head / job->model.n_layers;
}

double costs_transfer(const struct train_case *job, const struct pair_split *split, double tokens,
	double busiest)
{
	double row = case_row_bytes(job), rows = case_rows(job, (double)split->gpus_f);
	double rate = job->nic_bytes_per_s * job->m2n_util;
	double own = job->residual_nic && job->p > 1 ? 1 : 0;
	double a = tokens * row * (rows + own) / ((double)split->nics_a * rate);
	double f = tokens * row * rows * busiest / ((double)split->nics_f * rate);
	/* What a node hands on to its GPUs, or sums for them. */
	double inside = job->copies != CASE_PER_NODE ? 0 :
		tokens * row * case_places(job, (double)split->gpus_f) * busiest /
			((double)split->gpus_f * job->link_bytes_per_s);

	return fmax(fmax(a, f), inside);
}

double costs_residual(const struct train_case *job, const struct pair_split *split, double tokens)
{
	double bytes = tokens * case_row_bytes(job);

	if (job->residual_nic) /* beside the rows, in their transfers' time */
		return 0;
	return bytes / ((double)split->gpus_a * job->link_bytes_per_s);
}

double costs_all_to_all(const struct train_case *job, double tokens, double gpus,
	enum case_copies copies, double busiest)
{
	double bytes = tokens / gpus * case_row_bytes(job), ep = job->ep;
	double nodes = ceil(ep / job->gpus_per_node), inside = ep / nodes;
	double ranks = copies == CASE_PER_EXPERT ? job->model.top_k : case_places(job, ep);
	double far = ranks * (1 - inside / ep), near = ranks * (inside - 1) / ep;

	if (copies == CASE_PER_NODE) {
		far = case_places(job, nodes) * (nodes - 1) / nodes;
		near = ranks * (1 - 1 / ep); /* those that came from afar too */
	}
	return busiest * fmax(bytes * far / (job->nic_bytes_per_s * job->a2a_util),
		bytes * near / job->link_bytes_per_s);
}

double costs_stage(const struct train_case *job, double tokens, double gpus)
{
	return tokens / gpus * case_row_bytes(job) / (job->nic_bytes_per_s * job->a2a_util);
}

double costs_chunked(double transfer, double experts, double after, size_t n_chunks)
{
	double n = (double)n_chunks, sent = 0, computed = 0, back = transfer;

	/* Dispatches go first on the links, then combines in their turn. */
	for (size_t i = 0; i < n_chunks; i++) {
		sent += transfer / n;
		computed = fmax(computed, sent) + experts / n;
		back = fmax(back, computed) + transfer / n;
	}
	return fmax(back, computed + after);
}

void costs_roofline(const struct train_case *job, const struct pair_split *split, double busiest,
	struct pair_roofline *roofline)
{
	double tokens = job->seq * job->n_sequences * (double)split->gpus_a;
	double rows = case_rows(job, (double)split->gpus_f), row = case_row_bytes(job);
	double own = job->residual_nic && job->p > 1 ? 1 : 0;
	double rate = job->nic_bytes_per_s * job->m2n_util;
	double flops_a = tokens * (3 * case_projections(job) + (1 + CASE_SCORES_BACKWARD) *
		case_scores(job) + 3 * case_head(job) / job->model.n_layers);
	double flops_f = tokens * 3 * case_experts(job);
	struct train_costs costs;
	struct pair_roofline found = {.tokens = tokens};

	costs_compute(job, tokens, (double)split->gpus_a, (double)split->gpus_f, busiest, &costs);
	found.compute_a = costs.attention[0] + costs.attention[1] + costs.attention_weights;
	found.compute_f = costs.ffn[0] + costs.ffn[1] + costs.ffn_weights;
	/* Each way carries one transfer forward and one backward. */
	found.network_a = 2 * tokens * row * (rows + own) / ((double)split->nics_a * rate);
	found.network_f = 2 * tokens * row * rows * busiest / ((double)split->nics_f * rate);
	found.t_a = fmax(found.compute_a, found.network_a);
	found.t_f = fmax(found.compute_f, found.network_f);
	found.intensity_a = flops_a / (2 * tokens * row * (rows + own));
	found.intensity_f = flops_f / (2 * tokens * row * rows);
	found.turning_a = attention_rate(job) * (double)split->gpus_a /
		((double)split->nics_a * rate);
	found.turning_f = job->flops * job->efficiency * (double)split->gpus_f /
		((double)split->nics_f * rate);
	found.mfu = (flops_a + flops_f) / (fmax(found.t_a, found.t_f) *
		(double)(split->gpus_a + split->gpus_f) * job->flops);
	*roofline = found;
}
