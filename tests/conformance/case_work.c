/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The work of a round. On messaging backends: with registered memory no byte of a row is copied,
 * and transfers are as few as the backend's gather limit allows. The number of pieces is counted
 * here by hand from the routing; copies are counted in a table of kernels put in place of ours.
 */
#include <stdio.h>
#include <string.h>

#include "conformance/conformance.h"
#include "core/context.h"
#include "helpers/job_device.h"

static const struct job work_job = {
	.name = "work",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 8,
	.top_k = 4,
	.n_tokens = 120,
	.row_bytes = 96,
	.out_row_bytes = 64,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 2,
	.n_rounds = 6,
	.seed = 71,
	.registered = 1,
};

static const struct m2n__kernels *real;
static uint64_t copied;

static void count_copy(void *dst, const void *src, size_t bytes)
{
	copied += bytes;
	real->copy(dst, src, bytes);
}

static void count_stream(void *dst, const void *src, size_t bytes)
{
	copied += bytes;
	real->stream(dst, src, bytes);
}

static void count_scatter(void *const *dst, unsigned n_dst, const void *src, size_t bytes)
{
	copied += n_dst * bytes;
	real->scatter(dst, n_dst, src, bytes);
}

/* The experts of a rank with the default map: blocks. */
static int owner(const struct job *job, int32_t expert)
{
	return expert / (int32_t)(job->n_experts / (uint32_t)job->n_expert_ranks);
}

/* Rows of one source at one rank in (expert, token, k) order: runs of neighbours in memory. */
static uint32_t count_runs(const struct job *job, uint32_t round, int source, int rank)
{
	uint32_t n = job_n_tokens(job, source), runs = 0;
	int64_t last = -2;

	for (int32_t e = 0; e < (int32_t)job->n_experts; e++) {
		for (uint32_t t = 0; t < n && owner(job, e) == rank; t++) {
			int32_t ids[JOB_MAX_TOP_K];

			job_ids(job, round, job_first_token(job, source) + t, ids);
			for (uint32_t k = 0; k < job->top_k; k++) {
				if (ids[k] != e)
					continue;
				runs += last + 1 != (int64_t)t;
				last = t;
			}
		}
	}
	return runs;
}

/* Outputs lie in the order (expert, source): cells touch where no other's is between. */
static uint32_t count_cells(const struct job *job, uint32_t round, int source, int rank)
{
	int touching = 0;
	uint32_t cells = 0;

	for (int32_t e = 0; e < (int32_t)job->n_experts; e++) {
		for (int s = 0; s < job->n_sources && owner(job, e) == rank; s++) {
			uint32_t rows = 0;

			for (uint32_t t = 0; t < job_n_tokens(job, s); t++) {
				int32_t ids[JOB_MAX_TOP_K];

				job_ids(job, round, job_first_token(job, s) + t, ids);
				for (uint32_t k = 0; k < job->top_k; k++)
					rows += ids[k] == e;
			}
			if (s == source && rows)
				cells += !touching;
			if (rows)
				touching = s == source;
		}
	}
	return cells;
}

static uint64_t transfers(uint64_t pieces, uint64_t limit)
{
	return (pieces + limit - 1) / limit;
}

static uint64_t transfers_of_rows(uint32_t round, int source, int rank, uint64_t limit)
{
	return transfers(1 + count_runs(&work_job, round, source, rank), limit);
}

/* The head goes to another place than the rows. */
static uint64_t transfers_of_replies(uint32_t round, int source, int rank, uint64_t limit)
{
	return 1 + transfers(count_cells(&work_job, round, source, rank), limit);
}

static void check_work(struct rank *rank)
{
	struct m2n__kernels counting = *rank->ctx->kernels;
	struct m2n_counters sent;
	uint64_t limit, want = 0;
	struct job_rank jr;
	int peer_index;

	real = rank->ctx->kernels;
	counting.copy = count_copy;
	counting.stream = count_stream;
	counting.scatter = count_scatter;
	expect_ok(job_open(&jr, rank, &work_job));
	rank->ctx->kernels = &counting;
	job_rounds(&jr);
	rank->ctx->kernels = real;
	limit = rank->ctx->polled[0]->max_iov;
	peer_index = 1;
	for (uint32_t round = 0; round < work_job.n_rounds; round++)
		want += jr.source >= 0 ? transfers_of_rows(round, jr.source, peer_index, limit)
				       : transfers_of_replies(round, peer_index, jr.expert, limit);
	expect_ok(m2n_channel_counters(jr.channel, jr.source >= 0 ? M2N_DISPATCH : M2N_COMBINE,
		jr.source >= 0 ? job_expert_rank(&work_job, peer_index)
			       : job_source_rank(&work_job, peer_index),
		&sent, NULL));
	if (strcmp(rank->backend, "ucx")) /* which has no gather lists */
		expect_equal(sent.n_puts, want);
	expect_equal(sent.staged_bytes, 0);
	expect_equal(copied, 0);
	rank_barrier(rank);
	job_close(&jr);
}

/* Where memory is mapped rows are stored; nothing is put, and nothing staged. */
static void check_stores(struct rank *rank)
{
	struct m2n_counters sent;
	struct job_rank jr;
	uint64_t bytes = 0;

	expect_ok(job_open(&jr, rank, &work_job));
	job_rounds(&jr);
	job_device_settle(&jr);
	for (int i = 0; i < 2; i++) {
		expect_ok(m2n_channel_counters(jr.channel,
			jr.source >= 0 ? M2N_DISPATCH : M2N_COMBINE,
			jr.source >= 0 ? job_expert_rank(&work_job, i)
				       : job_source_rank(&work_job, i),
			&sent, NULL));
		if (strcmp(rank->backend, "nccl"))
			expect_equal(sent.n_puts, 0);
		expect_equal(sent.staged_bytes, 0);
		bytes += sent.bytes;
	}
	expect(bytes > 0);
	rank_barrier(rank);
	job_close(&jr);
}

static int work(const struct conf *conf)
{
	int in_host = conf->memory == M2N_MEMORY_HOST;

	return ranks_run(
		4, conf->messaging && in_host ? check_work : check_stores, NULL, &conf->opts);
}

const struct conf_case work_cases[] = {
	{"work: nothing is copied, transfers are as few as can be", 4, work, ANY_MEMORY},
	{0},
};
