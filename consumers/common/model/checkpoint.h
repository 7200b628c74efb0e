/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory with a model in Hugging Face's form: config.json and either model.safetensors or
 * model.safetensors.index.json with the shards that it names. Reading finds tensors by name over
 * all shards; writing is all or nothing: a reader sees the old checkpoint or the new one, and a
 * full disk leaves the old one.
 */
#ifndef MODEL_CHECKPOINT_H
#define MODEL_CHECKPOINT_H

#include "config.h"
#include "safetensors.h"

struct model_checkpoint {
	char *dir;
	struct model_config config;
	struct model_safetensors **files;
	size_t n_files;
	struct model_tensor **tensors; /* of all files, by name */
	size_t n_tensors;
};

/* 0; -EINVAL: something in it is broken; another errno of opening a file. */
int model_checkpoint_open(const char *dir, struct model_checkpoint **checkpoint);
void model_checkpoint_close(struct model_checkpoint *checkpoint);
/* NULL when there is none of the name. Borrowed until close. */
const struct model_tensor *model_checkpoint_find(const struct model_checkpoint *checkpoint,
	const char *name);

/*
 * Writes a checkpoint in the config's dtype, in shards of at most max_shard_bytes (0: one file).
 * Tensors keep their order; those of another dtype are cast. Writes beside `dir` first and changes
 * places with it last. `dir` may hold an older checkpoint, which goes away; a directory with files
 * that no checkpoint has is refused. 0, -EINVAL, -EEXIST, or an errno of writing.
 */
int model_checkpoint_write(const char *dir, const struct model_config *config,
	const struct model_tensor *tensors, size_t n_tensors, size_t max_shard_bytes);

#endif
