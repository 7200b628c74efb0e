/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `disagmoe_train plan`: arguments, search, report.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "model/error.h"
#include "planner/report.h"

static int plan(const struct planner_args *args)
{
	struct plan_found found;
	int rc = plan_search(&args->job, &args->space, &found);

	if (rc)
		return rc;
	if (args->json)
		rc = report_plan_json(args, &found);
	else
		report_plan_text(args, &found);
	if (!rc && args->svg)
		rc = report_svg(args, &found.points[0], args->svg);
	if (!rc && !found.points[0].fits && !args->space.any_memory)
		rc = model_fail(-ENOENT, "no split fits in %.0f GB; --recompute, more --groups or "
			"--in-flight may, --any-memory takes it", args->job.gpu_bytes / 1e9);
	if (!rc && fflush(stdout))
		rc = model_fail(-errno, "standard output: %s", strerror(errno));
	plan_found_free(&found);
	return rc;
}

int plan_main(int argc, char **argv)
{
	struct planner_args args;
	int rc = planner_args_parse(argc, argv, "Divides GPUs and NICs between attention and "
		"experts by the roofline of DisagMoE and by simulated steps.", &args);

	if (rc)
		return rc;
	rc = plan(&args);
	case_free(&args.job);
	if (rc)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	return rc ? 1 : 0;
}
