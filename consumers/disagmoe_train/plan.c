/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `disagmoe_train plan`: the split of a pair of groups that takes the least time, and among equals
 * the one with the best use of its GPUs.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "model/error.h"
#include "plan_args.h"

static int better(const struct train_times *a, const struct train_times *b)
{
	double t_a = a->t_a > a->t_f ? a->t_a : a->t_f, t_b = b->t_a > b->t_f ? b->t_a : b->t_f;

	return t_a < t_b * (1 - 1e-9) || (t_a <= t_b * (1 + 1e-9) && a->mfu > b->mfu);
}

static void search(const struct train_args *args, struct train_split *best,
	struct train_times *times)
{
	int found = 0;

	for (size_t a = (size_t)args->min_gpus_a; a <= (size_t)args->max_gpus_a; a++)
		for (size_t f = 1; f <= (size_t)args->max_gpus_f; f++) {
			struct train_split split = {a, f, (size_t)args->nics_a,
				(size_t)args->nics_f};
			struct train_times at;

			train_roofline(&args->job, &split, &at);
			if (found && !better(&at, times))
				continue;
			*best = split;
			*times = at;
			found = 1;
		}
}

int plan_main(int argc, char **argv)
{
	struct train_args args;
	struct train_split split = {0};
	struct train_times times = {0};
	int rc = train_args_parse(argc, argv, "Splits GPUs between attention and experts.", &args);

	if (rc)
		return rc;
	search(&args, &split, &times);
	printf("%s, %g tokens a sequence: %zu GPUs and %zu NICs for attention, %zu and %zu for "
		"experts\n", args.job.model.name, args.job.seq, split.gpus_a, split.nics_a,
		split.gpus_f, split.nics_f);
	printf("T_a %.1f us (%s), T_f %.1f us (%s), MFU %.1f %%\n", times.t_a * 1e6,
		times.compute_a >= times.network_a ? "computation" : "network", times.t_f * 1e6,
		times.compute_f >= times.network_f ? "computation" : "network", times.mfu * 100);
	if (fflush(stdout)) {
		fprintf(stderr, "%s: standard output: %s\n", argv[0], strerror(errno));
		return 1;
	}
	return 0;
}
