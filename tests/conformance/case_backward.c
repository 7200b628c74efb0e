/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backward pass against finite differences: y[t] = sum_k w[t,k] * E(x[t]) with experts
 * E_e(x)[i] = a_e * x[i]^2, loss = <dy, y>. The library gives d loss / d w by combine_backward(),
 * and d loss / d x by the dispatch of w * dy, the experts' own derivative, and a combine with
 * weights 1. Rows of the backward round have the order of the forward one, so the experts keep
 * their inputs by batch row.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"
#include "helpers/device.h"
#include "helpers/job_device.h"

#define N_VALUES 6
#define STEP 1e-3

static const struct job backward_job = {
	.name = "backward",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 5,
	.top_k = 3,
	.n_tokens = 9,
	.row_bytes = 4 * N_VALUES,
	.out_row_bytes = 4 * N_VALUES,
	.dtype = M2N_DTYPE_F32,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = 1,
	.seed = 9,
	.routing = JOB_HOLES,
};

struct tensors {
	uint32_t n_tokens;
	int32_t ids[32 * 3];
	float weights[32 * 3];
	float x[32][N_VALUES], dy[32][N_VALUES];
};

static double factor(int expert)
{
	return 0.5 + 0.25 * expert;
}

static void make_tensors(const struct job *job, int source, struct tensors *in)
{
	in->n_tokens = job_n_tokens(job, source);
	for (uint32_t t = 0; t < in->n_tokens; t++) {
		uint32_t token = job_first_token(job, source) + t;

		job_ids(job, 0, token, in->ids + t * job->top_k);
		job_weights(job, 0, token, in->weights + t * job->top_k);
		for (uint32_t i = 0; i < N_VALUES; i++) {
			in->x[t][i] = (float)(job_random(1, token, i, 0) % 2001) / 1000 - 1;
			in->dy[t][i] = (float)(job_random(2, token, i, 0) % 2001) / 1000 - 1;
		}
	}
}

/* The loss of one token in double, with value i of x and weight k moved by dx and dw. */
static double loss(
	const struct tensors *in, uint32_t t, uint32_t i, double dx, uint32_t k, double dw)
{
	double sum = 0;

	for (uint32_t j = 0; j < 3; j++) {
		int32_t expert = in->ids[t * 3 + j];

		for (uint32_t v = 0; expert >= 0 && v < N_VALUES; v++) {
			double x = (double)in->x[t][v] + (v == i ? dx : 0);
			double w = (double)in->weights[t * 3 + j] + (j == k ? dw : 0);

			sum += (double)in->dy[t][v] * w * factor(expert) * x * x;
		}
	}
	return sum;
}

static void be_source(struct rank *rank, struct job_rank *jr)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	static struct tensors in;
	void *there;
	static float y[32][N_VALUES], dx[32][N_VALUES], replies[32 * 3][N_VALUES], dw[32 * 3];

	make_tensors(jr->job, jr->source, &in);
	route.n_tokens = in.n_tokens;
	route.expert_ids = space_in(rank, in.ids, sizeof(in.ids));
	route.weights = space_in(rank, in.weights, sizeof(in.weights));
	expect_ok(m2n_plan_route(jr->channel, jr->flight[0].plan, &route));
	send.plan = combine.plan = jr->flight[0].plan;
	send.rows = space_in(rank, in.x, sizeof(in.x));
	expect_ok(m2n_dispatch_send(jr->channel, &send));
	memset(replies, 0x55, sizeof(replies));
	combine.out = space_out(rank, y, sizeof(y));
	combine.replies = there = space_out(rank, replies, sizeof(replies));
	expect_ok(m2n_combine_recv(jr->channel, &combine));
	send.rows = space_in(rank, in.dy, sizeof(in.dy));
	expect_ok(m2n_combine_backward(
		jr->channel, &send, there, space_out(rank, dw, sizeof(dw))));
	combine.out = space_out(rank, dx, sizeof(dx));
	combine.replies = NULL;
	combine.unit_weights = 1;
	expect_ok(m2n_combine_recv(jr->channel, &combine));
	space_fetch(rank);
	expect_ok(m2n_channel_check(jr->channel));
	for (uint32_t t = 0; t < in.n_tokens; t++) {
		double sum = 0;

		for (uint32_t i = 0; i < N_VALUES; i++) {
			double slope =
				(loss(&in, t, i, STEP, 9, 0) - loss(&in, t, i, -STEP, 9, 0)) /
				(2 * STEP);

			expect(fabs(slope - (double)dx[t][i]) < 1e-4);
			sum += (double)in.dy[t][i] * (double)y[t][i];
		}
		expect(fabs(sum - loss(&in, t, 99, 0, 99, 0)) < 1e-4);
		for (uint32_t k = 0; k < 3; k++) {
			double slope =
				(loss(&in, t, 99, 0, k, STEP) - loss(&in, t, 99, 0, k, -STEP)) /
				(2 * STEP);

			expect(fabs(slope - (double)dw[t * 3 + k]) < 1e-4);
			for (uint32_t i = 0; in.ids[t * 3 + k] < 0 && i < N_VALUES; i++)
				expect(replies[t * 3 + k][i] == 0);
		}
	}
}

static void answer(struct rank *rank, struct job_rank *jr, const struct m2n_batch *batch,
	float (*rows)[N_VALUES])
{
	struct m2n_combine_send_params params = M2N_COMBINE_SEND_PARAMS_INIT;

	params.batch = batch;
	params.rows = space_in(rank, rows, 100 * sizeof(*rows));
	expect_ok(m2n_combine_send(jr->channel, &params));
	expect_ok(m2n_reply_wait(jr->channel, M2N_TIMEOUT_DEFAULT));
}

static void be_expert(struct rank *rank, struct job_rank *jr)
{
	static float kept[100][N_VALUES], out[100][N_VALUES];

	for (int backward = 0; backward < 2; backward++) {
		struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
		const struct m2n_batch *batch, *held;

		expect_ok(m2n_dispatch_recv(jr->channel, &recv, &held));
		batch = job_device_look(jr, held);
		expect(batch->n_rows <= 100);
		for (uint32_t s = 0; s < batch->n_segments; s++) {
			const struct m2n_segment *segment = &batch->segments[s];
			float a = (float)factor(segment->expert);

			for (uint32_t r = 0; r < segment->n_rows; r++) {
				float *x = kept[segment->first_row + r];
				float *to = out[segment->first_row + r];
				float row[N_VALUES];

				memcpy(row, (const uint8_t *)segment->rows + r * sizeof(row),
					sizeof(row));
				if (!backward)
					memcpy(x, row, sizeof(row));
				for (uint32_t i = 0; i < N_VALUES; i++)
					to[i] = backward ? 2 * a * x[i] * row[i] : a * x[i] * x[i];
			}
		}
		job_device_unlook(jr, held);
		answer(rank, jr, held, out);
	}
}

static void check_backward(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	if (jr.source >= 0)
		be_source(rank, &jr);
	else
		be_expert(rank, &jr);
	rank_barrier(rank);
	space_end(rank);
	job_close(&jr);
}

static int backward(const struct conf *conf)
{
	struct job job = backward_job;
	int result = ranks_run(4, check_backward, &job, &conf->opts);

	job.placement = M2N_PLACEMENT_EXACT;
	if (result || conf->memory == M2N_MEMORY_CUDA)
		return result;
	return ranks_run(4, check_backward, &job, &conf->opts);
}

const struct conf_case backward_cases[] = {
	{"backward: against finite differences", 4, backward, ANY_MEMORY},
	{0},
};
