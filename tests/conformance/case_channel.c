/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channels: what create refuses and how it says so, memory as predicted, what query tells, and
 * ranks that disagree on a field of the shape.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conformance/conformance.h"
#include "helpers/job_run.h"

static const int zero;
static enum m2n_memory memory_in_use; /* of the rank that this process is */

static struct m2n_channel_params small(void)
{
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;

	params.memory = memory_in_use;
	params.name = "small";
	params.sources = &zero;
	params.n_sources = 1;
	params.experts = &zero;
	params.n_expert_ranks = 1;
	params.n_experts = 4;
	params.top_k = 2;
	params.max_tokens = 8;
	params.row_bytes = 64;
	return params;
}

/* Create refuses, the text holds the field and the range, and nothing is left. */
static void refuse(struct rank *rank, const struct m2n_channel_params *params, const char *field,
	const char *range)
{
	struct m2n_channel_memory memory = {1, 2, 3, 4, 5, 6, 7};
	struct m2n_channel *channel = NULL;

	expect_status(-EINVAL, m2n_channel_create(rank->group, params, &channel));
	expect_text(field);
	expect_text(range);
	expect(channel == NULL);
	expect_status(-EINVAL, m2n_channel_query_memory(params, 0, &memory));
	expect_equal(memory.total_bytes, 4);
}

#define REFUSE(rank, field, value, range)                                                          \
	do {                                                                                       \
		struct m2n_channel_params bad_ = small();                                          \
		bad_.field = (value);                                                              \
		refuse(rank, &bad_, #field, range);                                                \
	} while (0)

static void check_errors(struct rank *rank)
{
	static const int nobody = -1, twice[] = {0, 0};
	struct m2n_channel_params params;
	struct m2n_channel *channel = NULL;

	memory_in_use = rank->memory;
	REFUSE(rank, name, NULL, "1..15");
	REFUSE(rank, name, "", "1..15");
	REFUSE(rank, name, "sixteen letters!", "15");
	REFUSE(rank, n_experts, 0, "1..");
	REFUSE(rank, top_k, 0, "1..64");
	REFUSE(rank, top_k, 65, "1..64");
	REFUSE(rank, max_tokens, 0, "1..");
	REFUSE(rank, row_bytes, 0, "1..");
	REFUSE(rank, depth, 0, "1..64");
	REFUSE(rank, depth, 65, "1..64");
	REFUSE(rank, out_row_bytes, 63, "multiple");
	REFUSE(rank, dtype, (enum m2n_dtype)9, "");
	REFUSE(rank, placement, (enum m2n_placement)9, "");
	REFUSE(rank, overflow, (enum m2n_overflow)9, "");
	REFUSE(rank, cast, (enum m2n_cast)9, "");
	REFUSE(rank, memory, (enum m2n_memory)9, "");
	REFUSE(rank, reduce_at_expert, 1, "dedup");
	params = small();
	params.n_sources = 0;
	refuse(rank, &params, "sources", "1..");
	params = small();
	params.n_expert_ranks = 0;
	refuse(rank, &params, "experts", "1..");
	params = small();
	params.sources = twice;
	params.n_sources = 2;
	refuse(rank, &params, "sources", "0");
	params = small();
	params.sources = &nobody;
	expect_status(-EINVAL, m2n_channel_create(rank->group, &params, &channel));
	expect_text("sources");
	params = small();
	params.cast = M2N_CAST_BF16_FP8;
	params.scale_bytes = 3;
	refuse(rank, &params, "scale_bytes", "4");
	params = small();
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	m2n_channel_destroy(channel);
	m2n_channel_destroy(NULL);
}

static int errors(const struct conf *conf)
{
	return ranks_run(1, check_errors, NULL, &conf->opts);
}

static void check_huge(struct rank *rank)
{
	struct m2n_channel_params params;
	struct m2n_channel *channel = NULL;
	struct m2n_channel_memory memory;
	int status;

	memory_in_use = rank->memory;
	params = small();
	params.row_bytes = (size_t)1 << 40;
	params.max_tokens = UINT32_MAX;
	params.depth = 64;
	params.top_k = 64;
	status = m2n_channel_create(rank->group, &params, &channel);
	expect(status == -EINVAL || status == -ENOMEM);
	expect(channel == NULL);
	params = small();
	params.row_bytes = SIZE_MAX;
	status = m2n_channel_create(rank->group, &params, &channel);
	expect(status == -EINVAL || status == -ENOMEM);
	params = small();
	params.row_bytes = (size_t)1 << 40;
	params.max_tokens = 1 << 20;
	if (m2n_channel_query_memory(&params, 0, &memory) == 0)
		expect(memory.total_bytes >= (size_t)1 << 60);
	params = small();
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	m2n_channel_destroy(channel);
}

static int huge(const struct conf *conf)
{
	return ranks_run(1, check_huge, NULL, &conf->opts);
}

static size_t shared_bytes_mapped(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[1024], flags[8];
	unsigned long first, last;
	size_t bytes = 0;

	expect(maps != NULL);
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %7s", &first, &last, flags) == 3 && flags[3] == 's')
			bytes += last - first;
	}
	fclose(maps);
	return bytes;
}

/* What create maps, of its own, is what was predicted: the slots of one rank with itself. */
static void check_memory(struct rank *rank)
{
	struct m2n_channel_params params;
	struct m2n_channel_memory memory;
	struct m2n_channel *channel;
	struct m2n_channel_attr attr;
	size_t before;

	memory_in_use = rank->memory;
	params = small();
	params.row_bytes = 4096;
	params.max_tokens = 512;
	params.depth = 3;
	expect_ok(m2n_channel_query_memory(&params, 0, &memory));
	expect_equal(memory.total_bytes, memory.dispatch_bytes + memory.reply_bytes +
						 memory.control_bytes + memory.batch_bytes);
	if (rank->memory == M2N_MEMORY_CUDA)
		expect(memory.batch_bytes >= (size_t)3 * 512 * 2 * 4096);
	else
		expect_equal(memory.batch_bytes, 0);
	expect(memory.dispatch_bytes >= (size_t)3 * 512 * 2 * 4096);
	expect(memory.reply_bytes >= (size_t)3 * 512 * 2 * 4096);
	before = shared_bytes_mapped();
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	/* Huge pages may round up. */
	if (rank->memory == M2N_MEMORY_HOST && shared_bytes_mapped() > before) {
		expect(shared_bytes_mapped() - before + (4 << 20) >=
			memory.dispatch_bytes + memory.reply_bytes);
	}
	expect_ok(m2n_channel_query(channel, &attr));
	expect(attr.source == 0 && attr.expert == 0 && attr.sink == 0);
	expect(attr.next_send_round == 0 && attr.next_recv_round == 0);
	expect_equal(attr.n_local_experts, 4);
	m2n_channel_destroy(channel);
	/* A rank in no list takes next to nothing; a rank that is only a source has no slots. */
	expect_ok(m2n_channel_query_memory(&params, 5, &memory));
	expect_equal(memory.dispatch_bytes + memory.reply_bytes + memory.batch_bytes, 0);
}

static int memory_of(const struct conf *conf)
{
	return ranks_run(1, check_memory, NULL, &conf->opts);
}

static void check_roles(struct rank *rank)
{
	const int sources[] = {0, 1}, experts[] = {2, 1}, sinks[] = {2};
	struct m2n_channel_params params = small();
	struct m2n_channel_attr attr;
	struct m2n_channel_memory memory;
	struct m2n_channel *channel;

	params.sources = sources;
	params.n_sources = 2;
	params.experts = experts;
	params.n_expert_ranks = 2;
	params.sinks = sinks;
	params.n_sinks = 1;
	params.n_experts = 5;
	expect_ok(m2n_channel_query_memory(&params, rank->rank, &memory));
	expect((memory.dispatch_bytes > 0) == (rank->rank > 0));
	expect((memory.reply_bytes > 0) == (rank->rank == 2));
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	expect_ok(m2n_channel_query(channel, &attr));
	expect_equal(attr.source, rank->rank < 2 ? rank->rank : -1);
	expect_equal(attr.expert, rank->rank == 0 ? -1 : 2 - rank->rank);
	expect_equal(attr.sink, rank->rank == 2 ? 0 : -1);
	expect_equal(attr.n_local_experts, rank->rank == 2 ? 3 : rank->rank == 1 ? 2 : 0);
	rank_barrier(rank);
	m2n_channel_destroy(channel);
}

static int roles(const struct conf *conf)
{
	return ranks_run(3, check_roles, NULL, &conf->opts);
}

const struct conf_case channel_cases[] = {
	{"channel: errors of create name field and range", 1, errors, ANY_MEMORY},
	{"channel: sizes that no memory holds", 1, huge, ANY_MEMORY},
	{"channel: memory as predicted", 1, memory_of, ANY_MEMORY},
	{"channel: roles and indexes", 3, roles, HOST_MEMORY},
	{0},
};
