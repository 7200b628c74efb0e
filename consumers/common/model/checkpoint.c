/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading of a checkpoint's directory. File names in an index come from outside: only plain names
 * are taken, so that an index cannot lead out of its directory.
 */
#include "checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "error.h"

#define MAX_SHARDS 10000

static char *path_of(const char *dir, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static int add_file(struct model_checkpoint *checkpoint, const char *name)
{
	char *path = path_of(checkpoint->dir, name);
	int rc;

	if (!path)
		return model_fail(-ENOMEM, "%s: no memory", checkpoint->dir);
	rc = model_safetensors_open(path, &checkpoint->files[checkpoint->n_files]);
	free(path);
	if (!rc)
		checkpoint->n_files++;
	return rc;
}

static int by_name(const void *a, const void *b)
{
	const struct model_tensor *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

static int index_tensors(struct model_checkpoint *checkpoint)
{
	size_t n = 0;

	for (size_t i = 0; i < checkpoint->n_files; i++)
		n += checkpoint->files[i]->n_tensors;
	checkpoint->tensors = calloc(n + 1, sizeof(struct model_tensor *));
	if (!checkpoint->tensors)
		return model_fail(-ENOMEM, "%s: no memory", checkpoint->dir);
	for (size_t i = 0; i < checkpoint->n_files; i++)
		for (size_t j = 0; j < checkpoint->files[i]->n_tensors; j++)
			checkpoint->tensors[checkpoint->n_tensors++] =
				&checkpoint->files[i]->tensors[j];
	qsort(checkpoint->tensors, n, sizeof(struct model_tensor *), by_name);
	for (size_t i = 1; i < n; i++)
		if (by_name(&checkpoint->tensors[i - 1], &checkpoint->tensors[i]) == 0)
			return model_fail(-EINVAL, "%s: tensor %s is in %s too",
				checkpoint->tensors[i]->path, checkpoint->tensors[i]->name,
				checkpoint->tensors[i - 1]->path);
	return 0;
}

static int is_plain_name(const char *name)
{
	return name && name[0] && name[0] != '.' && !strchr(name, '/');
}

static int name_order(const void *a, const void *b)
{
	const char *const *x = a, *const *y = b;

	return strcmp(*x, *y);
}

/* Opens each file that the map names once. names: room for all members of the map. */
static int open_shards(struct model_checkpoint *checkpoint, const char *path, json_t *map,
	const char **names)
{
	size_t n = 0, n_unique = 0;
	const char *tensor;
	json_t *file;
	int rc = 0;

	json_object_foreach(map, tensor, file) {
		if (!is_plain_name(json_string_value(file)))
			return model_fail(-EINVAL, "%s: weight_map gives tensor %s no plain file "
				"name", path, tensor);
		names[n++] = json_string_value(file);
	}
	qsort(names, n, sizeof(*names), name_order);
	for (size_t i = 0; i < n; i++)
		if (i == 0 || strcmp(names[i], names[n_unique - 1]) != 0)
			names[n_unique++] = names[i];
	if (n_unique == 0 || n_unique > MAX_SHARDS)
		return model_fail(-EINVAL, "%s: weight_map names %zu files", path, n_unique);
	checkpoint->files = calloc(n_unique, sizeof(checkpoint->files[0]));
	if (!checkpoint->files)
		return model_fail(-ENOMEM, "%s: no memory", path);
	for (size_t i = 0; !rc && i < n_unique; i++)
		rc = add_file(checkpoint, names[i]);
	return rc ? rc : index_tensors(checkpoint);
}

/* What the index says and what the shards hold must be the same. */
static int check_map(const struct model_checkpoint *checkpoint, const char *path, json_t *map)
{
	const char *name;
	json_t *file;

	json_object_foreach(map, name, file) {
		const struct model_tensor *tensor = model_checkpoint_find(checkpoint, name);

		if (!tensor || strcmp(strrchr(tensor->path, '/') + 1, json_string_value(file)) != 0)
			return model_fail(-EINVAL, "%s: tensor %s is not in %s, where the index "
				"says it is", path, name, json_string_value(file));
	}
	for (size_t i = 0; i < checkpoint->n_tensors; i++)
		if (!json_object_get(map, checkpoint->tensors[i]->name))
			return model_fail(-EINVAL, "%s: tensor %s is not in %s",
				checkpoint->tensors[i]->path, checkpoint->tensors[i]->name, path);
	return 0;
}

static int read_index(struct model_checkpoint *checkpoint, const char *path)
{
	json_error_t error;
	json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
	json_t *map = json_object_get(root, "weight_map");
	const char **names;
	int rc;

	if (!root)
		return model_fail(-EINVAL, "%s: line %d: %s", path, error.line, error.text);
	names = calloc(json_object_size(map) + 1, sizeof(*names));
	if (!names)
		rc = model_fail(-ENOMEM, "%s: no memory", path);
	else if (!json_is_object(map))
		rc = model_fail(-EINVAL, "%s: there is no object weight_map", path);
	else
		rc = open_shards(checkpoint, path, map, names);
	if (!rc)
		rc = check_map(checkpoint, path, map);
	free(names);
	json_decref(root);
	return rc;
}

static int open_files(struct model_checkpoint *checkpoint)
{
	char *single = path_of(checkpoint->dir, "model.safetensors");
	char *index = path_of(checkpoint->dir, "model.safetensors.index.json");
	int rc;

	if (!single || !index) {
		rc = model_fail(-ENOMEM, "%s: no memory", checkpoint->dir);
	} else if (access(single, F_OK) == 0) {
		checkpoint->files = calloc(1, sizeof(checkpoint->files[0]));
		rc = checkpoint->files ? add_file(checkpoint, "model.safetensors") : -ENOMEM;
		if (!rc)
			rc = index_tensors(checkpoint);
	} else if (access(index, F_OK) == 0) {
		rc = read_index(checkpoint, index);
	} else {
		rc = model_fail(-ENOENT, "%s: there is neither model.safetensors nor "
			"model.safetensors.index.json", checkpoint->dir);
	}
	free(single);
	free(index);
	return rc;
}

int model_checkpoint_open(const char *dir, struct model_checkpoint **checkpoint)
{
	struct model_checkpoint *opened = calloc(1, sizeof(*opened));
	char *path = path_of(dir, "config.json");
	int rc = -ENOMEM;

	if (opened)
		opened->dir = strdup(dir);
	if (path && opened && opened->dir)
		rc = model_config_read(path, &opened->config);
	else
		model_fail(rc, "%s: no memory", dir);
	free(path);
	if (!rc)
		rc = open_files(opened);
	if (rc) {
		model_checkpoint_close(opened);
		return rc;
	}
	*checkpoint = opened;
	return 0;
}

void model_checkpoint_close(struct model_checkpoint *checkpoint)
{
	if (!checkpoint)
		return;
	for (size_t i = 0; i < checkpoint->n_files; i++)
		model_safetensors_close(checkpoint->files[i]);
	free(checkpoint->files);
	free(checkpoint->tensors);
	free(checkpoint->dir);
	free(checkpoint);
}

const struct model_tensor *model_checkpoint_find(const struct model_checkpoint *checkpoint,
	const char *name)
{
	struct model_tensor key = {.name = name}, *key_at = &key;
	struct model_tensor **found = bsearch(&key_at, checkpoint->tensors, checkpoint->n_tensors,
		sizeof(key_at), by_name);

	return found ? *found : NULL;
}
