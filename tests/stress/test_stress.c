/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stress: random jobs, and random deaths inside them.
 *
 *   test_stress [--backend NAME] [--kills N] [--jobs N] [--seed N]
 *
 * Each episode draws a job (ranks, map, placement, sizes, rounds in flight) from its seed, runs it,
 * and, for a kill, sends SIGKILL to one rank after a random number of turns of a loop, so that the
 * death falls anywhere, inside calls too. The survivors must come to the end within the deadline
 * with every row right or reported, and leak nothing. Prints one summary; an episode that failed
 * is named by its seed, and `--seed S --kills 1` (or --jobs 1) runs it alone.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "helpers/job_run.h"

struct args {
	const char *backend;
	uint32_t n_kills;
	uint32_t n_jobs;
	uint64_t seed;
};

enum { READY, THROUGH }; /* words */

static uint32_t pick(uint64_t seed, uint32_t what, uint32_t low, uint32_t high)
{
	return low + (uint32_t)(job_random(seed, what, 77, 0) % (high - low + 1));
}

static struct job draw_job(uint64_t seed)
{
	static const size_t row_sizes[] = {1, 2, 7, 64, 100, 256, 1000, 4096};
	static const enum m2n_dtype dtypes[] = {M2N_DTYPE_BF16, M2N_DTYPE_F16, M2N_DTYPE_F32};
	struct job job = {.name = "stress", .seed = seed};

	job.classic = pick(seed, 1, 0, 4) == 0;
	job.n_sources = (int)pick(seed, 2, 1, 4);
	job.n_expert_ranks = job.classic ? job.n_sources : (int)pick(seed, 3, 1, 4);
	job.reversed = (int)pick(seed, 4, 0, 1);
	job.n_experts = pick(seed, 5, 1, 20);
	job.top_k = pick(seed, 6, 1, 6);
	job.n_tokens = pick(seed, 7, 0, 40);
	job.row_bytes = row_sizes[pick(seed, 8, 0, 7)];
	job.scale_bytes = pick(seed, 9, 0, 2) ? 0 : pick(seed, 10, 1, 16);
	job.dtype = dtypes[pick(seed, 11, 0, 2)];
	job.out_row_bytes = 4 * (size_t)pick(seed, 12, 1, 40);
	job.pad = pick(seed, 13, 0, 3) ? 0 : 4;
	job.placement = pick(seed, 14, 0, 1) ? M2N_PLACEMENT_EXACT : M2N_PLACEMENT_SLOT;
	job.dedup = (int)pick(seed, 15, 0, 1);
	job.depth = pick(seed, 16, 1, 4);
	job.in_flight = pick(seed, 17, 1, job.depth);
	job.residual = (int)pick(seed, 18, 0, 1);
	job.routing = (enum job_routing)pick(seed, 19, JOB_HOLES, JOB_SKEWED);
	job.map = (enum job_map)pick(seed, 20, JOB_MAP_BLOCKS, JOB_MAP_REPLICAS);
	job.n_rounds = pick(seed, 21, 5, 40);
	return job;
}

static void go_on(int status, const char *what, uint32_t round)
{
	if (status < 0)
		rank_fail(__FILE__, __LINE__, "%s, round %u: %s: %s", what, round,
			m2n_strerror(status), m2n_error_text());
}

/* Rounds that go on whatever is lost, until all are through or nobody is left to work with. */
static void survive(struct rank *rank)
{
	struct job_rank jr;
	struct job *job = rank->arg;
	uint32_t sent = 0;
	int status = job_open(&jr, rank, job);

	if (status == M2N_ERR_PEER_LOST || status == -ETIMEDOUT) {
		word_add(&rank->word[READY], 1);
		word_add(&rank->word[THROUGH], 1);
		job_close(&jr);
		return; /* it died before there was a channel */
	}
	expect_ok(status);
	word_add(&rank->word[READY], 1);
	jr.tolerant = 1;
	jr.timeout_ns = 15000000000; /* a peer may spend the default one on waiting for the dead */
	jr.dead = UINT64_MAX;
	for (uint32_t round = 0; round < job->n_rounds; round++) {
		for (; jr.source >= 0 && sent < job->n_rounds && sent < round + job->in_flight;
			sent++)
			go_on(job_send(&jr, sent), "dispatch_send", sent);
		if (jr.expert >= 0)
			go_on(job_serve(&jr), "serving", round);
		if (jr.source >= 0)
			go_on(job_combine(&jr, round), "combine_recv", round);
	}
	/* Nobody leaves while another may still wait for it: only the dead are missing. */
	word_add(&rank->word[THROUGH], 1);
	word_wait(&rank->word[THROUGH], (uint32_t)rank->n_ranks - 1);
	job_close(&jr);
}

static void burn(uint64_t turns)
{
	for (uint64_t i = 0; i < turns; i++)
		atomic_signal_fence(memory_order_seq_cst);
}

static int run_kill(const struct args *args, uint64_t seed)
{
	const char *options[] = {"TIMEOUT=2s", NULL};
	struct ranks_opts opts = {.backend = args->backend, .options = options, .deadline_s = 30};
	struct job job = draw_job(seed);
	struct ranks *ranks;
	int n, victim;

	if (job_n_ranks(&job) < 2) {
		job.classic = 0;
		job.n_sources = job.n_expert_ranks = 1;
	}
	n = job_n_ranks(&job);
	victim = (int)pick(seed, 30, 0, (uint32_t)n - 1);
	ranks = ranks_start(n, survive, &job, &opts);
	/* One in sixteen dies while links are made, the others in the rounds. */
	if (pick(seed, 31, 0, 15))
		ranks_wait_word(ranks, READY, (uint32_t)n);
	burn(job_random(seed, 32, 0, 0) % 3000000);
	ranks_kill(ranks, victim);
	return ranks_finish(ranks);
}

static int run_plain(const struct args *args, uint64_t seed)
{
	const char *options[] = {"TIMEOUT=20s", NULL};
	struct ranks_opts opts = {.backend = args->backend, .options = options};
	struct job job = draw_job(seed);

	return job_run(&job, &opts, NULL);
}

static int read_args(int argc, char **argv, struct args *args)
{
	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--backend"))
			args->backend = argv[i + 1];
		else if (!strcmp(argv[i], "--kills"))
			args->n_kills = (uint32_t)strtoul(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "--jobs"))
			args->n_jobs = (uint32_t)strtoul(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "--seed"))
			args->seed = strtoull(argv[i + 1], NULL, 10);
		else
			return -1;
	}
	return argc % 2 ? 0 : -1;
}

int main(int argc, char **argv)
{
	struct args args = {"shm", 40, 20, 1};
	uint32_t n_failed = 0;

	if (read_args(argc, argv, &args)) {
		fprintf(stderr, "usage: %s [--backend NAME] [--kills N] [--jobs N] [--seed N]\n",
			argv[0]);
		return 2;
	}
	for (uint32_t i = 0; i < args.n_jobs; i++) {
		if (run_plain(&args, args.seed + i)) {
			printf("job of seed %llu failed\n", (unsigned long long)args.seed + i);
			n_failed++;
		}
	}
	for (uint32_t i = 0; i < args.n_kills; i++) {
		if (run_kill(&args, args.seed + i)) {
			printf("kill of seed %llu failed\n", (unsigned long long)args.seed + i);
			n_failed++;
		}
	}
	printf("%s: %u jobs, %u kills, %u failed\n", args.backend, args.n_jobs, args.n_kills,
		n_failed);
	return n_failed != 0;
}
