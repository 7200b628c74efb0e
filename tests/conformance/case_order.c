/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of calls: what is refused and queues nothing, deadlines that name what they waited
 * for, calls made again, masks of peers that take part, counters.
 */
#include <errno.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/device.h"
#include "helpers/job_device.h"

static const struct job small_job = {
	.name = "small",
	.n_sources = 1,
	.n_expert_ranks = 1,
	.classic = 1,
	.n_experts = 4,
	.top_k = 2,
	.n_tokens = 6,
	.row_bytes = 32,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 2,
	.in_flight = 2,
	.n_rounds = 4,
	.seed = 5,
};

static int try_recv(struct job_rank *jr, int64_t timeout_ns, const struct m2n_batch **batch)
{
	struct m2n_dispatch_recv_params params = M2N_DISPATCH_RECV_PARAMS_INIT;

	params.timeout_ns = timeout_ns;
	return m2n_dispatch_recv(jr->channel, &params, batch);
}

static int try_combine(struct job_rank *jr, uint32_t round, int64_t timeout_ns)
{
	int64_t usual = jr->timeout_ns;
	int status;

	jr->timeout_ns = timeout_ns;
	status = job_combine(jr, round);
	jr->timeout_ns = usual;
	return status;
}

static void check_deadlines(struct rank *rank)
{
	const struct m2n_batch *batch = NULL, *held[3];
	struct m2n_channel_attr attr;
	struct job_rank jr;
	struct job job = small_job;

	job.placement = *(enum m2n_placement *)rank->arg;
	expect_ok(job_open(&jr, rank, &job));
	expect_status(-EAGAIN, try_recv(&jr, 0, &batch));
	expect_status(-ETIMEDOUT, try_recv(&jr, 5000000, &batch));
	expect_text("round 0");
	expect_text("ranks 0");
	expect(batch == NULL);
	expect_ok(job_send(&jr, 0));
	expect_status(-EAGAIN, try_combine(&jr, 0, 0));
	expect_status(-ETIMEDOUT, try_combine(&jr, 0, 5000000));
	expect_text("round 0");
	expect_ok(job_send(&jr, 1));
	expect_ok(m2n_channel_query(jr.channel, &attr));
	expect_equal(attr.next_send_round, 2);
	expect_equal(attr.next_recv_round, 0);
	expect_ok(job_recv_batch(&jr, &held[0]));
	expect_ok(job_recv_batch(&jr, &held[1]));
	expect_equal(held[0]->round, 0);
	expect_equal(held[1]->round, 1);
	expect_status(-EBUSY, try_recv(&jr, 0, &batch));
	expect_ok(job_answer(&jr, held[1]));
	expect_status(-EAGAIN, try_combine(&jr, 0, 0));
	expect_ok(job_answer(&jr, held[0]));
	expect_ok(job_combine(&jr, 0));
	expect_ok(job_combine(&jr, 1));
	/* Nothing of the refusals is left. */
	expect_ok(job_send(&jr, 2));
	expect_ok(job_serve(&jr));
	expect_ok(job_combine(&jr, 2));
	expect_status(-EAGAIN, try_recv(&jr, 0, &batch));
	job_close(&jr);
}

static int deadlines(const struct conf *conf)
{
	enum m2n_placement slot = M2N_PLACEMENT_SLOT, exact = M2N_PLACEMENT_EXACT;

	return ranks_run(1, check_deadlines, &slot, &conf->opts) ||
	       ranks_run(1, check_deadlines, &exact, &conf->opts);
}

/* A third plan, for a round that the depth of two does not let in. */
static void check_depth(struct rank *rank)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	static const int32_t ids[] = {0, 3};
	static const uint8_t row[32];
	struct m2n_channel_attr attr;
	struct m2n_plan *plan;
	struct job_rank jr;
	int status;

	expect_ok(job_open(&jr, rank, &small_job));
	expect_ok(job_send(&jr, 0));
	expect_ok(job_send(&jr, 1));
	expect_ok(m2n_plan_create(jr.channel, &plan));
	route.n_tokens = 1;
	route.expert_ids = space_in(rank, ids, sizeof(ids));
	expect_ok(m2n_plan_route(jr.channel, plan, &route));
	send.plan = plan;
	send.rows = space_in(rank, row, sizeof(row));
	send.timeout_ns = 0;
	expect_status(-EAGAIN, m2n_dispatch_send(jr.channel, &send));
	send.timeout_ns = 5000000; /* in vain: it is this rank that must receive first */
	status = m2n_dispatch_send(jr.channel, &send);
	expect(status == -EAGAIN || status == -ETIMEDOUT);
	expect_text("round 2");
	expect_ok(m2n_channel_query(jr.channel, &attr));
	expect_equal(attr.next_send_round, 2);
	expect_ok(job_serve(&jr));
	expect_ok(job_combine(&jr, 0));
	expect_ok(job_send(&jr, 2));
	expect_ok(job_serve(&jr));
	expect_ok(job_serve(&jr));
	expect_ok(job_combine(&jr, 1));
	expect_ok(job_combine(&jr, 2));
	m2n_plan_destroy(plan);
	space_end(rank);
	job_close(&jr);
}

static int depth(const struct conf *conf)
{
	return ranks_run(1, check_depth, NULL, &conf->opts);
}

static void check_bad_send(struct rank *rank, struct job_rank *jr)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	static const uint8_t rows[6 * 32];
	const void *there = space_in(rank, rows, sizeof(rows));

	expect_ok(job_route(jr, 0));
	send.rows = there;
	expect_status(-EINVAL, m2n_dispatch_send(jr->channel, &send));
	expect_text("plan");
	send.plan = jr->flight[0].plan;
	send.rows = NULL;
	expect_status(-EINVAL, m2n_dispatch_send(jr->channel, &send));
	expect_text("rows");
	send.rows = there;
	send.sink = 1;
	expect_status(-EINVAL, m2n_dispatch_send(jr->channel, &send));
	expect_text("sink");
	send.sink = -1;
	send.size = 0;
	expect_status(-EINVAL, m2n_dispatch_send(jr->channel, &send));
}

static void check_bad_rest(struct rank *rank, struct job_rank *jr)
{
	struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	const struct m2n_batch *batch;
	static uint8_t out[6 * 32];
	void *there = space_out(rank, out, sizeof(out));

	expect_status(-EINVAL, m2n_combine_send(jr->channel, &answer));
	expect_text("batch");
	expect_ok(job_send(jr, 0));
	expect_ok(job_recv_batch(jr, &batch));
	answer.batch = batch;
	expect_status(-EINVAL, m2n_combine_send(jr->channel, &answer));
	expect_text("rows");
	expect_ok(job_answer(jr, batch));
	combine.out = there;
	expect_status(-EINVAL, m2n_combine_recv(jr->channel, &combine));
	expect_text("plan");
	combine.plan = jr->flight[0].plan;
	combine.out = NULL;
	expect_status(-EINVAL, m2n_combine_recv(jr->channel, &combine));
	expect_text("out");
	combine.out = there;
	combine.out_stride = 31;
	expect_status(-EINVAL, m2n_combine_recv(jr->channel, &combine));
	expect_text("out_stride");
	combine.out_stride = 0;
	combine.round = 7;
	expect_status(-EINVAL, m2n_combine_recv(jr->channel, &combine));
	expect_text("7");
	combine.round = M2N_ROUND_NEXT;
	combine.source = 1;
	expect_status(-EINVAL, m2n_combine_recv(jr->channel, &combine));
	expect_text("source");
	expect_ok(job_combine(jr, 0));
}

static void check_bad_arguments(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, &small_job));
	check_bad_send(rank, &jr);
	check_bad_rest(rank, &jr);
	space_end(rank);
	expect_ok(job_send(&jr, 1));
	expect_ok(job_serve(&jr));
	expect_ok(job_combine(&jr, 1));
	job_close(&jr);
}

static int bad_arguments(const struct conf *conf)
{
	return ranks_run(1, check_bad_arguments, NULL, &conf->opts);
}

/* Calls of a role that the rank does not have. */
static void check_wrong_roles(struct rank *rank)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	struct job job = small_job;
	struct job_rank jr;
	struct m2n_plan *plan;
	const struct m2n_batch *batch;
	uint8_t out[6 * 32];

	job.classic = 0;
	expect_ok(job_open(&jr, rank, &job));
	if (rank->rank == 0) {
		expect_status(-EINVAL, try_recv(&jr, 0, &batch));
	} else {
		expect_ok(m2n_plan_create(jr.channel, &plan));
		send.plan = combine.plan = plan;
		send.rows = combine.out = out;
		expect_status(-EINVAL, m2n_dispatch_send(jr.channel, &send));
		expect_status(-EINVAL, m2n_combine_recv(jr.channel, &combine));
		m2n_plan_destroy(plan);
	}
	job_rounds(&jr);
	rank_barrier(rank);
	job_close(&jr);
}

static int wrong_roles(const struct conf *conf)
{
	return ranks_run(2, check_wrong_roles, NULL, &conf->opts);
}

/*
 * Masks, 2 sources and 2 expert ranks, every expert on both. Round 0: all. Round 1: expert rank 1
 * takes no part. Round 2: source 1 takes no part. Round 3: all.
 */
static const struct job mask_job = {
	.name = "mask",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 4,
	.top_k = 2,
	.n_tokens = 10,
	.row_bytes = 32,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = 4,
	.seed = 6,
	.map = JOB_MAP_REPLICAS,
};

static void mask_source(struct rank *rank, struct job_rank *jr, uint32_t round)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	struct job_flight *flight = &jr->flight[0];
	const uint64_t first_only = 1, none = 0;
	int out_of_it = round == 2 && jr->source == 1;

	expect_ok(job_route(jr, round)); /* fills the buffers */
	route.n_tokens = out_of_it ? 0 : jr->n_tokens;
	route.expert_ids = space_in(rank, flight->ids, jr->n_tokens * 2 * sizeof(int32_t));
	route.weights = space_in(rank, flight->weights, jr->n_tokens * 2 * sizeof(float));
	send.plan = combine.plan = flight->plan;
	send.rows = space_in(rank, flight->rows, jr->n_tokens * 32);
	route.mask = send.mask = round == 1 ? &first_only : out_of_it ? &none : NULL;
	expect_ok(m2n_plan_route(jr->channel, flight->plan, &route));
	expect_ok(m2n_plan_wait(flight->plan, M2N_TIMEOUT_DEFAULT));
	if (round == 1)
		expect_equal(m2n_plan_rank_rows(flight->plan, 1), 0);
	expect_ok(m2n_dispatch_send(jr->channel, &send));
	if (!out_of_it) {
		expect_ok(job_combine(jr, round));
		return;
	}
	combine.out = space_out(rank, flight->out, jr->n_tokens * 32);
	expect_ok(m2n_combine_recv(jr->channel, &combine));
	space_fetch(rank);
}

static void mask_expert(struct job_rank *jr, uint32_t round)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	const struct m2n_batch *batch;
	const uint64_t first_only = 1, none = 0;
	uint64_t missing = 0;

	if (round == 1 && jr->expert == 1) {
		recv.mask = &none;
		missing = 3;
	} else if (round == 2) {
		recv.mask = &first_only;
		missing = 2;
	}
	expect_ok(m2n_dispatch_recv(jr->channel, &recv, &batch));
	expect_ok(m2n_batch_wait(jr->channel, batch, M2N_TIMEOUT_DEFAULT));
	expect_equal(batch->round, round);
	expect_equal(batch->missing[0] & 3, missing);
	if (missing == 3)
		expect_equal(batch->n_rows, 0);
	expect_ok(job_answer(jr, batch));
}

static void check_masks(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, &mask_job));
	for (uint32_t round = 0; round < mask_job.n_rounds; round++) {
		if (jr.source >= 0)
			mask_source(rank, &jr, round);
		else
			mask_expert(&jr, round);
	}
	rank_barrier(rank);
	space_end(rank);
	job_close(&jr);
}

static int masks(const struct conf *conf)
{
	return ranks_run(4, check_masks, NULL, &conf->opts);
}

static const struct job counted_job = {
	.name = "counted",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 4,
	.top_k = 2,
	.n_tokens = 10,
	.row_bytes = 32,
	.out_row_bytes = 64,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 2,
	.n_rounds = 6,
	.registered = 1,
	.seed = 7,
};

/* Rows from one source to one expert rank over all rounds, counted by hand. */
static uint64_t count_rows(int source, int expert)
{
	uint64_t n = 0;
	int rank_of[JOB_MAX_TOP_K];

	for (uint32_t round = 0; round < counted_job.n_rounds; round++) {
		for (uint32_t t = 0; t < job_n_tokens(&counted_job, source); t++) {
			job_pair_ranks(&counted_job, round, source, t, NULL, rank_of);
			for (uint32_t k = 0; k < counted_job.top_k; k++)
				n += rank_of[k] == expert;
		}
	}
	return n;
}

static void check_counters(struct rank *rank)
{
	int messaging = *(int *)rank->arg;
	struct m2n_counters sent, received, *out, *back;
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, &counted_job));
	job_rounds(&jr);
	job_device_settle(&jr); /* counted when the device has come to it */
	for (int i = 0; i < 2; i++) {
		int source = jr.source >= 0 ? jr.source : i;
		int expert = jr.source >= 0 ? i : jr.expert;
		int peer = jr.source >= 0 ? job_expert_rank(&counted_job, i)
					  : job_source_rank(&counted_job, i);
		uint64_t rows = count_rows(source, expert);

		expect_ok(m2n_channel_counters(jr.channel, M2N_DISPATCH, peer, &sent, &received));
		out = jr.source >= 0 ? &sent : &received;
		expect_equal(out->n_rounds, counted_job.n_rounds);
		expect_equal(out->n_rows, rows);
		expect_equal(out->bytes, rows * 32);
		expect_equal(out->staged_bytes, 0);
		if (jr.source >= 0)
			expect((out->n_puts > 0) == messaging);
		expect_ok(m2n_channel_counters(jr.channel, M2N_COMBINE, peer, &sent, &received));
		back = jr.source >= 0 ? &received : &sent;
		expect_equal(back->n_rows, rows);
		expect_equal(back->bytes, rows * 64);
		expect_equal(back->staged_bytes, 0);
	}
	expect_ok(m2n_channel_counters(jr.channel, M2N_DISPATCH, 3 - rank->rank, NULL, &received));
	expect_status(-EINVAL, m2n_channel_counters(jr.channel, M2N_DISPATCH, 9, &sent, &received));
	rank_barrier(rank);
	job_close(&jr);
}

/* Of a mapped sink, the same as long as the batch is held; other tests write there. */
static void check_places(struct rank *rank)
{
	int is_mapped = !*(const int *)rank->arg;
	struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;
	const uint64_t in_place = 1;
	const struct m2n_batch *batch;
	struct job_rank jr;
	uint8_t *place;

	expect_ok(job_open(&jr, rank, &small_job));
	expect_ok(job_send(&jr, 0));
	expect_ok(job_recv_batch(&jr, &batch));
	answer.batch = batch;
	answer.in_place = &in_place;
	expect_status(-EINVAL, m2n_combine_send(jr.channel, &answer));
	expect_text("in_place");
	expect(!m2n_reply_place(jr.channel, batch, 1));
	expect(!m2n_reply_place(jr.channel, NULL, 0));
	place = m2n_reply_place(jr.channel, batch, 0);
	expect_equal(!!place, is_mapped);
	expect(m2n_reply_place(jr.channel, batch, 0) == place);
	if (place) {
		job_compute(&small_job, batch, place, small_job.out_row_bytes);
		expect_ok(m2n_combine_send(jr.channel, &answer)); /* no rows */
	} else {
		expect_ok(job_answer(&jr, batch));
	}
	expect_ok(job_combine(&jr, 0));
	job_close(&jr);
}

static int places(const struct conf *conf)
{
	int messaging = conf->messaging;

	return ranks_run(1, check_places, &messaging, &conf->opts);
}

static int counters(const struct conf *conf)
{
	int messaging = conf->messaging;

	return ranks_run(4, check_counters, &messaging, &conf->opts);
}

const struct conf_case order_cases[] = {
	{"order: deadlines, calls made again, batches held", 1, deadlines, HOST_MEMORY},
	{"order: more rounds than the depth", 1, depth, ANY_MEMORY},
	{"order: bad arguments queue nothing", 1, bad_arguments, ANY_MEMORY},
	{"order: calls of another role", 2, wrong_roles, ANY_MEMORY},
	{"order: masks of peers that take part", 4, masks, ANY_MEMORY},
	{"order: replies made in place", 1, places, HOST_MEMORY},
	{"order: counters", 4, counters, ANY_MEMORY},
	{0},
};
