/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints of a training run, whole or not at all: see state.h. Ranks write to files of their
 * own beside the old checkpoint; commit looks at what is there, not at what it was told.
 */
#include "nn/state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "model/error.h"
#include "nn/state_files.h"

/* The tensor that a parameter is in a file. */
static struct model_tensor tensor_of(const struct nn_param *param, const char *name,
	const float *values)
{
	return (struct model_tensor){.name = name, .dtype = MODEL_F32, .n_dims = param->n_dims,
		.shape = {param->shape[0], param->shape[1]}, .data = values,
		.bytes = param->n_values * sizeof(float)};
}

int nn_state_begin(const char *dir)
{
	struct nn_state_paths paths;
	char model[NN_STATE_PATH];
	int rc = nn_state_paths(dir, &paths);

	if (!rc)
		rc = nn_state_walk(paths.dir, 0);
	if (!rc || rc == -ENOENT)
		rc = nn_state_walk(paths.part, 1);
	if (rc && rc != -ENOENT)
		return rc;
	snprintf(model, sizeof(model), "%s/model", paths.part);
	if (mkdir(paths.part, 0777) != 0 || mkdir(model, 0777) != 0)
		return model_fail(-errno, "%s: cannot be made: %s", paths.part, strerror(errno));
	return 0;
}

/* Values, then m and v under names of their own, of the parameters in list. */
static int write_files(const struct nn_state_paths *paths, struct nn_param *const *list, size_t n,
	uint32_t part, uint32_t n_parts)
{
	struct model_tensor *tensors = calloc(2 * n, sizeof(*tensors));
	char (*names)[256] = calloc(2 * n, sizeof(*names)), path[NN_STATE_PATH];
	int rc = 0;

	if (!tensors || !names) {
		rc = model_fail(-ENOMEM, "%s: no memory for names", paths->part);
		goto out;
	}
	for (size_t i = 0; i < n; i++)
		tensors[i] = tensor_of(list[i], list[i]->name, list[i]->value);
	nn_state_model_path(paths->part, part, n_parts, path);
	rc = model_safetensors_write(path, tensors, n);
	for (size_t i = 0; i < n; i++) {
		snprintf(names[2 * i], sizeof(names[0]), "%s.m", list[i]->name);
		snprintf(names[2 * i + 1], sizeof(names[0]), "%s.v", list[i]->name);
		tensors[2 * i] = tensor_of(list[i], names[2 * i], list[i]->m);
		tensors[2 * i + 1] = tensor_of(list[i], names[2 * i + 1], list[i]->v);
	}
	nn_state_moments_path(paths->part, part, n_parts, path);
	if (!rc)
		rc = model_safetensors_write(path, tensors, 2 * n);
out:
	free(names);
	free(tensors);
	return rc;
}

int nn_state_write_part(const char *dir, const struct nn_params *params, nn_wanted *mine,
	void *arg, uint32_t part, uint32_t n_parts)
{
	struct nn_param **list;
	struct nn_state_paths paths;
	int rc = nn_state_paths(dir, &paths);
	size_t n = 0;

	if (!rc && (n_parts > NN_STATE_MAX_PARTS || part >= n_parts))
		rc = model_fail(-EINVAL, "%s: part %u of %u; at most %u", dir, part, n_parts,
			NN_STATE_MAX_PARTS);
	if (rc)
		return rc;
	list = calloc(params->n + 1, sizeof(list[0]));
	if (!list)
		return model_fail(-ENOMEM, "%s: no memory", dir);
	for (size_t i = 0; i < params->n; i++)
		if (!mine || mine(arg, params->list[i].part, params->list[i].layer,
			params->list[i].expert))
			list[n++] = &params->list[i];
	if (n > 0)
		rc = write_files(&paths, list, n, part, n_parts);
	free(list);
	return rc;
}

/* Every tensor of the model with its moments, and nothing else. */
static int check_parts(const char *dir, const struct model_weights *names,
	const struct nn_tensors *values, const struct nn_tensors *moments)
{
	char name[256];

	for (size_t i = 0; i < names->n_tensors; i++) {
		const struct model_tensor *like = &names->tensors[i];

		if (!nn_tensors_find(values, dir, like->name, like))
			return -EINVAL;
		for (const char *end = "mv"; *end; end++) {
			snprintf(name, sizeof(name), "%s.%c", like->name, *end);
			if (!nn_tensors_find(moments, dir, name, like))
				return -EINVAL;
		}
	}
	if (values->n != names->n_tensors || moments->n != 2 * names->n_tensors)
		return model_fail(-EINVAL, "%s: %zu tensors and %zu moments; the model has %zu "
			"tensors", dir, values->n, moments->n, names->n_tensors);
	return 0;
}

static int write_index(const char *dir, const struct nn_tensors *values)
{
	json_t *map = json_object(), *root;
	char path[NN_STATE_PATH];
	size_t bytes = 0;
	int rc = 0;

	for (size_t i = 0; i < values->n; i++) {
		const char *file = strrchr(values->sorted[i]->path, '/') + 1;

		bytes += values->sorted[i]->bytes;
		if (json_object_set_new(map, values->sorted[i]->name, json_string(file)) != 0)
			rc = -ENOMEM;
	}
	root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)bytes,
		"weight_map", map);
	snprintf(path, sizeof(path), "%s/model/model.safetensors.index.json", dir);
	errno = ENOMEM;
	if (rc || !root || json_dump_file(root, path, JSON_INDENT(2) | JSON_SORT_KEYS) != 0)
		rc = model_fail(-errno, "%s: cannot be written: %s", path, strerror(errno));
	json_decref(root);
	return rc;
}

static int check_and_index(const char *part, const struct nn_state *state, uint32_t n_parts)
{
	struct nn_tensors values = {0}, moments = {0};
	struct model_weights_params none = {0};
	struct model_weights *names = NULL;
	int rc = model_weights_create(&state->settings.config, &none, &names);

	if (!rc)
		rc = nn_tensors_open(part, nn_state_model_path, n_parts, &values);
	if (!rc)
		rc = nn_tensors_open(part, nn_state_moments_path, n_parts, &moments);
	if (!rc)
		rc = check_parts(part, names, &values, &moments);
	if (!rc)
		rc = write_index(part, &values);
	nn_tensors_close(&values);
	nn_tensors_close(&moments);
	model_weights_close(names);
	return rc;
}

static int flush_part(const char *part)
{
	static const char *const names[] = {"/model/model.safetensors.index.json",
		"/model/config.json", "/state.json", "/model", ""};
	char path[NN_STATE_PATH];
	int rc = 0;

	for (size_t i = 0; !rc && i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s%s", part, names[i]);
		rc = nn_state_flush(path);
	}
	return rc;
}

/* The new directory takes the place; what was there is removed. */
static int change_places(const struct nn_state_paths *paths)
{
	int rc;

	if (rename(paths->part, paths->dir) == 0)
		return 0;
	if (errno != EEXIST && errno != ENOTEMPTY)
		return model_fail(-errno, "%s: cannot be put in place: %s", paths->dir,
			strerror(errno));
	rc = nn_state_walk(paths->dir, 0);
	if (rc)
		return rc;
	if (renameat2(AT_FDCWD, paths->part, AT_FDCWD, paths->dir, RENAME_EXCHANGE) != 0)
		return model_fail(-errno, "%s: this file system cannot exchange it with the new "
			"one (%s); remove it first", paths->dir, strerror(errno));
	return nn_state_walk(paths->part, 1);
}

/* The directory that DIR is an entry of. */
static int flush_parent(const char *dir)
{
	char parent[NN_STATE_PATH];
	char *slash;

	snprintf(parent, sizeof(parent), "%s", dir);
	slash = strrchr(parent, '/');
	if (!slash)
		return nn_state_flush(".");
	slash[slash == parent] = 0;
	return nn_state_flush(parent);
}

int nn_state_commit(const char *dir, const struct nn_state *state, uint32_t n_parts)
{
	struct nn_state_paths paths;
	int rc = nn_state_paths(dir, &paths);

	if (!rc)
		rc = check_and_index(paths.part, state, n_parts);
	if (!rc)
		rc = nn_state_write_json(paths.part, state, n_parts);
	if (!rc)
		rc = flush_part(paths.part);
	if (!rc)
		rc = change_places(&paths);
	return rc ? rc : flush_parent(paths.dir);
}

void nn_state_abandon(const char *dir)
{
	struct nn_state_paths paths;
	char cause[1024];

	/* The text of why it is abandoned is what the user wants to read. */
	snprintf(cause, sizeof(cause), "%s", model_error());
	if (nn_state_paths(dir, &paths) == 0)
		nn_state_walk(paths.part, 1);
	model_fail(0, "%s", cause);
}

int nn_state_write(const char *dir, const struct nn_params *params, const struct nn_state *state)
{
	int rc = nn_state_begin(dir);

	if (rc)
		return rc;
	rc = nn_state_write_part(dir, params, NULL, NULL, 0, 1);
	if (!rc)
		rc = nn_state_commit(dir, state, 1);
	if (rc)
		nn_state_abandon(dir);
	return rc;
}

int nn_state_read(const char *dir, struct nn_state *state)
{
	uint32_t n_parts;

	return nn_state_read_json(dir, state, &n_parts);
}

static int read_values(const char *dir, struct nn_params *params)
{
	struct model_weights_params none = {0};
	struct model_weights *weights;
	char path[NN_STATE_PATH];
	int rc;

	snprintf(path, sizeof(path), "%.4000s/model", dir);
	rc = model_weights_open(path, &none, &weights);
	if (rc)
		return rc;
	for (size_t i = 0; !rc && i < params->n; i++) {
		struct nn_param *param = &params->list[i];
		const struct model_tensor *found = model_checkpoint_find(weights->checkpoint,
			param->name);

		if (found && found->dtype == MODEL_F32 &&
			found->bytes == param->n_values * sizeof(float))
			memcpy(param->value, found->data, found->bytes);
		else
			rc = model_fail(-EINVAL, "%s: tensor %s is not the F32 that is trained",
				path, param->name);
	}
	model_weights_close(weights);
	return rc;
}

static int read_moments(const char *dir, struct nn_params *params, uint32_t n_parts)
{
	struct nn_tensors moments;
	char name[256];
	int rc = nn_tensors_open(dir, nn_state_moments_path, n_parts, &moments);

	if (rc)
		return rc;
	for (size_t i = 0; !rc && i < params->n; i++) {
		struct nn_param *param = &params->list[i];
		float *const into[] = {param->m, param->v};
		struct model_tensor like = tensor_of(param, param->name, NULL);

		for (unsigned j = 0; !rc && j < 2; j++) {
			const struct model_tensor *found;

			snprintf(name, sizeof(name), "%s.%c", param->name, "mv"[j]);
			found = nn_tensors_find(&moments, dir, name, &like);
			if (found)
				memcpy(into[j], found->data, found->bytes);
			else
				rc = -EINVAL;
		}
	}
	nn_tensors_close(&moments);
	return rc;
}

/* What decides on shapes and results; the file has no more digits than the struct. */
static int same_model(const struct model_config *a, const struct model_config *b)
{
	return a->vocab_size == b->vocab_size && a->hidden_size == b->hidden_size &&
		a->intermediate_size == b->intermediate_size && a->n_layers == b->n_layers &&
		a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads &&
		a->head_dim == b->head_dim && a->n_experts == b->n_experts &&
		a->top_k == b->top_k && a->sliding_window == b->sliding_window &&
		!(a->rms_norm_eps < b->rms_norm_eps) && !(a->rms_norm_eps > b->rms_norm_eps) &&
		!(a->rope_theta < b->rope_theta) && !(a->rope_theta > b->rope_theta);
}

int nn_state_read_params(const char *dir, struct nn_params *params)
{
	struct nn_state state;
	uint32_t n_parts;
	int rc = nn_state_read_json(dir, &state, &n_parts);

	if (!rc && !same_model(&state.settings.config, &params->config))
		rc = model_fail(-EINVAL, "%s: the checkpoint is of another model: %u layers, "
			"hidden %u, %u experts", dir, state.settings.config.n_layers,
			state.settings.config.hidden_size, state.settings.config.n_experts);
	if (!rc)
		rc = read_values(dir, params);
	return rc ? rc : read_moments(dir, params, n_parts);
}
