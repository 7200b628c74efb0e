/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options that plan and simulate share: model, GPU, sequence, micro-batch, parallel sizes.
 */
#ifndef DISAGMOE_PLAN_ARGS_H
#define DISAGMOE_PLAN_ARGS_H

#include <argp.h>

#include "roofline.h"

struct train_args {
	struct train_case job;
	const char *model, *models, *gpu, *gpus, *trace, *svg;
	double p, n_micro, max_gpus_a, max_gpus_f, nics_a, nics_f, max_in_flight;
	double min_gpus_a;
	int json;
	/* simulate: costs given in us instead of a model */
	double t_a[3], t_f[3], t_c[2], t_head, v; /* forward, backward, weights; < 0: not given */
	int together_weights;
	const char *schedule;
};

/* 0, or the exit status after what is wrong was said. */
int train_args_parse(int argc, char **argv, const char *doc, struct train_args *args);

#endif
