/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads measured coefficients. Members that are not known are refused, for a misspelt one would
 * otherwise be a GPU's name that holds for all.
 */
#include "measured.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "model/error.h"

static const char *const sides[2] = {"attention", "experts"};
static const char *const slopes[2] = {"k1_us", "k3_us"};
static const char *const constants[2] = {"k2_us", "k4_us"};

static int read_row(const char *path, enum plan_side side, size_t idx, json_t *json,
	struct plan_measured *measured)
{
	size_t i = measured->n[side];
	const char *gpu = "";
	json_error_t error;
	double slope, constant;
	int tp;

	if (i == PLAN_MAX_MEASURED)
		return model_fail(-E2BIG, "%s: %s: more than %d rows", path, sides[side],
			PLAN_MAX_MEASURED);
	if (json_unpack_ex(json, &error, JSON_STRICT, "{s:i, s?:s, s:F, s:F}", "tp", &tp, "gpu",
		    &gpu, slopes[side], &slope, constants[side], &constant))
		return model_fail(-EINVAL, "%s: %s[%zu]: %s", path, sides[side], idx, error.text);
	if (tp < 1 || slope <= 0 || constant < 0 ||
	    strlen(gpu) >= sizeof(measured->rows[side][i].gpu))
		return model_fail(-EINVAL, "%s: %s[%zu]: tp from 1, %s above 0, %s from 0 are "
			"wanted", path, sides[side], idx, slopes[side], constants[side]);
	measured->rows[side][i].tp = tp;
	snprintf(measured->rows[side][i].gpu, sizeof(measured->rows[side][i].gpu), "%s", gpu);
	measured->rows[side][i].line.slope = slope * 1e-6;
	measured->rows[side][i].line.constant = constant * 1e-6;
	measured->rows[side][i].line.product = 0;
	measured->n[side]++;
	return 0;
}

int plan_measured_read(const char *path, struct plan_measured *measured)
{
	struct plan_measured found = {.n = {0}};
	json_error_t error;
	json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
	int rc = 0;

	if (!root)
		return model_fail(-EINVAL, "%s:%d: %s", path, error.line, error.text);
	for (int side = 0; !rc && side < 2; side++) {
		json_t *rows = json_object_get(root, sides[side]), *row;
		size_t idx;

		if (!json_array_size(rows))
			rc = model_fail(-EINVAL, "%s: no array '%s' with rows", path, sides[side]);
		json_array_foreach(rows, idx, row) {
			if (!rc)
				rc = read_row(path, side, idx, row, &found);
		}
	}
	json_decref(root);
	if (!rc)
		*measured = found;
	return rc;
}

int plan_measured_find(const struct plan_measured *measured, enum plan_side side, const char *gpu,
	int tp, struct plan_line *line)
{
	int rc = -ENOENT;

	for (size_t i = 0; i < measured->n[side]; i++) {
		int own = !strcmp(measured->rows[side][i].gpu, gpu);

		if (measured->rows[side][i].tp != tp || (!own && measured->rows[side][i].gpu[0]))
			continue;
		if (own || rc)
			*line = measured->rows[side][i].line;
		rc = 0;
	}
	return rc;
}
