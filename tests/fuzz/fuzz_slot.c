/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A wire that lies: a rank sends itself a round, then bytes of the input are laid over the slot
 * that arrived (head or payload) before it is received. Whatever they say, every call returns,
 * every row that the batch names can be read, and the round can be answered.
 *
 * Input: byte 0 picks the channel (dedup, reduction, placement), bytes 1 and 2 the offset in the
 * slot, the rest is laid there.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/m2n.h>

#include "core/channel.h"

#define N_TOKENS 6
#define TOP_K 2
#define N_EXPERTS 4
#define ROW_BYTES 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static struct m2n_group *group;

static int store_put(void *arg, const char *key, const void *value, size_t bytes)
{
	(void)arg, (void)key, (void)value, (void)bytes;
	return 0;
}

static int store_get(void *arg, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	(void)arg, (void)key, (void)value, (void)bytes, (void)timeout_ns;
	return -EAGAIN;
}

static void open_group(void)
{
	static const struct m2n_store_callbacks store = {
		.size = sizeof(store), .put = store_put, .get = store_get};
	struct m2n_ctx_params ctx_params = M2N_CTX_PARAMS_INIT;
	struct m2n_group_params params = M2N_GROUP_PARAMS_INIT;
	struct m2n_ctx *ctx;

	ctx_params.backend = "self";
	params.rank = 0;
	params.n_ranks = 1;
	params.callbacks = &store;
	if (m2n_ctx_open(&ctx_params, &ctx) || m2n_group_join(ctx, &params, &group))
		abort();
}

static struct m2n_channel *open_channel(uint8_t mode)
{
	static const int zero;
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;
	struct m2n_channel *channel;

	params.name = "fuzz";
	params.sources = params.experts = &zero;
	params.n_sources = params.n_expert_ranks = 1;
	params.n_experts = N_EXPERTS;
	params.top_k = TOP_K;
	params.max_tokens = N_TOKENS;
	params.row_bytes = ROW_BYTES;
	params.depth = 1;
	params.dedup = mode & 1;
	params.reduce_at_expert = (mode & 3) == 3;
	params.scale_bytes = mode & 4 ? 4 : 0;
	params.placement = mode & 8 ? M2N_PLACEMENT_EXACT : M2N_PLACEMENT_SLOT;
	if (m2n_channel_create(group, &params, &channel))
		abort();
	return channel;
}

static void send_round(struct m2n_channel *channel, struct m2n_plan *plan)
{
	static const int32_t ids[N_TOKENS * TOP_K] = {0, 1, 1, 2, 2, 3, 3, 0, 0, 2, 1, 3};
	static const uint8_t rows[N_TOKENS * ROW_BYTES], scales[N_TOKENS * 4];
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;

	route.n_tokens = N_TOKENS;
	route.expert_ids = ids;
	send.plan = plan;
	send.rows = rows;
	send.scales = scales;
	if (m2n_plan_route(channel, plan, &route) || m2n_dispatch_send(channel, &send))
		abort();
}

/* Reads every byte that the batch names; a sanitizer sees where it should not. */
static unsigned read_rows(const struct m2n_batch *batch, size_t scale_bytes)
{
	unsigned sum = 0;

	for (uint32_t s = 0; s < batch->n_segments; s++) {
		const struct m2n_segment *segment = &batch->segments[s];

		for (uint32_t i = 0; i < segment->n_rows; i++) {
			size_t row = segment->index ? segment->index[i] : i;

			for (size_t b = 0; b < ROW_BYTES; b++)
				sum += ((const uint8_t *)segment->rows)[row * ROW_BYTES + b];
			for (size_t b = 0; segment->scales && b < scale_bytes; b++)
				sum += ((const uint8_t *)segment->scales)[row * scale_bytes + b];
		}
	}
	return sum;
}

static void answer(struct m2n_channel *channel, const struct m2n_batch *batch)
{
	static const uint8_t out[N_TOKENS * TOP_K * ROW_BYTES];
	struct m2n_combine_send_params params = M2N_COMBINE_SEND_PARAMS_INIT;

	if (batch->n_rows > N_TOKENS * TOP_K || m2n_combine_send(channel, &params) != -EINVAL)
		abort();
	params.batch = batch;
	params.rows = out;
	params.timeout_ns = 0;
	if (m2n_combine_send(channel, &params) < 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	static uint8_t out[N_TOKENS * ROW_BYTES];
	static volatile unsigned read_sum; /* so that the reads stay */
	const struct m2n_batch *batch;
	struct m2n_channel *channel;
	struct m2n_plan *plan;
	size_t at;

	if (bytes < 3)
		return 0;
	if (!group)
		open_group();
	channel = open_channel(data[0]);
	if (m2n_plan_create(channel, &plan))
		abort();
	send_round(channel, plan);
	at = (data[1] | (size_t)data[2] << 8) % channel->dispatch->stride;
	bytes -= 3;
	bytes = bytes < channel->dispatch->stride - at ? bytes : channel->dispatch->stride - at;
	memcpy(channel->dispatch->rx[0].slots + at, data + 3, bytes);
	recv.timeout_ns = 0;
	if (m2n_dispatch_recv(channel, &recv, &batch) >= 0) {
		read_sum = read_sum + read_rows(batch, channel->p.scale_bytes);
		answer(channel, batch);
	}
	combine.plan = plan;
	combine.out = out;
	combine.timeout_ns = 0;
	(void)m2n_combine_recv(channel, &combine);
	m2n_channel_destroy(channel);
	m2n_plan_destroy(plan);
	return 0;
}
