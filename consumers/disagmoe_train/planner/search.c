/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times are compared for each token, since a larger attention group has larger micro-batches. The
 * local search looks at splits up to three GPUs or NICs away on either side, for experts divide
 * unevenly and the better split may be behind a worse one.
 */
#include "planner/search.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

enum { REACH = 3, MAX_SPLITS = 1 << 20, N_WINDOWS = 16, MAX_GPUS = 1024 };

struct searching {
	const struct train_case *job;
	const struct plan_space *space;
	double busiest[MAX_GPUS + 1]; /* of so many FFN GPUs; 0: not counted yet */
};

struct splits {
	struct pair_split *list; /* owned */
	size_t n, max;
};

static int push(struct splits *splits, struct pair_split split)
{
	if (splits->n == splits->max) {
		size_t wanted = splits->max ? 2 * splits->max : 256;
		void *grown = wanted > MAX_SPLITS ? NULL :
			realloc(splits->list, wanted * sizeof(*splits->list));

		if (!grown)
			return model_fail(-ENOMEM, "more than %d splits, or no memory for them",
				MAX_SPLITS);
		splits->list = grown;
		splits->max = wanted;
	}
	splits->list[splits->n++] = split;
	return 0;
}

static int push_nics(const struct plan_space *space, size_t a, size_t f, struct splits *splits)
{
	size_t nics = (size_t)space->nics;
	int rc = 0;

	if (!nics)
		return push(splits, (struct pair_split){a, f,
			space->nics_a > 0 ? (size_t)space->nics_a : a,
			space->nics_f > 0 ? (size_t)space->nics_f : f});
	for (size_t own = 1; !rc && own < nics; own++)
		rc = push(splits, (struct pair_split){a, f, own, nics - own});
	return rc;
}

static int list_splits(const struct train_case *job, const struct plan_space *space,
	struct splits *splits)
{
	int rc = 0;

	for (size_t a = (size_t)space->min_a; !rc && a <= (size_t)space->max_a; a++)
		for (size_t f = (size_t)space->min_f; !rc && f <= (size_t)space->max_f; f++) {
			if (space->pair_gpus > 0 && (double)(a + f) != space->pair_gpus)
				continue;
			if ((double)f > job->model.n_experts)
				continue; /* a rank without an expert */
			rc = push_nics(space, a, f, splits);
		}
	if (!rc && !splits->n)
		rc = model_fail(-ENOENT, "no split: %g to %g GPUs for attention, %g to %g for "
			"%g experts, %g together", space->min_a, space->max_a, space->min_f,
			space->max_f, job->model.n_experts, space->pair_gpus);
	return rc;
}

/* A trace takes long to count, and splits differ in NICs too. */
static void roofline_of(struct searching *s, const struct pair_split *split,
	struct pair_roofline *roofline)
{
	double *busiest = &s->busiest[split->gpus_f];

	if (*busiest <= 0)
		*busiest = case_mean_busiest(s->job, split->gpus_f, N_WINDOWS);
	costs_roofline(s->job, split, *busiest, roofline);
}

static double time_of(const struct pair_roofline *roofline)
{
	return fmax(roofline->t_a, roofline->t_f) / roofline->tokens;
}

static int find_seed(struct searching *s, const struct splits *splits, struct plan_point *seed)
{
	struct pair_roofline *roofs = calloc(splits->n, sizeof(*roofs));
	double least = INFINITY, best = 0;

	if (!roofs)
		return model_fail(-ENOMEM, "no memory for %zu splits", splits->n);
	for (size_t i = 0; i < splits->n; i++) {
		roofline_of(s, &splits->list[i], &roofs[i]);
		least = fmin(least, time_of(&roofs[i]));
	}
	for (size_t i = 0; i < splits->n; i++)
		if (time_of(&roofs[i]) <= least * (1 + s->space->slack) && roofs[i].mfu > best) {
			best = roofs[i].mfu;
			seed->split = splits->list[i];
			seed->roofline = roofs[i];
		}
	free(roofs);
	return 0;
}

static int same(const struct pair_split *a, const struct pair_split *b)
{
	return a->gpus_a == b->gpus_a && a->gpus_f == b->gpus_f && a->nics_a == b->nics_a &&
		a->nics_f == b->nics_f;
}

static size_t apart(size_t a, size_t b)
{
	return a > b ? a - b : b - a;
}

static int near(const struct plan_space *space, const struct pair_split *a,
	const struct pair_split *b)
{
	/* NICs that follow the GPUs are no distance of their own. */
	return apart(a->gpus_a, b->gpus_a) <= REACH && apart(a->gpus_f, b->gpus_f) <= REACH &&
		(space->nics <= 0 || apart(a->nics_a, b->nics_a) <= REACH);
}

/* Simulates a split unless that was done. */
static int visit(struct searching *s, const struct pair_split *split, struct plan_found *found)
{
	struct plan_point *point = &found->points[found->n_points];
	int rc;

	for (size_t i = 0; i < found->n_points; i++)
		if (same(&found->points[i].split, split))
			return 0;
	point->split = *split;
	roofline_of(s, split, &point->roofline);
	rc = cluster_run(s->job, split, CLUSTER_AFPIPE, &point->step);
	point->fits = fmax(point->step.bytes_a, point->step.bytes_f) <= s->job->gpu_bytes;
	found->n_points += !rc;
	return rc;
}

static int better(const struct plan_space *space, const struct plan_point *a,
	const struct plan_point *b)
{
	if (!space->any_memory && a->fits != b->fits)
		return a->fits;
	return a->step.tokens_per_s_gpu > b->step.tokens_per_s_gpu;
}

/* The place in points of the best one so far. */
static size_t find_best(const struct plan_space *space, const struct plan_found *found)
{
	size_t best = 0;

	for (size_t i = 1; i < found->n_points; i++)
		if (better(space, &found->points[i], &found->points[best]))
			best = i;
	return best;
}

static int climb(struct searching *s, const struct splits *splits, struct plan_found *found)
{
	const struct plan_space *space = s->space;
	int rc = visit(s, &found->seed.split, found);

	while (!rc) {
		struct pair_split centre = found->points[find_best(space, found)].split;

		for (size_t i = 0; !rc && i < splits->n; i++)
			if (near(space, &splits->list[i], &centre))
				rc = visit(s, &splits->list[i], found);
		if (!rc && same(&found->points[find_best(space, found)].split, &centre))
			break;
	}
	return rc;
}

static void sort_points(const struct plan_space *space, struct plan_found *found)
{
	for (size_t i = 1; i < found->n_points; i++)
		for (size_t j = i; j > 0 &&
			better(space, &found->points[j], &found->points[j - 1]); j--) {
			struct plan_point other = found->points[j];

			found->points[j] = found->points[j - 1];
			found->points[j - 1] = other;
		}
}

int plan_search(const struct train_case *job, const struct plan_space *space,
	struct plan_found *found)
{
	struct searching searching = {.job = job, .space = space};
	struct plan_found made = {0};
	struct splits splits = {0};
	int rc = list_splits(job, space, &splits);

	if (!rc)
		rc = find_seed(&searching, &splits, &made.seed);
	made.n_splits = splits.n;
	if (!rc) {
		made.points = calloc(splits.n, sizeof(*made.points));
		rc = made.points ? climb(&searching, &splits, &made) :
				   model_fail(-ENOMEM, "no memory for %zu splits", splits.n);
	}
	free(splits.list);
	if (rc) {
		plan_found_free(&made);
		return rc;
	}
	sort_points(space, &made);
	for (size_t i = 0; i < made.n_points; i++)
		if (same(&made.points[i].split, &made.seed.split))
			made.seed = made.points[i];
	*found = made;
	return 0;
}

void plan_found_free(struct plan_found *found)
{
	free(found->points);
	*found = (struct plan_found){0};
}
