/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds. All ranks meet before each phase, so that a phase is from the first call of a sender
 * to the last return of a receiver and nothing else: dispatch from dispatch_send until every
 * dispatch_recv returned, combine from combine_send until every combine_recv returned. Routing
 * is timed on its own. Over several hosts clocks cannot be compared and the sinks time the round.
 */
#include "moe.h"

struct page_stamp *moe_stamp(struct moe *moe, enum moe_case n_case, unsigned series, int64_t iter)
{
	static _Thread_local struct page_stamp spare; /* ranks may be threads */

	if (iter < 0)
		return &spare;
	return page_stamps(moe->rank->page, (uint32_t)moe->rank->rank, n_case, series) + iter;
}

static void route(struct moe *moe, uint32_t variant, int64_t iter)
{
	uint32_t source = (uint32_t)moe->rank->source;
	struct m2n_route_params params = M2N_ROUTE_PARAMS_INIT;
	struct page_stamp *stamp = moe_stamp(moe, MOE_ROUTE, 0, iter);

	params.n_tokens = *perf_routing_tokens(moe->routing, variant, source);
	params.expert_ids = perf_routing_ids(moe->routing, variant, source);
	params.weights = perf_routing_weights(moe->routing, variant, source);
	stamp->start = perf_now();
	int status = m2n_plan_route(moe->channel, moe->plan, &params);
	stamp->end = perf_now();
	perf_rank_check(moe->rank, status, "m2n_plan_route");
}

static void send_rows(struct moe *moe)
{
	struct m2n_dispatch_send_params params = M2N_DISPATCH_SEND_PARAMS_INIT;

	uint64_t round;

	params.plan = moe->plan;
	params.rows = moe->rows;
	params.round = &round;
	perf_rank_check(moe->rank, m2n_dispatch_send(moe->channel, &params), "m2n_dispatch_send");
	/* Grants of exact placement and messaging peers want progress until the rows are gone. */
	perf_rank_check(moe->rank, m2n_send_wait(moe->channel, round, M2N_TIMEOUT_DEFAULT),
		"m2n_send_wait");
}

static void receive_sums(struct moe *moe)
{
	struct m2n_combine_recv_params params = M2N_COMBINE_RECV_PARAMS_INIT;

	params.plan = moe->plan;
	params.out = moe->out;
	perf_rank_check(moe->rank, m2n_combine_recv(moe->channel, &params), "m2n_combine_recv");
}

static const struct m2n_batch *receive_batch(struct moe *moe)
{
	struct m2n_dispatch_recv_params params = M2N_DISPATCH_RECV_PARAMS_INIT;
	const struct m2n_batch *batch = NULL;

	perf_rank_check(
		moe->rank, m2n_dispatch_recv(moe->channel, &params, &batch), "m2n_dispatch_recv");
	return batch;
}

static void send_outputs(struct moe *moe, const struct m2n_batch *batch)
{
	struct m2n_combine_send_params params = M2N_COMBINE_SEND_PARAMS_INIT;

	params.batch = batch;
	params.rows = moe->outputs;
	perf_rank_check(moe->rank, m2n_combine_send(moe->channel, &params), "m2n_combine_send");
	perf_rank_check(
		moe->rank, m2n_reply_wait(moe->channel, M2N_TIMEOUT_DEFAULT), "m2n_reply_wait");
}

static void source_round(struct moe *moe, int64_t iter)
{
	struct page_stamp *dispatch = moe_stamp(moe, MOE_DISPATCH, 0, iter);
	struct page_stamp *combine = moe_stamp(moe, MOE_COMBINE, 0, iter);
	struct page_stamp *both = moe_stamp(moe, MOE_ROUND_TRIP, 0, iter);

	route(moe, moe_variant(moe, iter), iter);
	perf_rank_barrier(moe->rank);
	if (moe->round_trip) {
		both->start = perf_now();
		send_rows(moe);
		receive_sums(moe);
		both->end = perf_now();
		return;
	}
	dispatch->start = perf_now();
	send_rows(moe);
	perf_rank_barrier(moe->rank);
	receive_sums(moe);
	combine->end = perf_now();
}

static void expert_round(struct moe *moe, int64_t iter)
{
	struct page_stamp *dispatch = moe_stamp(moe, MOE_DISPATCH, 0, iter);
	struct page_stamp *combine = moe_stamp(moe, MOE_COMBINE, 0, iter);

	perf_rank_barrier(moe->rank);
	const struct m2n_batch *batch = receive_batch(moe);
	if (!moe->round_trip) {
		dispatch->end = perf_now();
		perf_rank_barrier(moe->rank);
		combine->start = perf_now();
	}
	send_outputs(moe, batch);
}

static void step(void *arg, unsigned series, int64_t iter)
{
	struct moe *moe = arg;

	if (moe->rank->job->kinds[series] != PERF_OURS)
		moe_bounce_step(moe, series, iter);
	else if (moe->rank->source >= 0)
		source_round(moe, iter);
	else
		expert_round(moe, iter);
}

static void open_channel(struct moe *moe)
{
	struct perf_rank *rank = moe->rank;
	struct m2n_channel_params params;

	moe_channel_params(moe->args, moe->routing, &params);
	perf_rank_check(rank, m2n_channel_create(rank->group, &params, &moe->channel),
		"m2n_channel_create");
	if (rank->source >= 0) {
		size_t n = moe->routing->max_tokens;
		perf_rank_check(rank, m2n_plan_create(moe->channel, &moe->plan), "m2n_plan_create");
		moe->rows = perf_rank_memory(rank, n * moe->in_row_bytes, &moe->mem[0]);
		moe->out = perf_rank_memory(rank, n * moe->out_row_bytes, &moe->mem[1]);
		perf_rank_note_backend(rank, (int)moe->args->n_sources);
		return;
	}
	for (uint32_t v = 0; v < moe->routing->n_variants; v++) {
		uint64_t n = perf_routing_rows(moe->routing, v, -1, rank->expert);
		if (n > moe->max_rows)
			moe->max_rows = (uint32_t)n;
	}
	moe->outputs = perf_rank_memory(rank, moe->max_rows * moe->out_row_bytes, &moe->mem[0]);
	perf_rank_note_backend(rank, 0);
}

static void add_cost(struct moe *moe, enum moe_case n_case, const struct m2n_counters flows[2])
{
	struct page_cost *cost =
		page_cost(moe->rank->page, (uint32_t)moe->rank->rank, n_case);

	cost->n_rounds += flows[0].n_rounds;
	cost->n_puts += flows[0].n_puts;
	cost->staged_bytes += flows[0].staged_bytes + flows[1].staged_bytes;
}

static void note_counters(struct moe *moe)
{
	struct perf_rank *rank = moe->rank;
	struct m2n_channel_attr attr;

	if (m2n_channel_query(moe->channel, &attr) == 0)
		page_rank(rank->page, (uint32_t)rank->rank)->staged_bytes = attr.staged_bytes;
	for (int peer = 0; peer < rank->n_ranks; peer++) {
		for (int direction = 0; direction < 2; direction++) {
			struct m2n_counters flows[2];
			if (m2n_channel_counters(moe->channel, (enum m2n_direction)direction, peer,
				    &flows[0], &flows[1]) != 0)
				continue;
			for (int i = 0; i < 2; i++)
				*page_peer(rank->page, (uint32_t)rank->rank, (uint32_t)peer,
					(enum page_flow)(2 * direction + i)) =
					(struct page_peer){flows[i].n_rounds, flows[i].n_rows,
						flows[i].bytes, flows[i].wait_ns};
			add_cost(moe, direction == M2N_DISPATCH ? MOE_DISPATCH : MOE_COMBINE,
				flows);
			add_cost(moe, MOE_ROUND_TRIP, flows);
		}
	}
}

static void close_channel(struct moe *moe)
{
	/* Peers would see links close while they are still in their last round. */
	perf_rank_barrier(moe->rank);
	m2n_plan_destroy(moe->plan);
	m2n_channel_destroy(moe->channel);
	m2n_mem_free(moe->mem[0]);
	m2n_mem_free(moe->mem[1]);
}

void moe_body(struct perf_rank *rank)
{
	const struct perf_args *args = rank->args;
	struct moe moe = {.rank = rank, .args = args, .routing = rank->job->routing,
		.row_bytes = args->row_bytes, .out_row_bytes = perf_out_row_bytes(args),
		.round_trip = args->round_trip || rank->job->many_hosts};

	moe.in_row_bytes = args->cast_fp8 ? 2 * args->row_bytes : args->row_bytes;
	open_channel(&moe);
	if (rank->job->bounce != NULL)
		moe.bounce = moe_bounce_open(&moe);
	if (!args->no_check)
		moe_check(&moe, 0);
	perf_rank_loop(rank, step, &moe);
	if (!args->no_check)
		moe_check(&moe, 1);
	note_counters(&moe);
	moe_bounce_close(&moe);
	close_channel(&moe);
}
