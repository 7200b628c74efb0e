/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The allocation of DisagMoE: among splits of GPUs and NICs between a pair of groups the roofline's
 * fastest (phase 1), of those the one with the best MFU (phase 2), then a local search around that
 * seed by simulated steps, for the most tokens/s per GPU.
 */
#ifndef PLANNER_SEARCH_H
#define PLANNER_SEARCH_H

#include "planner/cluster.h"

struct plan_space {
	/* Doubles, as options set them; all whole. */
	double min_a, max_a, min_f, max_f; /* GPUs of an attention and of an FFN group */
	double pair_gpus; /* their sum; 0: any */
	double nics_a, nics_f; /* 0: one for each GPU */
	double nics; /* the sum, to be divided; 0: as above */
	double slack; /* what phase 2 may give away of phase 1 */
	int any_memory; /* splits that do not fit too */
};

struct plan_point {
	struct pair_split split;
	struct pair_roofline roofline;
	struct cluster_result step; /* simulated, in `found` */
	int fits;
};

struct plan_found {
	struct plan_point seed; /* of phases 1 and 2 */
	size_t n_splits; /* that phase 1 looked at */
	struct plan_point *points; /* [n_points] simulated ones, the best first; owned */
	size_t n_points;
};

/* 0; -ENOENT with a text: there is no split, or none that fits; other errors of cluster_run(). */
int plan_search(const struct train_case *job, const struct plan_space *space,
	struct plan_found *found);
void plan_found_free(struct plan_found *found);

#endif
