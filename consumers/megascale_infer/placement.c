/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert balance: which expert ranks own which experts, decided anew every window of rounds from
 * the rows of the last one, by libm2n's greedy placement with replicas, and switched between two
 * rounds by the channel's map.
 *
 * With a window of W rounds and the switch of number k at round k W, each attention rank puts its
 * rows by expert into the group's store before round k W - 2 D, the first one reads them before
 * round k W - D and puts the owners there, and everybody gets them before round k W. D is more than
 * the rounds in flight: whoever is in the rounds has put what the others look for, so nobody waits,
 * and what is not there is of a rank that has left. While an expert rank is lost or comes in,
 * everything stays: the switch says so by an empty value.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/error.h"
#include "transport_m2n.h"

enum { D = TRANSPORT_MIN_BALANCE / 4, KEY_BYTES = 48, VALUE_BYTES = 60000 };
#define N_NAPS 5000 /* of 2 ms, until all have made a switch */
#define MARGIN 0.98 /* of the old maximum: what a new placement has to beat */

struct placement_value {
	double load_before, load_after;
	uint64_t owners[];
};

static size_t value_bytes(const struct transport *t)
{
	return sizeof(struct placement_value) + t->shape.n_ids * sizeof(uint64_t);
}

static uint64_t switch_round(const struct transport *t)
{
	return t->next_placement * t->p.balance_rounds;
}

/* Values of the store: what, of which window or rank. */
static int put(const struct transport *t, const char *what, uint64_t number, int rank,
	const void *value, size_t bytes)
{
	char key[KEY_BYTES];
	int rc;

	snprintf(key, sizeof(key), "%s/%lu/%d", what, (unsigned long)number, rank);
	rc = m2n_group_put(t->group, key, value, bytes, M2N_TIMEOUT_DEFAULT);
	return rc < 0 ? transport_fail(rc) : 0;
}

/* How many bytes, 0 to room, or -EAGAIN: it is not there. */
static int64_t look(const struct transport *t, const char *what, uint64_t number, int rank,
	void *value, size_t room)
{
	char key[KEY_BYTES];
	int rc;

	snprintf(key, sizeof(key), "%s/%lu/%d", what, (unsigned long)number, rank);
	rc = m2n_group_get(t->group, key, value, &room, 0);
	return rc == 0 ? (int64_t)room : rc == -EAGAIN ? rc : transport_fail(rc);
}

static int make_map(const struct transport *t, struct m2n_map **map)
{
	uint32_t n_ids = t->shape.n_ids;
	uint32_t *first = owners_list(&t->shape, t->owners);
	int rc;

	if (!first)
		return model_fail(-ENOMEM, "no memory for a placement of %u experts", n_ids);
	rc = m2n_map_create(n_ids, t->shape.n_ranks, first, first + n_ids + 1, map);
	free(first);
	return rc < 0 ? transport_fail(rc) : 0;
}

/* t->owners come into force: an expert rank has what they give it. */
static int adopt(struct transport *t)
{
	uint32_t n_experts = t->shape.n_experts;
	struct m2n_map *map;
	int rc = make_map(t, &map);

	if (rc)
		return rc;
	m2n_map_destroy(t->map);
	t->map = map;
	for (uint32_t id = 0; !rc && t->expert >= 0 && id < t->shape.n_ids; id++)
		if (t->owners[id] >> t->expert & 1)
			rc = t->p.hold(t->p.arg, id / n_experts, id % n_experts);
	return rc;
}

/* What the next switch says, into t->value: its bytes, 0 when everything stays, or -EAGAIN. */
static int64_t look_at_switch(const struct transport *t)
{
	int64_t bytes = look(t, "owners", t->next_placement, 0, t->value, value_bytes(t));

	if (bytes > 0 && bytes != (int64_t)value_bytes(t))
		return model_fail(-EPROTO, "balance: owners of %ld bytes", (long)bytes);
	if (bytes > 0)
		memcpy(t->owners, t->value->owners, t->shape.n_ids * sizeof(*t->owners));
	return bytes;
}

/* 1: all attention ranks have made the switch; 0: not yet; -ESHUTDOWN: one has left. */
static int all_switched(const struct transport *t, uint64_t k)
{
	uint64_t number = 0;

	for (int i = 0; i < t->p.n_attention; i++) {
		if (look(t, "left", 0, i, &number, sizeof(number)) != -EAGAIN)
			return model_fail(-ESHUTDOWN,
				"attention rank %d has left: nobody comes in any more", i);
		if (k && (look(t, "switched", 0, i, &number, sizeof(number)) < 0 || number < k))
			return 0;
	}
	return 1;
}

static int put_is_in(const struct transport *t, char is_in)
{
	return put(t, "is_in", 0, t->expert, &is_in, 1);
}

/*
 * A process that takes a lost one's place learns which placement is in force: the newest in the
 * store, once all attention ranks have come to its round. It is not in yet, so there will be no
 * other meanwhile.
 */
static int join(struct transport *t)
{
	const struct timespec nap = {.tv_nsec = 2000000};
	uint64_t last = 0;
	int rc = t->value ? put_is_in(t, 0) : 0;

	for (int n = 0; !rc && n < N_NAPS; n++) {
		int64_t bytes = -EAGAIN;

		while (t->value && (bytes = look_at_switch(t)) >= 0) {
			last = bytes ? t->next_placement : last;
			t->next_placement++;
		}
		rc = bytes == -EAGAIN ? all_switched(t, last) : (int)bytes;
		if (rc)
			return rc < 0 ? rc : adopt(t);
		m2n_ctx_progress(t->p.env->ctx);
		nanosleep(&nap, NULL);
	}
	return rc ? rc
		  : model_fail(-ETIMEDOUT, "the attention ranks did not come to round %lu",
			    (unsigned long)(last * t->p.balance_rounds));
}

static int open_balance(struct transport *t)
{
	if (value_bytes(t) > VALUE_BYTES)
		return model_fail(
			-ENOTSUP, "balance: %u experts in all are too many", t->shape.n_ids);
	t->value = malloc(value_bytes(t));
	t->rows = calloc(t->shape.n_ids, sizeof(*t->rows));
	t->load = malloc(t->shape.n_ids * sizeof(*t->load));
	if (!t->value || !t->rows || !t->load)
		return model_fail(-ENOMEM, "no memory for the load of experts");
	return 0;
}

int placement_open(struct transport *t)
{
	struct owners_shape *s = &t->shape;
	int rc;

	if (t->p.n_expert_ranks == 1)
		t->p.balance_rounds = 0;
	owners_shape(s, t->p.config->n_layers, t->p.config->n_experts,
		(uint32_t)t->p.n_expert_ranks, t->p.n_replicas);
	t->owners = malloc(s->n_ids * sizeof(*t->owners));
	if (!t->owners)
		return model_fail(-ENOMEM, "no memory for a placement of %u experts", s->n_ids);
	owners_first(s, t->owners);
	t->next_placement = 1;
	rc = t->p.balance_rounds ? open_balance(t) : 0;
	if (rc)
		return rc;
	return t->expert >= 0 && t->p.env->incarnation ? join(t) : adopt(t);
}

int placement_linked(struct transport *t)
{
	return t->p.balance_rounds && t->expert >= 0 ? put_is_in(t, 1) : 0;
}

void placement_leave(struct transport *t)
{
	if (t->source >= 0)
		put(t, "left", 0, t->source, "", 1);
}

void placement_close(struct transport *t)
{
	m2n_map_destroy(t->map);
	free(t->owners);
	free(t->value);
	free(t->rows);
	free(t->load);
}

/* All expert ranks are there, in the rounds. */
static int are_all_in(struct transport *t)
{
	char is_in;

	transport_look_at_peers(t);
	for (int i = 0; i < t->p.n_expert_ranks; i++)
		if (look(t, "is_in", 0, i, &is_in, 1) != 1 || !is_in)
			return 0;
	return !t->lost_ranks;
}

/* Rows of the window by expert, of all attention ranks that are there. */
static void sum_rows(struct transport *t)
{
	int64_t all = (int64_t)t->shape.n_ids * (int64_t)sizeof(uint32_t);
	uint32_t *rows = (uint32_t *)t->value->owners; /* not in use yet */

	memset(t->load, 0, t->shape.n_ids * sizeof(*t->load));
	for (int i = 0; i < t->p.n_attention; i++)
		if (look(t, "rows", t->next_placement, i, rows, (size_t)all) == all)
			for (uint32_t id = 0; id < t->shape.n_ids; id++)
				t->load[id] += (float)rows[id];
}

/* The greedy placement, as bitmaps, with the replicas that are wanted. */
static int balance(struct transport *t)
{
	const struct owners_shape *s = &t->shape;
	uint32_t even = (s->n_ids + s->n_ranks - 1) / s->n_ranks;
	uint64_t *owners = t->value->owners;
	struct m2n_map *map;
	/* With replicas for safety their copies take the room to balance with. */
	int rc = m2n_map_balance(s->n_ids, s->n_ranks, t->load,
		s->n_replicas > 1 ? even : even + (even + 1) / 2, &map);

	if (rc < 0)
		return transport_fail(rc);
	memset(owners, 0, s->n_ids * sizeof(*owners));
	for (uint32_t r = 0; r < s->n_ranks; r++)
		for (uint32_t i = 0; i < m2n_map_n_local(map, r); i++)
			owners[m2n_map_expert(map, r, i)] |= UINT64_C(1) << r;
	m2n_map_destroy(map);
	return owners_replicate(s, t->load, owners);
}

/* What the switch will be. */
static int decide(struct transport *t)
{
	struct placement_value *v = t->value;
	int rc = -ENOSPC;

	if (are_all_in(t)) {
		sum_rows(t);
		rc = balance(t);
	}
	if (rc == 0) {
		v->load_before = owners_imbalance(&t->shape, t->load, t->owners);
		v->load_after = owners_imbalance(&t->shape, t->load, v->owners);
		rc = v->load_after > MARGIN * v->load_before ? -ENOSPC : 0;
	}
	if (rc < 0 && rc != -ENOSPC)
		return rc;
	return put(t, "owners", t->next_placement, 0, v, rc ? 0 : value_bytes(t));
}

/* The switch: everybody, before its own part in the round. */
static int switch_map(struct transport *t)
{
	int64_t rc = look_at_switch(t);

	if (rc == -EAGAIN) /* who decides has left */
		return t->p.balance_rounds = 0;
	if (rc > 0) {
		t->stats.load_before = t->value->load_before;
		t->stats.load_after = t->value->load_after;
		t->stats.n_placements++;
		rc = adopt(t);
		if (!rc && (rc = m2n_channel_set_map(t->channel, t->map, switch_round(t))) < 0)
			rc = transport_fail((int)rc);
		if (!rc && t->source >= 0)
			rc = put(t, "switched", 0, t->source, &t->next_placement,
				sizeof(t->next_placement));
	}
	t->next_placement++;
	return (int)rc;
}

int placement_before(struct transport *t, uint64_t round)
{
	size_t bytes = t->shape.n_ids * sizeof(*t->rows);
	int rc = 0;

	if (!t->p.balance_rounds)
		return 0;
	while (round > switch_round(t)) /* nothing was decided while this process came in */
		t->next_placement++;
	if (t->source >= 0 && round + 2 * D == switch_round(t)) {
		rc = put(t, "rows", t->next_placement, t->source, t->rows, bytes);
		memset(t->rows, 0, bytes);
	}
	if (!rc && t->source == 0 && round + D == switch_round(t))
		rc = decide(t);
	if (!rc && round == switch_round(t))
		rc = switch_map(t);
	return rc;
}
