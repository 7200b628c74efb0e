/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Percentiles over sorted copies; the p-th is sample number ceil(p * n).
 */
#include "stats.h"

#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a;
	double y = *(const double *)b;

	return (x > y) - (x < y);
}

static double at(const double *sorted, size_t n, double p)
{
	size_t rank = (size_t)ceil(p * (double)n - 1e-9);

	return sorted[rank > 0 ? rank - 1 : 0];
}

void perf_stats_of(double *samples, size_t n, struct perf_stats *stats)
{
	*stats = (struct perf_stats){0, 0, 0, 0, 0, 0};
	if (n == 0)
		return;
	qsort(samples, n, sizeof(*samples), compare);
	*stats = (struct perf_stats){samples[0], at(samples, n, 0.5), at(samples, n, 0.9),
		at(samples, n, 0.99), at(samples, n, 0.999), samples[n - 1]};
}

double perf_median(double *samples, size_t n)
{
	struct perf_stats stats;

	perf_stats_of(samples, n, &stats);
	return stats.p50;
}
