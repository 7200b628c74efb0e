/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search for a plan: every pair of GPU types, tp_e, tp_a and m, with n_a from the balance and
 * the largest batch that latency and memory admit; best throughput per cost first. Whatever is
 * fixed in the space is not searched.
 */
#ifndef MEGASCALE_SEARCH_H
#define MEGASCALE_SEARCH_H

#include "perf_model.h"

struct plan_space {
	struct plan_gpu gpus_a[PLAN_MAX_GPUS], gpus_e[PLAN_MAX_GPUS];
	size_t n_gpus_a, n_gpus_e;
	int tp_a, tp_e, n_a; /* 0: searched */
	int min_m, max_m;
	double batch; /* 0: searched */
	int relaxed; /* (2) and (3) may be broken */
};

enum plan_loss { /* why a combination gave no plan */
	PLAN_LOST_WEIGHTS, PLAN_LOST_MEMORY, PLAN_LOST_SLO, PLAN_LOST_COMMUNICATION,
	PLAN_LOST_OVERLAP, PLAN_LOST_BATCH, PLAN_LOST_MEASURED, PLAN_N_LOSSES,
};

struct plan_result {
	struct plan_point *points; /* owned; best first; gpu_a, gpu_e point into the space */
	size_t n_points, max_points;
	size_t n_lost[PLAN_N_LOSSES];
};

/* 0 also where nothing was found: n_points is 0 then. */
int plan_search(const struct plan_inputs *inputs, const struct plan_space *space,
	struct plan_result *result);
void plan_result_free(struct plan_result *result);

#endif
