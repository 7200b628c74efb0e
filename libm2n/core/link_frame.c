/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LINK and UNLINK frames. A LINK frame carries what a peer needs to write to this side: shape,
 * keys of its slots, region and credit words, the first signal word, and the first round that
 * will be sent. Each side sends one and may write when it has the other's; there is no second
 * frame, so no order to get wrong (but for START, by which a sender whose rounds are under way
 * tells a newcomer where it comes in). A frame that comes before its exchange exists is kept.
 * Frames have a number, so that a side that closes can say which of the peer's it had taken.
 */
#include "core/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/error.h"

#define MAX_PENDING 65536

struct link_frame {
	char name[M2N__EXCHANGE_NAME];
	uint32_t n_values;
	uint64_t values[M2N__SHAPE_MAX];
	uint64_t id; /* of the sender's preparation */
	uint64_t instance;
	uint64_t first_round;
	uint32_t sends, receives; /* roles of the frame's sender towards us */
	uint32_t signal0;
	size_t slots_bytes, region_bytes, credits_bytes;
	const void *slots_key, *region_key, *credits_key;
};

/* The memory is not registered with the peer's backend: its kind is not carried, or was refused. */
static int cannot_carry(const struct m2n__peer *peer, const struct m2n__mem *mem)
{
	const struct m2n__backend_ops *ops = peer->ep->ops;
	int is_cuda = mem->kind == M2N__MEM_CUDA;
	struct m2n__mr *mr = NULL;

	if (ops->caps & (is_cuda ? M2N__CAP_CUDA_MEMORY : M2N__CAP_HOST_MEMORY)) {
		int rc = ops->reg(peer->ep->iface, mem, &mr);

		if (rc)
			return rc;
		ops->dereg(mr);
	}
	return m2n__error(M2N_ERR_BACKEND,
		"backend %s, by which rank %d is reached, does not carry %s memory", ops->name,
		peer->rank, is_cuda ? "CUDA" : "host");
}

static int export_part(struct m2n__peer *peer, struct m2n__shared *s, size_t offset, size_t bytes,
	struct m2n__cursor *c)
{
	uint8_t key[M2N__KEY_BYTES];
	size_t n = sizeof(key);
	int rc = 0;

	if (s->mem && !s->reg->mr[peer->backend])
		rc = cannot_carry(peer, s->mem);
	else if (s->mem)
		rc = peer->ep->ops->export_key(s->reg->mr[peer->backend], offset, bytes, key, &n);
	else
		n = 0;
	if (!rc)
		m2n__put_blob(c, key, n);
	return rc;
}

int m2n__link_send(
	struct m2n_exchange *x, struct m2n__peer *peer, struct m2n__tx *tx, struct m2n__rx *rx)
{
	uint8_t body[4 * M2N__KEY_BYTES];
	struct m2n__cursor c = {body, body + sizeof(body), 0};
	struct m2n__shared none = {0}, *area = rx && rx->area.mem ? &rx->area : &x->area;
	size_t rx_at = rx && !rx->area.mem ? (size_t)(rx - x->rx) * x->area_stride : 0;
	size_t tx_at = tx ? (size_t)(tx - x->tx) * m2n__credit_bytes(&x->spec) : 0;
	int rc;

	m2n__put_blob(&c, x->name, strlen(x->name));
	m2n__put_u64(&c, tx ? tx->own_id : rx->own_id);
	m2n__put_u64(&c, x->instance);
	m2n__put_u32(&c, x->spec.shape.n);
	for (unsigned i = 0; i < x->spec.shape.n; i++)
		m2n__put_u64(&c, x->spec.shape.value[i]);
	m2n__put_u64(&c, x->connected && x->spec.tx_round ? M2N__ROUND_UNKNOWN : 0);
	m2n__put_u32(&c, tx != NULL);
	m2n__put_u32(&c, rx != NULL);
	m2n__put_u32(&c, rx && !rx->mapped ? rx->signal0 : 0);
	rc = export_part(peer, rx ? area : &none, rx_at, x->spec.n_slots * x->stride, &c);
	if (!rc)
		rc = export_part(peer, rx ? &x->region : &none, 0,
			x->region.mem ? x->region.mem->bytes : 0, &c);
	if (!rc)
		rc = export_part(peer, tx && x->spec.explicit_credits ? &x->credits : &none, tx_at,
			m2n__credit_bytes(&x->spec), &c);
	if (!rc)
		m2n__peer_send(peer, M2N__FRAME_LINK, body, (size_t)(c.at - body));
	return rc;
}

static int read_frame(struct link_frame *f, const uint8_t *body, size_t bytes)
{
	/* the cursor only reads here; it has one type for both directions */
	struct m2n__cursor c = {(uint8_t *)(uintptr_t)body, (uint8_t *)(uintptr_t)body + bytes, 0};

	memset(f, 0, sizeof(*f));
	m2n__get_text(&c, f->name, sizeof(f->name));
	f->id = m2n__get_u64(&c);
	f->instance = m2n__get_u64(&c);
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
			return m2n__error(M2N_ERR_SHAPE,
				"%s: %s is %lu on rank %d but %lu on rank %d", x->title, s->name[i],
				(unsigned long)s->value[i], own, (unsigned long)f->values[i],
				peer->rank);
	if (!f->sends != !m2n__rx_of(x, peer) || !f->receives != !m2n__tx_of(x, peer))
		return m2n__error(M2N_ERR_SHAPE, "%s: rank %d %s rank %d, which does not expect it",
			x->title, peer->rank,
			!f->sends != !m2n__rx_of(x, peer) ? "disagrees on sending to"
							  : "disagrees on receiving from",
			own);
	return 0;
}

static int import_at_least(struct m2n__ep *ep, const void *key, size_t key_bytes, size_t bytes,
	struct m2n__rmem **rmem)
{
	int rc = ep->ops->import_key(ep, key, key_bytes, rmem);

	if (!rc)
		(*rmem)->ops = ep->ops;
	if (!rc && (*rmem)->bytes < bytes) {
		ep->ops->release_key(*rmem);
		*rmem = NULL;
		rc = m2n__error(
			M2N_ERR_PROTOCOL, "a peer's memory is smaller than %zu bytes", bytes);
	}
	return rc;
}

/*
 * Lets the link have rounds from the next one on. A sender that is about to take a round's number
 * either sees `linking` and waits, or took it before: then the first round is the one after.
 */
static void start(struct m2n_exchange *x, struct m2n__tx *tx)
{
	uint64_t first = 0;

	atomic_store_explicit(&x->linking, 1, memory_order_seq_cst);
	if (x->spec.tx_round)
		first = atomic_load_explicit(x->spec.tx_round, memory_order_seq_cst);
	atomic_store_explicit(&tx->first_round, first, memory_order_relaxed);
	atomic_store_explicit(&tx->up, 1, memory_order_release);
	m2n__exchange_changed(x); /* the kernel of that round has to find the link */
	atomic_store_explicit(&x->linking, 0, memory_order_seq_cst);
	if (!x->connected || !x->spec.tx_round)
		return;
	m2n__link_say(tx->peer, M2N__FRAME_START, x->name, first, x->instance);
}

static int link_tx(struct m2n_exchange *x, struct m2n__tx *tx, const struct link_frame *f)
{
	struct m2n__ep *ep = tx->ep;
	size_t region = x->spec.region_bytes * (x->spec.n_region_slots + x->spec.n_spare_slots);
	int rc;

	m2n__exchange_keep_key(x, &tx->slots_rmem); /* of a link that came to nothing */
	m2n__exchange_keep_key(x, &tx->region_rmem);
	rc = import_at_least(
		ep, f->slots_key, f->slots_bytes, x->spec.n_slots * x->stride, &tx->slots_rmem);
	if (!rc && x->spec.region_bytes)
		rc = import_at_least(ep, f->region_key, f->region_bytes, region, &tx->region_rmem);
	if (rc)
		return rc;
	tx->slots = tx->slots_rmem->ptr;
	tx->region = tx->region_rmem ? tx->region_rmem->ptr : NULL;
	tx->signal0 = f->signal0;
	tx->was_linked = tx->has_come = 1;
	tx->prepared = 0;
	start(x, tx);
	return 0;
}

static int link_rx(struct m2n_exchange *x, struct m2n__rx *rx, const struct link_frame *f)
{
	uint64_t first;
	int is_new, rc;

	m2n__exchange_keep_key(x, &rx->credits_rmem);
	if (x->spec.explicit_credits) {
		rc = import_at_least(rx->ep, f->credits_key, f->credits_bytes,
			m2n__credit_bytes(&x->spec), &rx->credits_rmem);
		if (rc)
			return rc;
		rx->credits = rx->credits_rmem->ptr;
	}
	/* A sender that replaces a lost one waits for the application to admit it. One whose
	 * rounds go on tells by a START frame which of them is the first for us. */
	is_new = rx->was_linked && rx->bond.incarnation != rx->peer->incarnation;
	rx->starting = !is_new && f->first_round == M2N__ROUND_UNKNOWN;
	first = f->first_round;
	if (is_new && x->spec.tx_round)
		first = atomic_load_explicit(&rx->admitted, memory_order_relaxed);
	atomic_store_explicit(&rx->first_round, first, memory_order_relaxed);
	rx->was_linked = 1;
	rx->has_come = !rx->starting;
	rx->prepared = 0;
	atomic_store_explicit(&rx->up, !rx->starting, memory_order_release);
	m2n__exchange_changed(x);
	return 0;
}

/* A frame for an exchange that exists and whose own side is prepared. */
static int apply(struct m2n_exchange *x, struct m2n__peer *peer, const struct link_frame *f)
{
	struct m2n__tx *tx = m2n__tx_of(x, peer);
	struct m2n__rx *rx = m2n__rx_of(x, peer);
	struct m2n__bond bond = {peer->incarnation, f->instance, 0};
	int rc = compare_shape(x, peer, f);

	if (tx)
		tx->peer_id = f->id;
	if (rx)
		rx->peer_id = f->id;
	if (!rc && f->receives)
		rc = link_tx(x, tx, f);
	if (!rc && f->sends)
		rc = link_rx(x, rx, f);
	if (tx)
		tx->bond = bond;
	if (rx)
		rx->bond = bond;
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

static struct m2n__bond *bond_of(struct m2n_exchange *x, const struct m2n__peer *peer)
{
	struct m2n__tx *tx = m2n__tx_of(x, peer);
	struct m2n__rx *rx = m2n__rx_of(x, peer);

	return tx ? &tx->bond : rx ? &rx->bond : NULL;
}

/* Is a LINK frame for this exchange, or for one of its name that comes later? */
static int is_ours(const struct m2n__bond *bond, const struct m2n__peer *peer, uint64_t instance)
{
	return !bond->instance || bond->incarnation != peer->incarnation ||
	       bond->instance == instance;
}

/*
 * The peer closed its side. If that side had taken our LINK frame, the link is over. If it had
 * not, our frame still waits there for the next one, and what the peer's LINK frame led to here
 * (a link, a disagreement) is void.
 */
static void on_unlink(
	struct m2n_exchange *x, struct m2n__peer *peer, uint64_t seen, uint64_t instance)
{
	struct m2n__tx *tx = m2n__tx_of(x, peer);
	struct m2n__rx *rx = m2n__rx_of(x, peer);
	struct m2n__bond *bond = bond_of(x, peer);
	int is_over;

	if (!bond || bond->instance != instance || bond->incarnation != peer->incarnation)
		return;
	m2n__exchange_peer_lost(x, peer);
	is_over = (tx ? tx->own_id : rx->own_id) == seen;
	if (tx) {
		tx->bond = is_over ? (struct m2n__bond){peer->incarnation, instance, 1}
				   : (struct m2n__bond){0};
		tx->prepared |= !is_over;
		tx->has_come &= is_over;
	}
	if (rx) {
		rx->bond = is_over ? (struct m2n__bond){peer->incarnation, instance, 1}
				   : (struct m2n__bond){0};
		rx->prepared |= !is_over;
		rx->has_come &= is_over;
	}
	if (!is_over && x->error_rank == peer->rank)
		x->error = 0;
}

/* Frames of a peer's exchange, or all that it sent. */
static void drop_pending(struct m2n_group *group, int rank, uint64_t instance)
{
	struct m2n__pending **at = &group->pending;

	while (*at) {
		struct m2n__pending *p = *at;
		struct link_frame f;

		int is_it = p->rank == rank && (!instance || (!read_frame(&f, p->body, p->bytes) &&
								     f.instance == instance));

		if (!is_it) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		free(p);
		group->n_pending--;
	}
}

void m2n__link_take_pending(struct m2n_exchange *x, struct m2n__peer *peer)
{
	struct m2n_group *group = x->group;

	for (struct m2n__pending *p = group->pending; p; p = p->next) {
		struct link_frame f;

		if (p->rank != peer->rank || read_frame(&f, p->body, p->bytes) ||
			strcmp(f.name, x->name) != 0 ||
			!is_ours(bond_of(x, peer), peer, f.instance))
			continue;
		apply(x, peer, &f);
		drop_pending(group, peer->rank, f.instance);
		return;
	}
}

static void on_start(
	struct m2n_exchange *x, struct m2n__peer *peer, uint64_t first_round, uint64_t instance)
{
	struct m2n__rx *rx = m2n__rx_of(x, peer);

	if (!rx || !rx->starting || rx->bond.instance != instance)
		return;
	rx->starting = 0;
	rx->has_come = 1;
	atomic_store_explicit(&rx->first_round, first_round, memory_order_relaxed);
	atomic_store_explicit(&rx->up, 1, memory_order_release);
	m2n__exchange_changed(x);
}

void m2n__link_say(struct m2n__peer *peer, enum m2n__frame_type type, const char *name,
	uint64_t first, uint64_t second)
{
	uint8_t body[M2N__EXCHANGE_NAME + 32];
	struct m2n__cursor c = {body, body + sizeof(body), 0};

	m2n__put_blob(&c, name, strlen(name));
	m2n__put_u64(&c, first);
	m2n__put_u64(&c, second);
	m2n__peer_send(peer, type, body, (size_t)(c.at - body));
}

/* UNLINK: our frame that it took, exchange. UNLINKED: 0, our exchange. START: round, exchange. */
static int short_frame(
	struct m2n__peer *peer, enum m2n__frame_type type, const uint8_t *body, size_t bytes)
{
	struct m2n__cursor c = {(uint8_t *)(uintptr_t)body, (uint8_t *)(uintptr_t)body + bytes, 0};
	char name[M2N__EXCHANGE_NAME];
	uint64_t first, second;

	m2n__get_text(&c, name, sizeof(name));
	first = m2n__get_u64(&c);
	second = m2n__get_u64(&c);
	if (c.overrun || !second)
		return m2n__error(
			M2N_ERR_PROTOCOL, "frame of type %d and %zu bytes cannot be read",
			(int)type, bytes);
	if (type == M2N__FRAME_UNLINKED) {
		m2n__link_unlinked(peer->group, peer->rank, second);
		return 0;
	}
	if (type == M2N__FRAME_UNLINK)
		drop_pending(peer->group, peer->rank, second);
	for (struct m2n_exchange *x = peer->group->exchanges; x; x = x->next)
		if (strcmp(x->name, name) == 0 && type == M2N__FRAME_UNLINK)
			on_unlink(x, peer, first, second);
		else if (strcmp(x->name, name) == 0)
			on_start(x, peer, first, second);
	if (type == M2N__FRAME_UNLINK)
		m2n__link_unlink(peer, name, second);
	return 0;
}

int m2n__link_frame(
	struct m2n__peer *peer, enum m2n__frame_type type, const uint8_t *body, size_t bytes)
{
	struct m2n_exchange *x = peer->group->exchanges;
	struct m2n__tx *tx;
	struct m2n__rx *rx;
	struct link_frame f;
	int rc;

	if (type != M2N__FRAME_LINK)
		return short_frame(peer, type, body, bytes);
	rc = read_frame(&f, body, bytes);
	if (rc)
		return rc;
	while (x && strcmp(x->name, f.name) != 0)
		x = x->next;
	tx = x ? m2n__tx_of(x, peer) : NULL;
	rx = x ? m2n__rx_of(x, peer) : NULL;
	/* a peer may be ready before we are: its frames wait until we are */
	if ((!tx && !rx) || !is_ours(bond_of(x, peer), peer, f.instance) ||
		atomic_load_explicit(&peer->state, memory_order_relaxed) != M2N_PEER_LIVE)
		return keep_pending(peer, body, bytes);
	if ((tx && tx->prepared) || (rx && rx->prepared))
		return apply(x, peer, &f);
	/* our side was used up by an earlier one of the peer's: make it anew first */
	rc = keep_pending(peer, body, bytes);
	if (!rc)
		m2n__exchange_peer_live(x, peer);
	return rc;
}

void m2n__group_forget(struct m2n_group *group, int rank)
{
	drop_pending(group, rank, 0);
	m2n__link_unlinked(group, rank, 0);
}
