/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unpacking plans from any bytes. The first byte of the input picks the plan's modes, the rest
 * is the message. What is accepted must hold together and pack to the same bytes again, as far
 * as the form is canonical: up to the padding of an odd number of instances.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "route/plan.h"
#include "wire/plan_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(int holds)
{
	if (!holds)
		abort();
}

static void check_sound(const struct m2n_plan *plan)
{
	uint32_t n_pairs = plan->n_tokens * plan->limits.top_k, n_rows = 0;
	uint32_t n_replies = plan->reply_first[plan->limits.n_ranks];

	require(plan->rank_first[plan->limits.n_ranks] == plan->n_rows);
	require(plan->unique_first[plan->limits.n_ranks] == plan->n_unique);
	for (uint32_t r = 0; r < plan->limits.n_ranks; r++) {
		require(plan->rank_first[r] <= plan->rank_first[r + 1]);
		require(plan->unique_first[r] <= plan->unique_first[r + 1]);
	}
	for (uint32_t p = 0; p < n_pairs; p++) {
		int32_t row = plan->pair_row[p], reply = plan->pair_reply[p];

		require(row >= -1 && row < (int32_t)plan->n_rows);
		require(reply >= -1 && reply < (int32_t)n_replies);
		if (row < 0)
			continue;
		n_rows++;
		require(plan->row_pair[row] == p);
		require(plan->row_token[row] == p / plan->limits.top_k);
		require(plan->pair_rank[p] < plan->limits.n_ranks);
		if (plan->row_unique)
			require(plan->row_unique[row] < plan->n_unique);
	}
	require(n_rows == plan->n_rows);
}

static void check_repack(const struct m2n_plan *plan, const uint8_t *data, size_t bytes)
{
	size_t n_instances = (size_t)plan->n_tokens * plan->limits.top_k, used = 0;
	size_t padding_at = M2N__PLAN_HEADER_BYTES + 2 * n_instances;
	uint8_t *again = malloc(bytes);

	require(again && m2n__plan_pack(plan, again, bytes, &used) == 0 && used == bytes);
	if (n_instances % 2)
		memcpy(again + padding_at, data + padding_at, 2);
	require(memcmp(again, data, bytes) == 0);
	free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const uint32_t first[] = {0, 2, 3, 4, 5, 6, 7}, owners[] = {0, 1, 0, 1, 1, 2, 2};
	struct m2n__plan_limits limits = {
		.max_tokens = 64, .top_k = 3, .n_experts = 6, .n_ranks = 3, .max_instances = 7};
	struct m2n_map *map = NULL;
	struct m2n_plan *plan = NULL;

	if (bytes == 0)
		return 0;
	limits.dedup = data[0] & 1 || data[0] & 2;
	limits.reduce_at_expert = data[0] >> 1 & 1;
	limits.drop_overflow = data[0] >> 2 & 1;
	limits.rank_capacity = data[0] >> 3 & 1 ? 5 : 0;
	require(m2n_map_create(6, 3, first, owners, &map) == 0);
	require(m2n__plan_create(&limits, &plan) == 0);
	if (m2n__plan_unpack(plan, map, data + 1, bytes - 1) == 0)
		check_repack(plan, data + 1, bytes - 1);
	else
		require(plan->n_tokens == 0 && plan->n_rows == 0);
	check_sound(plan);
	m2n__plan_destroy(plan);
	m2n_map_destroy(map);
	return 0;
}
