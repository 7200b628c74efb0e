/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every rank does alike: joining, meeting, failing, and the loop over alternations.
 */
#include "rank.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compare_tool.h"

void perf_rank_fail(struct perf_rank *rank, int status, const char *what)
{
	const char *detail = m2n_error_text();

	/* Those who leave because somebody else failed have nothing to say. */
	if (atomic_load(&rank->page->abort))
		_exit(3);
	if (status == 0)
		page_fail(rank->page, rank->rank, "%s", what);
	else
		page_fail(rank->page, rank->rank, "%s: %s%s%s", what, m2n_strerror(status),
			detail[0] != '\0' ? ": " : "", detail);
	if (rank->sync != NULL || rank->page->fd < 0)
		fprintf(stderr, "m2n_perf: rank %d: %s\n", rank->rank, rank->page->failed_text);
	_exit(1);
}

void perf_rank_join(struct perf_rank *rank, const char *group_name)
{
	struct m2n_ctx_params ctx = M2N_CTX_PARAMS_INIT;
	struct m2n_group_params group = M2N_GROUP_PARAMS_INIT;

	char device[32];
	const char *const options[] = {device, NULL};

	snprintf(device, sizeof(device), "CUDA_DEVICE=%d",
		(int)(rank->rank % (int)rank->args->n_gpus));
	ctx.backend = rank->args->backend;
	if (rank->args->memory == M2N_MEMORY_CUDA)
		ctx.options = options;
	perf_rank_check(rank, m2n_ctx_open(&ctx, &rank->ctx), "m2n_ctx_open");
	group.name = group_name;
	group.rank = rank->rank;
	group.n_ranks = rank->n_ranks;
	group.store = rank->job->store;
	perf_rank_check(rank, m2n_group_join(rank->ctx, &group, &rank->group), "m2n_group_join");
}

void perf_rank_leave(struct perf_rank *rank)
{
	m2n_exchange_destroy(rank->sync);
	m2n_group_leave(rank->group);
	m2n_ctx_close(rank->ctx);
	rank->sync = NULL;
	rank->group = NULL;
	rank->ctx = NULL;
}

/* A byte to rank 0 from everybody, and one back. */
static void sync_barrier(struct perf_rank *rank)
{
	struct m2n_iov iov = {"", 1};
	const void *data;
	size_t bytes;
	int first = rank->rank == 0 ? 1 : 0;
	int last = rank->rank == 0 ? rank->n_ranks : 1;

	for (int pass = 0; pass < 2; pass++) {
		bool sends = (rank->rank != 0) == (pass == 0);
		for (int peer = first; peer < last; peer++) {
			if (sends) {
				perf_rank_check(rank,
					m2n_exchange_put(
						rank->sync, peer, &iov, 1, M2N_TIMEOUT_DEFAULT),
					"barrier");
				continue;
			}
			perf_rank_check(rank,
				m2n_exchange_get(
					rank->sync, peer, M2N_TIMEOUT_DEFAULT, &data, &bytes),
				"barrier");
			m2n_exchange_release(rank->sync, peer);
		}
	}
}

void perf_rank_barrier(struct perf_rank *rank)
{
	if (rank->sync != NULL)
		sync_barrier(rank);
	else if (!page_barrier(rank->page, PAGE_OURS, (uint32_t)rank->n_ranks))
		_exit(3);
}

void *perf_rank_memory(struct perf_rank *rank, size_t bytes, struct m2n_mem **mem)
{
	void *base = NULL;

	perf_rank_check(
		rank, m2n_mem_alloc(rank->ctx, bytes > 0 ? bytes : 1, mem, &base), "m2n_mem_alloc");
	return base;
}

void perf_rank_note_backend(struct perf_rank *rank, int peer)
{
	struct m2n_peer_attr attr;
	struct page_rank *result = page_rank(rank->page, (uint32_t)rank->rank);

	if (m2n_group_peer(rank->group, peer, &attr) == 0)
		snprintf(result->backend, sizeof(result->backend), "%s", attr.backend);
}

unsigned perf_job_add(struct perf_job *job, enum perf_kind kind)
{
	job->kinds[job->dims.n_series] = kind;
	return job->dims.n_series++;
}

bool perf_job_has(const struct perf_job *job, enum perf_kind kind)
{
	for (unsigned series = 0; series < job->dims.n_series; series++)
		if (job->kinds[series] == kind)
			return true;
	return false;
}

static void run_mpi_batch(struct perf_rank *rank, uint32_t rep)
{
	perf_rank_barrier(rank);
	if (rank->rank == 0)
		page_post(&rank->page->mpi_open, rep + 1);
	if (!page_wait(rank->page, &rank->page->mpi_done, rep + 1))
		_exit(3);
	perf_rank_barrier(rank);
}

static void run_batch(
	struct perf_rank *rank, perf_step_fn step, void *arg, unsigned series, uint64_t rep)
{
	int64_t first, last;

	perf_batch(rank->args, rep, &first, &last);
	perf_rank_barrier(rank);
	for (int64_t i = 0; i < PERF_SETTLE; i++)
		step(arg, series, -1 - i);
	for (int64_t i = first; i < last; i++) {
		step(arg, series, i);
		perf_rank_step(rank);
	}
	if (rank->batch_end != NULL)
		rank->batch_end(arg, series);
}

void perf_rank_loop(struct perf_rank *rank, perf_step_fn step, void *arg)
{
	const struct perf_job *job = rank->job;

	/* Its start is over before anything is measured. */
	if (perf_job_has(job, PERF_MPI) && !page_wait(rank->page, &rank->page->mpi_ready, 1))
		_exit(3);
	for (unsigned series = 0; series < job->dims.n_series; series++) {
		if (job->kinds[series] == PERF_MPI || job->kinds[series] >= PERF_FIRST_TOOL)
			continue;
		perf_rank_barrier(rank);
		for (uint64_t i = 0; i < rank->args->n_warmup; i++)
			step(arg, series, -1 - (int64_t)i);
		if (rank->batch_end != NULL)
			rank->batch_end(arg, series);
	}
	for (uint64_t rep = 0; rep < rank->args->n_reps; rep++) {
		for (unsigned series = 0; series < job->dims.n_series; series++) {
			if (job->kinds[series] == PERF_MPI)
				run_mpi_batch(rank, (uint32_t)rep);
			else if (job->kinds[series] >= PERF_FIRST_TOOL)
				perf_tool_batch(rank, series, (uint32_t)rep);
			else
				run_batch(rank, step, arg, series, rep);
		}
	}
}
