/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The routing that a model has learned, as a trace: layer,token,rank_hint,experts,weights, a row
 * for each layer and token, sorted; rank_hint is the sequence. Each attention rank notes its own
 * rows of a step; rank 0 puts the files of all together.
 */
#ifndef RUN_DUMP_H
#define RUN_DUMP_H

#include "nn/layer.h"

struct dump;

int dump_open(const char *path, int rank, const struct model_config *config, struct dump **dump);
/* A record's rows; first_seq is the number of its first sequence in the step. */
void dump_add(struct dump *dump, uint32_t layer, uint32_t first_seq,
	const struct nn_attention_record *record);
/* 0, or what went wrong since it was opened. The file of this rank is whole then. */
int dump_close(struct dump *dump);
/* Rank 0, after all have closed theirs. */
int dump_merge(const char *path, int n_ranks, const struct model_config *config);

#endif
