/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading of safetensors. The header is parsed by Jansson from the mapped bytes; what the format
 * demands beyond JSON is checked here, by the file's specification.
 */
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "error.h"

#define MAX_HEADER_BYTES (100u << 20) /* as the format's own library has it */

/* Types that may stand in a file beside the ones that models use. */
static const struct {
	const char *name;
	size_t bytes;
} other_types[] = {
	{"F64", 8}, {"I64", 8}, {"U64", 8}, {"I32", 4}, {"U32", 4}, {"I16", 2}, {"U16", 2},
	{"I8", 1}, {"U8", 1}, {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
};

const char *model_shape_text(const size_t *shape, unsigned n_dims, char *text, size_t room)
{
	size_t at = (size_t)snprintf(text, room, "[");

	for (unsigned i = 0; i < n_dims && at < room; i++)
		at += (size_t)snprintf(text + at, room - at, "%s%zu", i ? ", " : "", shape[i]);
	if (at < room)
		snprintf(text + at, room - at, "]");
	return text;
}

static size_t shape_bytes(const struct model_tensor *tensor, size_t value_bytes)
{
	size_t bytes = value_bytes;

	for (unsigned i = 0; i < tensor->n_dims; i++)
		if (__builtin_mul_overflow(bytes, tensor->shape[i], &bytes))
			return SIZE_MAX;
	return bytes;
}

size_t model_tensor_bytes(const struct model_tensor *tensor)
{
	return shape_bytes(tensor, model_dtype_bytes(tensor->dtype));
}

static int read_dtype(struct model_tensor *tensor, const json_t *value, size_t *value_bytes)
{
	const char *name = json_string_value(value);

	if (!name)
		return model_fail(-EINVAL, "%s: tensor %s: no dtype", tensor->path, tensor->name);
	tensor->dtype = model_dtype_parse(name);
	*value_bytes = model_dtype_bytes(tensor->dtype);
	for (size_t i = 0; !*value_bytes && i < sizeof(other_types) / sizeof(*other_types); i++)
		if (strcmp(other_types[i].name, name) == 0)
			*value_bytes = other_types[i].bytes;
	if (!*value_bytes)
		return model_fail(-EINVAL, "%s: tensor %s: dtype '%.32s' is unknown; convert it to "
			"F32, BF16 or F16", tensor->path, tensor->name, name);
	return 0;
}

static int read_shape(struct model_tensor *tensor, const json_t *value)
{
	size_t n_dims = json_array_size(value);

	if (!json_is_array(value) || n_dims > MODEL_MAX_DIMS)
		return model_fail(-EINVAL, "%s: tensor %s: shape is no list of up to %d sizes",
			tensor->path, tensor->name, MODEL_MAX_DIMS);
	tensor->n_dims = (unsigned)n_dims;
	for (unsigned i = 0; i < n_dims; i++) {
		const json_t *size = json_array_get(value, i);

		if (!json_is_integer(size) || json_integer_value(size) < 0)
			return model_fail(-EINVAL, "%s: tensor %s: a size in its shape is no whole "
				"number", tensor->path, tensor->name);
		tensor->shape[i] = (size_t)json_integer_value(size);
	}
	return 0;
}

/* data_offsets: [begin, end) counted from the end of the header; room: bytes there are. */
static int read_place(struct model_tensor *tensor, const json_t *value, const char *data,
	size_t room, size_t value_bytes)
{
	const json_t *first = json_array_get(value, 0), *last = json_array_get(value, 1);
	json_int_t begin = json_integer_value(first), end = json_integer_value(last);

	if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
		begin < 0 || end < begin)
		return model_fail(-EINVAL, "%s: tensor %s: data_offsets are no [begin, end]",
			tensor->path, tensor->name);
	if ((uint64_t)end > room)
		return model_fail(-EINVAL, "%s: tensor %s: ends at byte %lld of the data, which "
			"has %zu; the file is cut off or broken, fetch it again", tensor->path,
			tensor->name, (long long)end, room);
	tensor->data = data + begin;
	tensor->bytes = (size_t)(end - begin);
	if (shape_bytes(tensor, value_bytes) != tensor->bytes) {
		char text[128];

		return model_fail(-EINVAL, "%s: tensor %s: %zu bytes do not hold the shape %s",
			tensor->path, tensor->name, tensor->bytes,
			model_shape_text(tensor->shape, tensor->n_dims, text, sizeof(text)));
	}
	return 0;
}

static int read_tensor(struct model_safetensors *file, const char *name, const json_t *entry,
	size_t header_bytes)
{
	struct model_tensor *tensor = &file->tensors[file->n_tensors];
	size_t value_bytes = 0;
	int rc;

	tensor->path = file->path;
	tensor->name = name;
	if (!json_is_object(entry))
		return model_fail(-EINVAL, "%s: tensor %s: its entry is no object", file->path,
			name);
	rc = read_dtype(tensor, json_object_get(entry, "dtype"), &value_bytes);
	if (!rc)
		rc = read_shape(tensor, json_object_get(entry, "shape"));
	if (!rc)
		rc = read_place(tensor, json_object_get(entry, "data_offsets"),
			(const char *)file->map + 8 + header_bytes,
			file->map_bytes - 8 - header_bytes, value_bytes);
	if (rc)
		return rc;
	tensor->name = strdup(name);
	if (!tensor->name)
		return model_fail(-ENOMEM, "%s: no memory", file->path);
	file->n_tensors++;
	return 0;
}

static int by_place(const void *a, const void *b)
{
	const struct model_tensor *x = a, *y = b;

	if (x->data != y->data)
		return (const char *)x->data < (const char *)y->data ? -1 : 1;
	return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The format allows neither overlaps nor holes. */
static int check_places(struct model_safetensors *file, const char *data)
{
	const char *next = data, *end = (const char *)file->map + file->map_bytes;

	qsort(file->tensors, file->n_tensors, sizeof(file->tensors[0]), by_place);
	for (size_t i = 0; i < file->n_tensors; i++) {
		const struct model_tensor *tensor = &file->tensors[i];

		if ((const char *)tensor->data < next)
			return model_fail(-EINVAL, "%s: tensor %s overlaps tensor %s", file->path,
				tensor->name, file->tensors[i - 1].name);
		if ((const char *)tensor->data > next)
			return model_fail(-EINVAL, "%s: %zu bytes before tensor %s belong to none",
				file->path, (size_t)((const char *)tensor->data - next),
				tensor->name);
		next = (const char *)tensor->data + tensor->bytes;
	}
	if (next != end)
		return model_fail(-EINVAL, "%s: %zu bytes at the end belong to no tensor",
			file->path, (size_t)(end - next));
	return 0;
}

static int read_tensors(struct model_safetensors *file, json_t *root, size_t header_bytes)
{
	const char *name;
	json_t *entry;

	if (!json_is_object(root))
		return model_fail(-EINVAL, "%s: the header is no JSON object", file->path);
	file->tensors = calloc(json_object_size(root) + 1, sizeof(file->tensors[0]));
	if (!file->tensors)
		return model_fail(-ENOMEM, "%s: no memory", file->path);
	json_object_foreach(root, name, entry) {
		int rc = 0;

		if (strcmp(name, "__metadata__") != 0)
			rc = read_tensor(file, name, entry, header_bytes);
		if (rc)
			return rc;
	}
	return check_places(file, (const char *)file->map + 8 + header_bytes);
}

static int read_header(struct model_safetensors *file)
{
	const unsigned char *start = file->map;
	uint64_t header_bytes = 0;
	json_error_t error;
	json_t *root;
	int rc;

	for (int i = 7; i >= 0; i--)
		header_bytes = header_bytes << 8 | start[i];
	if (header_bytes > MAX_HEADER_BYTES || header_bytes > file->map_bytes - 8)
		return model_fail(-EINVAL, "%s: says that its header has %llu bytes of %zu in the "
			"file; this is no safetensors file, or it is cut off", file->path,
			(unsigned long long)header_bytes, file->map_bytes);
	root = json_loadb((const char *)start + 8, header_bytes, JSON_REJECT_DUPLICATES, &error);
	if (!root)
		return model_fail(-EINVAL, "%s: header, byte %d: %s", file->path, error.position,
			error.text);
	rc = read_tensors(file, root, header_bytes);
	json_decref(root);
	return rc;
}

static int map_file(struct model_safetensors *file)
{
	int fd = open(file->path, O_RDONLY | O_CLOEXEC), rc = 0;
	struct stat status;

	if (fd < 0)
		return model_fail(-errno, "%s: %s", file->path, strerror(errno));
	if (fstat(fd, &status) != 0)
		rc = model_fail(-errno, "%s: %s", file->path, strerror(errno));
	else if (!S_ISREG(status.st_mode) || status.st_size < 8)
		rc = model_fail(-EINVAL, "%s: too short for a safetensors file", file->path);
	if (!rc) {
		file->map_bytes = (size_t)status.st_size;
		file->map = mmap(NULL, file->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
		if (file->map == MAP_FAILED) {
			rc = model_fail(-errno, "%s: cannot be mapped: %s", file->path,
				strerror(errno));
			file->map = NULL;
		}
	}
	close(fd);
	return rc;
}

int model_safetensors_open(const char *path, struct model_safetensors **file)
{
	struct model_safetensors *opened = calloc(1, sizeof(*opened));
	int rc;

	if (!opened || !(opened->path = strdup(path))) {
		free(opened);
		return model_fail(-ENOMEM, "%s: no memory", path);
	}
	rc = map_file(opened);
	if (!rc)
		rc = read_header(opened);
	if (rc) {
		model_safetensors_close(opened);
		return rc;
	}
	*file = opened;
	return 0;
}

void model_safetensors_close(struct model_safetensors *file)
{
	if (!file)
		return;
	for (size_t i = 0; i < file->n_tensors; i++)
		free((void *)(uintptr_t)file->tensors[i].name);
	free(file->tensors);
	if (file->map)
		munmap(file->map, file->map_bytes);
	free(file->path);
	free(file);
}
