/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results of plan and simulate, for people and for programs.
 */
#ifndef PLANNER_REPORT_H
#define PLANNER_REPORT_H

#include <jansson.h>

#include "planner/args.h"

/* "computation" or "network", whichever takes longer. */
const char *report_bound(double compute, double network);
void report_plan_text(const struct planner_args *args, const struct plan_found *found);
int report_plan_json(const struct planner_args *args, const struct plan_found *found);
/* What a step is: a new object. */
json_t *report_step(const struct cluster_result *step);
/* What was planned or simulated for: a new object. */
json_t *report_case(const struct planner_args *args);
/* Prints the object and gives it back. 0 or a negative errno with a text. */
int report_print(json_t *root);
/* The rooflines of both sides with the plan's points. */
int report_svg(const struct planner_args *args, const struct plan_point *point, const char *path);

#endif
