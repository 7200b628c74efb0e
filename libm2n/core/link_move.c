/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What rounds do with links that are up: messaging transfers with their counts, credits, flush.
 * Mapped peers are served by the inline functions of link.h.
 */
#include <errno.h>
#include <string.h>

#include "core/link.h"
#include "util/error.h"

/* Apart from m2n__rx_ready(), so that looks at mapped peers stay short. */
int m2n__rx_told(
	const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot, uint64_t round)
{
	const struct m2n__slot_head *head = m2n__rx_head(x, rx, slot);

	if (rx->head_first &&
		atomic_load_explicit(&head->signal, memory_order_relaxed) != round + 1)
		return 0;
	if (m2n__rx_counted(x, rx, slot))
		return atomic_load_explicit(&head->signal, memory_order_relaxed) == round + 1;
	return rx->n_looks > 1 &&
	       atomic_load_explicit(&head->signal, memory_order_acquire) == round + 1 &&
	       m2n__slot_is_sealed(head, round, x->spec.slot_bytes);
}

#define PUT_PATIENCE_NS INT64_C(10000000000)
#define HEAD_PIECES 32 /* of one transfer, at most, that a head goes with */

void m2n__rx_take_counts(
	struct m2n_exchange *x, struct m2n__rx *rx, uint32_t slot, uint32_t n_heads)
{
	rx->head_seen[slot] += n_heads;
	rx->body_seen[slot] += m2n__rx_head(x, rx, slot)->n_body_puts;
}

uint8_t *m2n__tx_stage(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot)
{
	return (uint8_t *)tx->stage.mem->base + slot * m2n__stage_stride(&x->spec) +
	       sizeof(struct m2n__slot_head);
}

uint8_t *m2n__tx_bounce(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot)
{
	size_t all = x->spec.n_slots * x->spec.slot_bytes;
	int rc = 0;

	if (!tx->bounce.mem)
		rc = m2n__staging_alloc(x->ctx, all, &tx->bounce);
	return rc ? NULL : (uint8_t *)tx->bounce.mem->base + slot * x->spec.slot_bytes;
}

/* A backend that is full is given progress until it took all of the list. */
static int put_rest(struct m2n_exchange *x, struct m2n__ep *ep, struct m2n__put *p)
{
	struct m2n__wait w;
	int rc = -EAGAIN;

	m2n__wait_begin(&w, x->ctx, PUT_PATIENCE_NS);
	while (!m2n__wait_step(&w) && (rc = ep->ops->put(ep, p)) == -EAGAIN)
		;
	m2n__wait_end(&w);
	return rc;
}

/* One list. */
static int put(struct m2n_exchange *x, struct m2n__ep *ep, struct m2n__put *p)
{
	int rc = ep->ops->put(ep, p);

	return rc == -EAGAIN ? put_rest(x, ep, p) : rc;
}

/* The same with signal word `word` of a link: 2 * slot for heads, one more for bodies. */
static int put_signal(
	struct m2n_exchange *x, struct m2n__tx *tx, struct m2n__put *p, uint32_t word)
{
	int rc;

	if (!p->n_pieces)
		return 0;
	p->signal = tx->signal0 + word;
	p->raised = tx->raised[word];
	rc = put(x, tx->ep, p);
	tx->raised[word] += p->n_signals;
	m2n__tally_add(&tx->tally.n_puts, p->n_posted);
	return rc;
}

int m2n__tx_put_region(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, size_t offset,
	const struct m2n__piece *pieces, size_t n, uint32_t *n_puts)
{
	struct m2n__put p = {
		.pieces = pieces, .n_pieces = n, .rmem = tx->region_rmem, .offset = offset};
	int rc = put_signal(x, tx, &p, 2 * slot + 1);

	*n_puts += p.n_signals;
	return rc;
}

int m2n__tx_put_device(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot,
	size_t head_bytes, size_t body_at, size_t body_bytes)
{
	uint8_t *slots = tx->stage.mem->base;
	uint8_t *region = tx->bounce.mem ? tx->bounce.mem->base : NULL;
	struct m2n__piece body = {region + body_at, body_bytes, tx->bounce.reg};
	struct m2n__piece head = {slots + slot * x->stride, head_bytes, tx->stage.reg};
	struct m2n__put put_body = {.pieces = &body,
		.n_pieces = body_bytes != 0,
		.rmem = tx->region_rmem,
		.offset = body_at};
	struct m2n__put put_head = {
		.pieces = &head, .n_pieces = 1, .rmem = tx->slots_rmem, .offset = slot * x->stride};
	int rc = put_signal(x, tx, &put_body, 2 * slot + 1);

	return rc ? rc : put_signal(x, tx, &put_head, 2 * slot);
}

/*
 * The pieces that go with the head in one transfer: as many as the backend takes. A staged part
 * that follows the staged head is one piece with it. Returns how many of `pieces` it took.
 */
static size_t head_list(const struct m2n__tx *tx, struct m2n__slot_head *staged,
	const struct m2n__piece *pieces, size_t n, struct m2n__piece *list, size_t *n_list)
{
	const struct m2n__iface *iface = tx->ep->iface;
	size_t max = iface->max_iov < HEAD_PIECES ? iface->max_iov : HEAD_PIECES;
	size_t bytes = sizeof(*staged), used = 0;

	list[0] = (struct m2n__piece){staged, sizeof(*staged), tx->stage.reg};
	*n_list = 1;
	if (n && pieces[0].base == staged + 1 && pieces[0].bytes <= iface->max_bytes - bytes) {
		list[0].bytes += pieces[0].bytes;
		bytes = list[0].bytes;
		used = 1;
	}
	while (used < n && *n_list < max && pieces[used].bytes <= iface->max_bytes - bytes) {
		bytes += pieces[used].bytes;
		list[(*n_list)++] = pieces[used++];
	}
	return used;
}

int m2n__tx_put_slot(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round,
	struct m2n__slot_head *head, const struct m2n__piece *pieces, size_t n)
{
	struct m2n__slot_head *staged =
		(struct m2n__slot_head *)(m2n__tx_stage(x, tx, slot) - sizeof(*head));
	struct m2n__piece list[HEAD_PIECES];
	struct m2n__put p = {
		.pieces = list, .rmem = tx->slots_rmem, .offset = slot * x->stride};
	size_t used = head_list(tx, staged, pieces, n, list, &p.n_pieces);
	int rc;

	if (used < n) {
		struct m2n__put body = {.pieces = pieces + used,
			.n_pieces = n - used,
			.rmem = tx->slots_rmem,
			.offset = p.offset};

		for (size_t i = 0; i < p.n_pieces; i++)
			body.offset += list[i].bytes;
		rc = put_signal(x, tx, &body, 2 * slot + 1);
		if (rc)
			return rc;
		head->n_body_puts += body.n_signals;
	}
	memcpy(staged, head, sizeof(*head));
	atomic_store_explicit(&staged->signal, round + 1, memory_order_relaxed);
	rc = put_signal(x, tx, &p, 2 * slot);
	if (!rc)
		tx->sent[slot] = round + 1;
	return rc;
}

int m2n__tx_put_sealed(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round,
	struct m2n__slot_head *head)
{
	uint8_t *payload = m2n__tx_stage(x, tx, slot);
	size_t bytes = head->bytes, room = m2n__sealed_room(bytes);
	struct m2n__piece piece = {
		payload - sizeof(*head), sizeof(*head) + room, tx->stage.reg};
	struct m2n__put p = {.pieces = &piece,
		.n_pieces = 1,
		.rmem = tx->slots_rmem,
		.offset = slot * x->stride,
		.signal = M2N__SIGNAL_NONE};
	int rc;

	memset(payload + bytes, 0, room - bytes);
	atomic_store_explicit(&head->signal, round + 1, memory_order_relaxed);
	head->seal = m2n__seal_of(head, payload, room, round);
	memcpy(payload - sizeof(*head), head, sizeof(*head));
	rc = put(x, tx->ep, &p);
	if (!rc)
		tx->sent[slot] = round + 1;
	m2n__tally_add(&tx->tally.n_puts, p.n_posted);
	return rc;
}

int m2n__tx_body_signal(
	struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round, uint32_t n_puts)
{
	size_t at = slot * x->stride + offsetof(struct m2n__slot_head, n_body_puts);
	struct m2n__slot_head *staged;
	struct m2n__piece piece;
	struct m2n__put p = {
		.pieces = &piece, .n_pieces = 1, .rmem = tx->slots_rmem, .offset = at};

	if (tx->slots) {
		/* R3: the body before its word, pairs with A3. */
		atomic_store_explicit(
			&m2n__tx_head(x, tx, slot)->body, round + 1, memory_order_release);
		return 0;
	}
	staged = (struct m2n__slot_head *)(m2n__tx_stage(x, tx, slot) - sizeof(*staged));
	staged->n_body_puts = n_puts;
	piece = (struct m2n__piece){
		&staged->n_body_puts, sizeof(staged->n_body_puts), tx->stage.reg};
	return put_signal(x, tx, &p, 2 * slot);
}

/* A value for a word of the sender's; `staged` is the place that it is sent from. */
static void put_word(
	struct m2n_exchange *x, struct m2n__rx *rx, uint32_t staged, size_t at, uint64_t value)
{
	_Atomic uint64_t *word = (_Atomic uint64_t *)rx->stage.mem->base + staged;
	struct m2n__piece piece = {word, sizeof(*word), rx->stage.reg};
	struct m2n__put p = {.pieces = &piece,
		.n_pieces = 1,
		.rmem = rx->credits_rmem,
		.offset = at * sizeof(*word),
		.signal = M2N__SIGNAL_NONE};

	atomic_store_explicit(word, value, memory_order_relaxed);
	(void)put(x, rx->ep, &p); /* a failure shows as a lost peer */
}

void m2n__rx_credit(struct m2n_exchange *x, struct m2n__rx *rx, uint32_t slot, uint64_t round)
{
	if (!m2n__rx_up(rx))
		return; /* its slots were given up */
	if (rx->credits) {
		/* R4: reads of the slot before its credit, pairs with A4. */
		atomic_store_explicit(
			&rx->credits[slot * x->credit_step], round + 1, memory_order_release);
		rx->ep->ops->notify(rx->ep);
	} else if (rx->credits_rmem) {
		put_word(x, rx, slot, slot * x->credit_step, round + 1);
	}
}

void m2n__rx_await(struct m2n_exchange *x, struct m2n__rx *rx, uint64_t seq)
{
	m2n__exchange_enter(x, M2N__WRITER_RX);
	if (m2n__rx_up(rx) && rx->credits_rmem && rx->ep->max_sealed)
		put_word(x, rx, x->spec.n_slots, 1, seq + 1);
	m2n__exchange_exit(x, M2N__WRITER_RX);
}

void m2n__tally_read(const struct m2n__tally *t, struct m2n_counters *c)
{
	c->n_rounds = atomic_load_explicit(&t->n_rounds, memory_order_relaxed);
	c->n_rows = atomic_load_explicit(&t->n_rows, memory_order_relaxed);
	c->bytes = atomic_load_explicit(&t->bytes, memory_order_relaxed);
	c->wait_ns = atomic_load_explicit(&t->wait_ns, memory_order_relaxed);
	c->n_puts = atomic_load_explicit(&t->n_puts, memory_order_relaxed);
	c->staged_bytes = atomic_load_explicit(&t->staged_bytes, memory_order_relaxed);
}

int m2n__tx_flush(struct m2n_exchange *x, struct m2n__tx *tx, int64_t timeout_ns)
{
	struct m2n__wait w;
	int rc = 0, pending = 0;

	if (tx->slots)
		return 0;
	m2n__wait_begin(&w, x->ctx, timeout_ns);
	do {
		m2n__exchange_enter(x, M2N__WRITER_TX);
		pending = m2n__tx_up(tx) ? tx->ep->ops->flush(tx->ep) : 0;
		m2n__exchange_exit(x, M2N__WRITER_TX);
	} while (pending == -EAGAIN && !(rc = m2n__wait_step(&w)));
	m2n__wait_end(&w);
	if (rc)
		return m2n__error(rc, "%s: transfers to rank %d are still under way", x->title,
			tx->peer->rank);
	if (!m2n__tx_up(tx) || pending < 0)
		return m2n__error(M2N_ERR_PEER_LOST, "%s: rank %d is lost: %s", x->title,
			tx->peer->rank, m2n__peer_reason(tx->peer));
	return 0;
}
