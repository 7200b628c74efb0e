/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Profiles as JSON, and times between their points.
 */
#include "planner/machine.h"

#include <errno.h>
#include <math.h>

#include <jansson.h>

#include "model/error.h"

static const char *const parts[MACHINE_N_PARTS] = {"forward", "backward", "weights"};

/* Numbers that are not in lists: where they stand, and the least that they may be. */
static const struct number {
	const char *object, *name;
	size_t offset;
	double min;
} numbers[] = {
/* clang-format off */
#define NUMBER(object, name, field, min) {object, name, offsetof(struct machine, field), min}
	NUMBER("model", "layers", layers, 1), NUMBER("model", "hidden", hidden, 1),
	NUMBER("model", "intermediate", intermediate, 1), NUMBER("model", "heads", heads, 1),
	NUMBER("model", "kv_heads", kv_heads, 1), NUMBER("model", "head_dim", head_dim, 1),
	NUMBER("model", "experts", experts, 1), NUMBER("model", "top_k", top_k, 1),
	NUMBER("model", "vocab", vocab, 1), NUMBER("model", "seq", seq, 1),
	NUMBER("head", "forward_backward", head_us, 0), NUMBER("head", "weights",
	head_weights_us, 0), NUMBER("values", "zero", zero_us, 0),
	NUMBER("values", "norm", norm_us, 0), NUMBER("values", "update", update_us, 0),
	NUMBER("bytes", "copy", copy_us, 0), NUMBER("bytes", "combine", combine_us, 0),
	NUMBER("transfer", "us", transfer_us, 0),
	NUMBER("rate", "gflops", gflops, 1e-9),
/* clang-format on */
};

enum { N_NUMBERS = sizeof(numbers) / sizeof(numbers[0]) };

double machine_us(const struct machine_points *points, enum machine_part part, double size)
{
	double x0 = 0, y0 = 0;

	for (size_t i = 0; i < points->n; i++) {
		double x1 = points->size[i], y1 = points->us[i][part];

		if (size <= x1 || i + 1 == points->n)
			return fmax(0, y0 + (y1 - y0) * (size - x0) / (x1 - x0));
		x0 = x1;
		y0 = y1;
	}
	return 0;
}

static json_t *points_json(const struct machine_points *points, const char *size)
{
	json_t *list = json_array();

	for (size_t i = 0; i < points->n; i++) {
		json_t *row = json_pack("{s:f}", size, points->size[i]);

		for (int part = 0; part < MACHINE_N_PARTS; part++)
			json_object_set_new(row, parts[part], json_real(points->us[i][part]));
		json_array_append_new(list, row);
	}
	return list;
}

int machine_write(const struct machine *machine, FILE *out)
{
	json_t *root = json_object();
	int rc;

	for (int i = 0; i < N_NUMBERS; i++) {
		json_t *object = json_object_get(root, numbers[i].object);

		if (!object) {
			object = json_object();
			json_object_set_new(root, numbers[i].object, object);
		}
		json_object_set_new(object, numbers[i].name, json_real(*(const double *)
			((const char *)machine + numbers[i].offset)));
	}
	json_object_set_new(root, "attention", points_json(&machine->attention, "sequences"));
	json_object_set_new(root, "experts", points_json(&machine->expert, "rows"));
	rc = json_dumpf(root, out, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	json_decref(root);
	fputc('\n', out);
	return rc ? model_fail(-EIO, "the profile could not be written") : 0;
}

static int read_number(const char *path, const json_t *object, const char *where, const char *name,
	double min, double *value)
{
	const json_t *json = json_object_get(object, name);

	if (!json_is_number(json) || !(json_number_value(json) >= min))
		return model_fail(-EINVAL, "%s: %s: no number '%s' from %g", path, where, name,
			min);
	*value = json_number_value(json);
	return 0;
}

static int read_points(const char *path, const json_t *root, const char *where, const char *size,
	struct machine_points *points)
{
	const json_t *list = json_object_get(root, where), *row;
	size_t i;
	int rc = 0;

	points->n = json_array_size(list);
	if (!points->n || points->n > MACHINE_MAX_POINTS)
		return model_fail(-EINVAL, "%s: '%s' is no list of 1 to %d points", path, where,
			MACHINE_MAX_POINTS);
	json_array_foreach(list, i, row) {
		if (!rc)
			rc = read_number(path, row, where, size, 1e-9, &points->size[i]);
		for (int part = 0; !rc && part < MACHINE_N_PARTS; part++)
			rc = read_number(path, row, where, parts[part], 0, &points->us[i][part]);
		if (!rc && i && points->size[i] <= points->size[i - 1])
			rc = model_fail(-EINVAL, "%s: %s: '%s' has to rise", path, where, size);
	}
	return rc;
}

int machine_read(const char *path, struct machine *machine)
{
	struct machine found = {0};
	json_error_t error;
	json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
	int rc = 0;

	if (!root)
		return model_fail(-EINVAL, "%s:%d: %s", path, error.line, error.text);
	for (int i = 0; !rc && i < N_NUMBERS; i++)
		rc = read_number(path, json_object_get(root, numbers[i].object), numbers[i].object,
			numbers[i].name, numbers[i].min,
			(double *)((char *)&found + numbers[i].offset));
	if (!rc)
		rc = read_points(path, root, "attention", "sequences", &found.attention);
	if (!rc)
		rc = read_points(path, root, "experts", "rows", &found.expert);
	json_decref(root);
	if (!rc)
		*machine = found;
	return rc;
}
