/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which rank does what. p attention groups of n_a ranks and p FFN groups of n_f ranks; group g of
 * either kind has the layers g, g + p, ... Inside an attention group the sequences of a micro-batch
 * are divided and the parameters are the same; inside an FFN group the experts are divided. The
 * first attention group also has embedding, final norm and head.
 *
 *	apart:     ranks 0 .. p n_a - 1 attention, group by group; then p n_f of the FFN groups
 *	together:  p n ranks, each of them both (1f1b); n_a == n_f == n
 */
#ifndef RUN_PLACE_H
#define RUN_PLACE_H

#include "nn/params.h"

struct place {
	int together;
	uint32_t p, n_a, n_f;
	uint32_t n_layers, n_experts;
	int rank, n_ranks;
	int group;             /* of this rank */
	int attention, expert; /* index in its attention, FFN group; -1: not of that kind */
};

/* n_attention, n_ffn: ranks of a group; together, a group has as many as both. 0; -EINVAL: no FFN
 * ranks, more groups than layers, layers that p does not divide, more FFN ranks than experts. */
int place_check(int together, uint32_t p, uint32_t n_attention, uint32_t n_ffn,
	const struct model_config *config, struct place *place);
/* Says which rank this process is. */
void place_set_rank(struct place *place, int rank);

int place_attention_rank(const struct place *place, uint32_t group, uint32_t i);
int place_ffn_rank(const struct place *place, uint32_t group, uint32_t j);
/* The group whose attention comes after a layer of group g, and the one before. */
uint32_t place_next(const struct place *place, uint32_t group);
uint32_t place_before(const struct place *place, uint32_t group);
/* Contiguous blocks as m2n_map_create() makes them: experts of FFN rank j. */
void place_experts(const struct place *place, uint32_t j, uint32_t *first, uint32_t *n);
/* Sequences of attention rank i: n_seqs of a micro-batch cut in order. */
void place_sequences(
	const struct place *place, uint32_t n_seqs, uint32_t i, uint32_t *first, uint32_t *n);

/* nn_wanted with a struct place: what this rank holds; and of that, what it is the first to hold
 * and therefore writes and counts. */
int place_holds(void *place, enum nn_part part, uint32_t layer, uint32_t expert);
int place_is_first(void *place, enum nn_part part, uint32_t layer, uint32_t expert);

#endif
