/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The serving consumer's transport over libm2n: every sum against a computation of the test's own,
 * for several shapes; placements that change under skewed routing; the death of an expert rank with
 * and without replicas, also while a switch is being agreed on, and its successor.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "job.h"

static const char *backend = "shm";

static struct job make_job(int n_attention, int n_expert_ranks, uint32_t m, uint32_t n_replicas)
{
	return (struct job){.backend = backend,
		.n_attention = n_attention,
		.n_expert_ranks = n_expert_ranks,
		.m = m,
		.n_replicas = n_replicas,
		.n_layers = 3,
		.n_experts = 8,
		.top_k = 2,
		.hidden = 32,
		.max_rows = 12,
		.n_batches = 400,
		.dtype = MODEL_F32};
}

static uint64_t sum(const uint64_t *values, int n)
{
	uint64_t all = 0;

	for (int i = 0; i < n; i++)
		all += values[i];
	return all;
}

/* Attention ranks leave one after the other: each has half the batches of the one before. */
static void sums_are_right(void **state)
{
	static const int shapes[][2] = {{1, 1}, {2, 2}, {3, 2}, {1, 4}, {2, 3}};

	(void)state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
		for (uint32_t m = 1; m <= 4; m++) {
			uint32_t n_replicas = 1 + (uint32_t)((m + i) % (size_t)shapes[i][1]);
			struct job job = make_job(shapes[i][0], shapes[i][1], m, n_replicas);
			struct job_result *r;

			job.dtype = m % 2 ? MODEL_F32 : MODEL_BF16;
			r = job_run(&job);
			assert_int_equal(r->stats[0].n_rounds, job.n_batches);
			assert_int_equal(r->stats[0].n_resent, 0);
			assert_int_equal(sum(r->staged_bytes, JOB_MAX_RANKS), 0);
			job_free(r);
		}
}

static double spread(const uint64_t *rows, int n)
{
	uint64_t max = 0, all = sum(rows, n);

	for (int i = 0; i < n; i++)
		max = rows[i] > max ? rows[i] : max;
	return (double)max * n / (double)all;
}

static void placements_follow_the_load(void **state)
{
	(void)state;
	for (uint32_t n_replicas = 1; n_replicas <= 2; n_replicas++) {
		struct job job = make_job(2, 4, 2, n_replicas);
		struct job_result *r;
		double before, after;

		job.is_skewed = 1;
		job.balance_rounds = 120;
		job.n_batches = 1200;
		r = job_run(&job);
		before = spread(r->n_rows[0] + 2, 4);
		after = spread(r->n_rows[1] + 2, 4);
		print_message("%u replicas: max/mean of rows %.2f, after the first switch %.2f\n",
			n_replicas, before, after);
		for (int i = 2; i < 6; i++) /* they may switch before a round that never comes */
			assert_in_range(r->stats[i].n_placements - r->stats[0].n_placements, 0, 1);
		assert_true(r->stats[0].n_placements >= 1);
		assert_true(r->stats[0].load_after < r->stats[0].load_before);
		assert_true(before > 1.5);
		assert_true(after < 1 + .4 * (before - 1));
		job_free(r);
	}
}

static void even_load_is_left_alone(void **state)
{
	struct job job = make_job(1, 2, 2, 2);
	struct job_result *r;

	(void)state;
	job.balance_rounds = 40;
	r = job_run(&job);
	assert_int_equal(r->stats[0].n_placements, 0);
	job_free(r);
}

static void replicas_take_over(void **state)
{
	(void)state;
	for (int victim = 2; victim <= 4; victim++) {
		struct job job = make_job(2, 3, 3, 2);
		struct job_result *r;
		int64_t stall = 0;

		job.victim = victim;
		job.kill_round = 50 + (uint64_t)victim;
		r = job_run(&job);
		for (int i = 0; i < 2; i++) {
			assert_int_equal(r->stats[i].n_lost, 1);
			stall = r->stats[i].stall_ns > stall ? r->stats[i].stall_ns : stall;
		}
		assert_true(r->stats[0].n_resent + r->stats[1].n_resent > 0);
		assert_true(stall > 0);
		print_message("stall %.1f ms\n", (double)stall / 1e6);
		job_free(r);
	}
}

/* The rank that decides dies at each step before a switch; so does one that only counts. */
static void death_beside_a_switch(void **state)
{
	static const uint64_t rounds[] = {58, 59, 60, 61, 69, 70, 71, 75, 79, 80, 81, 90};

	(void)state;
	for (size_t i = 0; i < 2 * sizeof(rounds) / sizeof(rounds[0]); i++) {
		struct job job = make_job(2, 3, 2, 2);
		struct job_result *r;

		job.is_skewed = 1;
		job.balance_rounds = 80;
		job.victim = i % 2 ? 3 : 2;
		job.kill_round = rounds[i / 2];
		r = job_run(&job);
		assert_int_equal(r->stats[0].n_lost, 1);
		job_free(r);
	}
}

static void a_successor_serves(void **state)
{
	(void)state;
	for (uint32_t n_replicas = 1; n_replicas <= 2; n_replicas++) {
		struct job job = make_job(2, 2, 2, n_replicas);
		struct job_result *r;

		job.victim = 3;
		job.kill_round = 40;
		job.restart = 1;
		r = job_run(&job);
		assert_int_equal(r->ranks[3].n_restarts, 1);
		assert_int_equal(r->stats[0].n_lost, 1);
		assert_int_equal(r->stats[0].n_joined, 1);
		job_free(r);
	}
}

/* Windows are short: the successor comes in at any step of a switch. */
static void a_successor_comes_beside_switches(void **state)
{
	(void)state;
	for (int i = 0; i < 24; i++) {
		struct job job = make_job(2, 3, 2, i % 4 ? 2 : 1);
		struct job_result *r;

		job.is_skewed = 1;
		job.balance_rounds = 40 + 40 * (uint32_t)(i % 3);
		job.victim = 2 + i % 3;
		job.kill_round = 60 + 7 * (uint64_t)i;
		job.restart = 1;
		r = job_run(&job);
		assert_int_equal(r->stats[0].n_lost, 1);
		assert_true(r->n_served_again > 0);
		job_free(r);
	}
}

/* Attention rank 1 is through: whoever comes has nobody to link with there, and stays out. */
static void a_late_successor_stays_out(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		struct job job = make_job(2, 3, 2, 2);
		struct job_result *r;

		job.balance_rounds = i ? 80 : 0;
		job.is_skewed = 1;
		job.n_batches = 4000;
		job.victim = 4;
		job.kill_round = 2100;
		job.restart = 1;
		job.is_late = 1;
		r = job_run(&job);
		assert_int_equal(r->ranks[4].status, 1);
		assert_int_equal(r->stats[0].n_lost, 1);
		assert_int_equal(r->stats[0].n_joined, 0);
		job_free(r);
	}
}

/* Nobody has the expert, and nobody comes. */
static void a_lost_expert_is_named(void **state)
{
	struct job job = make_job(1, 2, 2, 1);

	(void)state;
	job.victim = 2;
	job.kill_round = 20;
	job.expected = "its last owner, rank 2, is lost";
	job_free(job_run(&job));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sums_are_right),
		cmocka_unit_test(placements_follow_the_load),
		cmocka_unit_test(even_load_is_left_alone),
		cmocka_unit_test(replicas_take_over),
		cmocka_unit_test(death_beside_a_switch),
		cmocka_unit_test(a_successor_serves),
		cmocka_unit_test(a_successor_comes_beside_switches),
		cmocka_unit_test(a_late_successor_stays_out),
		cmocka_unit_test(a_lost_expert_is_named),
	};

	if (argc > 1)
		backend = argv[1];
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
