/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert balance: which expert ranks own which experts, decided anew every window of rounds from
 * the rows of the last one, by libm2n's greedy placement with replicas, and switched between two
 * rounds by the channel's map.
 *
 * With a window of W rounds and the switch of number k at round k W, each expert rank puts its rows
 * by expert into the group's store before round k W - 2 D, the lowest expert rank that lives reads
 * them before round k W - D and puts the owners there, and everybody gets them before round k W. D
 * is more than the rounds in flight, so that nobody has passed k W when they are there. The digest
 * of the map in every head finds a rank that missed a switch.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "transport_m2n.h"

enum { D = 2 * (TRANSPORT_MAX_FLIGHTS + 1), KEY_BYTES = 48, VALUE_BYTES = 60000 };
#define SLICE_NS INT64_C(100000000) /* between looks whether the coordinator lives */
#define MARGIN 0.98                 /* of the old maximum: what a new placement has to beat */

/* A placement in the store: n_ids numbers of owners, then the owners themselves. */
struct owners {
	uint16_t numbers[VALUE_BYTES / 2];
	size_t n_numbers;
};

static uint64_t switch_round(const struct transport *t)
{
	return t->next_placement * t->p.balance_rounds;
}

static uint32_t max_local(const struct transport *t)
{
	uint32_t n = (uint32_t)t->p.n_expert_ranks, even = (t->n_ids + n - 1) / n;

	/* With replicas for safety the second copies take the room to balance with. */
	return t->p.n_replicas > 1 ? even : even + (even + 1) / 2;
}

/* Owners of a map, every expert with n_replicas at least: the emptiest ranks take what lacks. */
static int list_owners(const struct transport *t, const struct m2n_map *map, struct owners *o)
{
	uint32_t n_ranks = (uint32_t)t->p.n_expert_ranks, n_local[64];
	uint64_t *masks = calloc(t->n_ids, sizeof(*masks));

	if (!masks)
		return model_fail(-ENOMEM, "no memory for a placement of %u experts", t->n_ids);
	for (uint32_t r = 0; r < n_ranks; r++) {
		n_local[r] = m2n_map_n_local(map, r);
		for (uint32_t i = 0; i < n_local[r]; i++)
			masks[m2n_map_expert(map, r, i)] |= UINT64_C(1) << r;
	}
	o->n_numbers = t->n_ids;
	for (uint32_t e = 0; e < t->n_ids; e++) {
		while ((uint32_t)__builtin_popcountll(masks[e]) < t->p.n_replicas) {
			uint32_t best = n_ranks;

			for (uint32_t r = 0; r < n_ranks; r++)
				if (!(masks[e] >> r & 1) &&
					(best == n_ranks || n_local[r] < n_local[best]))
					best = r;
			masks[e] |= UINT64_C(1) << best;
			n_local[best]++;
		}
		o->numbers[e] = (uint16_t)__builtin_popcountll(masks[e]);
		for (uint64_t left = masks[e]; left; left &= left - 1)
			if (o->n_numbers < VALUE_BYTES / 2)
				o->numbers[o->n_numbers++] = (uint16_t)__builtin_ctzll(left);
	}
	free(masks);
	return o->n_numbers < VALUE_BYTES / 2 ? 0
					      : model_fail(-ENOTSUP,
							"balance: a placement of %u experts does "
							"not fit a value of the store",
							t->n_ids);
}

static int make_map(const struct transport *t, const struct owners *o, struct m2n_map **map)
{
	size_t n_owners = o->n_numbers - t->n_ids;
	uint32_t *first = malloc((t->n_ids + 1 + n_owners) * sizeof(*first));
	uint32_t *owners = first + t->n_ids + 1;
	int rc;

	if (!first)
		return model_fail(-ENOMEM, "no memory for a placement of %u experts", t->n_ids);
	first[0] = 0;
	for (uint32_t e = 0; e < t->n_ids; e++)
		first[e + 1] = first[e] + o->numbers[e];
	for (size_t i = 0; i < n_owners; i++)
		owners[i] = o->numbers[t->n_ids + i];
	rc = first[t->n_ids] != n_owners
		     ? model_fail(-EPROTO, "balance: a placement in the store is broken")
		     : m2n_map_create(t->n_ids, (uint32_t)t->p.n_expert_ranks, first, owners, map);
	free(first);
	return rc < 0 && rc != -EPROTO ? transport_fail(rc) : rc;
}

/* Experts of a layer in blocks, each on n_replicas ranks that follow each other. */
static int first_map(struct transport *t)
{
	uint32_t n_ranks = (uint32_t)t->p.n_expert_ranks, n_experts = t->p.config->n_experts;
	struct owners *o = calloc(1, sizeof(*o));
	int rc;

	if (!o || (size_t)t->n_ids * (1 + t->p.n_replicas) > VALUE_BYTES / 2) {
		free(o);
		return model_fail(-ENOTSUP, "%u experts with %u replicas are too many", t->n_ids,
			t->p.n_replicas);
	}
	o->n_numbers = t->n_ids;
	for (uint32_t e = 0; e < t->n_ids; e++) {
		uint32_t home = (uint32_t)((uint64_t)(e % n_experts) * n_ranks / n_experts);

		o->numbers[e] = (uint16_t)t->p.n_replicas;
		for (uint32_t i = 0; i < t->p.n_replicas; i++)
			o->numbers[o->n_numbers++] = (uint16_t)((home + i) % n_ranks);
	}
	rc = make_map(t, o, &t->map);
	free(o);
	return rc;
}

/* Expert rank: it has what the map gives it. */
static int hold(const struct transport *t, const struct m2n_map *map)
{
	uint32_t n = t->expert < 0 ? 0 : m2n_map_n_local(map, (uint32_t)t->expert);
	int rc = 0;

	for (uint32_t i = 0; !rc && i < n; i++) {
		uint32_t id = (uint32_t)m2n_map_expert(map, (uint32_t)t->expert, i);

		rc = t->p.hold(t->p.arg, id / t->p.config->n_experts, id % t->p.config->n_experts);
	}
	return rc;
}

static int get(const struct transport *t, const char *key, void *value, size_t *bytes, int64_t ns)
{
	int rc = m2n_group_get(t->group, key, value, bytes, ns);

	return rc == -EAGAIN ? -ETIMEDOUT : rc;
}

/* The owners of switch number k, or -ETIMEDOUT. */
static int get_owners(const struct transport *t, uint64_t k, struct owners *o, int64_t timeout_ns)
{
	char key[KEY_BYTES];
	size_t bytes = sizeof(o->numbers);
	int rc;

	snprintf(key, sizeof(key), "owners/%lu", (unsigned long)k);
	rc = get(t, key, o->numbers, &bytes, timeout_ns);
	o->n_numbers = bytes / 2;
	return rc;
}

/* A process that takes a place learns the placement that is in force: the newest there is. */
static int newest_map(struct transport *t)
{
	struct owners *o = malloc(sizeof(*o));
	struct m2n_map *map;
	int rc = o ? 0 : model_fail(-ENOMEM, "no memory for a placement");

	while (!rc && get_owners(t, t->next_placement, o, 0) == 0) {
		t->next_placement++;
		if (!o->n_numbers)
			continue; /* as it was */
		rc = make_map(t, o, &map);
		if (!rc) {
			m2n_map_destroy(t->map);
			t->map = map;
		}
	}
	free(o);
	return rc;
}

int placement_open(struct transport *t)
{
	int rc;

	if (t->p.balance_rounds && t->p.balance_rounds < 4 * D)
		return model_fail(-EINVAL, "balance every %u rounds, accepted: 0, or %d and more",
			t->p.balance_rounds, 4 * D);
	t->next_placement = 1;
	rc = first_map(t);
	if (!rc && t->p.balance_rounds) {
		t->rows = calloc(t->n_ids, sizeof(*t->rows));
		if (!t->rows || t->n_ids * sizeof(*t->rows) > VALUE_BYTES)
			return model_fail(-ENOTSUP, "balance: %u experts are too many", t->n_ids);
		if (t->p.env->incarnation)
			rc = newest_map(t);
	}
	return rc ? rc : hold(t, t->map);
}

void placement_close(struct transport *t)
{
	m2n_map_destroy(t->map);
	free(t->rows);
}

void placement_count(struct transport *t, const struct m2n_batch *batch)
{
	for (uint32_t i = 0; t->rows && i < batch->n_segments; i++)
		t->rows[batch->segments[i].expert] += batch->segments[i].n_rows;
}

static int put_rows(struct transport *t)
{
	char key[KEY_BYTES];
	int rc;

	snprintf(key, sizeof(key), "rows/%lu/%d", (unsigned long)t->next_placement, t->expert);
	rc = m2n_group_put(
		t->group, key, t->rows, t->n_ids * sizeof(*t->rows), M2N_TIMEOUT_DEFAULT);
	memset(t->rows, 0, t->n_ids * sizeof(*t->rows));
	return rc < 0 ? transport_fail(rc) : 0;
}

static int lives(const struct transport *t, int expert_rank)
{
	struct m2n_peer_attr attr;

	return expert_rank == t->expert ||
	       (m2n_group_peer(t->group, t->p.n_attention + expert_rank, &attr) == 0 &&
		       attr.state != M2N_PEER_LOST && attr.state != M2N_PEER_LEFT);
}

static int is_coordinator(const struct transport *t)
{
	for (int i = 0; i < t->expert; i++)
		if (lives(t, i))
			return 0;
	return t->expert >= 0;
}

/* Rows of the window by expert, of all expert ranks that live. */
static int sum_rows(const struct transport *t, float *load)
{
	uint32_t *rows = malloc(t->n_ids * sizeof(*rows));
	int rc = rows ? 0 : model_fail(-ENOMEM, "no memory for the rows of %u experts", t->n_ids);

	memset(load, 0, t->n_ids * sizeof(*load));
	for (int i = 0; !rc && i < t->p.n_expert_ranks; i++) {
		size_t bytes = t->n_ids * sizeof(*rows);
		char key[KEY_BYTES];
		int found = -ETIMEDOUT;

		snprintf(key, sizeof(key), "rows/%lu/%d", (unsigned long)t->next_placement, i);
		while (found == -ETIMEDOUT && lives(t, i))
			found = get(t, key, rows, &bytes, SLICE_NS);
		if (found < 0 && found != -ETIMEDOUT)
			rc = transport_fail(found);
		for (uint32_t e = 0; !rc && found == 0 && e < bytes / sizeof(*rows); e++)
			load[e] += (float)rows[e];
	}
	free(rows);
	return rc;
}

/* Max / mean of the ranks' rows, with those of an expert shared among its owners. */
static double imbalance(const struct transport *t, const struct m2n_map *map, const float *load)
{
	double rank_load[64] = {0}, max = 0, sum = 0;
	uint32_t *n_owners = calloc(t->n_ids, sizeof(*n_owners));

	for (int pass = 0; n_owners && pass < 2; pass++)
		for (uint32_t r = 0; r < (uint32_t)t->p.n_expert_ranks; r++)
			for (uint32_t i = 0; i < m2n_map_n_local(map, r); i++) {
				int32_t e = m2n_map_expert(map, r, i);

				if (pass == 0)
					n_owners[e]++;
				else
					rank_load[r] += (double)load[e] / n_owners[e];
			}
	for (int r = 0; r < t->p.n_expert_ranks; r++) {
		max = rank_load[r] > max ? rank_load[r] : max;
		sum += rank_load[r];
	}
	free(n_owners);
	return sum > 0 ? max / sum * t->p.n_expert_ranks : 1;
}

/* A better placement's owners, or none: o->n_numbers is 0. */
static int decide(const struct transport *t, const float *load, struct owners *o)
{
	struct m2n_map *greedy, *map = NULL;
	int rc = m2n_map_balance(
		t->n_ids, (uint32_t)t->p.n_expert_ranks, load, max_local(t), &greedy);

	if (rc < 0)
		return transport_fail(rc);
	rc = list_owners(t, greedy, o);
	m2n_map_destroy(greedy);
	if (!rc)
		rc = make_map(t, o, &map);
	if (!rc && imbalance(t, map, load) > MARGIN * imbalance(t, t->map, load))
		o->n_numbers = 0;
	m2n_map_destroy(map);
	return rc;
}

static int publish(struct transport *t, struct owners *o)
{
	float *load = malloc(t->n_ids * sizeof(*load));
	char key[KEY_BYTES];
	int rc = load ? 0 : model_fail(-ENOMEM, "no memory for the load of %u experts", t->n_ids);

	if (!rc && get_owners(t, t->next_placement, o, 0) != 0) {
		rc = sum_rows(t, load);
		if (!rc)
			rc = decide(t, load, o);
		snprintf(key, sizeof(key), "owners/%lu", (unsigned long)t->next_placement);
		if (!rc && (rc = m2n_group_put(t->group, key, o->numbers, o->n_numbers * 2,
				    M2N_TIMEOUT_DEFAULT)) < 0)
			rc = transport_fail(rc);
	}
	free(load);
	return rc;
}

/* The switch: everybody, before its own part in the round. */
static int switch_map(struct transport *t, struct owners *o)
{
	float *load;
	struct m2n_map *map;
	int rc;

	while ((rc = get_owners(t, t->next_placement, o, SLICE_NS)) == -ETIMEDOUT)
		if (is_coordinator(t) && (rc = publish(t, o)) < 0)
			return rc;
	if (rc < 0)
		return transport_fail(rc);
	if (!o->n_numbers)
		return 0;
	rc = make_map(t, o, &map);
	if (rc)
		return rc;
	load = malloc(t->n_ids * sizeof(*load));
	if (load && t->expert >= 0 && sum_rows(t, load) == 0) {
		t->stats.load_before = imbalance(t, t->map, load);
		t->stats.load_after = imbalance(t, map, load);
	}
	free(load);
	rc = hold(t, map);
	if (!rc && (rc = m2n_channel_set_map(t->channel, map, switch_round(t))) < 0)
		rc = transport_fail(rc);
	m2n_map_destroy(t->map);
	t->map = map;
	t->stats.n_placements++;
	return rc;
}

int placement_before(struct transport *t, uint64_t round)
{
	struct owners *o;
	uint64_t at;
	int rc = 0;

	if (!t->p.balance_rounds)
		return 0;
	at = switch_round(t);
	if (t->expert >= 0 && round == at - 2 * D)
		return put_rows(t);
	if (round != at && (round != at - D || !is_coordinator(t)))
		return 0;
	o = malloc(sizeof(*o));
	if (!o)
		return model_fail(-ENOMEM, "no memory for a placement");
	rc = round == at ? switch_map(t, o) : publish(t, o);
	free(o);
	if (round == at)
		t->next_placement++;
	return rc;
}
