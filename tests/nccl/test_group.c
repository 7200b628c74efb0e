/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups over the NCCL backend on the stand-ins: ranks find each other, a killed one is named by
 * all others, a new process in its place is connected again, while the others stay connected.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/nccl/lib.h"
#include "mesh.h"

#define VICTIM 1

enum { READY, KILLED, LOST_SEEN, BACK };

static void add_all(struct rank *rank)
{
	for (int peer = 0; peer < rank->n_ranks; peer++) {
		struct m2n_peer_attr attr;

		expect_ok(m2n_group_add(rank->group, peer, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_group_peer(rank->group, peer, &attr));
		expect_equal(attr.state, M2N_PEER_LIVE);
		expect(!strcmp(attr.backend, "nccl"));
	}
}

/* Waits for a word, and serves peers meanwhile. */
static void serve_until(struct rank *rank, unsigned word, uint32_t value)
{
	while (atomic_load(&rank->word[word]) < value)
		m2n_ctx_progress(rank->ctx);
}

static void open_rank(struct rank *rank)
{
	if (m2n__nccl_load())
		rank_skip(m2n_error_text());
	mesh_share_gpu(rank);
	if (rank_open(rank))
		rank_skip(m2n_error_text());
}

static void check_join(struct rank *rank)
{
	open_rank(rank);
	add_all(rank);
	word_add(&rank->word[READY], 1);
	serve_until(rank, READY, (uint32_t)rank->n_ranks);
	rank_close(rank);
}

static void check_newcomer(struct rank *rank)
{
	open_rank(rank);
	add_all(rank);
	word_add(&rank->word[BACK], 1);
	serve_until(rank, BACK, (uint32_t)rank->n_ranks);
	rank_close(rank);
}

static void check_loss(struct rank *rank)
{
	struct m2n_peer_attr attr;

	open_rank(rank);
	add_all(rank);
	word_add(&rank->word[READY], 1);
	if (rank->rank == VICTIM)
		serve_until(rank, KILLED, 2); /* never */
	serve_until(rank, KILLED, 1);
	do {
		m2n_ctx_progress(rank->ctx);
		expect_ok(m2n_group_peer(rank->group, VICTIM, &attr));
	} while (attr.state == M2N_PEER_LIVE);
	expect_equal(attr.state, M2N_PEER_LOST);
	for (int peer = 0; peer < rank->n_ranks; peer++) {
		expect_ok(m2n_group_peer(rank->group, peer, &attr));
		expect_equal(attr.state, peer == VICTIM ? M2N_PEER_LOST : M2N_PEER_LIVE);
	}
	word_add(&rank->word[LOST_SEEN], 1);
	serve_until(rank, LOST_SEEN, (uint32_t)rank->n_ranks); /* the last by the parent */
	add_all(rank);
	word_add(&rank->word[BACK], 1);
	serve_until(rank, BACK, (uint32_t)rank->n_ranks);
	rank_close(rank);
}

static const char *const options[] = {"CUDA_DEVICE=0", "TIMEOUT=10s", NULL};

static int run_join(int n_ranks)
{
	struct ranks_opts opts = {.backend = "nccl", .bare = 1, .options = options};

	return ranks_run(n_ranks, check_join, NULL, &opts);
}

static int run_loss(int n_ranks)
{
	struct ranks_opts opts = {.backend = "nccl", .bare = 1, .options = options};
	struct ranks *ranks = ranks_start(n_ranks, check_loss, NULL, &opts);
	uint32_t n = (uint32_t)n_ranks;

	if (ranks_wait_word(ranks, READY, n) == 0) {
		ranks_kill(ranks, VICTIM);
		word_set(&ranks_words(ranks)[KILLED], 1);
	}
	if (ranks_wait_word(ranks, LOST_SEEN, n - 1) == 0) {
		ranks_spawn(ranks, VICTIM, check_newcomer);
		word_add(&ranks_words(ranks)[LOST_SEEN], 1);
	}
	return ranks_finish(ranks);
}

static int tell(int number, const char *name, int result)
{
	printf("%s %d - %s%s\n", result == 0 || result == RANKS_SKIP ? "ok" : "not ok", number,
		name, result == RANKS_SKIP ? " # SKIP see above" : "");
	fflush(stdout);
	return result != 0 && result != RANKS_SKIP;
}

int main(void)
{
	int failed = 0;

	setenv("M2N_DOUBLE_NCCL_VERSION", "23007", 1);
	setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
	printf("1..4\n");
	fflush(stdout);
	failed |= tell(1, "a rank alone", run_join(1));
	failed |= tell(2, "two ranks", run_join(2));
	failed |= tell(3, "four ranks", run_join(4));
	failed |= tell(4, "one is killed and replaced", run_loss(4));
	return failed;
}
