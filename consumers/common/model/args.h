/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of m2n_model.
 */
#ifndef MODEL_ARGS_H
#define MODEL_ARGS_H

#include "config.h"

struct model_args {
	const char *command, *dir;
	struct model_config config; /* of make: --config FILE, then single sizes over it */
	uint64_t seed;
	double std;
	size_t max_shard_bytes;
	uint32_t *prompt; /* owned */
	size_t n_prompt;
	size_t n_tokens, chunk; /* to generate; rows of a prefill step */
	const char *logits_path;
	enum model_dtype row_dtype;
	double temperature, top_p;
};

/* 0; 1: help was asked for; -EINVAL or another errno with a text. */
int model_args_parse(int argc, char **argv, struct model_args *args);
void model_args_free(struct model_args *args);
extern const char model_usage[];

#endif
