/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A failing allocator: the n-th allocation of a whole life (open, join, exchange, channel, plan,
 * rounds, close) fails, for every n until none is left to fail. Each time the call that met it says
 * -ENOMEM, everything that was allocated is freed, and no descriptor or mapping stays.
 *
 * The library's objects are linked statically with malloc and its kin wrapped by the linker, so
 * that allocations inside libc (getaddrinfo, stdio) stay out of it. Prints TAP.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "helpers/alloc.h"
#include "helpers/leak.h"
#include "helpers/ranks.h"

static int use_exchange(struct rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange = NULL;
	const void *data;
	size_t bytes;
	int status;

	params.name = "alloc";
	params.send_to = params.recv_from = &rank->rank;
	params.n_send = params.n_recv = 1;
	params.max_bytes = 64;
	status = m2n_exchange_create(rank->group, &params, &exchange);
	if (status)
		return status;
	status = m2n_exchange_put(
		exchange, rank->rank, &(struct m2n_iov){"ab", 2}, 1, M2N_TIMEOUT_DEFAULT);
	if (!status)
		status = m2n_exchange_get(exchange, rank->rank, M2N_TIMEOUT_DEFAULT, &data, &bytes);
	if (!status)
		status = m2n_exchange_release(exchange, rank->rank);
	m2n_exchange_destroy(exchange);
	return status;
}

#define N_TOKENS 6
#define ROW_BYTES 64

/* A round of 6 tokens, top 2, all buffers static: every allocation is the library's. */
static int one_round(struct m2n_channel *channel, struct m2n_plan *plan)
{
	static const int32_t ids[N_TOKENS * 2] = {0, 1, 2, 3, 0, 3, 1, 1, -1, 2, 3, 0};
	static uint8_t rows[2 * N_TOKENS * ROW_BYTES], out[N_TOKENS * ROW_BYTES];
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_combine_send_params answer = M2N_COMBINE_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params combine = M2N_COMBINE_RECV_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	int status;

	route.n_tokens = N_TOKENS;
	route.expert_ids = ids;
	send.plan = combine.plan = plan;
	send.rows = answer.rows = rows;
	combine.out = out;
	status = m2n_plan_route(channel, plan, &route);
	if (!status)
		status = m2n_dispatch_send(channel, &send);
	if (!status)
		status = m2n_dispatch_recv(channel, &recv, &answer.batch);
	if (!status)
		status = m2n_combine_send(channel, &answer);
	if (!status)
		status = m2n_combine_recv(channel, &combine);
	return status;
}

static int make_channel(struct rank *rank, const struct m2n_map *map, struct m2n_channel **channel)
{
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;

	params.name = "alloc";
	params.sources = params.experts = &rank->rank;
	params.n_sources = params.n_expert_ranks = 1;
	params.map = map;
	params.n_experts = 4;
	params.top_k = 2;
	params.max_tokens = N_TOKENS;
	params.row_bytes = ROW_BYTES;
	params.placement = *(const enum m2n_placement *)rank->arg;
	return m2n_channel_create(rank->group, &params, channel);
}

static int use_channel(struct rank *rank)
{
	static const uint32_t first[] = {0, 1, 2, 3, 4}, owners[] = {0, 0, 0, 0};
	struct m2n_channel *channel = NULL;
	struct m2n_plan *plan = NULL;
	struct m2n_map *map = NULL;
	int status = m2n_map_create(4, 1, first, owners, &map);

	if (!status)
		status = make_channel(rank, map, &channel);
	if (!status)
		status = m2n_channel_set_map(channel, map, 1);
	if (!status)
		status = m2n_plan_create(channel, &plan);
	for (int round = 0; !status && round < 3; round++)
		status = one_round(channel, plan);
	m2n_plan_destroy(plan);
	m2n_channel_destroy(channel);
	m2n_map_destroy(map);
	return status;
}

static int live(struct rank *rank)
{
	struct m2n_mem *mem;
	void *base;
	int status = rank_open(rank);

	if (status)
		return status;
	status = m2n_mem_alloc(rank->ctx, 8192, &mem, &base);
	if (!status)
		m2n_mem_free(mem);
	if (!status)
		status = use_exchange(rank);
	if (!status)
		status = use_channel(rank);
	rank_close(rank);
	return status;
}

static void check_allocations(struct rank *rank)
{
	struct leak_state before;
	unsigned long n = 0;
	size_t held;
	int status;

	expect_ok(live(rank)); /* what is made once per process is made now */
	leak_take(&before);
	held = alloc_held();
	do {
		alloc_fail_at(++n);
		status = live(rank);
		if (alloc_has_failed() && status != -ENOMEM && status != 0)
			rank_fail(__FILE__, __LINE__, "allocation %lu: %d (%s: %s)", n, status,
				m2n_strerror(status), m2n_error_text());
		if (status && !m2n_error_text()[0])
			rank_fail(__FILE__, __LINE__, "allocation %lu: no text", n);
		if (alloc_held() != held)
			rank_fail(__FILE__, __LINE__, "allocation %lu (%d: %s): %ld blocks leaked",
				n, status, m2n_error_text(), (long)(alloc_held() - held));
		leak_check(&before);
	} while (alloc_has_failed());
	alloc_fail_at(0);
	expect(n > 20);
	expect_ok(live(rank));
	word_set(&rank->word[0], (uint32_t)n - 1);
}

int main(int argc, char **argv)
{
	const char *options[] = {"TIMEOUT=1s", NULL};
	struct ranks_opts opts = {
		.backend = argc > 1 ? argv[1] : "shm", .options = options, .bare = 1};
	static const char *const names[] = {"slot", "exact"};
	int failed = 0;

	printf("1..2\n");
	fflush(stdout);
	for (int i = 0; i < 2; i++) {
		enum m2n_placement placement = i ? M2N_PLACEMENT_EXACT : M2N_PLACEMENT_SLOT;
		int result = ranks_run(1, check_allocations, &placement, &opts);

		printf("%s %d - every allocation fails once, %s placement\n",
			result ? "not ok" : "ok", i + 1, names[i]);
		fflush(stdout);
		failed |= result;
	}
	return failed != 0;
}
