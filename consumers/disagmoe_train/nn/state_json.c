/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.json: one table of the settings, written with all their digits.
 */
#include "nn/state_files.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "model/error.h"

#define FORMAT 1

enum kind {
	U32,
	U64, /* as signed 64 bits in the file */
	REAL,
};

static const struct field {
	const char *name;
	enum kind kind;
	size_t offset;
} fields[] = {
#define AT(field) offsetof(struct nn_settings, field)
	/* clang-format off */
	{"seed", U64, AT(seed)},
	{"seq_len", U32, AT(seq_len)},
	{"step_seqs", U32, AT(step_seqs)},
	{"n_micro_batches", U32, AT(n_micro_batches)},
	{"held_back", REAL, AT(held_back)},
	{"balance", REAL, AT(balance)},
	{"learning_rate", REAL, AT(learning_rate)},
	{"min_learning_rate", REAL, AT(min_learning_rate)},
	{"warmup_steps", U64, AT(warmup_steps)},
	{"decay_steps", U64, AT(decay_steps)},
	{"beta1", REAL, AT(beta1)},
	{"beta2", REAL, AT(beta2)},
	{"eps", REAL, AT(eps)},
	{"weight_decay", REAL, AT(weight_decay)},
	{"max_grad_norm", REAL, AT(max_grad_norm)},
	/* clang-format on */
#undef AT
};
#define N_FIELDS (sizeof(fields) / sizeof(fields[0]))

static json_t *field_to_json(const struct nn_settings *settings, const struct field *field)
{
	const char *at = (const char *)settings + field->offset;
	uint32_t number;
	uint64_t large;
	double real;

	if (field->kind == REAL) {
		memcpy(&real, at, sizeof(real));
		return json_real(real);
	}
	if (field->kind == U32) {
		memcpy(&number, at, sizeof(number));
		return json_integer(number);
	}
	memcpy(&large, at, sizeof(large));
	return json_integer((json_int_t)large);
}

static json_t *to_json(const struct nn_state *state, uint32_t n_parts)
{
	json_t *settings = json_object();
	char digest[24];

	for (size_t i = 0; i < N_FIELDS; i++)
		if (json_object_set_new(settings, fields[i].name,
			field_to_json(&state->settings, &fields[i])) != 0) {
			json_decref(settings);
			return NULL;
		}
	snprintf(digest, sizeof(digest), "%016" PRIx64, state->text_digest);
	return json_pack("{s:i, s:I, s:I, s:I, s:s, s:o}", "format", FORMAT, "step",
		(json_int_t)state->step, "parts", (json_int_t)n_parts, "text_bytes",
		(json_int_t)state->text_bytes, "text_digest", digest, "settings", settings);
}

int nn_state_write_json(const char *dir, const struct nn_state *state, uint32_t n_parts)
{
	json_t *root = to_json(state, n_parts);
	char path[NN_STATE_PATH];
	FILE *file;
	int rc = 0;

	snprintf(path, sizeof(path), "%s/state.json", dir);
	file = root ? fopen(path, "we") : NULL;
	errno = root ? errno : ENOMEM;
	if (!file || json_dumpf(root, file, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) != 0 ||
		fflush(file) != 0)
		rc = -errno;
	if (file && fclose(file) != 0 && !rc)
		rc = -errno;
	json_decref(root);
	if (rc)
		return model_fail(rc, "%s: cannot be written: %s", path, strerror(-rc));
	snprintf(path, sizeof(path), "%s/model/config.json", dir);
	return model_config_write(path, &state->settings.config);
}

static int read_integer(const json_t *root, const char *path, const char *name, json_int_t min,
	json_int_t max, json_int_t *value)
{
	const json_t *member = json_object_get(root, name);

	*value = json_integer_value(member);
	if (json_is_integer(member) && *value >= min && *value <= max)
		return 0;
	return model_fail(-EINVAL, "%s: %s is not a whole number from %" JSON_INTEGER_FORMAT " to %"
		JSON_INTEGER_FORMAT, path, name, min, max);
}

static int read_field(const json_t *settings, const char *path, const struct field *field,
	struct nn_settings *into)
{
	const json_t *member = json_object_get(settings, field->name);
	char *at = (char *)into + field->offset;
	json_int_t number = 0;
	uint32_t small;
	double real;
	int rc;

	if (field->kind == REAL) {
		if (!json_is_number(member))
			return model_fail(-EINVAL, "%s: settings: %s is not a number", path,
				field->name);
		real = json_number_value(member);
		memcpy(at, &real, sizeof(real));
		return 0;
	}
	rc = read_integer(settings, path, field->name, field->kind == U32 ? 0 : INT64_MIN,
		field->kind == U32 ? UINT32_MAX : INT64_MAX, &number);
	small = (uint32_t)number;
	if (!rc && field->kind == U32)
		memcpy(at, &small, sizeof(small));
	else if (!rc)
		memcpy(at, &number, sizeof(number));
	return rc;
}

static int from_json(const json_t *root, const char *path, struct nn_state *state,
	uint32_t *n_parts)
{
	const char *digest = json_string_value(json_object_get(root, "text_digest"));
	json_int_t format, step = 0, parts = 0, bytes = 0;
	int rc = read_integer(root, path, "format", FORMAT, FORMAT, &format), end = 0;

	if (!rc)
		rc = read_integer(root, path, "step", 0, INT64_MAX, &step);
	if (!rc)
		rc = read_integer(root, path, "parts", 1, NN_STATE_MAX_PARTS, &parts);
	if (!rc)
		rc = read_integer(root, path, "text_bytes", 0, INT64_MAX, &bytes);
	if (!rc && (!digest || strlen(digest) != 16 ||
		sscanf(digest, "%16" SCNx64 "%n", &state->text_digest, &end) != 1 || end != 16))
		rc = model_fail(-EINVAL, "%s: text_digest is not 16 hexadecimal digits", path);
	for (size_t i = 0; !rc && i < N_FIELDS; i++)
		rc = read_field(json_object_get(root, "settings"), path, &fields[i],
			&state->settings);
	state->step = (uint64_t)step;
	state->text_bytes = (uint64_t)bytes;
	*n_parts = (uint32_t)parts;
	return rc;
}

int nn_state_read_json(const char *dir, struct nn_state *state, uint32_t *n_parts)
{
	struct nn_state found = {0};
	char path[NN_STATE_PATH];
	json_error_t error;
	json_t *root;
	FILE *file;
	int rc;

	snprintf(path, sizeof(path), "%.4000s/state.json", dir);
	file = fopen(path, "re");
	if (!file)
		return model_fail(-errno, "%.4000s: there is no training checkpoint: state.json: "
			"%s", dir, strerror(errno));
	root = json_loadf(file, JSON_REJECT_DUPLICATES, &error);
	fclose(file);
	if (!root)
		return model_fail(-EINVAL, "%s: line %d: %s", path, error.line, error.text);
	rc = from_json(root, path, &found, n_parts);
	json_decref(root);
	snprintf(path, sizeof(path), "%.4000s/model/config.json", dir);
	if (!rc)
		rc = model_config_read(path, &found.settings.config);
	if (!rc)
		rc = nn_settings_check(&found.settings);
	if (!rc)
		*state = found;
	return rc;
}
