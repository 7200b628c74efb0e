/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rank of a launcher's job (mpirun, torchrun, srun, M2N_RANK...): libm2n finds rank, size and
 * store itself. The ranks meet and hand their results to rank 0 through an exchange. Whether all
 * are on one host decides if their stamps can be compared.
 */
#include "run.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap/launcher.h"
#include "core/option.h"

#define CHUNK_BYTES (64u << 10)

/*
 * What the launcher says. In CUDA memory it is asked before there is a context: a process that is
 * going to fork its ranks must not have used CUDA.
 */
static bool is_launched(struct m2n__launch *launch)
{
	*launch = (struct m2n__launch){.rank = -1, .n_ranks = -1, .local_rank = -1};
	/* What cannot be read is told when the group is joined. */
	return m2n__launch_detect(m2n__getenv, NULL, launch) != 0 || launch->rank >= 0;
}

int perf_launch_join(const struct perf_args *args, struct perf_rank *rank)
{
	struct m2n_ctx_params params = M2N_CTX_PARAMS_INIT;
	struct m2n__launch launch;
	char device[32];
	const char *const options[] = {device, NULL};

	*rank = (struct perf_rank){.args = args};
	if (args->memory == M2N_MEMORY_CUDA) {
		if (!is_launched(&launch))
			return 0;
		int local = launch.local_rank >= 0 ? launch.local_rank : launch.rank;
		snprintf(device, sizeof(device), "CUDA_DEVICE=%d",
			local > 0 ? local % (int)args->n_gpus : 0);
		params.options = options;
	}
	params.backend = args->backend;
	int status = m2n_ctx_open(&params, &rank->ctx);
	if (status != 0) {
		fprintf(stderr, "m2n_perf: m2n_ctx_open: %s: %s\n", m2n_strerror(status),
			m2n_error_text());
		return -1;
	}
	status = m2n_group_join(rank->ctx, NULL, &rank->group);
	if (status == 0) {
		rank->rank = m2n_group_rank(rank->group);
		rank->n_ranks = m2n_group_size(rank->group);
		return 1;
	}
	if (status != -EINVAL)
		fprintf(stderr, "m2n_perf: m2n_group_join: %s: %s\n", m2n_strerror(status),
			m2n_error_text());
	m2n_ctx_close(rank->ctx);
	rank->ctx = NULL;
	return status == -EINVAL ? 0 : -1;
}

static void open_sync(struct perf_rank *rank)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	int peers[2048];
	size_t n = 0;

	if (rank->rank != 0)
		peers[n++] = 0;
	for (int peer = 1; rank->rank == 0 && peer < rank->n_ranks; peer++)
		peers[n++] = peer;
	params.name = "m2n_perf";
	params.send_to = params.recv_from = peers;
	params.n_send = params.n_recv = n;
	params.max_bytes = CHUNK_BYTES;
	params.depth = 2;
	perf_rank_check(rank, m2n_exchange_create(rank->group, &params, &rank->sync),
		"m2n_exchange_create");
}

/* Copies a part of every rank's page into rank 0's; `at` gives the part in a page. */
static void gather(struct perf_rank *rank, void *(*at)(struct page *, uint32_t), size_t bytes)
{
	for (int peer = 1; peer < rank->n_ranks; peer++) {
		if (rank->rank != 0 && rank->rank != peer)
			continue;
		char *part = at(rank->page, (uint32_t)peer);
		for (size_t done = 0; done < bytes;) {
			size_t n = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
			struct m2n_iov iov = {part + done, n};
			const void *data;
			if (rank->rank != 0) {
				perf_rank_check(rank,
					m2n_exchange_put(
						rank->sync, 0, &iov, 1, M2N_TIMEOUT_DEFAULT),
					"gather results");
			} else {
				perf_rank_check(rank,
					m2n_exchange_get(
						rank->sync, peer, M2N_TIMEOUT_DEFAULT, &data, &n),
					"gather results");
				memcpy(part + done, data, n);
				m2n_exchange_release(rank->sync, peer);
			}
			done += n;
		}
	}
	if (rank->rank != 0)
		perf_rank_check(rank, m2n_exchange_flush(rank->sync, 0, M2N_TIMEOUT_DEFAULT),
			"gather results");
}

static void *part_rank(struct page *page, uint32_t rank)
{
	return page_rank(page, rank);
}

static void *part_peers(struct page *page, uint32_t rank)
{
	return page_peer(page, rank, 0, 0);
}

static void *part_notes(struct page *page, uint32_t rank)
{
	return page_cost(page, rank, 0);
}

static void *part_sheet(struct page *page, uint32_t rank)
{
	return page_stamps(page, rank, 0, 0);
}

static void note_host(struct perf_rank *rank)
{
	struct page_rank *result = page_rank(rank->page, (uint32_t)rank->rank);
	char boot[48] = "";
	FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

	if (file != NULL) {
		if (fgets(boot, sizeof(boot), file) == NULL)
			boot[0] = '\0';
		fclose(file);
	}
	snprintf(result->host, sizeof(result->host), "%s", boot);
}

/* Rank 0 sees all hosts and tells everybody whether there is more than one. */
static void agree_on_hosts(struct perf_rank *rank)
{
	char many = 0;
	struct m2n_iov iov = {&many, 1};

	note_host(rank);
	gather(rank, part_rank, sizeof(struct page_rank));
	if (rank->rank == 0) {
		for (int i = 1; i < rank->n_ranks; i++)
			many |= strcmp(page_rank(rank->page, 0)->host,
					page_rank(rank->page, (uint32_t)i)->host) != 0;
		for (int i = 1; i < rank->n_ranks; i++)
			perf_rank_check(rank,
				m2n_exchange_put(rank->sync, i, &iov, 1, M2N_TIMEOUT_DEFAULT),
				"agree on hosts");
	} else {
		const void *data;
		size_t bytes;
		perf_rank_check(rank,
			m2n_exchange_get(rank->sync, 0, M2N_TIMEOUT_DEFAULT, &data, &bytes),
			"agree on hosts");
		many = *(const char *)data;
		m2n_exchange_release(rank->sync, 0);
	}
	rank->job->many_hosts = many;
}

int perf_run_launched(struct perf_job *job, struct perf_rank *rank)
{
	int n_sources = (int)job->args->n_sources;

	rank->job = job;
	rank->page = job->page;
	rank->source = rank->rank < n_sources ? rank->rank : -1;
	rank->expert = rank->rank < n_sources ? -1 : rank->rank - n_sources;
	if (job->args->classic)
		rank->expert = rank->rank;
	if (!job->args->no_pin)
		perf_pin((unsigned)rank->rank);
	open_sync(rank);
	agree_on_hosts(rank);
	job->body(rank);
	page_rank(job->page, (uint32_t)rank->rank)->finished = 1;
	gather(rank, part_rank, sizeof(struct page_rank));
	gather(rank, part_peers,
		sizeof(struct page_peer) * PAGE_N_FLOWS * job->dims.n_ranks);
	gather(rank, part_notes, page_rank_notes_bytes(job->page));
	gather(rank, part_sheet, page_rank_sheet_bytes(job->page));
	perf_rank_barrier(rank);
	perf_rank_leave(rank);
	return 0;
}
