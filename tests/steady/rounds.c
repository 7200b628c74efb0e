/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One round after the other over static buffers. steady_round() is never inlined: callgrind
 * counts what happens inside it.
 */
#include "steady/rounds.h"

static int32_t ids[STEADY_MAX_TOKENS * STEADY_MAX_TOP_K];
static float weights[STEADY_MAX_TOKENS * STEADY_MAX_TOP_K];
static uint8_t rows[STEADY_MAX_TOKENS * STEADY_MAX_ROW];
static uint8_t replies[STEADY_MAX_TOKENS * STEADY_MAX_TOP_K * STEADY_MAX_ROW];
static uint8_t out[STEADY_MAX_TOKENS * STEADY_MAX_ROW];

static void fill_params(struct steady *steady)
{
	steady->send = (struct m2n_dispatch_send_params)M2N_DISPATCH_SEND_PARAMS_INIT;
	steady->recv = (struct m2n_dispatch_recv_params)M2N_DISPATCH_RECV_PARAMS_INIT;
	steady->answer = (struct m2n_combine_send_params)M2N_COMBINE_SEND_PARAMS_INIT;
	steady->combine = (struct m2n_combine_recv_params)M2N_COMBINE_RECV_PARAMS_INIT;
	steady->send.plan = steady->combine.plan = steady->plan;
	steady->send.rows = rows;
	steady->answer.rows = replies;
	steady->combine.out = out;
}

void steady_open(struct steady *steady, struct rank *rank)
{
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;
	const int source = 0, expert = rank->n_ranks - 1;

	params.name = "steady";
	params.sources = &source;
	params.experts = &expert;
	params.n_sources = params.n_expert_ranks = 1;
	params.n_experts = 8;
	params.top_k = steady->top_k;
	params.max_tokens = steady->n_tokens;
	params.row_bytes = steady->row_bytes;
	params.placement = steady->placement;
	params.dedup = steady->dedup;
	expect_ok(m2n_channel_create(rank->group, &params, &steady->channel));
	steady->is_source = rank->rank == source;
	steady->is_expert = rank->rank == expert;
	expect_ok(m2n_plan_create(steady->channel, &steady->plan));
	for (uint32_t i = 0; i < steady->n_tokens * steady->top_k; i++) {
		ids[i] = (int32_t)((steady->first_expert + i * 5) % 8);
		weights[i] = 0.25f;
	}
	fill_params(steady);
}

void steady_close(struct steady *steady)
{
	m2n_plan_destroy(steady->plan);
	m2n_channel_destroy(steady->channel);
}

void steady_route(struct steady *steady)
{
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;

	route.n_tokens = steady->n_tokens;
	route.expert_ids = ids;
	route.weights = weights;
	if (steady->is_source)
		expect_ok(m2n_plan_route(steady->channel, steady->plan, &route));
}

__attribute__((noinline)) void steady_round(struct steady *steady)
{
	if (steady->is_source)
		expect_ok(m2n_dispatch_send(steady->channel, &steady->send));
	if (steady->is_expert) {
		expect_ok(m2n_dispatch_recv(steady->channel, &steady->recv, &steady->answer.batch));
		expect_ok(m2n_combine_send(steady->channel, &steady->answer));
	}
	if (steady->is_source)
		expect_ok(m2n_combine_recv(steady->channel, &steady->combine));
}
