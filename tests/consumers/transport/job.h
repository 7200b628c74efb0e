/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs for the serving consumer's transport: attention ranks that send micro-batches with random
 * routing and check each sum against their own computation, and expert ranks whose experts do
 * simple arithmetic. All values are small numbers of halves, so that sums are exact.
 */
#ifndef TESTS_TRANSPORT_JOB_H
#define TESTS_TRANSPORT_JOB_H

#include <stdatomic.h>

#include "megascale_infer/transport_m2n.h"

enum { JOB_MAX_RANKS = 8, JOB_MAX_IDS = 64 };

struct job {
	const char *backend;
	int n_attention, n_expert_ranks;
	uint32_t m, n_replicas, balance_rounds;
	uint32_t n_layers, n_experts, top_k, hidden, max_rows;
	enum model_dtype dtype;
	int is_skewed;       /* most rows go to the first experts of each layer */
	uint32_t n_batches;  /* of attention rank 0; each further one sends half */
	int victim;          /* group rank that kills itself; 0: none */
	uint64_t kill_round; /* when it has taken this one */
	int restart; /* somebody takes its place, and the batches go on until it has served */
	int is_late;          /* ... but then it is too late, and it is refused */
	const char *expected; /* part of the text with which attention ranks fail */
};

/* Of one run, in memory that all ranks share. */
struct job_result {
	struct rank_result ranks[JOB_MAX_RANKS];
	struct transport_stats stats[JOB_MAX_RANKS];
	uint64_t staged_bytes[JOB_MAX_RANKS];
	uint64_t n_rows[2][JOB_MAX_RANKS]; /* that expert ranks computed: before, after a switch */
	_Atomic uint64_t n_served_again;   /* rounds with rows, by the one that took the place */
};

/* Runs all ranks; fails the test when one of them did that was not to. */
struct job_result *job_run(const struct job *job);
void job_free(struct job_result *result);

#endif
