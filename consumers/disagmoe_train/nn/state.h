/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A training checkpoint: a directory
 *
 *	DIR/model/            config.json, index and shards: for any loader of Mixtral
 *	DIR/state-I-of-N.safetensors   NAME.m and NAME.v of every tensor
 *	DIR/state.json        settings, steps done, what the text was, how many parts
 *
 * Every rank writes a part into DIR.part; one of them commits when all have. The old directory is
 * there until the new one is whole and on the disk, then they change places in one rename. Values
 * are fp32, so a resumed run has the same bits; parts are found by tensor name, so it may have
 * another number of ranks.
 */
#ifndef NN_STATE_H
#define NN_STATE_H

#include "nn/params.h"
#include "nn/settings.h"

struct nn_state {
	struct nn_settings settings;
	uint64_t step; /* updates done; the next one's number */
	uint64_t text_bytes, text_digest;
};

/*
 * Makes DIR.part, empty; what a broken run left there is removed. One process does it, then the
 * others write. 0; -EEXIST: DIR or DIR.part hold other files than a checkpoint's; another errno.
 */
int nn_state_begin(const char *dir);
/*
 * Writes the tensors for which `mine` says so (NULL: all held) as part `part` of n_parts. With
 * replicas, one of them writes. A rank that has nothing to write may call it or not.
 */
int nn_state_write_part(const char *dir, const struct nn_params *params, nn_wanted *mine,
	void *arg, uint32_t part, uint32_t n_parts);
/*
 * After all parts: checks that every tensor is there once, writes index, config.json and state.json
 * and puts the checkpoint in place. 0; -EINVAL: a tensor is missing or there twice.
 */
int nn_state_commit(const char *dir, const struct nn_state *state, uint32_t n_parts);
/* Removes DIR.part; DIR stays as it is. */
void nn_state_abandon(const char *dir);
/* All of it in one process that holds every parameter. */
int nn_state_write(const char *dir, const struct nn_params *params, const struct nn_state *state);

/* state.json, checked. 0; -ENOENT: no checkpoint there; -EINVAL: broken, the text says what. */
int nn_state_read(const char *dir, struct nn_state *state);
/* Value, m and v of every tensor held. The config must be the checkpoint's. 0; -EINVAL; -ENOMEM. */
int nn_state_read_params(const char *dir, struct nn_params *params);

#endif
