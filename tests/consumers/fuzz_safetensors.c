/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A safetensors file from anywhere: opening it ends with 0 or an error and a text, and whatever an
 * opened file says is its tensor lies inside the file.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/error.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_tensor(const struct model_safetensors *file, const struct model_tensor *tensor)
{
	const char *begin = tensor->data, *end = (const char *)file->map + file->map_bytes;
	volatile unsigned char sum = 0;

	if (begin < (const char *)file->map + 8 || begin > end ||
		tensor->bytes > (size_t)(end - begin) || !tensor->name)
		abort();
	if (tensor->dtype != MODEL_OTHER && tensor->bytes != model_tensor_bytes(tensor))
		abort();
	for (size_t i = 0; i < tensor->bytes; i++)
		sum = (unsigned char)(sum + begin[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);
	struct model_safetensors *file;
	char path[64];

	if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes)
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (model_safetensors_open(path, &file) == 0) {
		for (size_t i = 0; i < file->n_tensors; i++)
			check_tensor(file, &file->tensors[i]);
		model_safetensors_close(file);
	} else if (!model_error()[0]) {
		abort();
	}
	close(fd);
	return 0;
}
