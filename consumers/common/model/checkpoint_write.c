/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing of a checkpoint. Everything goes into a new directory beside the old one, is flushed to
 * the disk, and changes places with the old one in one rename; then the old one goes. Only files
 * whose names a checkpoint has are ever removed.
 */
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "error.h"

struct writer {
	char dir[4096], part[4096]; /* the place, and where the new one grows */
	const struct model_tensor *tensors;
	size_t n_tensors, total_bytes, n_shards;
	enum model_dtype dtype;
	json_t *weight_map;
};

static int is_ours(const char *name)
{
	unsigned shard, n_shards;
	int length = 0;

	sscanf(name, "model-%5u-of-%5u.safetensors%n", &shard, &n_shards, &length);
	return !strcmp(name, "config.json") || !strcmp(name, "model.safetensors") ||
		!strcmp(name, "model.safetensors.index.json") ||
		(length > 0 && !name[length]);
}

/* With `remove`, unlinks the checkpoint's files and the directory; else looks for other files. */
static int walk_dir(const char *dir, int remove)
{
	DIR *stream = opendir(dir);
	struct dirent *entry;
	int rc = 0;

	if (!stream)
		return model_fail(-errno, "%s: %s", dir, strerror(errno));
	while (!rc && (entry = readdir(stream))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (!is_ours(entry->d_name))
			rc = model_fail(-EEXIST, "%s: holds %s, which is no file of a checkpoint; "
				"choose another directory", dir, entry->d_name);
		else if (remove && unlinkat(dirfd(stream), entry->d_name, 0) != 0)
			rc = model_fail(-errno, "%s/%s: %s", dir, entry->d_name, strerror(errno));
	}
	closedir(stream);
	if (!rc && remove && rmdir(dir) != 0)
		rc = model_fail(-errno, "%s: %s", dir, strerror(errno));
	return rc;
}

static size_t stored_bytes(const struct writer *writer, const struct model_tensor *tensor)
{
	struct model_tensor stored = *tensor;

	stored.dtype = writer->dtype;
	return model_tensor_bytes(&stored);
}

/* How many tensors from `first` on fit into a shard; at least one. */
static size_t shard_length(const struct writer *writer, size_t first, size_t max_bytes)
{
	size_t bytes = 0, n = 0;

	while (first + n < writer->n_tensors) {
		bytes += stored_bytes(writer, &writer->tensors[first + n]);
		if (n > 0 && max_bytes && bytes > max_bytes)
			break;
		n++;
	}
	return n;
}

/* The tensor in the stored type; the cast copy, if any, is in *copy, which is taken. */
static int store_form(const struct writer *writer, const struct model_tensor *tensor,
	struct model_tensor *stored, void **copy)
{
	size_t n_values = tensor->bytes / model_dtype_bytes(tensor->dtype);
	float *values = NULL;

	*stored = *tensor;
	if (tensor->dtype == writer->dtype)
		return 0;
	stored->dtype = writer->dtype;
	stored->bytes = stored_bytes(writer, tensor);
	*copy = malloc(stored->bytes + 1);
	values = malloc(n_values * sizeof(*values) + 1);
	if (*copy && values) {
		model_to_f32(tensor->dtype, tensor->data, n_values, values);
		model_from_f32(writer->dtype, values, n_values, *copy);
		stored->data = *copy;
	}
	free(values);
	return stored->data == *copy ? 0 : model_fail(-ENOMEM, "%s: no memory", writer->part);
}

static int write_shard(struct writer *writer, size_t first, size_t n, const char *name)
{
	struct model_tensor *stored = calloc(n, sizeof(*stored));
	void **copies = calloc(n, sizeof(*copies));
	char path[4200];
	int rc = 0;

	if (!stored || !copies)
		rc = model_fail(-ENOMEM, "%s: no memory", writer->part);
	for (size_t i = 0; !rc && i < n; i++) {
		rc = store_form(writer, &writer->tensors[first + i], &stored[i], &copies[i]);
		if (!rc && json_object_set_new(writer->weight_map, stored[i].name,
				   json_string(name)) != 0)
			rc = model_fail(-ENOMEM, "%s: no memory", writer->part);
	}
	snprintf(path, sizeof(path), "%s/%s", writer->part, name);
	if (!rc)
		rc = model_safetensors_write(path, stored, n);
	for (size_t i = 0; copies && i < n; i++)
		free(copies[i]);
	free(copies);
	free(stored);
	return rc;
}

static int write_index(struct writer *writer)
{
	char path[4200];
	json_t *root;
	int rc = 0;

	root = json_pack("{s:{s:I}, s:O}", "metadata", "total_size",
		(json_int_t)writer->total_bytes, "weight_map", writer->weight_map);
	snprintf(path, sizeof(path), "%s/model.safetensors.index.json", writer->part);
	if (!root || json_dump_file(root, path, JSON_INDENT(2) | JSON_SORT_KEYS) != 0)
		rc = model_fail(-EIO, "%s: cannot be written", path);
	json_decref(root);
	return rc;
}

static int write_tensors(struct writer *writer, size_t max_shard_bytes)
{
	size_t first = 0, shard = 0;
	char name[64];
	int rc = 0;

	for (size_t i = 0; i < writer->n_tensors; i++)
		writer->total_bytes += stored_bytes(writer, &writer->tensors[i]);
	for (size_t at = 0; at < writer->n_tensors; writer->n_shards++)
		at += shard_length(writer, at, max_shard_bytes);
	if (writer->n_shards == 1)
		return write_shard(writer, 0, writer->n_tensors, "model.safetensors");
	while (!rc && first < writer->n_tensors) {
		size_t n = shard_length(writer, first, max_shard_bytes);

		snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", ++shard,
			writer->n_shards);
		rc = write_shard(writer, first, n, name);
		first += n;
	}
	return rc ? rc : write_index(writer);
}

static int flush_path(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;

	if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
		rc = model_fail(-errno, "%s: cannot be flushed: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return rc;
}

static int flush_part(const struct writer *writer)
{
	char path[4200];
	int rc;

	snprintf(path, sizeof(path), "%s/config.json", writer->part);
	rc = flush_path(path);
	snprintf(path, sizeof(path), "%s/model.safetensors.index.json", writer->part);
	if (!rc && writer->n_shards > 1)
		rc = flush_path(path);
	return rc ? rc : flush_path(writer->part);
}

/* The new directory takes the place; what was there is removed. */
static int change_places(const struct writer *writer)
{
	int rc;

	if (rename(writer->part, writer->dir) == 0)
		return 0;
	if (errno != EEXIST && errno != ENOTEMPTY)
		return model_fail(-errno, "%s: cannot be put in place: %s", writer->dir,
			strerror(errno));
	rc = walk_dir(writer->dir, 0);
	if (rc)
		return rc;
	if (renameat2(AT_FDCWD, writer->part, AT_FDCWD, writer->dir, RENAME_EXCHANGE) != 0)
		return model_fail(-errno, "%s: this file system cannot exchange it with the new "
			"one (%s); remove it first", writer->dir, strerror(errno));
	return walk_dir(writer->part, 1);
}

static int start(struct writer *writer, const char *dir, const struct model_config *config)
{
	int length = (int)strlen(dir), rc;
	char path[4200];

	while (length > 1 && dir[length - 1] == '/')
		length--;
	if (length == 0 || length > 4000)
		return model_fail(-EINVAL, "'%.64s' is no directory to write to", dir);
	snprintf(writer->dir, sizeof(writer->dir), "%.*s", length, dir);
	snprintf(writer->part, sizeof(writer->part), "%.*s.part-%ld", length, dir, (long)getpid());
	writer->weight_map = json_object();
	if (!writer->weight_map)
		return model_fail(-ENOMEM, "%s: no memory", dir);
	if (access(writer->dir, F_OK) == 0 && (rc = walk_dir(writer->dir, 0)) != 0)
		return rc;
	if (mkdir(writer->part, 0777) != 0)
		return model_fail(-errno, "%s: cannot be made: %s", writer->part, strerror(errno));
	snprintf(path, sizeof(path), "%s/config.json", writer->part);
	return model_config_write(path, config);
}

int model_checkpoint_write(const char *dir, const struct model_config *config,
	const struct model_tensor *tensors, size_t n_tensors, size_t max_shard_bytes)
{
	struct writer *writer = calloc(1, sizeof(*writer));
	char cause[1024];
	int rc;

	if (!writer)
		return model_fail(-ENOMEM, "%s: no memory", dir);
	writer->tensors = tensors;
	writer->n_tensors = n_tensors;
	writer->dtype = config->dtype;
	rc = start(writer, dir, config);
	if (!rc)
		rc = write_tensors(writer, max_shard_bytes);
	if (!rc)
		rc = flush_part(writer);
	if (!rc)
		rc = change_places(writer);
	if (rc && writer->part[0] && access(writer->part, F_OK) == 0) {
		snprintf(cause, sizeof(cause), "%s", model_error());
		walk_dir(writer->part, 1);
		model_fail(rc, "%s", cause);
	}
	json_decref(writer->weight_map);
	free(writer);
	return rc;
}
