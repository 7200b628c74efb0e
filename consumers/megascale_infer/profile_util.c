/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Util of equation (6) from `m2n_perf bw`: bytes that one source sends to all its peers, and the
 * share of its link that they reached. `plan` takes no curve on which more bytes take less time,
 * as noise may have it; such a point is left out.
 */
#include "profile.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

struct curve {
	struct {
		double bytes, bytes_per_s; /* of one source */
	} points[PROFILE_MAX_POINTS];
	size_t n;
};

static int read_case(const char *path, size_t idx, json_t *json, struct curve *curve)
{
	const char *test;
	json_error_t error;
	double bytes, rate, n_sources;

	if (json_unpack_ex(json, &error, 0, "{s:s, s:F, s:F, s:F}", "test", &test, "bytes", &bytes,
		    "gbps", &rate, "M", &n_sources))
		return model_fail(-EINVAL, "%s: cases[%zu]: %s", path, idx, error.text);
	if (strcmp(test, "bw"))
		return model_fail(-EINVAL, "%s: cases[%zu]: test '%s', not bw", path, idx, test);
	if (!(bytes >= 1 && rate > 0 && n_sources >= 1))
		return model_fail(-EINVAL, "%s: cases[%zu]: bytes, gbps and M above 0 are wanted",
			path, idx);
	if (curve->n == PROFILE_MAX_POINTS)
		return model_fail(-E2BIG, "%s: more than %d cases", path, PROFILE_MAX_POINTS);
	curve->points[curve->n].bytes = bytes / n_sources;
	curve->points[curve->n++].bytes_per_s = rate * 1e9 / n_sources;
	return 0;
}

static int by_bytes(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static int read_curve(const char *path, struct curve *curve)
{
	json_error_t error;
	json_t *root = json_load_file(path, 0, &error), *row;
	size_t idx;
	int rc = 0;

	curve->n = 0;
	if (!root)
		return model_fail(-EINVAL, "%s:%d: %s", path, error.line, error.text);
	json_array_foreach(json_object_get(root, "cases"), idx, row) {
		if (!rc)
			rc = read_case(path, idx, row, curve);
	}
	json_decref(root);
	if (!rc && !curve->n)
		rc = model_fail(-EINVAL, "%s: no array 'cases', as `m2n_perf bw --format json` "
			"prints", path);
	qsort(curve->points, curve->n, sizeof(curve->points[0]), by_bytes);
	return rc;
}

int profile_write_util(const char *path, double gbit, FILE *out)
{
	struct curve curve;
	double link = gbit * 1e9 / 8, best = 0, bytes = 0, least_s = 0;
	int rc = read_curve(path, &curve);

	if (rc)
		return rc;
	for (size_t i = 0; i < curve.n; i++)
		best = fmax(best, curve.points[i].bytes_per_s);
	if (link <= 0)
		link = best;
	if (best > link)
		return model_fail(-EINVAL, "%s: %g Gb/s of a source are more than its link's %g",
			path, best * 8e-9, gbit);
	fprintf(out, "# for plan --nic-gbit %.6g\nbytes,util\n", link * 8e-9);
	for (size_t i = 0; i < curve.n; i++) {
		double seconds = curve.points[i].bytes / curve.points[i].bytes_per_s;

		if (curve.points[i].bytes <= bytes || seconds <= least_s)
			continue;
		bytes = curve.points[i].bytes;
		least_s = seconds * (1 + 1e-6); /* more than the digits below can lose */
		fprintf(out, "%.0f,%.9g\n", bytes, curve.points[i].bytes_per_s / link);
	}
	return 0;
}
