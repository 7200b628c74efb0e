/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Percentiles of samples, by nearest rank: a percentile is always a sample that was taken.
 */
#ifndef PERF_STATS_H
#define PERF_STATS_H

#include <stddef.h>

struct perf_stats {
	double min, p50, p90, p99, p999, max;
};

/* Sorts the samples. All 0 when there are none. */
void perf_stats_of(double *samples, size_t n, struct perf_stats *stats);
/* The median; sorts the samples. */
double perf_median(double *samples, size_t n);

#endif
