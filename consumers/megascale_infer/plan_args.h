/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of `megascale_infer plan`, and the inputs and the space it names.
 */
#ifndef MEGASCALE_PLAN_ARGS_H
#define MEGASCALE_PLAN_ARGS_H

#include "search.h"

struct plan_args {
	struct plan_inputs inputs;
	struct plan_space space;
	int homogeneous, json, n_shown;
	/* As given, until all options are known. */
	const char *model, *models_path, *gpus_path, *util_path, *measured_path;
	const char *gpus, *gpus_a, *gpus_e;
	const char *prices[PLAN_MAX_GPUS]; /* NAME=X */
	size_t n_prices;
	double nic_bytes_per_s, input_tokens, output_tokens, context_tokens;
};

/* Ends the process with status 2 for what is no option or number. 0, or a negative errno with a
 * text for files and names. */
int plan_args_parse(int argc, char **argv, struct plan_args *args);

#endif
