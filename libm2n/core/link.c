/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links coming up and going down. When a peer becomes live each side prepares the slots that it
 * receives in, then sends one LINK frame: shape, keys of its slots, region and credit words, the
 * first signal word, and the first round it will send. A side that has the other's frame may
 * write. There is no second frame, so no order to get wrong; a frame that comes before the
 * exchange exists waits in the group's pending list.
 */
#include "core/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/barrier.h"
#include "util/error.h"
#include "util/time.h"

#define MAX_PENDING 65536

struct link_frame {
	char name[M2N__EXCHANGE_NAME];
	uint32_t n_values;
	uint64_t values[M2N__SHAPE_MAX];
	uint64_t id;                /* of the sender's preparation */
	uint64_t first_round;
	uint32_t sends, receives; /* roles of the frame's sender towards us */
	uint32_t signal0;
	size_t slots_bytes, region_bytes, credits_bytes;
	const void *slots_key, *region_key, *credits_key;
};

void m2n__shape_add(struct m2n__shape *shape, const char *name, uint64_t value)
{
	shape->name[shape->n] = name;
	shape->value[shape->n++] = value;
}

struct m2n_exchange *m2n__exchange_next(struct m2n_exchange *x)
{
	return x->next;
}

static size_t credit_step(const struct m2n__exchange_spec *spec)
{
	return spec->n_slots <= 64 ? M2N__CACHE_LINE / sizeof(uint64_t) : 1;
}

static size_t credit_bytes(const struct m2n__exchange_spec *spec)
{
	return spec->n_slots * credit_step(spec) * sizeof(uint64_t);
}

static struct m2n__tx *tx_of(struct m2n_exchange *x, const struct m2n__peer *peer)
{
	for (size_t i = 0; i < x->n_tx; i++)
		if (x->tx[i].peer == peer)
			return &x->tx[i];
	return NULL;
}

static struct m2n__rx *rx_of(struct m2n_exchange *x, const struct m2n__peer *peer)
{
	for (size_t i = 0; i < x->n_rx; i++)
		if (x->rx[i].peer == peer)
			return &x->rx[i];
	return NULL;
}

static void throw_away(struct m2n_exchange *x, struct m2n__rmem **rmem, struct m2n__shared *area)
{
	struct m2n__garbage *g;

	if (!(rmem && *rmem) && !(area && area->mem))
		return;
	g = calloc(1, sizeof(*g));
	if (g) { /* else it stays mapped until the process ends */
		g->rmem = rmem ? *rmem : NULL;
		if (area)
			g->area = *area;
		g->next = x->garbage;
		x->garbage = g;
	}
	if (rmem)
		*rmem = NULL;
	if (area)
		memset(area, 0, sizeof(*area));
}

static int export_part(struct m2n__peer *peer, struct m2n__shared *s, size_t offset, size_t bytes,
	struct m2n__cursor *c)
{
	uint8_t key[M2N__KEY_BYTES];
	size_t n = sizeof(key);
	int rc = 0;

	if (s->mem)
		rc = peer->ep->ops->export_key(s->reg.mr[peer->backend], offset, bytes, key, &n);
	else
		n = 0;
	if (!rc)
		m2n__put_blob(c, key, n);
	return rc;
}

/* Fresh receive space for a process that is new behind a rank. */
static int prepare_rx(struct m2n_exchange *x, struct m2n__rx *rx)
{
	uint32_t n = x->spec.n_slots;
	int mapped = (rx->peer->ep->ops->caps & M2N__CAP_MAPPED) != 0;
	int rc = 0;

	if (rx->was_linked) {
		throw_away(x, NULL, &rx->area);
		rc = m2n__shared_alloc(x->ctx, x->area_stride, n * x->stride, &rx->area);
		if (rc)
			return rc;
		rx->slots = rx->area.mem->base;
	}
	throw_away(x, &rx->credits_rmem, NULL);
	rx->credits = NULL;
	rx->mapped = mapped;
	rx->ep = rx->peer->ep;
	rx->seq = 0;
	rx->slot = 0;
	rx->held = 0;
	memset(rx->head_seen, 0, n * sizeof(*rx->head_seen));
	memset(rx->body_seen, 0, n * sizeof(*rx->body_seen));
	if (mapped)
		return 0;
	if (rx->has_signals)
		m2n__signal_free(x->ctx, rx->signal0, 2 * n);
	rx->has_signals = 0;
	rc = m2n__signal_alloc(x->ctx, 2 * n, &rx->signal0);
	if (rc)
		return rc;
	rx->has_signals = 1;
	if (x->spec.explicit_credits && !rx->stage.mem)
		rc = m2n__shared_alloc(x->ctx, n * sizeof(uint64_t), n * sizeof(uint64_t), &rx->stage);
	return rc;
}

static int prepare_tx(struct m2n_exchange *x, struct m2n__tx *tx)
{
	uint32_t n = x->spec.n_slots;
	size_t stage = n * m2n__stage_stride(&x->spec);

	throw_away(x, &tx->slots_rmem, NULL);
	throw_away(x, &tx->region_rmem, NULL);
	tx->ep = tx->peer->ep;
	tx->seq = 0;
	tx->slot = 0;
	memset(tx->sent, 0, n * sizeof(*tx->sent));
	for (uint32_t i = 0; x->spec.explicit_credits && i < n; i++)
		atomic_store_explicit(&tx->credits[i * x->credit_step], 0, memory_order_relaxed);
	tx->first_round = x->spec.tx_round
		? atomic_load_explicit(x->spec.tx_round, memory_order_seq_cst) : 0;
	if (tx->ep->ops->caps & M2N__CAP_MAPPED || tx->stage.mem)
		return 0;
	return m2n__shared_alloc(x->ctx, stage, stage, &tx->stage);
}

static int send_link(struct m2n_exchange *x, struct m2n__peer *peer, struct m2n__tx *tx,
	struct m2n__rx *rx)
{
	uint8_t body[2048];
	struct m2n__cursor c = {body, body + sizeof(body), 0};
	struct m2n__shared none = {0}, *area = rx && rx->area.mem ? &rx->area : &x->area;
	size_t rx_at = rx && !rx->area.mem ? (size_t)(rx - x->rx) * x->area_stride : 0;
	size_t tx_at = tx ? (size_t)(tx - x->tx) * credit_bytes(&x->spec) : 0;
	int rc;

	m2n__put_blob(&c, x->name, strlen(x->name));
	m2n__put_u64(&c, tx ? tx->own_id : rx->own_id);
	m2n__put_u32(&c, x->spec.shape.n);
	for (unsigned i = 0; i < x->spec.shape.n; i++)
		m2n__put_u64(&c, x->spec.shape.value[i]);
	m2n__put_u64(&c, tx ? tx->first_round : 0);
	m2n__put_u32(&c, tx != NULL);
	m2n__put_u32(&c, rx != NULL);
	m2n__put_u32(&c, rx && !rx->mapped ? rx->signal0 : 0);
	rc = export_part(peer, rx ? area : &none, rx_at, x->spec.n_slots * x->stride, &c);
	if (!rc)
		rc = export_part(peer, rx ? &x->region : &none, 0,
			x->region.mem ? x->region.mem->bytes : 0, &c);
	if (!rc)
		rc = export_part(peer, tx && x->spec.explicit_credits ? &x->credits : &none, tx_at,
			credit_bytes(&x->spec), &c);
	if (!rc)
		m2n__peer_send(peer, M2N__FRAME_LINK, body, (size_t)(c.at - body));
	return rc;
}

static void take_pending(struct m2n_exchange *x, struct m2n__peer *peer);

void m2n__exchange_peer_live(struct m2n_exchange *x, struct m2n__peer *peer)
{
	struct m2n__tx *tx = tx_of(x, peer);
	struct m2n__rx *rx = rx_of(x, peer);
	int rc = 0;

	if (!tx && !rx)
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
		rc = send_link(x, peer, tx, rx);
	if (rc) {
		x->error = rc;
		snprintf(x->error_text, sizeof(x->error_text), "%s: link with rank %d: %.140s",
			x->title, peer->rank, m2n_error_text());
		m2n__log(&x->ctx->log, M2N_LOG_ERROR, "%s", x->error_text);
		return;
	}
	take_pending(x, peer);
}

void m2n__exchange_peer_lost(struct m2n_exchange *x, struct m2n__peer *peer)
{
	struct m2n__tx *tx = tx_of(x, peer);
	struct m2n__rx *rx = rx_of(x, peer);

	if (tx)
		atomic_store_explicit(&tx->up, 0, memory_order_seq_cst);
	if (rx)
		atomic_store_explicit(&rx->up, 0, memory_order_seq_cst);
}

static int read_frame(struct link_frame *f, const uint8_t *body, size_t bytes)
{
	/* the cursor only reads here; it has one type for both directions */
	struct m2n__cursor c = {(uint8_t *)(uintptr_t)body, (uint8_t *)(uintptr_t)body + bytes, 0};

	memset(f, 0, sizeof(*f));
	m2n__get_text(&c, f->name, sizeof(f->name));
	f->id = m2n__get_u64(&c);
	f->n_values = m2n__get_u32(&c);
	if (f->n_values > M2N__SHAPE_MAX)
		c.overrun = 1;
	for (uint32_t i = 0; !c.overrun && i < f->n_values; i++)
		f->values[i] = m2n__get_u64(&c);
	f->first_round = m2n__get_u64(&c);
	f->sends = m2n__get_u32(&c);
	f->receives = m2n__get_u32(&c);
	f->signal0 = m2n__get_u32(&c);
	f->slots_key = m2n__get_blob(&c, M2N__KEY_BYTES, &f->slots_bytes);
	f->region_key = m2n__get_blob(&c, M2N__KEY_BYTES, &f->region_bytes);
	f->credits_key = m2n__get_blob(&c, M2N__KEY_BYTES, &f->credits_bytes);
	return c.overrun ? m2n__error(M2N_ERR_PROTOCOL, "LINK frame of %zu bytes cannot be read",
				   bytes)
			 : 0;
}

static int compare_shape(struct m2n_exchange *x, struct m2n__peer *peer, const struct link_frame *f)
{
	const struct m2n__shape *s = &x->spec.shape;
	int own = x->group->rank;

	if (f->n_values != s->n)
		return m2n__error(M2N_ERR_SHAPE, "%s: is not of one kind on ranks %d and %d",
			x->title, own, peer->rank);
	for (unsigned i = 0; i < s->n; i++)
		if (f->values[i] != s->value[i])
			return m2n__error(M2N_ERR_SHAPE, "%s: %s is %lu on rank %d but %lu on rank %d",
				x->title, s->name[i], (unsigned long)s->value[i], own,
				(unsigned long)f->values[i], peer->rank);
	if (!f->sends != !rx_of(x, peer) || !f->receives != !tx_of(x, peer))
		return m2n__error(M2N_ERR_SHAPE,
			"%s: rank %d %s rank %d, which does not expect it", x->title, peer->rank,
			!f->sends != !rx_of(x, peer) ? "disagrees on sending to"
						     : "disagrees on receiving from", own);
	return 0;
}

static int import_at_least(struct m2n__ep *ep, const void *key, size_t key_bytes, size_t bytes,
	struct m2n__rmem **rmem)
{
	int rc = ep->ops->import_key(ep, key, key_bytes, rmem);

	if (!rc && (*rmem)->bytes < bytes) {
		ep->ops->release_key(*rmem);
		*rmem = NULL;
		rc = m2n__error(M2N_ERR_PROTOCOL, "a peer's memory is smaller than %zu bytes", bytes);
	}
	return rc;
}

static int link_tx(struct m2n_exchange *x, struct m2n__tx *tx, const struct link_frame *f)
{
	struct m2n__ep *ep = tx->ep;
	size_t region = x->spec.region_bytes * (x->spec.n_region_slots + x->spec.n_spare_slots);
	int rc = import_at_least(ep, f->slots_key, f->slots_bytes, x->spec.n_slots * x->stride,
		&tx->slots_rmem);

	if (!rc && x->spec.region_bytes)
		rc = import_at_least(ep, f->region_key, f->region_bytes, region, &tx->region_rmem);
	if (rc)
		return rc;
	tx->slots = tx->slots_rmem->ptr;
	tx->region = tx->region_rmem ? tx->region_rmem->ptr : NULL;
	tx->signal0 = f->signal0;
	tx->was_linked = 1;
	tx->prepared = 0;
	atomic_store_explicit(&tx->up, 1, memory_order_release);
	return 0;
}

static int link_rx(struct m2n_exchange *x, struct m2n__rx *rx, const struct link_frame *f)
{
	int rc;

	if (x->spec.explicit_credits) {
		rc = import_at_least(rx->ep, f->credits_key, f->credits_bytes, credit_bytes(&x->spec),
			&rx->credits_rmem);
		if (rc)
			return rc;
		rx->credits = rx->credits_rmem->ptr;
	}
	/* A sender that replaces a lost one waits for the application to admit it. */
	atomic_store_explicit(&rx->first_round,
		rx->was_linked && x->spec.tx_round ? UINT64_MAX : f->first_round,
		memory_order_relaxed);
	rx->was_linked = 1;
	rx->prepared = 0;
	atomic_store_explicit(&rx->up, 1, memory_order_release);
	return 0;
}

/* A frame for an exchange that exists and whose own side is prepared. */
static int apply(struct m2n_exchange *x, struct m2n__peer *peer, const struct link_frame *f)
{
	struct m2n__tx *tx = tx_of(x, peer);
	struct m2n__rx *rx = rx_of(x, peer);
	int rc = compare_shape(x, peer, f);

	if (tx)
		tx->peer_id = f->id;
	if (rx)
		rx->peer_id = f->id;
	if (!rc && f->receives)
		rc = link_tx(x, tx, f);
	if (!rc && f->sends)
		rc = link_rx(x, rx, f);
	if (rc && !x->error) {
		x->error = rc;
		x->error_rank = peer->rank;
		snprintf(x->error_text, sizeof(x->error_text), "%.250s", m2n_error_text());
		m2n__log(&x->ctx->log, M2N_LOG_ERROR, "%s", x->error_text);
	}
	return 0; /* the exchange is at fault, the peer stays */
}

static int keep_pending(struct m2n__peer *peer, const uint8_t *body, size_t bytes)
{
	struct m2n_group *group = peer->group;
	struct m2n__pending *p, **at = &group->pending;

	if (group->n_pending >= MAX_PENDING)
		return m2n__error(M2N_ERR_PROTOCOL, "too many links wait for their exchange");
	p = malloc(sizeof(*p) + bytes);
	if (!p)
		return m2n__error(-ENOMEM, "no memory for a LINK frame");
	p->next = NULL;
	p->rank = peer->rank;
	p->bytes = bytes;
	memcpy(p->body, body, bytes);
	while (*at)
		at = &(*at)->next;
	*at = p;
	group->n_pending++;
	return 0;
}

/*
 * The peer closed its side. If that side had taken our LINK frame, ours is used up: it is made
 * anew when the peer comes again. If it had not, our frame still waits there for the next one,
 * and what the peer's last LINK frame led to here (a link, a disagreement) is void.
 */
static void on_unlink(struct m2n_exchange *x, struct m2n__peer *peer, uint64_t seen)
{
	struct m2n__tx *tx = tx_of(x, peer);
	struct m2n__rx *rx = rx_of(x, peer);

	m2n__exchange_peer_lost(x, peer);
	if ((tx ? tx->own_id : rx ? rx->own_id : seen) == seen)
		return;
	if (x->error_rank == peer->rank)
		x->error = 0;
	if (tx)
		tx->prepared = 1;
	if (rx)
		rx->prepared = 1;
}

static void drop_pending(struct m2n_group *group, int rank, const char *name)
{
	struct m2n__pending **at = &group->pending;

	while (*at) {
		struct m2n__pending *p = *at;
		struct link_frame f;

		if (p->rank == rank && (!name || (read_frame(&f, p->body, p->bytes) == 0 &&
							strcmp(f.name, name) == 0))) {
			*at = p->next;
			free(p);
			group->n_pending--;
		} else {
			at = &p->next;
		}
	}
}

static void take_pending(struct m2n_exchange *x, struct m2n__peer *peer)
{
	struct m2n_group *group = x->group;

	for (struct m2n__pending *p = group->pending; p; p = p->next) {
		struct link_frame f;

		if (p->rank != peer->rank || read_frame(&f, p->body, p->bytes) ||
			strcmp(f.name, x->name) != 0)
			continue;
		apply(x, peer, &f);
		drop_pending(group, peer->rank, x->name);
		return;
	}
}

static int unlink_frame(struct m2n__peer *peer, const uint8_t *body, size_t bytes)
{
	struct m2n__cursor c = {(uint8_t *)(uintptr_t)body, (uint8_t *)(uintptr_t)body + bytes, 0};
	char name[M2N__EXCHANGE_NAME];
	uint64_t seen;

	m2n__get_text(&c, name, sizeof(name));
	seen = m2n__get_u64(&c);
	if (c.overrun)
		return m2n__error(M2N_ERR_PROTOCOL, "UNLINK frame of %zu bytes cannot be read", bytes);
	drop_pending(peer->group, peer->rank, name);
	for (struct m2n_exchange *x = peer->group->exchanges; x; x = x->next)
		if (strcmp(x->name, name) == 0)
			on_unlink(x, peer, seen);
	return 0;
}

int m2n__link_frame(struct m2n__peer *peer, enum m2n__frame_type type, const uint8_t *body,
	size_t bytes)
{
	struct m2n_exchange *x = peer->group->exchanges;
	struct m2n__tx *tx;
	struct m2n__rx *rx;
	struct link_frame f;
	int rc;

	if (type == M2N__FRAME_UNLINK)
		return unlink_frame(peer, body, bytes);
	rc = read_frame(&f, body, bytes);
	if (rc)
		return rc;
	while (x && strcmp(x->name, f.name) != 0)
		x = x->next;
	tx = x ? tx_of(x, peer) : NULL;
	rx = x ? rx_of(x, peer) : NULL;
	if (!tx && !rx)
		return keep_pending(peer, body, bytes);
	if ((tx && tx->prepared) || (rx && rx->prepared))
		return apply(x, peer, &f);
	/* our side was used up by an earlier one of the peer's: make it anew, then take the frame */
	rc = keep_pending(peer, body, bytes);
	if (!rc)
		m2n__exchange_peer_live(x, peer);
	return rc;
}

int m2n__group_is_idle(struct m2n_group *group)
{
	if (m2n__barrier_all_threads())
		return 0;
	for (struct m2n_exchange *x = group->exchanges; x; x = x->next)
		for (int i = 0; i < M2N__N_WRITERS; i++)
			if (atomic_load_explicit(&x->busy[i], memory_order_acquire))
				return 0;
	return 1;
}

void m2n__group_forget(struct m2n_group *group, int rank)
{
	drop_pending(group, rank, NULL);
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

void m2n__exchange_sizes(const struct m2n__exchange_spec *spec, size_t *area, size_t *region,
	size_t *words)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	*area = spec->n_recv * round_up(spec->n_slots * slot_stride(spec), page);
	*region = spec->n_recv ? spec->region_bytes * spec->n_region_slots : 0;
	*words = spec->explicit_credits ? spec->n_send * credit_bytes(spec) : 0;
}

static int alloc_memory(struct m2n_exchange *x)
{
	size_t area, region, words, all;
	int rc = 0;

	m2n__exchange_sizes(&x->spec, &area, &region, &words);
	if (area)
		rc = m2n__shared_alloc(x->ctx, area, area, &x->area);
	all = x->spec.region_bytes * (x->spec.n_region_slots + x->spec.n_spare_slots);
	if (!rc && region)
		rc = m2n__shared_alloc(x->ctx, all, region, &x->region);
	if (!rc && words)
		rc = m2n__shared_alloc(x->ctx, words, words, &x->credits);
	x->quarantine = calloc(x->spec.n_region_slots + x->spec.n_spare_slots + 1,
		sizeof(*x->quarantine));
	return rc ? rc : x->quarantine ? 0 : m2n__error(-ENOMEM, "%s: no memory", x->title);
}

static int init_links(struct m2n_exchange *x)
{
	uint32_t n = x->spec.n_slots;

	for (size_t i = 0; i < x->n_tx; i++) {
		struct m2n__tx *tx = &x->tx[i];

		tx->peer = m2n__group_peer(x->group, x->spec.send_to[i]);
		tx->sent = calloc(n, sizeof(*tx->sent));
		if (!tx->peer || !tx->sent)
			return -ENOMEM;
		if (x->credits.mem)
			tx->credits = (_Atomic uint64_t *)x->credits.mem->base +
				      i * credit_bytes(&x->spec) / sizeof(uint64_t);
	}
	for (size_t i = 0; i < x->n_rx; i++) {
		struct m2n__rx *rx = &x->rx[i];

		rx->peer = m2n__group_peer(x->group, x->spec.recv_from[i]);
		rx->head_seen = calloc(2 * (size_t)n, sizeof(*rx->head_seen));
		if (!rx->peer || !rx->head_seen)
			return -ENOMEM;
		rx->body_seen = rx->head_seen + n;
		rx->slots = (uint8_t *)x->area.mem->base + i * x->area_stride;
	}
	return 0;
}

static void want(struct m2n_exchange *x, struct m2n__peer *peer)
{
	if (atomic_load_explicit(&peer->state, memory_order_relaxed) == M2N_PEER_LIVE)
		m2n__exchange_peer_live(x, peer);
	else
		m2n__peer_want(peer);
}

int m2n__exchange_open(struct m2n_group *group, const struct m2n__exchange_spec *spec,
	struct m2n_exchange **out)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct m2n_exchange *x = calloc(1, sizeof(*x));
	int rc;

	if (!x)
		return m2n__error(-ENOMEM, "%s: no memory", spec->title);
	x->group = group;
	x->ctx = group->ctx;
	x->spec = *spec;
	snprintf(x->name, sizeof(x->name), "%s", spec->name);
	snprintf(x->title, sizeof(x->title), "%s", spec->title);
	x->n_tx = spec->n_send;
	x->n_rx = spec->n_recv;
	x->stride = slot_stride(spec);
	x->credit_step = credit_step(spec);
	x->area_stride = round_up(spec->n_slots * x->stride, page);
	x->tx = aligned_alloc(64, round_up((x->n_tx + 1) * sizeof(*x->tx), 64));
	x->rx = aligned_alloc(64, round_up((x->n_rx + 1) * sizeof(*x->rx), 64));
	if (x->tx)
		memset(x->tx, 0, (x->n_tx + 1) * sizeof(*x->tx));
	if (x->rx)
		memset(x->rx, 0, (x->n_rx + 1) * sizeof(*x->rx));
	m2n__ctx_lock(group->ctx);
	rc = x->tx && x->rx ? alloc_memory(x) : m2n__error(-ENOMEM, "%s: no memory", x->title);
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
			if (!tx_of(x, x->rx[i].peer))
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

/* 1: all links are up; 0: not yet; negative: it cannot work. `missing` lists who is not there. */
static int links_state(struct m2n_exchange *x, char *missing, size_t room)
{
	size_t at = 0;
	int all = 1;

	missing[0] = '\0';
	if (x->error)
		return m2n__error(x->error, "%s", x->error_text);
	for (size_t i = 0; i < x->n_tx + x->n_rx; i++) {
		struct m2n__peer *peer = i < x->n_tx ? x->tx[i].peer : x->rx[i - x->n_tx].peer;
		int up = i < x->n_tx ? m2n__tx_up(&x->tx[i]) : m2n__rx_up(&x->rx[i - x->n_tx]);
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
	int64_t deadline = m2n__deadline_ns(timeout_ns < 0 ? x->ctx->options.timeout_ns : timeout_ns);
	char missing[200];
	int rc;

	for (;;) {
		m2n__ctx_lock(x->ctx);
		rc = links_state(x, missing, sizeof(missing));
		m2n__ctx_unlock(x->ctx);
		if (rc)
			return rc < 0 ? rc : 0;
		if (m2n__now_ns() > deadline)
			return m2n__error(-ETIMEDOUT, "%s: rank %d waited for links with ranks%s",
				x->title, x->group->rank, missing);
		m2n__group_wait(x->group);
	}
}

static void free_links(struct m2n_exchange *x)
{
	for (size_t i = 0; x->tx && i < x->n_tx; i++) {
		struct m2n__tx *tx = &x->tx[i];

		if (tx->slots_rmem)
			tx->ep->ops->release_key(tx->slots_rmem);
		if (tx->region_rmem)
			tx->ep->ops->release_key(tx->region_rmem);
		m2n__shared_free(x->ctx, &tx->stage);
		free(tx->sent);
	}
	for (size_t i = 0; x->rx && i < x->n_rx; i++) {
		struct m2n__rx *rx = &x->rx[i];

		if (rx->credits_rmem)
			rx->ep->ops->release_key(rx->credits_rmem);
		if (rx->has_signals)
			m2n__signal_free(x->ctx, rx->signal0, 2 * x->spec.n_slots);
		m2n__shared_free(x->ctx, &rx->area);
		m2n__shared_free(x->ctx, &rx->stage);
		free(rx->head_seen);
	}
	while (x->garbage) {
		struct m2n__garbage *g = x->garbage;

		x->garbage = g->next;
		if (g->rmem)
			g->rmem->ep->ops->release_key(g->rmem);
		m2n__shared_free(x->ctx, &g->area);
		free(g);
	}
}

static void say_goodbye(struct m2n_exchange *x)
{
	for (size_t i = 0; i < x->n_tx + x->n_rx; i++) {
		struct m2n__rx *rx = i < x->n_tx ? NULL : &x->rx[i - x->n_tx];
		struct m2n__peer *peer = rx ? rx->peer : x->tx[i].peer;
		uint64_t seen = rx ? rx->peer_id : x->tx[i].peer_id;
		uint8_t body[M2N__EXCHANGE_NAME + 16];
		struct m2n__cursor c = {body, body + sizeof(body), 0};

		if (!peer || (rx && tx_of(x, peer)) || peer->rank == x->group->rank)
			continue;
		m2n__put_blob(&c, x->name, strlen(x->name));
		m2n__put_u64(&c, seen);
		m2n__peer_send(peer, M2N__FRAME_UNLINK, body, (size_t)(c.at - body));
	}
}

void m2n__exchange_close(struct m2n_exchange *x)
{
	struct m2n_ctx *ctx;

	if (!x)
		return;
	ctx = x->ctx;
	for (size_t i = 0; x->tx && i < x->n_tx; i++)
		if (m2n__tx_up(&x->tx[i]))
			(void)m2n__tx_flush(x, &x->tx[i], ctx->options.timeout_ns);
	m2n__ctx_lock(ctx);
	for (struct m2n_exchange **at = &x->group->exchanges; *at; at = &(*at)->next) {
		if (*at == x) {
			*at = x->next;
			say_goodbye(x);
			break;
		}
	}
	free_links(x);
	m2n__shared_free(ctx, &x->area);
	m2n__shared_free(ctx, &x->region);
	m2n__shared_free(ctx, &x->credits);
	free(x->quarantine);
	m2n__ctx_unlock(ctx);
	free(x->tx);
	free(x->rx);
	free(x);
}
