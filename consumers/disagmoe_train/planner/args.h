/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options that plan and simulate share: model, GPU, network, sequences, sizes of groups.
 */
#ifndef PLANNER_ARGS_H
#define PLANNER_ARGS_H

#include "planner/search.h"

struct planner_args {
	struct train_case job;
	struct plan_space space;
	const char *model, *models, *gpu, *gpus, *trace, *svg, *schedule, *profile;
	double top; /* splits to print */
	struct machine machine; /* of --profile */
	int json;
};

/* 0, or the exit status after what is wrong was said. What it took is freed by case_free(). */
int planner_args_parse(int argc, char **argv, const char *doc, struct planner_args *args);

/* Takes "--name VALUE", "--name=VALUE" or a name alone out of the arguments; NULL: not there. */
const char *planner_take_option(int *argc, char **argv, const char *name, int has_value);

#endif
