/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the performance model wants to know of this machine: T_a = k1 * b + k2 of the attention part
 * of a layer and T_e = k3 * b + k4 of an expert, as measured points and lines through them, what a
 * row and a key cost for batches that are composed to a time, and the curve Util of equation (6).
 */
#ifndef MEGASCALE_PROFILE_H
#define MEGASCALE_PROFILE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { PROFILE_MAX_POINTS = 64 };

struct profile_point {
	uint32_t rows, context; /* context: keys that a row attends to; 0: no attention */
	double us;
};

struct profile_points {
	struct profile_point points[PROFILE_MAX_POINTS];
	size_t n;
};

/* us = slope * rows + constant */
struct profile_line {
	double slope_us, constant_us;
	double residual_us; /* root of the mean square of what the points are off the line */
};

/* What a batch costs beside its constant, by batcher.h. */
struct profile_cost {
	double row_us, key_us;
};

struct profile_params {
	const char *dir; /* of a checkpoint */
	uint32_t context; /* of T_a; a quarter of it is measured too, for key_us */
	uint32_t batches[PROFILE_MAX_POINTS / 2];
	size_t n_batches, n_repeats;
};

/*
 * Medians of the thread's CPU time over n_repeats calls, layers and experts in turn so that weights
 * come from where serving finds them. attention: both contexts, the smaller first. 0 or a negative
 * errno with a text.
 */
int profile_measure(const struct profile_params *params, struct profile_points *attention,
	struct profile_points *experts);

/*
 * Least squares through the points of that context, with a constant of 0 where it would be
 * negative. -EINVAL: less than two sizes, or a slope that is not positive.
 */
int profile_fit(const struct profile_points *points, uint32_t context, struct profile_line *line);
/* From lines at two contexts, small < large; neither cost is negative. */
void profile_cost_of(const struct profile_line *small, uint32_t small_context,
	const struct profile_line *large, uint32_t large_context, struct profile_cost *cost);
/* The member "batch" of a file that `profile` wrote. 0, -EINVAL, -ENOENT. */
int profile_cost_read(const char *path, struct profile_cost *cost);

/*
 * The table bytes,util that `plan --util` reads, from the JSON of `m2n_perf bw`. gbit: of the link
 * of one source; 0: the best rate in the file is taken for it. 0 or a negative errno with a text.
 */
int profile_write_util(const char *path, double gbit, FILE *out);

#endif
