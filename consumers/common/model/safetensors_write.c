/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing of safetensors: the header is padded with blanks so that the data starts at a multiple of
 * 64 bytes, which lets fp32 and bf16 tensors be used where they are mapped.
 */
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "error.h"

#define ALIGN 64

static int add_entry(json_t *root, const struct model_tensor *tensor, size_t begin)
{
	json_t *shape = json_array();

	for (unsigned i = 0; i < tensor->n_dims; i++)
		if (json_array_append_new(shape, json_integer((json_int_t)tensor->shape[i])) != 0) {
			json_decref(shape);
			return -1;
		}
	return json_object_set_new(root, tensor->name,
		json_pack("{s:s, s:o, s:[I,I]}", "dtype", model_dtype_name(tensor->dtype), "shape",
			shape, "data_offsets", (json_int_t)begin,
			(json_int_t)(begin + tensor->bytes)));
}

/* The text of the header; NULL: no memory. */
static char *header_text(const struct model_tensor *tensors, size_t n_tensors)
{
	json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	char *text = NULL;
	size_t begin = 0;
	int failed = !root;

	for (size_t i = 0; !failed && i < n_tensors; i++) {
		failed = add_entry(root, &tensors[i], begin) != 0;
		begin += tensors[i].bytes;
	}
	if (!failed)
		text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	return text;
}

static int write_header(FILE *file, const char *text)
{
	size_t length = strlen(text), padded = (length + 8 + ALIGN - 1) / ALIGN * ALIGN - 8;
	unsigned char start[8];

	for (int i = 0; i < 8; i++)
		start[i] = (unsigned char)((uint64_t)padded >> 8 * i);
	if (fwrite(start, 1, 8, file) != 8 || fwrite(text, 1, length, file) != length)
		return -1;
	return fprintf(file, "%*s", (int)(padded - length), "") < 0 ? -1 : 0;
}

static int write_all(FILE *file, const char *text, const struct model_tensor *tensors,
	size_t n_tensors)
{
	if (write_header(file, text) != 0)
		return -errno;
	for (size_t i = 0; i < n_tensors; i++)
		if (fwrite(tensors[i].data, 1, tensors[i].bytes, file) != tensors[i].bytes)
			return -errno;
	if (fflush(file) != 0 || fsync(fileno(file)) != 0)
		return -errno;
	return 0;
}

int model_safetensors_write(const char *path, const struct model_tensor *tensors, size_t n_tensors)
{
	char *text = header_text(tensors, n_tensors);
	FILE *file;
	int rc;

	if (!text)
		return model_fail(-ENOMEM, "%s: no memory for its header", path);
	file = fopen(path, "wxe");
	rc = file ? 0 : -errno;
	if (file) {
		rc = write_all(file, text, tensors, n_tensors);
		if (fclose(file) != 0 && !rc)
			rc = -errno;
		if (rc)
			unlink(path);
	}
	free(text);
	return rc ? model_fail(rc, "%s: cannot be written: %s", path, strerror(-rc)) : 0;
}
