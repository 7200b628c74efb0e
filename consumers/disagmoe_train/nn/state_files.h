/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a training checkpoint: where they lie, finding tensors in those that several ranks
 * wrote, and state.json.
 */
#ifndef NN_STATE_FILES_H
#define NN_STATE_FILES_H

#include "nn/state.h"

#define NN_STATE_PATH 4352
#define NN_STATE_MAX_PARTS 99999

struct nn_state_paths {
	char dir[4096], part[4096]; /* DIR without slashes at its end, and DIR.part */
};
/* 0; -EINVAL: no name for a directory. */
int nn_state_paths(const char *dir, struct nn_state_paths *paths);

/* Files of values, and of moments, that part `part` (from 0) of a checkpoint in `dir` has. */
void nn_state_model_path(const char *dir, uint32_t part, uint32_t n_parts, char *path);
void nn_state_moments_path(const char *dir, uint32_t part, uint32_t n_parts, char *path);

/* Whether there is nothing but a checkpoint's files in the directory; -ENOENT when it is not there.
 * With `remove`, they and the directory go. */
int nn_state_walk(const char *dir, int remove);
/* Waits until a file or directory is on the disk. */
int nn_state_flush(const char *path);

/* All tensors of the parts, by name. */
struct nn_tensors {
	struct model_safetensors **files;
	size_t n_files;
	const struct model_tensor **sorted;
	size_t n;
};
typedef void nn_state_path_of(const char *dir, uint32_t part, uint32_t n_parts, char *path);
/* Opens the parts that exist. 0; -EINVAL: a tensor is there twice, or a file is broken. */
int nn_tensors_open(const char *dir, nn_state_path_of *path_of, uint32_t n_parts,
	struct nn_tensors *tensors);
void nn_tensors_close(struct nn_tensors *tensors);
/* The fp32 tensor of that name and shape. NULL, with a text, when there is none. */
const struct model_tensor *nn_tensors_find(const struct nn_tensors *tensors, const char *where,
	const char *name, const struct model_tensor *like);

/* state.json; n_parts is what the checkpoint has. model/config.json is read and written too. */
int nn_state_write_json(const char *dir, const struct nn_state *state, uint32_t n_parts);
int nn_state_read_json(const char *dir, struct nn_state *state, uint32_t *n_parts);

#endif
