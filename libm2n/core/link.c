/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exchanges: memory, links coming up and going down. When a peer becomes live each side prepares
 * the slots that it receives in and tells the peer by a LINK frame (link_frame.c). A process that
 * is new behind a rank gets receive space of its own; what the old one could write to is kept
 * apart until the exchange is closed.
 */
#include "core/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/gpu.h"
#include "util/barrier.h"
#include "util/error.h"
#include "util/time.h"

#define LOOKS_SEALED 16 /* no more than one of the backend's steps costs */

void m2n__shape_add(struct m2n__shape *shape, const char *name, uint64_t value)
{
	shape->name[shape->n] = name;
	shape->value[shape->n++] = value;
}

struct m2n_exchange *m2n__exchange_next(struct m2n_exchange *x)
{
	return x->next;
}

static struct m2n__garbage *new_garbage(struct m2n_exchange *x)
{
	struct m2n__garbage *g = calloc(1, sizeof(*g));

	if (g) { /* else what it would hold stays until the process ends */
		g->next = x->garbage;
		x->garbage = g;
	}
	return g;
}

void m2n__exchange_keep_key(struct m2n_exchange *x, struct m2n__rmem **rmem)
{
	struct m2n__garbage *g = *rmem ? new_garbage(x) : NULL;

	if (g) {
		g->rmem = *rmem;
	}
	*rmem = NULL;
}

void m2n__exchange_keep(struct m2n_exchange *x, struct m2n__shared *area)
{
	struct m2n__garbage *g = area->mem ? new_garbage(x) : NULL;

	if (g)
		g->area = *area;
	memset(area, 0, sizeof(*area));
}

/* The words of a sender that may still raise them. */
static void keep_signals(struct m2n_exchange *x, struct m2n__rx *rx)
{
	struct m2n__garbage *g = rx->has_signals ? new_garbage(x) : NULL;

	if (g) {
		g->signal0 = rx->signal0;
		g->n_signals = 2 * x->spec.n_slots;
	}
	rx->has_signals = 0;
}

void m2n__garbage_empty(struct m2n_ctx *ctx, struct m2n__garbage *garbage)
{
	if (garbage->rmem)
		garbage->rmem->ops->release_key(garbage->rmem);
	m2n__shared_free(ctx, &garbage->area);
	if (garbage->n_signals)
		m2n__signal_free(ctx, garbage->signal0, garbage->n_signals);
}

void m2n__garbage_free(struct m2n_ctx *ctx, struct m2n__garbage *garbage)
{
	while (garbage) {
		struct m2n__garbage *next = garbage->next;

		m2n__garbage_empty(ctx, garbage);
		free(garbage);
		garbage = next;
	}
}

/* Fresh receive space for a process that is new behind a rank. */
static int prepare_rx(struct m2n_exchange *x, struct m2n__rx *rx)
{
	uint32_t n = x->spec.n_slots;
	int mapped = (rx->peer->ep->ops->caps & M2N__CAP_MAPPED) != 0;
	int rc = 0;

	if (rx->was_linked) {
		m2n__exchange_keep(x, &rx->area);
		rc = m2n__shared_alloc_on(
			x->ctx, x->spec.memory, x->area_stride, n * x->stride, &rx->area);
		if (rc)
			return rc;
		rx->slots = rx->area.mem->base;
	}
	m2n__exchange_keep_key(x, &rx->credits_rmem);
	rx->credits = NULL;
	atomic_store_explicit(&rx->returning, rx->bond.incarnation == rx->peer->incarnation,
		memory_order_relaxed);
	rx->mapped = mapped;
	rx->ep = rx->peer->ep;
	rx->seq = 0;
	rx->slot = 0;
	rx->held = 0;
	rx->n_looks = 1;
	rx->head_first = 0;
	m2n__credit_forget(x, rx);
	atomic_store_explicit(&rx->n_released, 0, memory_order_relaxed);
	memset(rx->head_seen, 0, n * sizeof(*rx->head_seen));
	memset(rx->body_seen, 0, n * sizeof(*rx->body_seen));
	if (mapped)
		return 0;
	if (x->spec.in_order && rx->ep->max_sealed)
		rx->n_looks = LOOKS_SEALED;
	keep_signals(x, rx);
	rc = m2n__signal_alloc(x->ctx, 2 * n, &rx->signal0);
	if (rc)
		return rc;
	rx->has_signals = 1;
	if (x->spec.explicit_credits && !rx->stage.mem)
		rc = m2n__shared_alloc(x->ctx, (n + 1) * sizeof(uint64_t),
			(n + 1) * sizeof(uint64_t), &rx->stage);
	return rc;
}

/* Slots and region as they will be at the peer: kernels write them, the progress thread sends. */
static int prepare_device_stage(struct m2n_exchange *x, struct m2n__tx *tx)
{
	size_t slots = x->spec.n_slots * x->stride;
	size_t region = x->spec.region_bytes * (x->spec.n_region_slots + x->spec.n_spare_slots);
	int rc = m2n__shared_alloc_on(x->ctx, M2N__MEM_CUDA, slots, slots, &tx->stage);

	if (!rc && region)
		rc = m2n__shared_alloc_on(x->ctx, M2N__MEM_CUDA, region, region, &tx->bounce);
	return rc;
}

static int prepare_tx(struct m2n_exchange *x, struct m2n__tx *tx)
{
	uint32_t n = x->spec.n_slots;
	size_t stage = n * m2n__stage_stride(&x->spec);

	m2n__exchange_keep_key(x, &tx->slots_rmem);
	m2n__exchange_keep_key(x, &tx->region_rmem);
	tx->ep = tx->peer->ep;
	atomic_store_explicit(&tx->released, 0, memory_order_relaxed);
	tx->seq = 0;
	tx->slot = 0;
	memset(tx->sent, 0, n * sizeof(*tx->sent));
	memset(tx->raised, 0, 2 * n * sizeof(*tx->raised));
	for (uint32_t i = 0; x->spec.explicit_credits && i < n; i++)
		atomic_store_explicit(&tx->credits[i * x->credit_step], 0, memory_order_relaxed);
	if (x->spec.in_order)
		atomic_store_explicit(&tx->credits[1], 0, memory_order_relaxed);
	if (tx->ep->ops->caps & M2N__CAP_MAPPED || tx->stage.mem)
		return 0;
	if (x->spec.memory == M2N__MEM_CUDA)
		return prepare_device_stage(x, tx);
	return m2n__shared_alloc(x->ctx, stage, stage, &tx->stage);
}

/* The exchange of the process that is there was closed: it takes no new link of ours. */
static int is_over(const struct m2n__bond *bond, const struct m2n__peer *peer)
{
	return bond->is_over && bond->incarnation == peer->incarnation;
}

void m2n__exchange_peer_live(struct m2n_exchange *x, struct m2n__peer *peer)
{
	struct m2n__tx *tx = m2n__tx_of(x, peer);
	struct m2n__rx *rx = m2n__rx_of(x, peer);
	int rc = 0;

	if ((!tx && !rx) || is_over(tx ? &tx->bond : &rx->bond, peer))
		return;
	if (rx)
		rc = prepare_rx(x, rx);
	if (tx && !rc)
		rc = prepare_tx(x, tx);
	x->group->next_link_id++;
	if (rx) {
		rx->prepared = 1;
		rx->own_id = x->group->next_link_id;
	}
	if (tx) {
		tx->prepared = 1;
		tx->own_id = x->group->next_link_id;
	}
	if (!rc)
		rc = m2n__link_send(x, peer, tx, rx);
	if (rc) {
		x->error = rc;
		snprintf(x->error_text, sizeof(x->error_text), "%s: link with rank %d: %.140s",
			x->title, peer->rank, m2n_error_text());
		m2n__log(&x->ctx->log, M2N_LOG_ERROR, "%s", x->error_text);
		return;
	}
	m2n__link_take_pending(x, peer);
}

void m2n__exchange_peer_lost(struct m2n_exchange *x, struct m2n__peer *peer)
{
	struct m2n__tx *tx = m2n__tx_of(x, peer);
	struct m2n__rx *rx = m2n__rx_of(x, peer);

	/* What had arrived before we heard of the loss is counted before anybody sees it. */
	if (rx && m2n__rx_up(rx))
		(void)m2n__ctx_progress(x->ctx);
	if (tx)
		atomic_store_explicit(&tx->up, 0, memory_order_seq_cst);
	if (rx && m2n__rx_up(rx) &&
		atomic_load_explicit(&peer->state, memory_order_relaxed) >= M2N_PEER_LOST)
		atomic_store_explicit(&rx->untold, 1, memory_order_relaxed);
	if (!rx) {
		m2n__exchange_changed(x);
		return;
	}
	m2n__credit_forget(x, rx);
	if (atomic_load_explicit(&peer->state, memory_order_relaxed) >= M2N_PEER_LOST)
		atomic_store_explicit(&rx->admitted, UINT64_MAX, memory_order_relaxed);
	atomic_store_explicit(&rx->returning, 0, memory_order_relaxed);
	atomic_store_explicit(&rx->up, 0, memory_order_seq_cst);
	m2n__exchange_changed(x);
}

void m2n__exchange_forget_ep(struct m2n_exchange *x, const struct m2n__ep *ep)
{
	for (size_t i = 0; i < x->n_tx; i++)
		if (x->tx[i].ep == ep)
			x->tx[i].ep = NULL;
	for (size_t i = 0; i < x->n_rx; i++)
		if (x->rx[i].ep == ep)
			x->rx[i].ep = NULL;
}

int m2n__group_is_idle(struct m2n_group *group)
{
	if (m2n__barrier_all_threads())
		return 0;
	for (struct m2n_exchange *x = group->exchanges; x; x = x->next)
		if (x->gpu && m2n__gpu_is_busy(x->gpu->gpu))
			return 0;
	for (struct m2n_exchange *x = group->exchanges; x; x = x->next)
		for (int i = 0; i < M2N__N_WRITERS; i++)
			if (atomic_load_explicit(&x->busy[i], memory_order_acquire))
				return 0;
	return 1;
}

static size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

static size_t slot_stride(const struct m2n__exchange_spec *spec)
{
	/* head and payload of small messages lie in one pair of lines */
	return round_up(sizeof(struct m2n__slot_head) + spec->slot_bytes, 2 * M2N__CACHE_LINE);
}

void m2n__exchange_sizes(
	const struct m2n__exchange_spec *spec, size_t *area, size_t *region, size_t *words)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	*area = spec->n_recv * round_up(spec->n_slots * slot_stride(spec), page);
	*region = spec->n_recv ? spec->region_bytes * spec->n_region_slots : 0;
	if (spec->memory == M2N__MEM_CUDA) /* there is no address space without memory */
		*region += spec->n_recv ? spec->region_bytes * spec->n_spare_slots : 0;
	*words = spec->explicit_credits ? spec->n_send * m2n__credit_bytes(spec) : 0;
}

static int alloc_memory(struct m2n_exchange *x)
{
	size_t area, region, words, all;
	int rc = 0;

	m2n__exchange_sizes(&x->spec, &area, &region, &words);
	if (area)
		rc = m2n__shared_alloc_on(x->ctx, x->spec.memory, area, area, &x->area);
	all = x->spec.region_bytes * (x->spec.n_region_slots + x->spec.n_spare_slots);
	if (!rc && region)
		rc = m2n__shared_alloc_on(x->ctx, x->spec.memory, all, region, &x->region);
	if (!rc && words)
		rc = m2n__shared_alloc(x->ctx, words, words, &x->credits);
	x->quarantine =
		calloc(x->spec.n_region_slots + x->spec.n_spare_slots + 1, sizeof(*x->quarantine));
	return rc ? rc : x->quarantine ? 0 : m2n__error(-ENOMEM, "%s: no memory", x->title);
}

static int init_links(struct m2n_exchange *x)
{
	uint32_t n = x->spec.n_slots;

	for (size_t i = 0; i < x->n_tx; i++) {
		struct m2n__tx *tx = &x->tx[i];

		tx->peer = m2n__group_peer(x->group, x->spec.send_to[i]);
		tx->sent = calloc(3 * (size_t)n, sizeof(*tx->sent));
		if (!tx->peer || !tx->sent)
			return -ENOMEM;
		tx->raised = tx->sent + n;
		if (x->credits.mem)
			tx->credits = (_Atomic uint64_t *)x->credits.mem->base +
				      i * m2n__credit_bytes(&x->spec) / sizeof(uint64_t);
	}
	for (size_t i = 0; i < x->n_rx; i++) {
		struct m2n__rx *rx = &x->rx[i];

		rx->peer = m2n__group_peer(x->group, x->spec.recv_from[i]);
		rx->head_seen = calloc(2 * (size_t)n, sizeof(*rx->head_seen));
		if (!rx->peer || !rx->head_seen)
			return -ENOMEM;
		rx->body_seen = rx->head_seen + n;
		atomic_store_explicit(&rx->admitted, UINT64_MAX, memory_order_relaxed);
		rx->slots = (uint8_t *)x->area.mem->base + i * x->area_stride;
		rx->twin = m2n__tx_of(x, rx->peer);
		if (rx->twin)
			rx->twin->twin = rx;
	}
	return 0;
}

void m2n__exchange_changed(struct m2n_exchange *x)
{
	int rc = x->gpu ? m2n__gpu_links_changed(x->gpu) : 0;

	if (!rc)
		return;
	m2n__log(&x->ctx->log, M2N_LOG_ERROR, "%s: links on the device: %s", x->title,
		m2n_error_text());
	if (x->error)
		return;
	x->error = rc;
	snprintf(x->error_text, sizeof(x->error_text), "%.250s", m2n_error_text());
}

static void want(struct m2n_exchange *x, struct m2n__peer *peer)
{
	if (atomic_load_explicit(&peer->state, memory_order_relaxed) == M2N_PEER_LIVE)
		m2n__exchange_peer_live(x, peer);
	else
		m2n__peer_want(peer);
}

/* The caller's lists may go when the exchange is open. NULL: no memory. */
static int *copy_lists(struct m2n_exchange *x)
{
	int *ranks = malloc((x->n_tx + x->n_rx + 1) * sizeof(*ranks));

	for (size_t i = 0; ranks && i < x->n_tx; i++)
		ranks[i] = x->spec.send_to[i];
	for (size_t i = 0; ranks && i < x->n_rx; i++)
		ranks[x->n_tx + i] = x->spec.recv_from[i];
	x->spec.send_to = ranks;
	x->spec.recv_from = ranks ? ranks + x->n_tx : NULL;
	return ranks;
}

int m2n__exchange_open(
	struct m2n_group *group, const struct m2n__exchange_spec *spec, struct m2n_exchange **out)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct m2n_exchange *x = calloc(1, sizeof(*x));
	int rc;

	if (!x)
		return m2n__error(-ENOMEM, "%s: no memory", spec->title);
	x->group = group;
	x->ctx = group->ctx;
	x->instance = ++group->next_instance;
	x->spec = *spec;
	snprintf(x->name, sizeof(x->name), "%s", spec->name);
	snprintf(x->title, sizeof(x->title), "%s", spec->title);
	x->n_tx = spec->n_send;
	x->n_rx = spec->n_recv;
	x->stride = slot_stride(spec);
	x->credit_step = m2n__credit_step(spec);
	x->area_stride = round_up(spec->n_slots * x->stride, page);
	x->ranks = copy_lists(x);
	x->tx = aligned_alloc(64, round_up((x->n_tx + 1) * sizeof(*x->tx), 64));
	x->rx = aligned_alloc(64, round_up((x->n_rx + 1) * sizeof(*x->rx), 64));
	if (x->tx)
		memset(x->tx, 0, (x->n_tx + 1) * sizeof(*x->tx));
	if (x->rx)
		memset(x->rx, 0, (x->n_rx + 1) * sizeof(*x->rx));
	m2n__ctx_lock(group->ctx);
	rc = x->ranks && x->tx && x->rx ? alloc_memory(x) :
					  m2n__error(-ENOMEM, "%s: no memory", x->title);
	if (!rc)
		rc = init_links(x);
	for (struct m2n_exchange *o = group->exchanges; o && !rc; o = o->next)
		if (strcmp(o->name, x->name) == 0)
			rc = m2n__error(-EEXIST, "%s: the name is in use in this group", x->title);
	if (!rc) {
		x->next = group->exchanges;
		group->exchanges = x;
		for (size_t i = 0; i < x->n_tx; i++)
			want(x, x->tx[i].peer);
		for (size_t i = 0; i < x->n_rx; i++)
			if (!m2n__tx_of(x, x->rx[i].peer))
				want(x, x->rx[i].peer);
	}
	m2n__ctx_unlock(group->ctx);
	if (rc) {
		m2n__exchange_close(x);
		return rc;
	}
	*out = x;
	return 0;
}

/*
 * 1: all links are up, or were: a peer may have sent all it had and be gone again; 0: not yet;
 * negative: it cannot work. `missing` lists who is not there.
 */
static int links_state(struct m2n_exchange *x, char *missing, size_t room)
{
	size_t at = 0;
	int all = 1;

	missing[0] = '\0';
	if (x->error)
		return m2n__error(x->error, "%s", x->error_text);
	for (size_t i = 0; i < x->n_tx + x->n_rx; i++) {
		struct m2n__peer *peer = i < x->n_tx ? x->tx[i].peer : x->rx[i - x->n_tx].peer;
		int up = i < x->n_tx ? x->tx[i].has_come : x->rx[i - x->n_tx].has_come;
		int rc = up ? 0 : m2n__peer_status(peer);

		if (rc)
			return m2n__error_at(rc, "%s", x->title);
		if (up)
			continue;
		all = 0;
		if (at < room)
			at += (size_t)snprintf(missing + at, room - at, " %d", peer->rank);
	}
	return all;
}

int m2n__exchange_connect(struct m2n_exchange *x, int64_t timeout_ns)
{
	int64_t deadline =
		m2n__deadline_ns(timeout_ns < 0 ? x->ctx->options.timeout_ns : timeout_ns);
	char missing[200];
	int rc;

	for (;;) {
		m2n__ctx_lock(x->ctx);
		rc = links_state(x, missing, sizeof(missing));
		x->connected |= rc > 0;
		m2n__ctx_unlock(x->ctx);
		if (rc)
			return rc < 0 ? rc : 0;
		if (m2n__now_ns() > deadline)
			return m2n__error(-ETIMEDOUT, "%s: rank %d waited for links with ranks%s",
				x->title, x->group->rank, missing);
		m2n__group_wait(x->group, M2N__GROUP_NAP_MS);
	}
}

static void release_key(struct m2n__rmem **rmem)
{
	if (*rmem)
		(*rmem)->ops->release_key(*rmem);
	*rmem = NULL;
}

/* Peers' memory: nothing of ours is on its way to it any more, or it is kept for as long. */
static void release_keys(struct m2n_exchange *x, int is_flushed)
{
	for (size_t i = 0; x->tx && i < x->n_tx && !is_flushed; i++) {
		m2n__exchange_keep_key(x, &x->tx[i].slots_rmem);
		m2n__exchange_keep_key(x, &x->tx[i].region_rmem);
	}
	for (size_t i = 0; x->rx && i < x->n_rx && !is_flushed; i++)
		m2n__exchange_keep_key(x, &x->rx[i].credits_rmem);
	for (size_t i = 0; x->tx && i < x->n_tx; i++) {
		release_key(&x->tx[i].slots_rmem);
		release_key(&x->tx[i].region_rmem);
	}
	for (size_t i = 0; x->rx && i < x->n_rx; i++)
		release_key(&x->rx[i].credits_rmem);
	for (struct m2n__garbage *g = is_flushed ? x->garbage : NULL; g; g = g->next)
		release_key(&g->rmem);
}

/* A lost peer's connection is closed by whoever polls: it is looked at under the lock. */
static int look_at_ep(struct m2n_exchange *x, struct m2n__ep *ep, const struct m2n__peer *peer)
{
	int rc;

	m2n__ctx_lock(x->ctx);
	rc = peer->ep == ep ? ep->ops->arrived(ep) : 0;
	m2n__ctx_unlock(x->ctx);
	return rc;
}

/*
 * Waits until what was put to a peer has arrived, so that UNLINK does not overtake it. A lost one
 * is not waited for.
 */
static void flush_ep(struct m2n_exchange *x, struct m2n__ep *ep, const struct m2n__peer *peer)
{
	struct m2n__wait w;

	if (!ep || peer->ep != ep || ep->ops->caps & M2N__CAP_MAPPED)
		return;
	m2n__wait_begin(&w, x->ctx, -1);
	while (look_at_ep(x, ep, peer) == -EAGAIN && !m2n__wait_step(&w))
		;
	m2n__wait_end(&w);
}

/* All of an exchange: what was sent, and credits. */
static void flush_all(struct m2n_exchange *x)
{
	for (size_t i = 0; x->tx && i < x->n_tx; i++)
		flush_ep(x, x->tx[i].ep, x->tx[i].peer);
	for (size_t i = 0; x->rx && i < x->n_rx; i++)
		flush_ep(x, x->rx[i].ep, x->rx[i].peer);
}

static int ep_is_busy(const struct m2n__ep *ep)
{
	return ep && !(ep->ops->caps & M2N__CAP_MAPPED) &&
	       ep->ops->flush((struct m2n__ep *)(uintptr_t)ep) == -EAGAIN;
}

/* Are bytes of ours still read, for a peer that did not take them or was lost just now? */
static int is_busy(const struct m2n_exchange *x)
{
	for (size_t i = 0; x->tx && i < x->n_tx; i++)
		if (ep_is_busy(x->tx[i].ep))
			return 1;
	for (size_t i = 0; x->rx && i < x->n_rx; i++)
		if (ep_is_busy(x->rx[i].ep))
			return 1;
	return 0;
}

static void free_links(struct m2n_exchange *x)
{
	for (size_t i = 0; x->tx && i < x->n_tx; i++) {
		struct m2n__tx *tx = &x->tx[i];

		m2n__shared_free(x->ctx, &tx->stage);
		m2n__shared_free(x->ctx, &tx->bounce);
		free(tx->sent);
	}
	for (size_t i = 0; x->rx && i < x->n_rx; i++) {
		struct m2n__rx *rx = &x->rx[i];

		if (rx->has_signals)
			m2n__signal_free(x->ctx, rx->signal0, 2 * x->spec.n_slots);
		m2n__credit_forget(x, rx);
		m2n__shared_free(x->ctx, &rx->area);
		m2n__shared_free(x->ctx, &rx->stage);
		free(rx->head_seen);
	}
	m2n__garbage_free(x->ctx, x->garbage);
}

void m2n__exchange_close(struct m2n_exchange *x)
{
	struct m2n_ctx *ctx;

	if (!x)
		return;
	ctx = x->ctx;
	flush_all(x);
	m2n__ctx_lock(ctx);
	m2n__old_eps_close(x->group);
	x->unflushed = is_busy(x);
	release_keys(x, !x->unflushed);
	for (struct m2n_exchange **at = &x->group->exchanges; *at; at = &(*at)->next) {
		if (*at == x) {
			*at = x->next;
			m2n__link_goodbye(x);
			break;
		}
	}
	free_links(x);
	m2n__shared_free(ctx, &x->area);
	m2n__shared_free(ctx, &x->region);
	m2n__shared_free(ctx, &x->credits);
	free(x->quarantine);
	free(x->pieces);
	m2n__ctx_unlock(ctx);
	free(x->ranks);
	free(x->tx);
	free(x->rx);
	free(x);
}
