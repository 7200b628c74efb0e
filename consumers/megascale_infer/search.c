/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The paper's algorithm 1 over whole b_a. All times grow with the batch, so latency and memory are
 * met up to some b_a, which is found by halving; throughput grows with it, too. (2) and (3) may
 * hold in any part of that range and are looked for from the largest b_a down.
 */
#include "search.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "model/error.h"

enum { MAX_BATCH = 1 << 16 }; /* of b_a */

struct search {
	const struct plan_inputs *inputs;
	const struct plan_space *space;
	struct plan_result *result;
};

static int lose(const struct search *search, enum plan_loss loss)
{
	search->result->n_lost[loss]++;
	return 0;
}

static int keep(const struct search *search, const struct plan_point *point)
{
	struct plan_result *result = search->result;

	if (result->n_points == result->max_points) {
		size_t max = 2 * result->max_points + 64;
		struct plan_point *points = realloc(result->points, max * sizeof(*points));

		if (!points)
			return model_fail(-ENOMEM, "no memory for %zu plans", max);
		result->points = points;
		result->max_points = max;
	}
	result->points[result->n_points++] = *point;
	return 0;
}

static unsigned int broken_at(const struct search *search, struct plan_point *point, double b_a)
{
	point->b_a = b_a;
	plan_evaluate(search->inputs, point);
	return point->broken;
}

static unsigned int demanded(const struct search *search)
{
	return PLAN_SLO | PLAN_MEMORY |
		(search->space->relaxed ? 0 : PLAN_COMMUNICATION | PLAN_OVERLAP);
}

static enum plan_loss loss_of(unsigned int broken)
{
	return broken & PLAN_MEMORY ? PLAN_LOST_MEMORY :
		broken & PLAN_SLO ? PLAN_LOST_SLO :
		broken & PLAN_COMMUNICATION ? PLAN_LOST_COMMUNICATION : PLAN_LOST_OVERLAP;
}

static int search_given_batch(const struct search *search, struct plan_point *point)
{
	double b_a = search->space->batch / point->m / point->n_a;
	unsigned int broken;

	if (b_a != floor(b_a))
		return lose(search, PLAN_LOST_BATCH);
	broken = broken_at(search, point, b_a) & demanded(search);
	if (broken)
		return lose(search, loss_of(broken));
	point->binding = PLAN_BATCH;
	return keep(search, point);
}

static int search_batch(const struct search *search, struct plan_point *point)
{
	double memory = ceil(plan_memory_batch(search->inputs, point)) - 1;
	double low = 0, high = fmin(memory, MAX_BATCH);
	unsigned int broken = 0;

	if (search->space->batch > 0)
		return search_given_batch(search, point);
	if (high < 1)
		return lose(search, PLAN_LOST_MEMORY);
	point->binding = high < memory ? PLAN_BATCH : PLAN_MEMORY;
	if (broken_at(search, point, high) & PLAN_SLO)
		point->binding = PLAN_SLO;
	else
		low = high;
	while (high - low > 1) {
		double middle = floor((low + high) / 2);

		*(broken_at(search, point, middle) & PLAN_SLO ? &high : &low) = middle;
	}
	if (low < 1)
		return lose(search, PLAN_LOST_SLO);
	for (; low >= 1; low--) {
		unsigned int now = broken_at(search, point, low) & demanded(search);

		if (!now)
			return keep(search, point);
		broken |= now;
		point->binding = now & PLAN_OVERLAP ? PLAN_OVERLAP : PLAN_COMMUNICATION;
	}
	return lose(search, loss_of(broken));
}

static int search_m(const struct search *search, struct plan_point *point)
{
	int rc = 0;

	for (point->m = search->space->min_m; !rc && point->m <= search->space->max_m; point->m++)
		rc = search_batch(search, point);
	return rc;
}

/* The whole numbers on both sides of the balance. */
static int search_n_a(const struct search *search, struct plan_point *point)
{
	double balance = plan_balance(search->inputs, point);
	int rc;

	point->n_a = search->space->n_a;
	if (!point->n_a)
		point->n_a = (int)fmax(1, fmin(floor(balance), 1 << 20));
	rc = search_m(search, point);
	if (rc || search->space->n_a || balance <= point->n_a)
		return rc;
	point->n_a++;
	return search_m(search, point);
}

static int search_sizes(const struct search *search, const struct plan_gpu *gpu_a,
	const struct plan_gpu *gpu_e, int tp_a, int tp_e)
{
	struct plan_point point = {.gpu_a = gpu_a, .gpu_e = gpu_e, .tp_a = tp_a, .tp_e = tp_e};
	const struct plan_inputs *inputs = search->inputs;

	if (plan_weights(inputs, PLAN_EXPERTS) >= tp_e * gpu_e->mem_bytes ||
	    plan_weights(inputs, PLAN_ATTENTION) >= tp_a * gpu_a->mem_bytes)
		return lose(search, PLAN_LOST_WEIGHTS);
	if (plan_line_find(inputs, PLAN_ATTENTION, gpu_a, tp_a, &point.attention) ||
	    plan_line_find(inputs, PLAN_EXPERTS, gpu_e, tp_e, &point.experts))
		return lose(search, PLAN_LOST_MEASURED);
	return search_n_a(search, &point);
}

static int search_pair(const struct search *search, const struct plan_gpu *gpu_a,
	const struct plan_gpu *gpu_e)
{
	const struct plan_space *space = search->space;
	int rc = 0;

	for (int tp_e = 1; !rc && tp_e <= gpu_e->gpus_per_node && tp_e <= 8; tp_e *= 2) {
		if (space->tp_e && tp_e != space->tp_e)
			continue;
		for (int tp_a = 1; !rc && tp_a <= gpu_a->gpus_per_node && tp_a <= 8; tp_a *= 2)
			if (!space->tp_a || tp_a == space->tp_a)
				rc = search_sizes(search, gpu_a, gpu_e, tp_a, tp_e);
	}
	return rc;
}

/* Cheaper first where two are as good; the sizes then make the order the same everywhere. */
static int compare(const void *a, const void *b)
{
	const struct plan_point *x = a, *y = b;
	const double keys[][2] = {
		{y->tokens_per_s_cost, x->tokens_per_s_cost}, {x->cost, y->cost},
		{x->m, y->m}, {x->tp_a, y->tp_a}, {x->tp_e, y->tp_e}, {x->n_a, y->n_a},
	};

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (keys[i][0] < keys[i][1] || keys[i][0] > keys[i][1])
			return keys[i][0] < keys[i][1] ? -1 : 1;
	return 0;
}

int plan_search(const struct plan_inputs *inputs, const struct plan_space *space,
	struct plan_result *result)
{
	struct search search = {inputs, space, result};
	int rc = 0;

	*result = (struct plan_result){0};
	for (size_t i = 0; !rc && i < space->n_gpus_a; i++)
		for (size_t j = 0; !rc && j < space->n_gpus_e; j++)
			rc = search_pair(&search, &space->gpus_a[i], &space->gpus_e[j]);
	if (rc)
		plan_result_free(result);
	else if (result->n_points)
		qsort(result->points, result->n_points, sizeof(*result->points), compare);
	return rc;
}

void plan_result_free(struct plan_result *result)
{
	free(result->points);
	*result = (struct plan_result){0};
}
