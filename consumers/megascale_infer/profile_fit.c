/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines through measured points, and what they say about a batch.
 */
#include "profile.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>

#include "model/error.h"

struct sums {
	double n, x, y, xx, xy;
};

static struct sums sum_points(const struct profile_points *points, uint32_t context)
{
	struct sums s = {0};

	for (size_t i = 0; i < points->n; i++) {
		double x = points->points[i].rows, y = points->points[i].us;

		if (points->points[i].context != context)
			continue;
		s.n++;
		s.x += x;
		s.y += y;
		s.xx += x * x;
		s.xy += x * y;
	}
	return s;
}

int profile_fit(const struct profile_points *points, uint32_t context, struct profile_line *line)
{
	struct sums s = sum_points(points, context);
	double spread = s.n * s.xx - s.x * s.x, squares = 0;
	struct profile_line found;

	if (!(spread > 0))
		return model_fail(-EINVAL, "a line needs times of two numbers of rows at least");
	found.slope_us = (s.n * s.xy - s.x * s.y) / spread;
	found.constant_us = (s.y - found.slope_us * s.x) / s.n;
	if (found.constant_us < 0) {
		found.slope_us = s.xy / s.xx;
		found.constant_us = 0;
	}
	if (!(found.slope_us > 0))
		return model_fail(-EINVAL, "the times do not rise with the rows: larger batches or "
			"more repeats are wanted");
	for (size_t i = 0; i < points->n; i++) {
		const struct profile_point *point = &points->points[i];
		double off = point->us - found.slope_us * point->rows - found.constant_us;

		if (point->context == context)
			squares += off * off;
	}
	found.residual_us = sqrt(squares / s.n);
	*line = found;
	return 0;
}

void profile_cost_of(const struct profile_line *small, uint32_t small_context,
	const struct profile_line *large, uint32_t large_context, struct profile_cost *cost)
{
	double key_us = (large->slope_us - small->slope_us) / (large_context - small_context);

	cost->key_us = fmin(fmax(key_us, 0), large->slope_us / large_context);
	cost->row_us = fmax(large->slope_us - cost->key_us * large_context, 0);
}

int profile_cost_read(const char *path, struct profile_cost *cost)
{
	struct profile_cost found;
	json_error_t error;
	json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
	int rc = 0;

	if (!root)
		return model_fail(-EINVAL, "%s:%d: %s", path, error.line, error.text);
	if (json_unpack_ex(root, &error, 0, "{s:{s:F, s:F}}", "batch", "row_us", &found.row_us,
		    "key_us", &found.key_us))
		rc = model_fail(-EINVAL, "%s: batch: %s", path, error.text);
	else if (!(found.row_us >= 0 && found.key_us >= 0 && found.row_us + found.key_us > 0))
		rc = model_fail(-EINVAL, "%s: batch: row_us and key_us from 0, one above, are "
			"wanted", path);
	json_decref(root);
	if (!rc)
		*cost = found;
	return rc;
}
