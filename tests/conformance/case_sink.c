/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sinks that are not the sources: the sources send packed plans over an exchange beside the
 * channel, and a sink places and sums the replies of each source by the unpacked copy.
 */
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/job_run.h"
#include "helpers/leak.h"

#define N_SOURCES 2
#define N_SINKS 2
#define FIRST_SINK 4 /* ranks 0..1 sources, 2..3 experts, 4..5 sinks */
#define PLAN_BYTES 4096

static const struct job sink_job = {
	.name = "sink",
	.n_sources = N_SOURCES,
	.n_expert_ranks = 2,
	.n_experts = 6,
	.top_k = 3,
	.n_tokens = 15,
	.row_bytes = 48,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 3,
	.n_rounds = 9,
	.seed = 8,
};

static int sink_of(uint32_t round, int source)
{
	return (int)(round + (uint32_t)source) % N_SINKS;
}

static void open_side_car(struct rank *rank, struct m2n_exchange **side)
{
	static const int sources[N_SOURCES] = {0, 1}, sinks[N_SINKS] = {4, 5};
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;

	*side = NULL;
	params.name = "plans";
	params.max_bytes = PLAN_BYTES;
	params.depth = 4;
	if (rank->rank < N_SOURCES) {
		params.send_to = sinks;
		params.n_send = N_SINKS;
	} else if (rank->rank >= FIRST_SINK) {
		params.recv_from = sources;
		params.n_recv = N_SOURCES;
	} else {
		return;
	}
	expect_ok(m2n_exchange_create(rank->group, &params, side));
}

static void open_channel(struct rank *rank, const struct job *job, struct job_rank *jr)
{
	static const int sinks[N_SINKS] = {4, 5};
	struct m2n_channel_params params;
	int lists[2][JOB_MAX_RANKS];

	memset(jr, 0, sizeof(*jr));
	jr->job = job;
	jr->timeout_ns = M2N_TIMEOUT_DEFAULT;
	job_channel_params(job, lists, &params);
	params.sinks = sinks;
	params.n_sinks = N_SINKS;
	expect_ok(m2n_channel_create(rank->group, &params, &jr->channel));
}

static void be_source(struct rank *rank, struct job_rank *jr, struct m2n_exchange *side)
{
	const struct job *job = jr->job;
	uint32_t n_tokens = job_n_tokens(job, rank->rank);
	int32_t *ids = malloc(n_tokens * job->top_k * sizeof(*ids));
	float *weights = malloc(n_tokens * job->top_k * sizeof(*weights));
	uint8_t *rows = malloc(n_tokens * job->row_bytes);
	uint8_t packed[PLAN_BYTES];
	struct m2n_plan *plans[3];

	for (int i = 0; i < 3; i++)
		expect_ok(m2n_plan_create(jr->channel, &plans[i]));
	for (uint32_t round = 0; round < job->n_rounds; round++) {
		struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
		struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
		struct m2n_iov iov = {packed, 0};
		int sink = sink_of(round, rank->rank);

		for (uint32_t t = 0; t < n_tokens; t++) {
			uint32_t token = job_first_token(job, rank->rank) + t;

			job_ids(job, round, token, ids + (size_t)t * job->top_k);
			job_weights(job, round, token, weights + (size_t)t * job->top_k);
			job_row(job, round, token, rows + t * job->row_bytes);
		}
		route.n_tokens = n_tokens;
		route.expert_ids = ids;
		route.weights = weights;
		expect_ok(m2n_plan_route(jr->channel, plans[round % 3], &route));
		send.plan = plans[round % 3];
		send.rows = rows;
		send.sink = sink;
		expect_ok(m2n_dispatch_send(jr->channel, &send));
		expect_ok(m2n_send_wait(jr->channel, round, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_plan_pack(plans[round % 3], packed, sizeof(packed), &iov.bytes));
		expect_ok(m2n_exchange_put(side, FIRST_SINK + sink, &iov, 1, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_exchange_flush(side, FIRST_SINK + sink, M2N_TIMEOUT_DEFAULT));
	}
	rank_barrier(rank);
	for (int i = 0; i < 3; i++)
		m2n_plan_destroy(plans[i]);
	free(ids);
	free(weights);
	free(rows);
}

static void take_round(struct job_rank *jr, struct m2n_exchange *side, struct m2n_plan *plan,
	uint32_t round, int source)
{
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	const struct job *job = jr->job;
	uint32_t n_tokens = job_n_tokens(job, source);
	uint8_t *out = guard_alloc(n_tokens * job->out_row_bytes);
	uint8_t *want = malloc(job->out_row_bytes);
	const void *packed;
	size_t bytes;

	expect_ok(m2n_exchange_get(side, source, M2N_TIMEOUT_DEFAULT, &packed, &bytes));
	expect_ok(m2n_plan_unpack(jr->channel, plan, packed, bytes, round));
	expect_ok(m2n_exchange_release(side, source));
	combine.round = round;
	combine.source = source;
	combine.plan = plan;
	combine.out = out;
	expect_ok(m2n_combine_recv(jr->channel, &combine));
	for (uint32_t t = 0; t < n_tokens; t++) {
		uint32_t token = job_first_token(job, source) + t;

		job_expected(job, round, token, job_pairs(job, round, token), NULL, want);
		if (memcmp(out + t * job->out_row_bytes, want, job->out_row_bytes))
			rank_fail(__FILE__, __LINE__, "round %u, source %d, token %u: wrong output",
				round, source, token);
	}
	free(want);
	guard_free(out);
}

static void be_sink(struct rank *rank, struct job_rank *jr, struct m2n_exchange *side)
{
	struct m2n_plan *plan;

	expect_ok(m2n_plan_create(jr->channel, &plan));
	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		for (int source = 0; source < N_SOURCES; source++) {
			if (FIRST_SINK + sink_of(round, source) == rank->rank)
				take_round(jr, side, plan, round, source);
		}
	}
	m2n_plan_destroy(plan);
	rank_barrier(rank);
}

static void check_sinks(struct rank *rank)
{
	struct job job = sink_job;
	struct m2n_exchange *side;
	struct job_rank jr;

	job.placement = *(enum m2n_placement *)rank->arg;
	open_side_car(rank, &side);
	open_channel(rank, &job, &jr);
	if (rank->rank < N_SOURCES) {
		be_source(rank, &jr, side);
	} else if (rank->rank >= FIRST_SINK) {
		be_sink(rank, &jr, side);
	} else {
		for (uint32_t round = 0; round < job.n_rounds; round++) {
			jr.tolerant = 1; /* the batch is checked by what comes of it */
			expect_ok(job_serve(&jr));
		}
		rank_barrier(rank);
	}
	m2n_channel_destroy(jr.channel);
	m2n_exchange_destroy(side);
}

static int sinks_slot(const struct conf *conf)
{
	enum m2n_placement slot = M2N_PLACEMENT_SLOT;

	return ranks_run(6, check_sinks, &slot, &conf->opts);
}

static int sinks_exact(const struct conf *conf)
{
	enum m2n_placement exact = M2N_PLACEMENT_EXACT;

	return ranks_run(6, check_sinks, &exact, &conf->opts);
}

const struct conf_case sink_cases[] = {
	{"sink: other ranks than the sources, slot placement", 6, sinks_slot, HOST_MEMORY},
	{"sink: other ranks than the sources, exact placement", 6, sinks_exact, HOST_MEMORY},
	{0},
};
