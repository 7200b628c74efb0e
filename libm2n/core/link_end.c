/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of links. A side that closes its exchange says UNLINK. Then a peer may not have mapped
 * the memory yet that our LINK frame named, or messages that it has put may still be on their way:
 * memory that goes before they arrive would break its connection (verbs) or this process (a
 * backend that copies on arrival). So that memory is kept, in a *grave*, until each peer that
 * could want it has said UNLINKED: none of its calls is writing, and what it had put has arrived.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/link.h"
#include "util/error.h"

struct m2n__grave {
	struct m2n__grave *next;
	uint64_t instance; /* of the exchange */
	struct m2n__garbage *garbage;
	struct m2n__garbage *parts; /* room for all of the exchange's memory */
	size_t n_parts;
	uint64_t last_conn; /* connections up to here that linger are waited for */
	int forever;        /* until the group is left, and connections with it */
	size_t n_waiting;
	int *waiting; /* ranks; -1: answered */
};

struct m2n__answer { /* an UNLINKED that is owed */
	struct m2n__answer *next;
	int rank;
	uint64_t instance;
	char name[M2N__EXCHANGE_NAME];
};

static int is_other(const struct m2n__peer *peer)
{
	return peer && peer->ep && peer->rank != peer->group->rank;
}

static void keep(struct m2n__grave *grave, struct m2n__shared *area)
{
	if (area->mem)
		grave->parts[grave->n_parts++].area = *area;
	memset(area, 0, sizeof(*area));
}

/* Everything that peers write to, or that is written from. */
static void collect(struct m2n__grave *grave, struct m2n_exchange *x)
{
	keep(grave, &x->area);
	keep(grave, &x->region);
	keep(grave, &x->credits);
	for (size_t i = 0; i < x->n_tx; i++) {
		keep(grave, &x->tx[i].stage);
		keep(grave, &x->tx[i].bounce);
	}
	for (size_t i = 0; i < x->n_rx; i++) {
		struct m2n__rx *rx = &x->rx[i];

		keep(grave, &rx->area);
		keep(grave, &rx->stage);
		if (rx->has_signals)
			grave->parts[grave->n_parts++] = (struct m2n__garbage){
				.signal0 = rx->signal0, .n_signals = 2 * x->spec.n_slots};
		rx->has_signals = 0;
	}
	grave->garbage = x->garbage;
	x->garbage = NULL;
}

/* A peer that has our LINK frame may write, until it takes our UNLINK. */
static void wait_for(struct m2n__grave *grave, const struct m2n__peer *peer, int linked)
{
	if (!linked || !is_other(peer))
		return;
	for (size_t i = 0; i < grave->n_waiting; i++)
		if (grave->waiting[i] == peer->rank)
			return;
	grave->waiting[grave->n_waiting++] = peer->rank;
}

static struct m2n__grave *dig(const struct m2n_exchange *x)
{
	struct m2n__grave *grave = calloc(1, sizeof(*grave));

	if (!grave)
		return NULL;
	grave->parts = calloc(3 + 2 * x->n_tx + 3 * x->n_rx, sizeof(*grave->parts));
	grave->waiting = calloc(x->n_tx + x->n_rx, sizeof(*grave->waiting));
	if (grave->parts && grave->waiting)
		return grave;
	free(grave->parts);
	free(grave->waiting);
	free(grave);
	return NULL;
}

/* What the exchange still has afterwards, nobody can write to. */
static void bury(struct m2n_exchange *x)
{
	struct m2n_group *group = x->group;
	struct m2n__grave *grave = dig(x);

	if (!grave)
		return; /* of the two evils without memory: not to keep it */
	for (size_t i = 0; i < x->n_tx; i++)
		wait_for(grave, x->tx[i].peer, x->tx[i].prepared || m2n__tx_up(&x->tx[i]));
	for (size_t i = 0; i < x->n_rx; i++)
		wait_for(grave, x->rx[i].peer,
			x->rx[i].prepared || m2n__rx_up(&x->rx[i]) || x->rx[i].starting);
	grave->last_conn = group->next_conn_id;
	grave->forever = x->unflushed;
	grave->instance = x->instance;
	collect(grave, x);
	grave->next = group->graves;
	group->graves = grave;
}

void m2n__link_goodbye(struct m2n_exchange *x)
{
	bury(x);
	for (size_t i = 0; i < x->n_tx + x->n_rx; i++) {
		struct m2n__rx *rx = i < x->n_tx ? NULL : &x->rx[i - x->n_tx];
		struct m2n__peer *peer = rx ? rx->peer : x->tx[i].peer;
		uint64_t seen = rx ? rx->peer_id : x->tx[i].peer_id;

		if (!peer || (rx && m2n__tx_of(x, peer)) || peer->rank == x->group->rank)
			continue;
		m2n__link_say(peer, M2N__FRAME_UNLINK, x->name, seen, x->instance);
	}
	m2n__graves_poll(x->group);
}

static void free_grave(struct m2n_ctx *ctx, struct m2n__grave *grave)
{
	for (size_t i = 0; i < grave->n_parts; i++)
		m2n__garbage_empty(ctx, &grave->parts[i]);
	m2n__garbage_free(ctx, grave->garbage);
	free(grave->parts);
	free(grave->waiting);
	free(grave);
}

static void open_grave(struct m2n_group *group, struct m2n__grave **at)
{
	struct m2n__grave *grave = *at;

	*at = grave->next;
	free_grave(group->ctx, grave);
}

static int still_waits(struct m2n_group *group, const struct m2n__grave *grave)
{
	for (size_t i = 0; i < grave->n_waiting; i++)
		if (grave->waiting[i] >= 0)
			return 1;
	return grave->forever || m2n__conn_lingers(group, grave->last_conn);
}

/* UNLINKED frames that can be sent now. */
static void answer(struct m2n_group *group)
{
	struct m2n__answer **at = &group->answers;

	while (*at) {
		struct m2n__answer *a = *at;
		struct m2n__peer *peer = group->peers[a->rank];

		if (peer->ep && peer->ep->ops->arrived(peer->ep) == -EAGAIN) {
			at = &a->next;
			continue;
		}
		m2n__link_say(peer, M2N__FRAME_UNLINKED, a->name, 0, a->instance);
		*at = a->next;
		free(a);
	}
}

void m2n__graves_poll(struct m2n_group *group)
{
	struct m2n__grave **at = &group->graves;

	if (group->answers && m2n__group_is_idle(group))
		answer(group);
	while (*at) {
		if (still_waits(group, *at))
			at = &(*at)->next;
		else
			open_grave(group, at);
	}
}

void m2n__link_unlink(struct m2n__peer *peer, const char *name, uint64_t instance)
{
	struct m2n__answer *a;

	if (!is_other(peer))
		return;
	a = calloc(1, sizeof(*a));
	if (!a) { /* the peer keeps its memory until one of us leaves */
		m2n__log(&peer->group->ctx->log, M2N_LOG_WARN, "no memory to answer UNLINK");
		return;
	}
	a->rank = peer->rank;
	a->instance = instance;
	memcpy(a->name, name, strnlen(name, sizeof(a->name) - 1));
	a->next = peer->group->answers;
	peer->group->answers = a;
}

void m2n__link_unlinked(struct m2n_group *group, int rank, uint64_t instance)
{
	for (struct m2n__grave *grave = group->graves; grave; grave = grave->next)
		for (size_t i = 0; i < grave->n_waiting; i++)
			if (grave->waiting[i] == rank && (!instance || grave->instance == instance))
				grave->waiting[i] = -1;
}

void m2n__graves_close(struct m2n_group *group)
{
	while (group->answers) {
		struct m2n__answer *a = group->answers;

		group->answers = a->next;
		free(a);
	}
	while (group->graves) {
		struct m2n__grave *grave = group->graves;

		group->graves = grave->next;
		grave->next = group->ctx->graves;
		group->ctx->graves = grave;
	}
}

void m2n__graves_free(struct m2n_ctx *ctx)
{
	while (ctx->graves) {
		struct m2n__grave *grave = ctx->graves;

		ctx->graves = grave->next;
		free_grave(ctx, grave);
	}
}
