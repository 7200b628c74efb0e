/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A search's result, as a table or as JSON: the plan, the runners-up, the best of each pair of
 * GPUs, what was lost to what, and the paper's own outcome to hold them against.
 */
#ifndef MEGASCALE_PLAN_REPORT_H
#define MEGASCALE_PLAN_REPORT_H

#include "plan_args.h"

/* The constraint by its name in the reports, e.g. "(7) SLO". */
const char *plan_bound_name(enum plan_bound bound);
const char *plan_loss_name(enum plan_loss loss);
/* Best plan with the same GPU on both sides, or with two; NULL if there is none. */
const struct plan_point *plan_best_of(const struct plan_result *result, int homogeneous);
/* The first, best, plan of its pair of GPUs? */
int plan_leads_pair(const struct plan_result *result, size_t idx);

void plan_print_table(const struct plan_args *args, const struct plan_result *result);
int plan_print_json(const struct plan_args *args, const struct plan_result *result);

#endif
