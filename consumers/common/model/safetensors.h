/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One safetensors file: 8 bytes of header length (little-endian), a JSON object that gives each
 * tensor's dtype, shape and place, and the bytes. Reading maps the file, so that what nobody uses
 * is never read and processes of one machine share what they use. Nothing in the header is
 * believed: after opening, every tensor lies inside the file and has the bytes of its shape, no two
 * share a byte, and no byte is left over.
 */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"

#define MODEL_MAX_DIMS 4

struct model_tensor {
	const char *name;
	enum model_dtype dtype;
	unsigned n_dims;
	size_t shape[MODEL_MAX_DIMS];
	const void *data; /* row-major; any alignment when it lies in a file */
	size_t bytes;
	const char *path; /* of the file, for messages; NULL when it has none */
};

struct model_safetensors {
	char *path;
	void *map;
	size_t map_bytes;
	struct model_tensor *tensors; /* by place in the file */
	size_t n_tensors;
};

/* 0; -EINVAL when the file is broken (the text says how); an errno of opening or mapping it. */
int model_safetensors_open(const char *path, struct model_safetensors **file);
void model_safetensors_close(struct model_safetensors *file);

/*
 * Writes tensors in the order given and waits until they are on the disk. `path` must not exist; a
 * file that could not be written whole is removed. 0 or negative errno.
 */
int model_safetensors_write(const char *path, const struct model_tensor *tensors, size_t n_tensors);

/* Product of the shape times the bytes of a value; SIZE_MAX when it does not fit. */
size_t model_tensor_bytes(const struct model_tensor *tensor);
/* "[256, 64]", cut to the room that there is; returns text. */
const char *model_shape_text(const size_t *shape, unsigned n_dims, char *text, size_t room);

#endif
