/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic of groups, ranks, layers, experts and sequences. */
#include "run/place.h"

#include <errno.h>

#include "model/error.h"

int place_check(int together, uint32_t p, uint32_t n_attention, uint32_t n_ffn,
	const struct model_config *config, struct place *place)
{
	uint32_t n_f = together ? n_attention + n_ffn : n_ffn;

	if (n_f == 0)
		return model_fail(-EINVAL, "an FFN group without ranks: only where ranks are of "
			"both kinds (1f1b) --ffn may be 0");
	if (p > config->n_layers)
		return model_fail(-EINVAL,
			"%u groups for %u layers: there would be groups without "
			"one; --groups %u at most",
			p, config->n_layers, config->n_layers);
	if (config->n_layers % p)
		return model_fail(-EINVAL,
			"%u layers cannot be divided among %u groups: choose "
			"--groups that divides the layers",
			config->n_layers, p);
	if (n_f > config->n_experts)
		return model_fail(-EINVAL,
			"%u ranks of an FFN group for %u experts: there would "
			"be ranks without one",
			n_f, config->n_experts);
	*place = (struct place){.together = together,
		.p = p,
		.n_f = n_f,
		.n_a = together ? n_f : n_attention,
		.n_layers = config->n_layers,
		.n_experts = config->n_experts};
	place->n_ranks = (int)(together ? p * n_f : p * (n_attention + n_f));
	return 0;
}

void place_set_rank(struct place *place, int rank)
{
	uint32_t r = (uint32_t)rank, n_attention = place->p * place->n_a;

	place->rank = rank;
	place->attention = place->expert = -1;
	if (r < n_attention) {
		place->group = (int)(r / place->n_a);
		place->attention = (int)(r % place->n_a);
		if (place->together)
			place->expert = place->attention;
	} else {
		place->group = (int)((r - n_attention) / place->n_f);
		place->expert = (int)((r - n_attention) % place->n_f);
	}
}

int place_attention_rank(const struct place *place, uint32_t group, uint32_t i)
{
	return (int)(group * place->n_a + i);
}

int place_ffn_rank(const struct place *place, uint32_t group, uint32_t j)
{
	return (int)((place->together ? 0 : place->p * place->n_a) + group * place->n_f + j);
}

uint32_t place_next(const struct place *place, uint32_t group)
{
	return (group + 1) % place->p;
}

uint32_t place_before(const struct place *place, uint32_t group)
{
	return (group + place->p - 1) % place->p;
}

void place_experts(const struct place *place, uint32_t j, uint32_t *first, uint32_t *n)
{
	uint32_t each = place->n_experts / place->n_f, more = place->n_experts % place->n_f;

	*first = j * each + (j < more ? j : more);
	*n = each + (j < more);
}

void place_sequences(
	const struct place *place, uint32_t n_seqs, uint32_t i, uint32_t *first, uint32_t *n)
{
	*first = (uint32_t)((uint64_t)n_seqs * i / place->n_a);
	*n = (uint32_t)((uint64_t)n_seqs * (i + 1) / place->n_a) - *first;
}

int place_holds(void *arg, enum nn_part part, uint32_t layer, uint32_t expert)
{
	const struct place *place = arg;
	uint32_t first, n;

	switch (part) {
	case NN_EMBEDDING:
	case NN_HEAD:
		return place->attention >= 0 && place->group == 0;
	case NN_ATTENTION:
		return place->attention >= 0 && layer % place->p == (uint32_t)place->group;
	case NN_EXPERT:
		if (place->expert < 0 || layer % place->p != (uint32_t)place->group)
			return 0;
		place_experts(place, (uint32_t)place->expert, &first, &n);
		return expert >= first && expert - first < n;
	}
	return 0;
}

int place_is_first(void *arg, enum nn_part part, uint32_t layer, uint32_t expert)
{
	const struct place *place = arg;

	return place_holds(arg, part, layer, expert) &&
	       (part == NN_EXPERT || place->attention == 0);
}
