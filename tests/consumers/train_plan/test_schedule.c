/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The orders of schedule.h: every operation once, none before what it needs, workers with one thing
 * at a time, as many micro-batches under way as allowed; steps against their bounds; the engine's
 * rules on a few tasks.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "schedule.h"
#include "sim_engine.h"

static const struct train_costs costs = {.attention = {1, 1.5}, .ffn = {1.25, 1.25},
	.attention_weights = 0.75, .ffn_weights = 1, .transfer = {0.25, 0.25}, .head = 0.5};

/* When each operation ended: [kind, layer, micro, FFN]; < 0: not yet. */
struct ends {
	double *at;
	size_t n_layers, n_micro;
};

static double *end_of(const struct ends *ends, enum train_op_kind kind, size_t layer, size_t micro,
	int ffn)
{
	return &ends->at[(((size_t)kind * (ends->n_layers + 1) + layer) * ends->n_micro + micro) *
		2 + (size_t)ffn];
}

/* What has to be over when the operation begins. */
static double needed(const struct ends *ends, const struct train_op *op, int ffn, int together)
{
	size_t last = ends->n_layers, l = op->layer, m = op->micro;

	switch (op->kind) {
	case TRAIN_FORWARD:
		if (ffn)
			return *end_of(ends, TRAIN_FORWARD, l, m, 0);
		return l ? *end_of(ends, TRAIN_FORWARD, l - 1, m, !together) : 0;
	case TRAIN_HEAD:
		return *end_of(ends, TRAIN_FORWARD, l - 1, m, !together);
	case TRAIN_BACKWARD:
		if (!together && !ffn)
			return *end_of(ends, TRAIN_BACKWARD, l, m, 1);
		return l + 1 == last ? *end_of(ends, TRAIN_HEAD, last, m, 0) :
			*end_of(ends, TRAIN_BACKWARD, l + 1, m, 0);
	default:
		return *end_of(ends, TRAIN_BACKWARD, l, m, ffn);
	}
}

static void check_order(const struct train_schedule_params *params,
	const struct train_schedule *made)
{
	int together = params->kind == TRAIN_1F1B;
	struct ends ends = {NULL, params->p * params->v, params->n_micro};
	size_t n = 2 * TRAIN_N_OPS * (ends.n_layers + 1) * ends.n_micro, n_wanted;
	double last[64] = {0};

	ends.at = malloc(n * sizeof(double));
	for (size_t i = 0; i < n; i++)
		ends.at[i] = -1;
	n_wanted = ends.n_layers * ends.n_micro * (together ? 1 : 2) *
		(params->split_weights ? 3 : 2) + ends.n_micro;
	assert_int_equal(made->n_ops, n_wanted);
	for (size_t i = 0; i < made->n_ops; i++) {
		const struct train_op *op = &made->ops[i];
		int ffn = op->worker >= (int)params->p;
		double *end = end_of(&ends, op->kind, op->layer, op->micro, ffn);
		double need = needed(&ends, op, ffn, together);

		assert_true(*end < 0); /* once */
		assert_true(need >= 0); /* after what it needs, in the list and in time */
		assert_true(op->start >= need - 1e-9);
		assert_true(op->start >= last[op->worker] - 1e-9);
		assert_true(i == 0 || op->start >= made->ops[i - 1].start);
		assert_int_equal((size_t)op->worker % params->p,
			op->kind == TRAIN_HEAD ? 0 : op->layer % params->p);
		*end = last[op->worker] = op->end;
	}
	free(ends.at);
}

static void check_lists(const struct train_schedule *made)
{
	for (size_t w = 0; w < made->n_workers; w++)
		for (size_t i = made->first[w]; i < made->first[w + 1]; i++) {
			assert_int_equal(made->ops[made->by_worker[i]].worker, w);
			assert_true(i == made->first[w] ||
				made->by_worker[i] > made->by_worker[i - 1]);
		}
	assert_int_equal(made->first[made->n_workers], made->n_ops);
}

/* Micro-batches under way at most, by their first begin and last end. */
static size_t count_under_way(const struct train_schedule *made, size_t n_micro)
{
	double *begin = malloc(n_micro * sizeof(double)), *end = calloc(n_micro, sizeof(double));
	size_t most = 0;

	for (size_t i = 0; i < n_micro; i++)
		begin[i] = INFINITY;
	for (size_t i = 0; i < made->n_ops; i++) {
		size_t m = made->ops[i].micro;

		begin[m] = fmin(begin[m], made->ops[i].start);
		end[m] = fmax(end[m], made->ops[i].end);
	}
	for (size_t i = 0; i < n_micro; i++) {
		size_t n = 0;

		for (size_t j = 0; j < n_micro; j++)
			n += begin[j] <= begin[i] && end[j] > begin[i] + 1e-9;
		most = n > most ? n : most;
	}
	free(begin);
	free(end);
	return most;
}

static void check(const struct train_schedule_params *params)
{
	struct train_schedule made;

	assert_int_equal(train_schedule_make(params, &made), 0);
	check_order(params, &made);
	check_lists(&made);
	if (params->max_in_flight)
		assert_true(count_under_way(&made, params->n_micro) <= params->max_in_flight);
	train_schedule_free(&made);
}

static void orders_are_whole(void **state)
{
	struct train_schedule_params params = {.costs = costs};

	(void)state;
	for (int i = 0; i < 3 * 4 * 2 * 3 * 2 * 2; i++) {
		params.kind = (enum train_schedule_kind)(i % 3);
		params.p = 1 + (size_t)i / 3 % 4;
		params.v = 1 + 2 * ((size_t)i / 12 % 2);
		params.n_micro = 1 + 4 * ((size_t)i / 24 % 3);
		params.max_in_flight = 2 * ((size_t)i / 72 % 2);
		params.split_weights = i / 144;
		check(&params);
	}
}

static double seconds_of(enum train_schedule_kind kind, size_t p, size_t v, size_t n_micro,
	const struct train_costs *with)
{
	struct train_schedule_params params = {.kind = kind, .p = p, .v = v, .n_micro = n_micro,
		.split_weights = kind != TRAIN_SEQUENTIAL, .costs = *with};
	struct train_schedule made;
	double seconds;

	assert_int_equal(train_schedule_make(&params, &made), 0);
	seconds = made.seconds;
	train_schedule_free(&made);
	return seconds;
}

static void steps_meet_their_bounds(void **state)
{
	double a = 1 + 1.5 + 0.75, f = 1.25 + 1.25 + 1, c = 4 * 0.25, all;

	(void)state;
	/* One after the other; transfers to the next group exist with one group, too: A and F. */
	for (size_t p = 1; p <= 3; p++)
		assert_true(fabs(seconds_of(TRAIN_SEQUENTIAL, p, 2, 5, &costs) -
			5 * ((double)p * 2 * (a + f + c) + 0.5)) < 1e-9);
	/* The busiest worker, and not much more. */
	for (size_t p = 1; p <= 4; p++) {
		all = seconds_of(TRAIN_AFPIPE, p, 4, 24, &costs);
		assert_true(all >= 24 * 4 * f);
		assert_true(all <= 24 * 4 * f * 1.15);
		all = seconds_of(TRAIN_1F1B, p, 4, 24, &costs);
		assert_true(all >= 24 * 4 * (a + f + c));
		assert_true(all <= 24 * 4 * (a + f + c) * 1.15);
	}
}

/* AF-Pipe's idle time at the begin is that of its warm-up: half of a combined pipeline's stages. */
static void warm_up_follows_the_formula(void **state)
{
	const struct train_costs even = {.attention = {1, 2}, .ffn = {1, 2}, .transfer = {.1, .1}};

	(void)state;
	for (size_t p = 2; p <= 4; p++) {
		struct train_schedule_params params = {.kind = TRAIN_AFPIPE, .p = p, .v = 4,
			.n_micro = 4 * p, .costs = even};
		struct train_schedule made;
		double first = INFINITY, way = (2 * (double)p - 1) * (1 + .1);

		assert_int_equal(train_schedule_make(&params, &made), 0);
		for (size_t i = 0; i < made.n_ops; i++)
			if (made.ops[i].worker == (int)(2 * p - 1))
				first = fmin(first, made.ops[i].start);
		assert_true(fabs(first - way) < 1e-9);
		train_schedule_free(&made);
	}
}

static void bad_sizes_are_refused(void **state)
{
	struct train_schedule_params params = {.kind = TRAIN_AFPIPE, .p = 2, .v = 2, .n_micro = 2,
		.costs = costs};
	struct train_schedule made;

	(void)state;
	params.p = 0;
	assert_int_equal(train_schedule_make(&params, &made), -EINVAL);
	params.p = 1 << 20;
	assert_int_equal(train_schedule_make(&params, &made), -EINVAL);
	params.p = 2;
	params.n_micro = SIZE_MAX;
	assert_int_equal(train_schedule_make(&params, &made), -EINVAL);
	params.n_micro = 2;
	params.costs.head = -1;
	assert_int_equal(train_schedule_make(&params, &made), -EINVAL);
	params.costs.head = NAN;
	assert_int_equal(train_schedule_make(&params, &made), -EINVAL);
	params.costs.head = 0;
	params.kind = TRAIN_N_SCHEDULES;
	assert_int_equal(train_schedule_make(&params, &made), -EINVAL);
}

/* Two tasks of one resource and one that waits: what can start first, then the lower value. */
static void engine_goes_by_start_then_priority(void **state)
{
	struct sim sim;
	size_t a, b, c;
	long priorities[3];

	(void)state;
	assert_int_equal(sim_open(&sim, 0, 0), 0);
	a = sim_add(&sim, (struct sim_task){.resource = 0, .other = SIM_NONE, .group = SIM_NONE,
		.priority = 2, .seconds = 3});
	b = sim_add(&sim, (struct sim_task){.resource = 0, .other = SIM_NONE, .group = SIM_NONE,
		.priority = 1, .seconds = 1});
	c = sim_add(&sim, (struct sim_task){.resource = 1, .other = 0, .group = SIM_NONE,
		.priority = 0, .seconds = 2});
	sim_after(&sim, b, c);
	assert_int_equal(sim_run(&sim), 0);
	/* c can start at 1 like a, and comes first; it holds both resources. */
	assert_true(fabs(sim.tasks[b].end - 1) < 1e-12 && fabs(sim.tasks[c].start - 1) < 1e-12);
	assert_true(fabs(sim.tasks[a].start - 3) < 1e-12);
	assert_int_equal(sim_justify(&sim, priorities), 0);
	/* From the end: a from 3 to 6, c from 1 to 3, b from 0 to 1. */
	assert_true(priorities[b] < priorities[c] && priorities[c] < priorities[a]);
	sim_close(&sim);
}

static void engine_sees_circles(void **state)
{
	struct sim sim;
	struct sim_task task = {.resource = 0, .other = SIM_NONE, .group = SIM_NONE, .seconds = 1};
	size_t a, b;

	(void)state;
	assert_int_equal(sim_open(&sim, 0, 0), 0);
	a = sim_add(&sim, task);
	b = sim_add(&sim, task);
	sim_after(&sim, a, b);
	sim_after(&sim, b, a);
	assert_int_equal(sim_run(&sim), -EDEADLK);
	sim_close(&sim);
	assert_int_equal(sim_open(&sim, 0, 0), 0);
	task.resource = SIM_MAX_RESOURCES;
	sim_add(&sim, task);
	assert_int_equal(sim_run(&sim), -EINVAL);
	sim_close(&sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(orders_are_whole),
		cmocka_unit_test(steps_meet_their_bounds),
		cmocka_unit_test(warm_up_follows_the_formula),
		cmocka_unit_test(bad_sizes_are_refused),
		cmocka_unit_test(engine_goes_by_start_then_priority),
		cmocka_unit_test(engine_sees_circles),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
