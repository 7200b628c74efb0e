/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `megascale_infer plan`: arguments, search, report.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "model/error.h"
#include "plan_report.h"

/* Drops pairs of two types; the order stays. */
static void keep_homogeneous(struct plan_result *result)
{
	size_t n = 0;

	for (size_t i = 0; i < result->n_points; i++)
		if (!strcmp(result->points[i].gpu_a->name, result->points[i].gpu_e->name))
			result->points[n++] = result->points[i];
	result->n_points = n;
}

int plan_main(int argc, char **argv)
{
	struct plan_args args;
	struct plan_result result = {0};
	int rc = plan_args_parse(argc, argv, &args);

	if (!rc)
		rc = plan_search(&args.inputs, &args.space, &result);
	if (!rc && args.homogeneous)
		keep_homogeneous(&result);
	if (!rc && args.json)
		rc = plan_print_json(&args, &result);
	else if (!rc)
		plan_print_table(&args, &result);
	if (!rc && !result.n_points)
		rc = model_fail(-ENOENT, "no plan meets the constraints");
	if (!rc && fflush(stdout))
		rc = model_fail(-errno, "standard output: %s", strerror(errno));
	plan_result_free(&result);
	if (rc)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	return rc ? 1 : 0;
}
