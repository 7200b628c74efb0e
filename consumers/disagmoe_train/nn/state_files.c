/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of a checkpoint's files; removing them and nothing else; tensors over several files.
 */
#include "nn/state_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/error.h"

int nn_state_paths(const char *dir, struct nn_state_paths *paths)
{
	int length = (int)strnlen(dir, sizeof(paths->dir));

	while (length > 1 && dir[length - 1] == '/')
		length--;
	if (length == 0 || length > 4000 || (length == 1 && dir[0] == '/'))
		return model_fail(-EINVAL, "'%.64s' is no directory for a checkpoint", dir);
	snprintf(paths->dir, sizeof(paths->dir), "%.*s", length, dir);
	snprintf(paths->part, sizeof(paths->part), "%.*s.part", length, dir);
	return 0;
}

void nn_state_model_path(const char *dir, uint32_t part, uint32_t n_parts, char *path)
{
	snprintf(path, NN_STATE_PATH, "%s/model/model-%05u-of-%05u.safetensors", dir, part + 1,
		n_parts);
}

void nn_state_moments_path(const char *dir, uint32_t part, uint32_t n_parts, char *path)
{
	snprintf(path, NN_STATE_PATH, "%s/state-%05u-of-%05u.safetensors", dir, part + 1, n_parts);
}

static int has_form(const char *name, const char *form)
{
	unsigned part, n_parts;
	int length = 0;

	sscanf(name, form, &part, &n_parts, &length);
	return length > 0 && !name[length];
}

static int is_model_file(const char *name)
{
	return !strcmp(name, "config.json") || !strcmp(name, "model.safetensors.index.json") ||
		has_form(name, "model-%5u-of-%5u.safetensors%n");
}

static int is_own_file(const char *name)
{
	return !strcmp(name, "state.json") || has_form(name, "state-%5u-of-%5u.safetensors%n");
}

static int walk_files(const char *dir, int (*is_ours)(const char *name), const char *below,
	int remove)
{
	DIR *stream = opendir(dir);
	struct dirent *entry;
	int rc = 0;

	if (!stream)
		return model_fail(-errno, "%s: %s", dir, strerror(errno));
	while (!rc && (entry = readdir(stream))) {
		const char *name = entry->d_name;

		if (!strcmp(name, ".") || !strcmp(name, "..") || (below && !strcmp(name, below)))
			continue;
		if (!is_ours(name))
			rc = model_fail(-EEXIST, "%s: holds %s, which is no file of a training "
				"checkpoint; choose another directory", dir, name);
		else if (remove && unlinkat(dirfd(stream), name, 0) != 0)
			rc = model_fail(-errno, "%s/%s: %s", dir, name, strerror(errno));
	}
	closedir(stream);
	if (!rc && remove && !below && rmdir(dir) != 0)
		rc = model_fail(-errno, "%s: %s", dir, strerror(errno));
	return rc;
}

int nn_state_walk(const char *dir, int remove)
{
	char model[NN_STATE_PATH];
	int rc = 0;

	if (access(dir, F_OK) != 0)
		return model_fail(-errno, "%s: %s", dir, strerror(errno));
	snprintf(model, sizeof(model), "%s/model", dir);
	/* Looks at everything before the first file goes. */
	rc = walk_files(dir, is_own_file, "model", 0);
	if (!rc && access(model, F_OK) == 0)
		rc = walk_files(model, is_model_file, NULL, 0);
	if (rc || !remove)
		return rc;
	rc = walk_files(dir, is_own_file, "model", 1);
	if (!rc && access(model, F_OK) == 0)
		rc = walk_files(model, is_model_file, NULL, 1);
	if (!rc && rmdir(dir) != 0)
		rc = model_fail(-errno, "%s: %s", dir, strerror(errno));
	return rc;
}

int nn_state_flush(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;

	if (fd < 0 || fsync(fd) != 0)
		rc = model_fail(-errno, "%s: cannot be written to the disk: %s", path,
			strerror(errno));
	if (fd >= 0)
		close(fd);
	return rc;
}

static int by_name(const void *a, const void *b)
{
	const struct model_tensor *const *left = a, *const *right = b;

	return strcmp((*left)->name, (*right)->name);
}

static int sort_tensors(struct nn_tensors *tensors, const char *dir)
{
	size_t n = 0;

	for (size_t i = 0; i < tensors->n_files; i++)
		n += tensors->files[i]->n_tensors;
	tensors->sorted = calloc(n ? n : 1, sizeof(tensors->sorted[0]));
	if (!tensors->sorted)
		return model_fail(-ENOMEM, "%s: no memory", dir);
	for (size_t i = 0; i < tensors->n_files; i++)
		for (size_t j = 0; j < tensors->files[i]->n_tensors; j++)
			tensors->sorted[tensors->n++] = &tensors->files[i]->tensors[j];
	qsort(tensors->sorted, n, sizeof(tensors->sorted[0]), by_name);
	for (size_t i = 1; i < n; i++)
		if (!strcmp(tensors->sorted[i - 1]->name, tensors->sorted[i]->name))
			return model_fail(-EINVAL, "%s: tensor %s is there twice", dir,
				tensors->sorted[i]->name);
	return 0;
}

int nn_tensors_open(const char *dir, nn_state_path_of *path_of, uint32_t n_parts,
	struct nn_tensors *tensors)
{
	char path[NN_STATE_PATH];
	int rc = 0;

	*tensors = (struct nn_tensors){.files = calloc(n_parts, sizeof(tensors->files[0]))};
	if (!tensors->files)
		rc = model_fail(-ENOMEM, "%s: no memory for %u parts", dir, n_parts);
	for (uint32_t part = 0; !rc && part < n_parts; part++) {
		path_of(dir, part, n_parts, path);
		if (access(path, F_OK) != 0)
			continue;
		rc = model_safetensors_open(path, &tensors->files[tensors->n_files]);
		tensors->n_files += !rc;
	}
	if (!rc)
		rc = sort_tensors(tensors, dir);
	if (rc)
		nn_tensors_close(tensors);
	return rc;
}

void nn_tensors_close(struct nn_tensors *tensors)
{
	for (size_t i = 0; i < tensors->n_files; i++)
		model_safetensors_close(tensors->files[i]);
	free(tensors->files);
	free(tensors->sorted);
	*tensors = (struct nn_tensors){0};
}

const struct model_tensor *nn_tensors_find(const struct nn_tensors *tensors, const char *where,
	const char *name, const struct model_tensor *like)
{
	struct model_tensor key = {.name = name}, *key_at = &key;
	const struct model_tensor **found = bsearch(&key_at, tensors->sorted, tensors->n,
		sizeof(key_at), by_name);
	char want[128], have[128];

	if (!found) {
		model_fail(-EINVAL, "%s: tensor %s is missing", where, name);
		return NULL;
	}
	if ((*found)->dtype != MODEL_F32 || (*found)->n_dims != like->n_dims ||
		memcmp((*found)->shape, like->shape, like->n_dims * sizeof(like->shape[0])) != 0) {
		model_fail(-EINVAL, "%s: tensor %s is %s %s, not F32 %s", (*found)->path, name,
			model_dtype_name((*found)->dtype), model_shape_text((*found)->shape,
				(*found)->n_dims, have, sizeof(have)),
			model_shape_text(like->shape, like->n_dims, want, sizeof(want)));
		return NULL;
	}
	return *found;
}
