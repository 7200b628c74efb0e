/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What rounds do with links that are up: messaging transfers with their counts, credits, flush.
 * Mapped peers are served by the inline functions of link.h.
 */
#include <errno.h>
#include <string.h>

#include "core/link.h"
#include "util/error.h"

#define PUT_PATIENCE_NS INT64_C(10000000000)

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

/* One transfer; a backend that is full is given progress until it takes it. */
static int put(struct m2n_exchange *x, struct m2n__ep *ep, struct m2n__put *p)
{
	struct m2n__wait w;
	int rc;

	m2n__wait_begin(&w, x->ctx, PUT_PATIENCE_NS);
	while ((rc = ep->ops->put(ep, p)) == -EAGAIN && !m2n__wait_step(&w))
		;
	m2n__wait_end(&w);
	return rc;
}

/* Joined pieces to an offset of a peer's memory, in transfers of at most max_iov pieces. */
static int put_gather(struct m2n_exchange *x, struct m2n__tx *tx, struct m2n__rmem *rmem,
	size_t offset, const struct m2n_iov *iov, size_t n_iov, uint32_t signal, uint32_t *n_puts)
{
	size_t max = tx->ep->iface->max_iov;

	while (n_iov) {
		size_t n = n_iov < max ? n_iov : max, bytes = 0;
		struct m2n__put p = {iov, NULL, n, rmem, offset, signal};
		int rc;

		for (size_t i = 0; i < n; i++)
			bytes += iov[i].bytes;
		rc = put(x, tx->ep, &p);
		if (rc)
			return rc;
		(*n_puts)++;
		m2n__tally_add(&tx->tally.n_puts, 1);
		offset += bytes;
		iov += n;
		n_iov -= n;
	}
	return 0;
}

int m2n__tx_put_region(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, size_t offset,
	const struct m2n_iov *iov, size_t n_iov, uint32_t *n_puts)
{
	return put_gather(
		x, tx, tx->region_rmem, offset, iov, n_iov, tx->signal0 + 2 * slot + 1, n_puts);
}

int m2n__tx_put_slot(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round,
	struct m2n__slot_head *head, const struct m2n_iov *iov, size_t n_iov)
{
	struct m2n__slot_head *staged =
		(struct m2n__slot_head *)(m2n__tx_stage(x, tx, slot) - sizeof(*head));
	size_t max = tx->ep->iface->max_iov, first = n_iov < max - 1 ? n_iov : max - 1;
	size_t at = slot * x->stride, skip = sizeof(*head);
	struct m2n_iov list[64];
	struct m2n__put p = {list, NULL, 0, tx->slots_rmem, at, tx->signal0 + 2 * slot};
	int rc;

	if (first > 63)
		first = 63;
	list[0] = (struct m2n_iov){staged, sizeof(*head)};
	for (size_t i = 0; i < first; i++) {
		list[i + 1] = iov[i];
		skip += iov[i].bytes;
	}
	rc = put_gather(x, tx, tx->slots_rmem, at + skip, iov + first, n_iov - first,
		tx->signal0 + 2 * slot + 1, &head->n_body_puts);
	if (rc)
		return rc;
	memcpy(staged, head, sizeof(*head));
	atomic_store_explicit(&staged->signal, round + 1, memory_order_relaxed);
	p.n_iov = first + 1;
	rc = put(x, tx->ep, &p);
	if (rc)
		return rc;
	tx->sent[slot] = round + 1;
	m2n__tally_add(&tx->tally.n_puts, 1);
	return 0;
}

int m2n__tx_body_signal(
	struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round, uint32_t n_puts)
{
	size_t at = slot * x->stride + offsetof(struct m2n__slot_head, n_body_puts);
	struct m2n__slot_head *staged;
	struct m2n_iov iov;
	struct m2n__put p = {&iov, NULL, 1, tx->slots_rmem, at, tx->signal0 + 2 * slot};
	int rc;

	if (tx->slots) {
		/* R3: the body before its word, pairs with A3. */
		atomic_store_explicit(
			&m2n__tx_head(x, tx, slot)->body, round + 1, memory_order_release);
		return 0;
	}
	staged = (struct m2n__slot_head *)(m2n__tx_stage(x, tx, slot) - sizeof(*staged));
	staged->n_body_puts = n_puts;
	iov = (struct m2n_iov){&staged->n_body_puts, sizeof(staged->n_body_puts)};
	rc = put(x, tx->ep, &p);
	if (!rc)
		m2n__tally_add(&tx->tally.n_puts, 1);
	return rc;
}

void m2n__rx_credit(struct m2n_exchange *x, struct m2n__rx *rx, uint32_t slot, uint64_t round)
{
	_Atomic uint64_t *word;
	struct m2n_iov iov;
	struct m2n__put p = {&iov, NULL, 1, rx->credits_rmem, slot * x->credit_step * sizeof(*word),
		M2N__SIGNAL_NONE};

	if (rx->credits) {
		/* R4: reads of the slot before its credit, pairs with A4. */
		atomic_store_explicit(
			&rx->credits[slot * x->credit_step], round + 1, memory_order_release);
		rx->ep->ops->notify(rx->ep);
		return;
	}
	if (!rx->credits_rmem)
		return;
	word = (_Atomic uint64_t *)rx->stage.mem->base + slot;
	atomic_store_explicit(word, round + 1, memory_order_relaxed);
	iov = (struct m2n_iov){word, sizeof(*word)};
	(void)put(x, rx->ep, &p); /* a failure shows as a lost peer */
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
	while (m2n__tx_up(tx) && (pending = tx->ep->ops->flush(tx->ep)) == -EAGAIN &&
		!(rc = m2n__wait_step(&w)))
		;
	m2n__wait_end(&w);
	if (rc)
		return m2n__error(rc, "%s: transfers to rank %d are still under way", x->title,
			tx->peer->rank);
	if (!m2n__tx_up(tx) || pending < 0)
		return m2n__error(M2N_ERR_PEER_LOST, "%s: rank %d is lost: %s", x->title,
			tx->peer->rank, m2n__peer_reason(tx->peer));
	return 0;
}
