/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start-up: from a common start until every rank has opened a context, joined and created the
 * channel, and of that the part in which the connections are opened; what that costs in memory,
 * next to what m2n_channel_query_memory() says. The yardstick opens as many connections.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compare_tool.h"
#include "moe.h"
#include "tests.h"

/* A figure of /proc/self/FILE in bytes, 0 when it is not there. */
static uint64_t read_kb(const char *path, const char *key)
{
	char line[256];
	uint64_t kb = 0;
	FILE *file = fopen(path, "re");

	while (file != NULL && fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, key, strlen(key)) == 0)
			sscanf(line + strlen(key), "%" SCNu64, &kb);
	if (file != NULL)
		fclose(file);
	return kb * 1024;
}

/* A page that several ranks map counts in equal parts, so that the sum over ranks is the truth. */
static uint64_t share_of_memory(void)
{
	return read_kb("/proc/self/smaps_rollup", "Pss_Anon:") +
		read_kb("/proc/self/smaps_rollup", "Pss_Shmem:");
}

/* Memory that came with context, group and channel, while all ranks have theirs. */
static void note_memory(struct perf_rank *rank, const struct m2n_channel_params *params,
	uint64_t share_before, uint64_t mapped_before)
{
	struct page_rank *result = page_rank(rank->page, (uint32_t)rank->rank);
	struct m2n_channel_memory memory;

	perf_rank_barrier(rank);
	uint64_t share = share_of_memory();
	result->memory_share = share > share_before ? share - share_before : 0;
	result->memory_mapped = read_kb("/proc/self/status", "VmSize:") - mapped_before;
	perf_rank_check(rank, m2n_channel_query_memory(params, rank->rank, &memory),
		"m2n_channel_query_memory");
	result->memory_predicted = memory.total_bytes;
}

enum init_case {
	INIT_ALL = 0,
	INIT_CONNECT = 1, /* m2n_channel_create(): connections, and memory and keys exchanged */
	INIT_N_CASES,
};

static void open_once(struct perf_rank *rank, int64_t iter)
{
	uint32_t me = (uint32_t)rank->rank;
	struct page_stamp *all = page_stamps(rank->page, me, INIT_ALL, 0) + iter;
	struct page_stamp *connect = page_stamps(rank->page, me, INIT_CONNECT, 0) + iter;
	struct m2n_channel_params params;
	struct m2n_channel *channel;
	char name[32];

	moe_channel_params(rank->args, rank->job->routing, &params);
	snprintf(name, sizeof(name), "init%" PRId64, iter);
	perf_rank_barrier(rank);
	uint64_t share = iter == 0 ? share_of_memory() : 0;
	uint64_t mapped = iter == 0 ? read_kb("/proc/self/status", "VmSize:") : 0;
	perf_rank_barrier(rank);
	all->start = perf_now();
	perf_rank_join(rank, name);
	connect->start = perf_now();
	perf_rank_check(
		rank, m2n_channel_create(rank->group, &params, &channel), "m2n_channel_create");
	connect->end = all->end = perf_now();
	if (iter == 0)
		note_memory(rank, &params, share, mapped);
	perf_rank_note_backend(rank, rank->source >= 0 ? (int)rank->args->n_sources : 0);
	perf_rank_barrier(rank);
	m2n_channel_destroy(channel);
	perf_rank_barrier(rank);
	perf_rank_leave(rank);
	perf_rank_step(rank);
}

/* A tool's run takes as long for all of start-up as for its connections. */
static void run_tool(struct perf_rank *rank, unsigned series, uint32_t rep)
{
	uint32_t me = (uint32_t)rank->rank;
	char name[32];

	snprintf(name, sizeof(name), "tool%u.%u", series, rep);
	perf_rank_join(rank, name);
	perf_tool_batch(rank, series, rep);
	perf_rank_leave(rank);
	page_figures(rank->page, me, INIT_CONNECT, series)[rep] =
		page_figures(rank->page, me, INIT_ALL, series)[rep];
}

static void body(struct perf_rank *rank)
{
	for (uint32_t rep = 0; rep < rank->args->n_reps; rep++) {
		int64_t first, last;
		perf_batch(rank->args, rep, &first, &last);
		for (int64_t i = first; i < last; i++)
			open_once(rank, i);
		for (unsigned series = 1; series < rank->job->dims.n_series; series++)
			run_tool(rank, series, rep);
	}
}

static bool prepare(struct perf_job *job, char *text, size_t text_bytes)
{
	job->routing = perf_routing_make(job->args, text, text_bytes);
	job->body = body;
	job->joins_itself = true;
	perf_job_add(job, PERF_OURS);
	perf_tool_add(job);
	job->dims.n_cases = INIT_N_CASES;
	job->dims.n_iters = (uint32_t)job->args->n_iters;
	job->n_steps = job->args->n_iters * job->dims.n_series *
		(job->args->n_sources + job->args->n_expert_ranks);
	return job->routing != NULL;
}

static bool make_cases(const struct perf_job *job, struct perf_report *report)
{
	static const char *const phases[] = {[INIT_ALL] = NULL, [INIT_CONNECT] = "connect"};
	struct perf_case *cases = calloc(INIT_N_CASES, sizeof(*cases));
	bool ok = cases != NULL;

	report->cases = cases;
	report->n_cases = INIT_N_CASES;
	for (uint32_t i = 0; ok && i < INIT_N_CASES; i++) {
		cases[i] = (struct perf_case){.phase = phases[i],
			.tokens = job->routing->max_tokens,
			.row_bytes = job->args->row_bytes,
			.top_k = job->routing->top_k,
			.route_us = -1};
		ok = perf_case_reduce(job, i, 1, &cases[i]);
	}
	return ok;
}

const struct perf_test_ops perf_init_ops = {prepare, make_cases};
