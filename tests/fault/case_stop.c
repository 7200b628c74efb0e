/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rank that stops (SIGSTOP) and goes on: within the deadline nobody notices more than the
 * time; beyond it the others are told whom they wait for, give it up, and go on; when it wakes, it
 * finds out that it is alone, and what it still writes harms nobody's rows.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault/fault.h"
#include "helpers/job_device.h"

#define STOP_ROUND 4
#define VICTIM 3 /* expert rank index 1 */

/* Words: the victim is about to stop; the others are done with it. */
enum { STOPPING, GIVEN_UP, FINISHED, COMBINED };

static const struct job stop_job = {
	.name = "stop",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 6,
	.top_k = 3,
	.n_tokens = 14,
	.row_bytes = 48,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = 40,
	.seed = 31,
};

static void wait_stopped(pid_t pid)
{
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	while (state != 'T') {
		FILE *stat = fopen(path, "re");

		if (!stat || fscanf(stat, "%*d %*s %c", &state) != 1)
			state = 'T'; /* it is gone: the case will tell */
		if (stat)
			fclose(stat);
	}
}

static void short_stop(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	for (uint32_t round = 0; round < jr.job->n_rounds; round++) {
		if (jr.source >= 0) {
			expect_ok(job_send(&jr, round));
			expect_ok(job_combine(&jr, round));
			continue;
		}
		if (rank->rank == VICTIM && round == STOP_ROUND) {
			job_device_settle(&jr);
			word_set(&rank->word[STOPPING], 1);
			raise(SIGSTOP);
		}
		expect_ok(job_serve(&jr));
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int within(const struct conf *conf)
{
	struct job job = stop_job;
	struct ranks *ranks = ranks_start(4, short_stop, &job, &conf->opts);

	if (ranks_wait_word(ranks, STOPPING, 1) == 0) {
		wait_stopped(ranks_pid(ranks, VICTIM));
		ranks_signal(ranks, VICTIM, SIGCONT);
	}
	return ranks_finish(ranks);
}

static void await_loss(struct rank *rank, int peer)
{
	struct m2n_peer_attr attr;

	do {
		(void)m2n_ctx_progress(rank->ctx);
		expect_ok(m2n_group_peer(rank->group, peer, &attr));
	} while (attr.state == M2N_PEER_LIVE);
}

/* The source's part of the round in which the victim does not answer. */
static void give_up(struct rank *rank, struct job_rank *jr, uint32_t round)
{
	int status;

	/* In CUDA memory who is late is dropped: nobody but the victim may be. */
	jr->timeout_ns = rank->memory == M2N_MEMORY_CUDA ? 3000000000 : 100000000;
	status = job_combine(jr, round);
	expect_equal(status, -ETIMEDOUT);
	expect_text("round");
	jr->timeout_ns = M2N_TIMEOUT_DEFAULT;
	if (rank->memory == M2N_MEMORY_CUDA) { /* the round is over, the rank is dropped */
		expect_rank_named(VICTIM);
		await_loss(rank, VICTIM);
	} else {
		expect_text("3 (");
		expect_ok(m2n_group_drop(rank->group, VICTIM));
		expect_status(M2N_PARTIAL, job_combine(jr, round));
		expect_text("rank 3");
	}
	word_add(&rank->word[GIVEN_UP], 1);
}

static void long_stop_source(struct rank *rank, struct job_rank *jr)
{
	for (uint32_t round = 0; round < jr->job->n_rounds; round++) {
		uint64_t before = jr->n_missing + jr->n_dropped;

		expect_went_on(job_send(jr, round));
		if (round == STOP_ROUND)
			give_up(rank, jr, round);
		else
			expect_went_on(job_combine(jr, round));
		if (round == STOP_ROUND - 1)
			word_add(&rank->word[COMBINED], 1);
		/* What the woken rank writes belongs to no later round. */
		if (round < STOP_ROUND)
			expect_equal(jr->n_missing + jr->n_dropped, before);
		if (round == STOP_ROUND + 2)
			word_wait(&rank->word[FINISHED], 1); /* it was awake, and had its say */
	}
	expect(jr->n_dropped > 0);
}

/* Awake again: its calls end, and say that the sources are gone. */
static void wake_alone(struct rank *rank, struct job_rank *jr)
{
	struct m2n_peer_attr attr;
	int n_lost = 0, status = 0;

	/* Dropped while it slept: serves what had arrived, then nobody is left. */
	for (int i = 0; i < 4 && status >= 0; i++) {
		const struct m2n_batch *batch;

		jr->timeout_ns = 2000000000;
		status = job_recv_batch(jr, &batch);
		if (status >= 0)
			status = job_answer(jr, batch);
	}
	for (int source = 0; source < 2; source++) {
		do {
			expect_ok(m2n_group_peer(rank->group, source, &attr));
		} while (attr.state == M2N_PEER_LIVE);
		n_lost += attr.state == M2N_PEER_LOST;
	}
	expect_equal(n_lost, 2);
	word_set(&rank->word[FINISHED], 1);
}

static void long_stop(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	jr.tolerant = 1;
	jr.dead = 1 << 1;
	if (jr.source >= 0) {
		long_stop_source(rank, &jr);
	} else {
		for (uint32_t round = 0; round < jr.job->n_rounds; round++) {
			if (rank->rank == VICTIM && round == STOP_ROUND) {
				/* Its replies are there: what is under way would stop, too. */
				while (atomic_load(&rank->word[COMBINED]) < 2)
					(void)m2n_ctx_progress(rank->ctx);
				word_set(&rank->word[STOPPING], 1);
				raise(SIGSTOP);
				wake_alone(rank, &jr);
				break;
			}
			expect_went_on(job_serve(&jr));
		}
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int beyond_with(const struct conf *conf, enum m2n_placement placement)
{
	struct job job = stop_job;
	struct ranks *ranks;

	job.placement = placement;
	ranks = ranks_start(4, long_stop, &job, &conf->opts);
	if (ranks_wait_word(ranks, GIVEN_UP, 2) == 0) {
		wait_stopped(ranks_pid(ranks, VICTIM));
		ranks_signal(ranks, VICTIM, SIGCONT);
	}
	return ranks_finish(ranks);
}

static int beyond(const struct conf *conf)
{
	return beyond_with(conf, M2N_PLACEMENT_SLOT);
}

/* A peer that is slow, not dead: calls time out, are made again, and the round is whole. */
static void check_slow(struct rank *rank)
{
	struct job_rank jr;

	expect_ok(job_open(&jr, rank, rank->arg));
	for (uint32_t round = 0; round < 6; round++) {
		if (jr.source >= 0) {
			expect_ok(job_send(&jr, round));
			jr.timeout_ns = 20000000;
			expect_status(-ETIMEDOUT, job_combine(&jr, round));
			expect_text("3 (");
			expect_status(-ETIMEDOUT, job_combine(&jr, round));
			jr.timeout_ns = M2N_TIMEOUT_DEFAULT;
			word_add(&rank->word[0], 1);
			expect_ok(job_combine(&jr, round));
			continue;
		}
		if (rank->rank == VICTIM)
			word_wait(&rank->word[0], 2 * (round + 1));
		expect_ok(job_serve(&jr));
	}
	rank_barrier(rank);
	job_close(&jr);
}

static int slow(const struct conf *conf)
{
	struct job job = stop_job;

	return ranks_run(4, check_slow, &job, &conf->opts);
}

const struct conf_case stop_cases[] = {
	{"stop: and go on within the deadline", 2, within, ANY_MEMORY},
	{"stop: beyond the deadline, given up, and awake again", 2, beyond, ANY_MEMORY},
	{"stop: a slow peer", 2, slow, HOST_MEMORY},
	{0},
};
