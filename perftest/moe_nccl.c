/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The yardstick of moe in CUDA memory by NCCL: one group of ncclSend and ncclRecv to the experts,
 * one back. Rows lie packed by expert rank beforehand, counts are known on both sides and nothing
 * is summed: only the moving is charged. NCCL is the library that backend nccl would open.
 *
 * Several ranks on one GPU is nothing that NCCL allows by itself. From 2.30 on a variable permits
 * it; before that each rank, as a process of its own, can say that it is another host, and then
 * all goes through sockets: correct, and slow.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/nccl/lib.h"
#include "moe_gpu.h"

#define MULTI_RANK_VERSION 23000
#define MULTI_RANK_CTAS 96 /* of all ranks on a GPU: fewer than it has multiprocessors */

struct moe_nccl {
	void *comm;
	char *sent, *received;   /* device: rows that go out, and that come in, of dispatch */
	char *answers, *replies; /* the same of combine */
};

static void need(struct moe_gpu *g, int result, const char *what)
{
	if (result != M2N__NCCL_SUCCESS)
		perf_rank_check(g->moe->rank, m2n__nccl_error(result, g->nccl->comm, what),
			"NCCL yardstick");
}

static bool share_a_gpu(const struct perf_args *args)
{
	return perf_n_ranks(args) > args->n_gpus;
}

bool moe_nccl_usable(struct perf_job *job)
{
	const struct perf_args *args = job->args;
	char *how = job->nccl_how, version[24];
	size_t how_bytes = sizeof(job->nccl_how);

	if (m2n__nccl_load() != 0) {
		snprintf(how, how_bytes, "%s", m2n_error_text());
		return false;
	}
	m2n__nccl_version_text(m2n__nccl.version, version);
	if (!share_a_gpu(args)) {
		snprintf(how, how_bytes, "NCCL %s", version);
		return true;
	}
	if (m2n__nccl.version >= MULTI_RANK_VERSION) {
		/* Kernels of all ranks wait for each other and must be resident together. */
		unsigned n_ctas = (unsigned)(MULTI_RANK_CTAS / perf_n_ranks(args));
		char ctas[16];
		snprintf(ctas, sizeof(ctas), "%u", n_ctas > 0 ? n_ctas : 1);
		setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
		setenv("NCCL_NVLS_ENABLE", "0", 0);
		setenv("NCCL_MAX_CTAS", ctas, 0);
		snprintf(how, how_bytes, "NCCL %s, NCCL_MULTI_RANK_GPU_ENABLE=1, %s CTAs a rank",
			version, ctas);
		return true;
	}
	if (args->threads) {
		snprintf(how, how_bytes,
			"NCCL %s does not let threads of one process share a GPU; "
			"2.30 or later does, or ranks as processes",
			version);
		return false;
	}
	job->nccl_hosts = true;
	setenv("NCCL_NET", "Socket", 0);
	snprintf(how, how_bytes, "NCCL %s, a NCCL_HOSTID for each rank, over sockets", version);
	return true;
}

size_t moe_nccl_extra_bytes(void)
{
	return sizeof(struct m2n__nccl_id);
}

static void make_comm(struct moe_gpu *g)
{
	struct perf_rank *rank = g->moe->rank;
	struct m2n__nccl_id *shared = page_extra(rank->page);
	struct m2n__nccl_config config = {.size = sizeof(config),
		.magic = M2N__NCCL_CONFIG_MAGIC,
		.version = M2N__NCCL_MIN_VERSION,
		.blocking = 1,
		.cga_cluster_size = M2N__NCCL_UNDEFINED,
		.min_ctas = M2N__NCCL_UNDEFINED,
		.max_ctas = M2N__NCCL_UNDEFINED,
		.split_share = M2N__NCCL_UNDEFINED,
		.traffic_class = M2N__NCCL_UNDEFINED};

	if (rank->rank == 0)
		need(g, m2n__nccl.ncclGetUniqueId(shared), "ncclGetUniqueId");
	perf_rank_barrier(rank);
	need(g,
		m2n__nccl.ncclCommInitRankConfig(
			&g->nccl->comm, rank->n_ranks, *shared, rank->rank, &config),
		"ncclCommInitRankConfig");
}

static uint64_t most_rows(const struct moe *moe, int source, int expert)
{
	uint64_t most = 0;

	for (uint32_t v = 0; v < moe->routing->n_variants; v++) {
		uint64_t n = perf_routing_rows(moe->routing, v, source, expert);
		most = n > most ? n : most;
	}
	return most;
}

static char *alloc(struct moe_gpu *g, uint64_t bytes)
{
	void *at = NULL;

	perf_rank_check(g->moe->rank, perf_gpu_alloc(&g->gpu, bytes, &at), "NCCL yardstick");
	return at;
}

void moe_nccl_open(struct moe_gpu *g)
{
	const struct moe *moe = g->moe;

	g->nccl = calloc(1, sizeof(*g->nccl));
	if (g->nccl == NULL)
		perf_rank_fail(moe->rank, -ENOMEM, "NCCL yardstick");
	if (moe->rank->source >= 0) {
		uint64_t n = most_rows(moe, moe->rank->source, -1);
		g->nccl->sent = alloc(g, n * moe->row_bytes);
		g->nccl->replies = alloc(g, n * moe->out_row_bytes);
	}
	if (moe->rank->expert >= 0) {
		uint64_t n = most_rows(moe, -1, moe->rank->expert);
		g->nccl->received = alloc(g, n * moe->row_bytes);
		g->nccl->answers = alloc(g, n * moe->out_row_bytes);
	}
	make_comm(g);
}

void moe_nccl_close(struct moe_gpu *g)
{
	if (g->nccl == NULL)
		return;
	if (g->nccl->comm != NULL)
		m2n__nccl.ncclCommAbort(g->nccl->comm);
	char *all[] = {g->nccl->sent, g->nccl->received, g->nccl->answers, g->nccl->replies};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		perf_gpu_free(&g->gpu, all[i]);
	free(g->nccl);
	g->nccl = NULL;
}

/* Part of one group: this rank's rows with every peer of the other role, as source or expert. */
static void post(
	struct moe_gpu *g, uint32_t variant, bool as_source, bool sends, char *at, size_t row_bytes)
{
	const struct moe *moe = g->moe;
	const struct perf_rank *rank = moe->rank;
	uint32_t n_peers = as_source ? moe->routing->n_expert_ranks : moe->routing->n_sources;
	int first = as_source && !moe->args->classic ? (int)moe->args->n_sources : 0;

	for (uint32_t i = 0; i < n_peers; i++) {
		uint64_t n = perf_routing_rows(moe->routing, variant,
			as_source ? rank->source : (int)i, as_source ? (int)i : rank->expert);
		int peer = first + (int)i;
		if (n == 0)
			continue;
		if (sends)
			need(g,
				m2n__nccl.ncclSend(at, n * row_bytes, M2N__NCCL_UINT8, peer,
					g->nccl->comm, g->gpu.stream),
				"ncclSend");
		else
			need(g,
				m2n__nccl.ncclRecv(at, n * row_bytes, M2N__NCCL_UINT8, peer,
					g->nccl->comm, g->gpu.stream),
				"ncclRecv");
		at += n * row_bytes;
	}
}

void moe_nccl_step(struct moe_gpu *g, uint32_t variant)
{
	const struct moe *moe = g->moe;
	bool source = moe->rank->source >= 0, expert = moe->rank->expert >= 0;

	need(g, m2n__nccl.ncclGroupStart(), "ncclGroupStart");
	if (source)
		post(g, variant, true, true, g->nccl->sent, moe->row_bytes);
	if (expert)
		post(g, variant, false, false, g->nccl->received, moe->row_bytes);
	need(g, m2n__nccl.ncclGroupEnd(), "ncclGroupEnd");
	need(g, m2n__nccl.ncclGroupStart(), "ncclGroupStart");
	if (expert)
		post(g, variant, false, true, g->nccl->answers, moe->out_row_bytes);
	if (source)
		post(g, variant, true, false, g->nccl->replies, moe->out_row_bytes);
	need(g, m2n__nccl.ncclGroupEnd(), "ncclGroupEnd");
}
