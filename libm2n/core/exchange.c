/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public exchange: a thin layer over links that numbers messages per peer and looks peers up
 * by rank. Message n of a sender uses slot n % depth; the slot counters wrap, nothing divides.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/link.h"
#include "util/error.h"

#define MAX_DEPTH 64
#define FEW_LINES 256 /* bytes */
#define NAPS_TOLD 4 /* that are short, after the sender was told to wake us */
#define OWN_BYTES 4096 /* of the next slot that are asked for ahead */

static int check_params(const struct m2n_exchange_params *p)
{
	if (!p->name || !p->name[0] || strlen(p->name) > 23)
		return m2n__error(-EINVAL, "exchange: name '%s': 1..23 characters",
			p->name ? p->name : "(NULL)");
	if (p->depth < 1 || p->depth > MAX_DEPTH)
		return m2n__error(-EINVAL, "exchange '%s': depth is %u, accepted: 1..%d", p->name,
			p->depth, MAX_DEPTH);
	if (p->max_bytes > SIZE_MAX / 256)
		return m2n__error(-EINVAL, "exchange '%s': max_bytes is %zu, accepted: 0..%zu",
			p->name, p->max_bytes, SIZE_MAX / 256);
	if ((p->n_send && !p->send_to) || (p->n_recv && !p->recv_from))
		return m2n__error(-EINVAL, "exchange '%s': a list of ranks is NULL", p->name);
	if (!p->n_send && !p->n_recv)
		return m2n__error(
			-EINVAL, "exchange '%s': no peers: n_send and n_recv are 0", p->name);
	return 0;
}

static int check_list(const char *name, const char *what, const int *ranks, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (ranks[i] < 0 || ranks[i] >= M2N__MAX_RANKS)
			return m2n__error(-EINVAL, "exchange '%s': %s[%zu] is %d, accepted: 0..%d",
				name, what, i, ranks[i], M2N__MAX_RANKS - 1);
		for (size_t k = 0; k < i; k++)
			if (ranks[i] == ranks[k])
				return m2n__error(-EINVAL, "exchange '%s': rank %d is in %s twice",
					name, ranks[i], what);
	}
	return 0;
}

int m2n_exchange_create(struct m2n_group *group, const struct m2n_exchange_params *params,
	struct m2n_exchange **exchange)
{
	static const struct m2n_exchange_params init = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n__exchange_spec spec = {0};
	struct m2n_exchange_params p;
	char name[32], title[64];
	struct m2n_exchange *x;
	int rc = m2n__params_read(&p, sizeof(p), &init, params, "m2n_exchange_params");

	if (!rc && (!group || !exchange))
		rc = m2n__error(-EINVAL, "m2n_exchange_create: group or exchange is NULL");
	if (!rc)
		rc = check_params(&p);
	if (!rc)
		rc = check_list(p.name, "send_to", p.send_to, p.n_send);
	if (!rc)
		rc = check_list(p.name, "recv_from", p.recv_from, p.n_recv);
	if (rc)
		return rc;
	snprintf(name, sizeof(name), "x/%s", p.name);
	snprintf(title, sizeof(title), "exchange '%s'", p.name);
	spec.name = name;
	spec.title = title;
	spec.send_to = p.send_to;
	spec.n_send = p.n_send;
	spec.recv_from = p.recv_from;
	spec.n_recv = p.n_recv;
	spec.n_slots = p.depth;
	spec.slot_bytes = p.max_bytes;
	spec.explicit_credits = 1;
	spec.in_order = 1;
	spec.stage_bytes = M2N__SEALED_BYTES;
	m2n__shape_add(&spec.shape, "max_bytes", p.max_bytes);
	m2n__shape_add(&spec.shape, "depth", p.depth);
	rc = m2n__exchange_open(group, &spec, &x);
	if (rc)
		return rc;
	rc = m2n__exchange_connect(x, p.timeout_ns);
	if (rc) {
		m2n__exchange_close(x);
		return rc;
	}
	*exchange = x;
	return 0;
}

void m2n_exchange_destroy(struct m2n_exchange *exchange)
{
	m2n__exchange_close(exchange);
}

/* Where a rank stands in a list. Lists of neighbours, the usual ones, are hit at once. */
static size_t position(const int *ranks, size_t n, int rank)
{
	size_t guess = n && rank >= ranks[0] ? (size_t)(rank - ranks[0]) : n;

	if (guess < n && ranks[guess] == rank)
		return guess;
	for (size_t i = 0; i < n; i++)
		if (ranks[i] == rank)
			return i;
	return n;
}

static struct m2n__tx *find_tx(struct m2n_exchange *x, int rank)
{
	size_t at = x ? position(x->spec.send_to, x->n_tx, rank) : 0;

	if (x && at < x->n_tx)
		return &x->tx[at];
	m2n__error(-EINVAL, "%s: does not send to rank %d", x ? x->title : "exchange NULL", rank);
	return NULL;
}

static struct m2n__rx *find_rx(struct m2n_exchange *x, int rank)
{
	size_t at = x ? position(x->spec.recv_from, x->n_rx, rank) : 0;

	if (x && at < x->n_rx)
		return &x->rx[at];
	m2n__error(
		-EINVAL, "%s: does not receive from rank %d", x ? x->title : "exchange NULL", rank);
	return NULL;
}

static int lost(const struct m2n_exchange *x, const struct m2n__peer *peer)
{
	return m2n__error(M2N_ERR_PEER_LOST, "%s: rank %d is lost: %s", x->title, peer->rank,
		m2n__peer_reason(peer));
}

static int put_mapped(struct m2n_exchange *x, struct m2n__tx *tx, const struct m2n_iov *iov,
	size_t n_iov, size_t bytes)
{
	const struct m2n__kernels *kernels = x->ctx->kernels;
	uint32_t slot = tx->slot;
	uint8_t *at = tx->slots + slot * x->stride;
	struct m2n__slot_head *head = (struct m2n__slot_head *)at;
	int stream = bytes > x->ctx->options.nt_bytes;

	at += sizeof(*head);
	for (size_t i = 0; i < n_iov; i++) {
		if (stream)
			kernels->stream(at, iov[i].base, iov[i].bytes);
		else
			kernels->copy(at, iov[i].base, iov[i].bytes);
		at += iov[i].bytes;
	}
	head->bytes = bytes;
	if (stream)
		kernels->fence();
	m2n__tx_signal(x, tx, slot, tx->seq);
	m2n__tx_notify(tx);
	return 0;
}

/*
 * The message as pieces with their registrations; in staging where memory is not registered and
 * has to be. Returns their number, SIZE_MAX with text when there is no memory.
 */
static size_t gather(struct m2n_exchange *x, struct m2n__tx *tx, const struct m2n_iov *iov,
	size_t n_iov, size_t bytes)
{
	const struct m2n__iface *iface = tx->ep->iface;
	int must = iface->needs_mr && bytes + sizeof(struct m2n__slot_head) > iface->max_inline;
	uint8_t *at;

	if (n_iov + 1 > x->room_pieces) {
		void *grown = realloc(x->pieces, (n_iov + 16) * sizeof(*x->pieces));

		if (!grown) {
			m2n__error(-ENOMEM, "%s: no memory for %zu pieces", x->title, n_iov);
			return SIZE_MAX;
		}
		x->pieces = grown;
		x->room_pieces = n_iov + 16;
	}
	for (size_t i = 0; i < n_iov; i++) {
		const struct m2n__reg *reg = m2n__mem_find(x->ctx, iov[i].base, iov[i].bytes);

		if (must && iov[i].bytes && !reg)
			goto stage;
		x->pieces[i] = (struct m2n__piece){iov[i].base, iov[i].bytes, reg};
	}
	return n_iov;
stage:
	at = m2n__tx_bounce(x, tx, tx->slot);
	if (!at)
		return SIZE_MAX;
	x->pieces[0] = (struct m2n__piece){at, bytes, tx->bounce.reg};
	for (size_t i = 0; i < n_iov; at += iov[i++].bytes)
		x->ctx->kernels->copy(at, iov[i].base, iov[i].bytes);
	m2n__tally_add(&tx->tally.staged_bytes, bytes);
	return 1;
}

static int is_device(const struct m2n_exchange *x, const struct m2n__tx *tx, const void *base,
	size_t bytes)
{
	const struct m2n__reg *reg = m2n__mem_find(x->ctx, base, bytes);
	const struct m2n__mr *mr = reg ? reg->mr[tx->ep->iface->params.index] : NULL;

	return mr && mr->mem->kind == M2N__MEM_CUDA;
}

/*
 * Small, of memory that the processor reads, and the peer can find it by its seal? That wakes
 * nobody: a peer that said that it sleeps gets what is counted.
 */
static int is_sealable(const struct m2n_exchange *x, const struct m2n__tx *tx,
	const struct m2n_iov *iov, size_t n_iov, size_t bytes)
{
	if (bytes > M2N__SEALED_BYTES ||
		sizeof(struct m2n__slot_head) + m2n__sealed_room(bytes) > tx->ep->max_sealed ||
		m2n__tx_awaited(tx, tx->seq))
		return 0;
	for (size_t i = 0; x->ctx->cuda && i < n_iov; i++)
		if (is_device(x, tx, iov[i].base, iov[i].bytes))
			return 0;
	return 1;
}

static int put_sealed(struct m2n_exchange *x, struct m2n__tx *tx, const struct m2n_iov *iov,
	size_t n_iov, size_t bytes)
{
	struct m2n__slot_head head = {.bytes = bytes};
	uint8_t *at = m2n__tx_stage(x, tx, tx->slot);

	if (tx->twin)
		head.place = m2n__credit_carry(tx->twin);
	for (size_t i = 0; i < n_iov; at += iov[i++].bytes)
		x->ctx->kernels->copy(at, iov[i].base, iov[i].bytes);
	return m2n__tx_put_sealed(x, tx, tx->slot, tx->seq, &head);
}

static int put_counted(struct m2n_exchange *x, struct m2n__tx *tx, const struct m2n_iov *iov,
	size_t n_iov, size_t bytes)
{
	struct m2n__slot_head head = {.bytes = bytes};
	size_t n = gather(x, tx, iov, n_iov, bytes);

	if (n > n_iov + 1)
		return -ENOMEM;
	if (tx->twin)
		head.place = m2n__credit_carry(tx->twin);
	return m2n__tx_put_slot(x, tx, tx->slot, tx->seq, &head, x->pieces, n);
}

static int put_messaging(struct m2n_exchange *x, struct m2n__tx *tx, const struct m2n_iov *iov,
	size_t n_iov, size_t bytes)
{
	int rc = is_sealable(x, tx, iov, n_iov, bytes) ? put_sealed(x, tx, iov, n_iov, bytes)
						       : put_counted(x, tx, iov, n_iov, bytes);

	return rc == M2N_ERR_PEER_LOST ? m2n__error_at(rc, "%s: rank %d is lost", x->title,
						 tx->peer->rank)
				       : rc;
}

/*
 * While nobody waits for it: fetches the next slot's credit, and, where the slot is free already,
 * asks for the lines that a message like the last one will be written to.
 */
static void prepare_next(const struct m2n_exchange *x, struct m2n__tx *tx, size_t bytes)
{
	size_t more = bytes > M2N__CACHE_LINE ? bytes - M2N__CACHE_LINE : 0;

	/* not the first two lines: the receiver looks at them until the message is there */
	if (tx->slots && m2n__tx_free(x, tx, tx->slot))
		x->ctx->kernels->own(
			(uint8_t *)m2n__tx_head(x, tx, tx->slot) + 2 * M2N__CACHE_LINE,
			more < OWN_BYTES ? more : OWN_BYTES);
}

int m2n_exchange_put(struct m2n_exchange *x, int peer, const struct m2n_iov *iov, size_t n_iov,
	int64_t timeout_ns)
{
	struct m2n__tx *tx = find_tx(x, peer);
	struct m2n__wait w;
	size_t bytes = 0;
	int rc = 0;

	if (!tx || (n_iov && !iov))
		return tx ? m2n__error(-EINVAL, "%s: iov is NULL", x->title) : -EINVAL;
	for (size_t i = 0; i < n_iov && bytes <= x->spec.slot_bytes; i++)
		bytes = iov[i].bytes <= x->spec.slot_bytes ? bytes + iov[i].bytes : iov[i].bytes;
	if (bytes > x->spec.slot_bytes)
		return m2n__error(-EMSGSIZE, "%s: message of %zu bytes, max_bytes is %zu", x->title,
			bytes, x->spec.slot_bytes);
	m2n__wait_begin(&w, x->ctx, timeout_ns);
	while ((m2n__tx_up(tx) ? !m2n__tx_free(x, tx, tx->slot)
			       : m2n__link_coming(&tx->prepared, tx->peer)) &&
		!(rc = m2n__wait_step(&w)))
		;
	m2n__wait_end(&w);
	if (w.start_ns)
		m2n__tally_add(&tx->tally.wait_ns, (uint64_t)m2n__waited_ns(&w));
	if (rc)
		return rc == -EAGAIN
			       ? rc
			       : m2n__error(rc,
					 "%s: rank %d has released none of %u slots "
					 "(message %lu)",
					 x->title, peer, x->spec.n_slots, (unsigned long)tx->seq);
	m2n__exchange_enter(x, M2N__WRITER_TX);
	if (!m2n__tx_up(tx))
		rc = lost(x, tx->peer);
	else
		rc = tx->slots ? put_mapped(x, tx, iov, n_iov, bytes)
			       : put_messaging(x, tx, iov, n_iov, bytes);
	m2n__exchange_exit(x, M2N__WRITER_TX);
	if (rc)
		return rc;
	tx->seq++;
	tx->slot = tx->slot + 1 == x->spec.n_slots ? 0 : tx->slot + 1;
	prepare_next(x, tx, bytes);
	m2n__tally_add(&tx->tally.n_rounds, 1);
	m2n__tally_add(&tx->tally.bytes, bytes);
	return 0;
}

int m2n_exchange_flush(struct m2n_exchange *x, int peer, int64_t timeout_ns)
{
	struct m2n__tx *tx = find_tx(x, peer);

	return tx ? m2n__tx_flush(x, tx, timeout_ns) : -EINVAL;
}

static int complete(const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot)
{
	return m2n__rx_ready(x, rx, slot, rx->seq) && m2n__rx_whole(x, rx, slot);
}

/* What comes without a signal is looked for more often than the backend is asked. */
static int has_come(const struct m2n_exchange *x, const struct m2n__rx *rx)
{
	unsigned n = 0;

	while (!complete(x, rx, rx->slot))
		if (++n >= rx->n_looks)
			return 0;
	return 1;
}

/* 1: the next message is here; 0: it never comes; -EAGAIN, -ETIMEDOUT. */
static int await_message(struct m2n_exchange *x, struct m2n__rx *rx, int64_t timeout_ns)
{
	int rc = 0, is_here, is_told = 0;
	struct m2n__wait w;

	m2n__wait_begin(&w, x->ctx, timeout_ns);
	while (!(is_here = has_come(x, rx)) &&
		(m2n__rx_up(rx) || m2n__link_coming(&rx->prepared, rx->peer)) &&
		!(rc = m2n__wait_step(&w))) {
		/* head and the payload's first line come along with the signal's, not after it */
		__builtin_prefetch(m2n__rx_head(x, rx, rx->slot) + 1);
		__builtin_prefetch(m2n__rx_head(x, rx, rx->slot));
		if (!rx->mapped && !is_told && m2n__wait_sleeps(&w)) {
			m2n__rx_await(x, rx, rx->seq);
			w.n_short_naps = NAPS_TOLD;
			is_told = 1;
		}
	}
	m2n__wait_end(&w);
	if (w.start_ns)
		m2n__tally_add(&rx->tally.wait_ns, (uint64_t)m2n__waited_ns(&w));
	/* what had arrived of a lost peer is still taken */
	return is_here || complete(x, rx, rx->slot) ? 1 : rc;
}

/* Said once: what the lost process had sent and what the new one sends are not one stream. */
static int replaced(const struct m2n_exchange *x, struct m2n__rx *rx)
{
	atomic_store_explicit(&rx->untold, 0, memory_order_relaxed);
	return m2n__error(M2N_ERR_PEER_LOST,
		"%s: rank %d was lost and replaced: what follows is from the new process", x->title,
		rx->peer->rank);
}

int m2n_exchange_get(
	struct m2n_exchange *x, int peer, int64_t timeout_ns, const void **data, size_t *bytes)
{
	struct m2n__rx *rx = find_rx(x, peer);
	const struct m2n__slot_head *head;
	uint32_t slot;
	int rc;

	if (!rx || !data || !bytes)
		return rx ? m2n__error(-EINVAL, "%s: data or bytes is NULL", x->title) : -EINVAL;
	if (rx->held)
		return m2n__error(
			-EBUSY, "%s: the last message of rank %d was not released", x->title, peer);
	if (m2n__rx_up(rx) && atomic_load_explicit(&rx->untold, memory_order_relaxed))
		return replaced(x, rx);
	rc = await_message(x, rx, timeout_ns);
	if (rc == 0) {
		atomic_store_explicit(&rx->untold, 0, memory_order_relaxed);
		return lost(x, rx->peer);
	}
	if (rc < 0)
		return rc == -EAGAIN ? rc
				     : m2n__error(rc, "%s: message %lu of rank %d did not come",
					       x->title, (unsigned long)rx->seq, peer);
	slot = rx->slot;
	head = m2n__rx_head(x, rx, slot);
	if (head->bytes > x->spec.slot_bytes)
		return m2n__error(M2N_ERR_PROTOCOL, "%s: rank %d says %lu bytes, max_bytes is %zu",
			x->title, peer, (unsigned long)head->bytes, x->spec.slot_bytes);
	if (!rx->mapped) /* what was sealed was not counted */
		m2n__rx_take(x, rx, slot, (uint32_t)m2n__rx_counted(x, rx, slot));
	if (!rx->mapped && rx->twin) /* messages come in order, and so do the credits they carry */
		atomic_store_explicit(&rx->twin->released, head->place, memory_order_release);
	rx->held = 1;
	*data = (const uint8_t *)head + sizeof(*head);
	*bytes = head->bytes;
	rx->head_first = head->bytes > FEW_LINES;
	m2n__tally_add(&rx->tally.n_rounds, 1);
	m2n__tally_add(&rx->tally.bytes, head->bytes);
	return 0;
}

int m2n_exchange_release(struct m2n_exchange *x, int peer)
{
	struct m2n__rx *rx = find_rx(x, peer);

	if (!rx)
		return -EINVAL;
	if (!rx->held)
		return m2n__error(-EINVAL, "%s: no message of rank %d is held", x->title, peer);
	rx->held = 0;
	if (m2n__rx_up(rx)) {
		m2n__exchange_enter(x, M2N__WRITER_RX);
		if (rx->mapped)
			m2n__rx_credit(x, rx, rx->slot, rx->seq);
		else
			m2n__credit_owe(x, rx);
		m2n__exchange_exit(x, M2N__WRITER_RX);
	}
	rx->seq++;
	rx->slot = rx->slot + 1 == x->spec.n_slots ? 0 : rx->slot + 1;
	return 0;
}

int m2n_exchange_counters(
	struct m2n_exchange *x, int peer, struct m2n_counters *sent, struct m2n_counters *received)
{
	struct m2n__tx *tx = sent ? find_tx(x, peer) : NULL;
	struct m2n__rx *rx = received ? find_rx(x, peer) : NULL;

	if ((sent && !tx) || (received && !rx))
		return -EINVAL;
	if (sent)
		m2n__tally_read(&tx->tally, sent);
	if (received)
		m2n__tally_read(&rx->tally, received);
	return 0;
}
