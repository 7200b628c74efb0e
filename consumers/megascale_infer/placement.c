/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert balance: which expert ranks own which experts, decided anew every window of rounds from
 * the rows of the last one, by libm2n's greedy placement with replicas, and switched between two
 * rounds by the channel's map.
 *
 * With a window of W rounds and the switch of number k at round k W, each expert rank puts its rows
 * by expert into the group's store before round k W - 2 D, the lowest expert rank that lives reads
 * them before round k W - D and puts the owners there, and everybody gets them before round k W. D
 * is more than the rounds in flight: nobody has passed k W when the owners are there, and whoever
 * lives has put its rows when they are read. While an expert rank is lost, or was not there for the
 * whole window, everything stays: the switch says so by an empty value.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/error.h"
#include "transport_m2n.h"

enum { D = 2 * (TRANSPORT_MAX_FLIGHTS + 1), KEY_BYTES = 48, VALUE_BYTES = 60000 };
#define SLICE_NS INT64_C(20000000) /* between looks whether the coordinator lives */
#define N_SLICES 500               /* that a switch is waited for at most */
#define N_NAPS 5000                /* of 2 ms, until all have made it */
#define MEET_NS INT64_C(2000000000)
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

static int make_map(const struct transport *t, struct m2n_map **map)
{
	uint32_t n_ids = t->shape.n_ids, n = 0;
	uint32_t *first = malloc((n_ids + 1 + (size_t)t->shape.max_total) * sizeof(*first));
	uint32_t *owners = first + n_ids + 1;
	int rc;

	if (!first)
		return model_fail(-ENOMEM, "no memory for a placement of %u experts", n_ids);
	for (uint32_t id = 0; id < n_ids; id++) {
		first[id] = n;
		for (uint64_t left = t->owners[id]; left && n < t->shape.max_total;
			left &= left - 1)
			owners[n++] = (uint32_t)__builtin_ctzll(left);
	}
	first[n_ids] = n;
	rc = m2n_map_create(n_ids, t->shape.n_ranks, first, owners, map);
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

/* What switch number k says, into t->value; *bytes is 0 when everything stays. */
static int get_value(struct transport *t, uint64_t k, size_t *bytes, int64_t timeout_ns)
{
	char key[KEY_BYTES];
	int rc;

	snprintf(key, sizeof(key), "owners/%lu", (unsigned long)k);
	*bytes = value_bytes(t);
	rc = m2n_group_get(t->group, key, t->value, bytes, timeout_ns);
	if (rc == -EAGAIN || rc == -ETIMEDOUT)
		return -ETIMEDOUT;
	if (rc == 0 && *bytes && *bytes != value_bytes(t))
		return model_fail(-EPROTO, "balance: %s has %zu bytes", key, *bytes);
	return rc < 0 ? transport_fail(rc) : 0;
}

/* The window's rows; nothing, if this rank was not there for all of it. */
static int put_rows(struct transport *t)
{
	size_t bytes = t->shape.n_ids * sizeof(*t->rows);
	char key[KEY_BYTES];
	int rc;

	snprintf(key, sizeof(key), "rows/%lu/%d", (unsigned long)t->next_placement, t->expert);
	rc = m2n_group_put(t->group, key, t->rows, t->is_late ? 0 : bytes, M2N_TIMEOUT_DEFAULT);
	memset(t->rows, 0, bytes);
	t->is_late = 0;
	t->n_put = t->next_placement;
	return rc < 0 ? transport_fail(rc) : 0;
}

/* Tells those that take a place that this attention rank has made all switches up to k. */
static int put_switched(const struct transport *t, uint64_t k)
{
	char key[KEY_BYTES];
	int rc;

	snprintf(key, sizeof(key), "switched/%d", t->source);
	rc = m2n_group_put(t->group, key, &k, sizeof(k), M2N_TIMEOUT_DEFAULT);
	return rc < 0 ? transport_fail(rc) : 0;
}

static int all_switched(const struct transport *t, uint64_t k)
{
	for (int i = 0; i < t->p.n_attention; i++) {
		uint64_t number;
		size_t bytes = sizeof(number);
		char key[KEY_BYTES];

		snprintf(key, sizeof(key), "switched/%d", i);
		if (m2n_group_get(t->group, key, &number, &bytes, 0) < 0 || number < k)
			return 0;
	}
	return 1;
}

/* Expert ranks have no links with each other: who lives is seen once they are connected. */
static int meet(struct transport *t)
{
	int rc = 0;

	for (int i = 0; !rc && i < t->p.n_expert_ranks; i++)
		if (i != t->expert)
			rc = m2n_group_add(t->group, t->p.n_attention + i,
				t->p.env->incarnation ? MEET_NS : M2N_TIMEOUT_DEFAULT);
	/* Another one may be lost, too. */
	return rc < 0 && !t->p.env->incarnation ? transport_fail(rc) : 0;
}

/* Takes over what is decided already; *last: the newest switch that changes something. */
static int scan(struct transport *t, uint64_t *last)
{
	size_t bytes;
	int rc;

	while ((rc = get_value(t, t->next_placement, &bytes, 0)) == 0) {
		if (bytes) {
			memcpy(t->owners, t->value->owners, t->shape.n_ids * sizeof(*t->owners));
			*last = t->next_placement;
		}
		t->next_placement++;
	}
	return rc == -ETIMEDOUT ? 0 : rc;
}

/*
 * A process that takes a lost one's place learns which placement is in force: the newest in the
 * store, once all attention ranks have come to its round. The lost one's rows of this window are
 * put out of force before the others see somebody live, so that there will be no other placement.
 */
static int join(struct transport *t)
{
	const struct timespec nap = {.tv_nsec = 2000000};
	uint64_t last = 0;
	int rc = scan(t, &last);

	t->is_late = 1;
	rc = rc ? rc : put_rows(t);
	t->is_late = 1;
	rc = rc ? rc : meet(t);
	for (int n = 0; !rc && n < N_NAPS; n++) {
		rc = scan(t, &last);
		if (!rc && (!last || all_switched(t, last)))
			return adopt(t);
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
	if (t->expert < 0)
		return 0;
	return t->p.env->incarnation ? join(t) : meet(t);
}

int placement_open(struct transport *t)
{
	struct owners_shape *s = &t->shape;
	uint32_t even;
	int rc;

	if (t->p.balance_rounds && t->p.balance_rounds < 4 * D)
		return model_fail(-EINVAL, "balance every %u rounds, accepted: 0, or %d and more",
			t->p.balance_rounds, 4 * D);
	s->n_experts = t->p.config->n_experts;
	s->n_ids = t->p.config->n_layers * s->n_experts;
	s->n_ranks = (uint32_t)t->p.n_expert_ranks;
	s->n_replicas = t->p.n_replicas;
	/* A channel has room for the first map and for two owners of each expert. */
	even = (s->n_ids + s->n_ranks - 1) / s->n_ranks;
	s->max_local = 2 * even + 2 < s->n_ids ? 2 * even + 2 : s->n_ids;
	s->max_total = 2 * s->n_ids + s->n_ranks;
	if (s->max_total < s->n_replicas * s->n_ids)
		s->max_total = s->n_replicas * s->n_ids;
	t->owners = malloc(s->n_ids * sizeof(*t->owners));
	if (!t->owners)
		return model_fail(-ENOMEM, "no memory for a placement of %u experts", s->n_ids);
	owners_first(s, t->owners);
	t->next_placement = 1;
	rc = adopt(t);
	for (uint32_t r = 0; !rc && r < s->n_ranks; r++)
		if (m2n_map_n_local(t->map, r) > s->max_local)
			s->max_local = m2n_map_n_local(t->map, r);
	if (t->p.n_expert_ranks == 1)
		t->p.balance_rounds = 0;
	return rc || !t->p.balance_rounds ? rc : open_balance(t);
}

void placement_close(struct transport *t)
{
	if (t->value && t->source >= 0) /* it will make no other, and is not waited for */
		put_switched(t, UINT64_MAX);
	m2n_map_destroy(t->map);
	free(t->owners);
	free(t->value);
	free(t->rows);
	free(t->load);
}

void placement_count(struct transport *t, const struct m2n_batch *batch)
{
	for (uint32_t i = 0; t->rows && i < batch->n_segments; i++)
		t->rows[batch->segments[i].expert] += batch->segments[i].n_rows;
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

/* Rows of the window by expert. 1; 0: some rank was not there for all of it. */
static int sum_rows(struct transport *t)
{
	size_t all = t->shape.n_ids * sizeof(uint32_t);
	uint32_t *rows = (uint32_t *)t->value->owners; /* not in use yet */

	memset(t->load, 0, t->shape.n_ids * sizeof(*t->load));
	for (int i = 0; i < t->p.n_expert_ranks; i++) {
		size_t bytes = all;
		char key[KEY_BYTES];

		snprintf(key, sizeof(key), "rows/%lu/%d", (unsigned long)t->next_placement, i);
		if (!lives(t, i) || m2n_group_get(t->group, key, rows, &bytes, SLICE_NS) < 0 ||
			bytes != all)
			return 0;
		for (uint32_t id = 0; id < t->shape.n_ids; id++)
			t->load[id] += (float)rows[id];
	}
	return 1;
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

/* Decides, unless somebody has. */
static int publish(struct transport *t)
{
	struct placement_value *v = t->value;
	size_t bytes;
	char key[KEY_BYTES];
	int rc = get_value(t, t->next_placement, &bytes, 0);

	if (rc != -ETIMEDOUT)
		return rc;
	rc = sum_rows(t) ? balance(t) : -ENOSPC;
	if (rc == 0) {
		v->load_before = owners_imbalance(&t->shape, t->load, t->owners);
		v->load_after = owners_imbalance(&t->shape, t->load, v->owners);
		rc = v->load_after > MARGIN * v->load_before ? -ENOSPC : 0;
	}
	if (rc < 0 && rc != -ENOSPC)
		return rc;
	snprintf(key, sizeof(key), "owners/%lu", (unsigned long)t->next_placement);
	rc = m2n_group_put(t->group, key, v, rc ? 0 : value_bytes(t), M2N_TIMEOUT_DEFAULT);
	return rc < 0 ? transport_fail(rc) : 0;
}

/* The switch: everybody, before its own part in the round. */
static int switch_map(struct transport *t)
{
	uint64_t round = switch_round(t);
	size_t bytes;
	int rc;

	for (int n = 0; (rc = get_value(t, t->next_placement, &bytes, SLICE_NS)) == -ETIMEDOUT;
		n++) {
		if (n == N_SLICES)
			return model_fail(-EIO,
				"round %lu: no expert rank said who owns which expert",
				(unsigned long)round);
		m2n_ctx_progress(t->p.env->ctx);
		if (is_coordinator(t) && (rc = publish(t)) < 0)
			return rc;
	}
	if (!rc && bytes) {
		memcpy(t->owners, t->value->owners, t->shape.n_ids * sizeof(*t->owners));
		t->stats.load_before = t->value->load_before;
		t->stats.load_after = t->value->load_after;
		t->stats.n_placements++;
		rc = adopt(t);
		if (!rc && (rc = m2n_channel_set_map(t->channel, t->map, round)) < 0)
			rc = transport_fail(rc);
		if (!rc && t->source >= 0)
			rc = put_switched(t, t->next_placement);
	}
	t->next_placement++;
	return rc;
}

/* What had been decided between the look of a new process and its first round. */
static int skip(struct transport *t, uint64_t round)
{
	size_t bytes;
	int rc = get_value(t, t->next_placement, &bytes, 0);

	if (rc == -ETIMEDOUT || (rc == 0 && bytes))
		return model_fail(-EPROTO, "round %lu: the switch of round %lu was missed",
			(unsigned long)round, (unsigned long)switch_round(t));
	t->next_placement++;
	t->is_late = 1;
	return rc;
}

int placement_before(struct transport *t, uint64_t round)
{
	int rc = 0;

	if (!t->p.balance_rounds)
		return 0;
	while (!rc && round > switch_round(t))
		rc = skip(t, round);
	if (!rc && t->expert >= 0 && round + 2 * D >= switch_round(t) &&
		t->n_put != t->next_placement)
		rc = put_rows(t);
	if (!rc && round + D == switch_round(t) && is_coordinator(t))
		rc = publish(t);
	if (!rc && round == switch_round(t))
		rc = switch_map(t);
	return rc;
}
