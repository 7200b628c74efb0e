/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that disagree on a channel's shape: whatever the field, both are told both values and
 * both ranks, nothing is left behind, and the next channel of the same name comes up.
 */
#include <stdio.h>
#include <string.h>

#include "conformance/conformance.h"

struct difference {
	const char *field; /* as it must occur in the text; NULL: not told by name */
	const char *mine, *theirs; /* as they must occur */
	void (*change)(struct m2n_channel_params *params);
	enum conf_scope scope;
};

static const int sources[] = {0, 1}, experts[] = {1, 0}, swapped[] = {1, 0}, fewer[] = {0};

#define CHANGE(name, body)                                                                         \
	static void name(struct m2n_channel_params *params)                                        \
	{                                                                                          \
		body;                                                                              \
	}
CHANGE(other_row_bytes, params->row_bytes = 96)
CHANGE(other_scale_bytes, params->scale_bytes = 12)
CHANGE(other_out_row_bytes, params->out_row_bytes = 48)
CHANGE(other_dtype, params->dtype = M2N_DTYPE_F32)
CHANGE(other_placement, params->placement = M2N_PLACEMENT_EXACT)
CHANGE(other_dedup, params->dedup = 1)
CHANGE(other_top_k, params->top_k = 3)
CHANGE(other_max_tokens, params->max_tokens = 9)
CHANGE(other_depth, params->depth = 5)
CHANGE(other_capacity, params->capacity = 7)
CHANGE(other_n_experts, params->n_experts = 11)
CHANGE(other_sources, params->sources = swapped)
CHANGE(other_n_sinks, (params->sinks = fewer, params->n_sinks = 1))

static const struct difference differences[] = {
	{"row_bytes", "64", "96", other_row_bytes, ANY_MEMORY},
	{"scale_bytes", "0", "12", other_scale_bytes, ANY_MEMORY},
	{"out_row_bytes", "64", "48", other_out_row_bytes, ANY_MEMORY},
	{"dtype", "", "", other_dtype, ANY_MEMORY},
	{"placement", "", "", other_placement, HOST_MEMORY},
	{"dedup", "0", "1", other_dedup, ANY_MEMORY},
	{"top_k", "2", "3", other_top_k, ANY_MEMORY},
	{"max_tokens", "8", "9", other_max_tokens, ANY_MEMORY},
	{"depth", "3", "5", other_depth, ANY_MEMORY},
	{"capacity", "", "7", other_capacity, ANY_MEMORY},
	{"n_experts", "6", "11", other_n_experts, ANY_MEMORY},
	{"sources", "", "", other_sources, ANY_MEMORY},
	{"sinks", "2", "1", other_n_sinks, HOST_MEMORY},
};
#define N_DIFFERENCES (sizeof(differences) / sizeof(differences[0]))

static struct m2n_channel_params agreed(const struct rank *rank)
{
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;

	params.memory = rank->memory;
	params.name = "shape";
	params.sources = sources;
	params.n_sources = 2;
	params.experts = experts;
	params.n_expert_ranks = 2;
	params.n_experts = 6;
	params.top_k = 2;
	params.max_tokens = 8;
	params.row_bytes = 64;
	return params;
}

static void check_fields(struct rank *rank)
{
	struct m2n_channel_params params;
	struct m2n_channel *channel = NULL;

	for (size_t i = 0; i < N_DIFFERENCES; i++) {
		const struct difference *one = &differences[i];

		if (rank->memory == M2N_MEMORY_CUDA && one->scope == HOST_MEMORY)
			continue;
		params = agreed(rank);
		if (rank->rank == 1)
			one->change(&params);
		if (m2n_channel_create(rank->group, &params, &channel) != M2N_ERR_SHAPE)
			rank_fail(__FILE__, __LINE__, "%s: no shape error but \"%s\"", one->field,
				m2n_error_text());
		expect(channel == NULL);
		expect_text(one->field);
		expect_text(one->mine);
		expect_text(one->theirs);
		expect_text("rank 0");
		expect_text("rank 1");
		rank_barrier(rank);
	}
	params = agreed(rank);
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	rank_barrier(rank);
	m2n_channel_destroy(channel);
}

static int fields(const struct conf *conf)
{
	return ranks_run(2, check_fields, NULL, &conf->opts);
}

static void check_map(struct rank *rank)
{
	static const uint32_t first[] = {0, 1, 2, 3, 4, 5, 6}, owners[] = {0, 1, 0, 1, 0, 1};
	struct m2n_channel_params params = agreed(rank);
	struct m2n_channel *channel = NULL;
	struct m2n_map *map = NULL;

	if (rank->rank == 1)
		expect_ok(m2n_map_create(6, 2, first, owners, &map));
	params.map = map;
	expect_status(M2N_ERR_SHAPE, m2n_channel_create(rank->group, &params, &channel));
	expect_text("map");
	rank_barrier(rank);
	m2n_map_destroy(map);
}

static int map(const struct conf *conf)
{
	return ranks_run(2, check_map, NULL, &conf->opts);
}

/* One side would write host memory, the other device memory. */
static void check_memory(struct rank *rank)
{
	struct m2n_channel_params params = agreed(rank);
	struct m2n_channel *channel = NULL;

	params.memory = rank->rank ? M2N_MEMORY_CUDA : M2N_MEMORY_HOST;
	expect_status(M2N_ERR_SHAPE, m2n_channel_create(rank->group, &params, &channel));
	expect_text("memory");
	expect(channel == NULL);
	rank_barrier(rank);
}

static int memory_kinds(const struct conf *conf)
{
	if (!strcmp(conf->backend, "nccl")) {
		printf("# nccl carries no host memory\n");
		return RANKS_SKIP;
	}
	return ranks_run(2, check_memory, NULL, &conf->opts);
}

const struct conf_case shape_cases[] = {
	{"shape: every field that differs is told with both values", 2, fields, ANY_MEMORY},
	{"shape: maps that differ", 2, map, ANY_MEMORY},
	{"shape: host memory here, CUDA memory there", 2, memory_kinds, CUDA_MEMORY},
	{0},
};
