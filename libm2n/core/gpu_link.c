/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables of links on the device. The host keeps a copy of what is there and writes the entries
 * that differ from what the links are now: first `live` goes to 0, then the entry is written,
 * with `live` as it shall be. Kernels under way may use an old entry for a moment; what it
 * points to stays mapped until the exchange is closed.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

static int is_messaging(const struct m2n__ep *ep)
{
	return ep && !(ep->ops->caps & M2N__CAP_MAPPED);
}

static struct m2n__gpu_tx tx_entry(struct m2n__gpu_links *links, size_t i)
{
	const struct m2n__tx *tx = &links->x->tx[i];
	struct m2n__gpu_tx entry = {0};

	if (!m2n__tx_up(tx))
		return entry;
	entry.live = 1;
	entry.first_round = atomic_load_explicit(&tx->first_round, memory_order_relaxed);
	if (!is_messaging(tx->ep)) {
		entry.slots = m2n__gpu_address(tx->slots);
		entry.region = m2n__gpu_address(tx->region);
		return entry;
	}
	entry.slots = m2n__gpu_address(tx->stage.mem->base);
	entry.region = tx->bounce.mem ? m2n__gpu_address(tx->bounce.mem->base) : 0;
	entry.post = m2n__gpu_address(links->posts + i * links->x->spec.n_slots);
	return entry;
}

/* The link by which rounds go to the rank whose replies come here; NULL: no replies come here. */
static const struct m2n__tx *asked(const struct m2n__gpu_links *links, size_t i)
{
	return links == &links->gpu->reply ? &links->gpu->dispatch.x->tx[i] : NULL;
}

/*
 * A process that is new behind its rank answers rounds that were sent to it. Kernels that wait for
 * the old one need not have looked between the two: the first round tells them.
 */
static struct m2n__gpu_rx rx_entry(struct m2n__gpu_links *links, size_t i)
{
	const struct m2n__rx *rx = &links->x->rx[i];
	const struct m2n__tx *tx = asked(links, i);
	size_t words = 2 * (size_t)links->x->spec.n_slots;
	struct m2n__gpu_rx entry = {0};

	if (!m2n__rx_up(rx) || (tx && !m2n__tx_up(tx)))
		return entry;
	entry.slots = m2n__gpu_address(rx->slots);
	entry.first_round = atomic_load_explicit(
		tx ? &tx->first_round : &rx->first_round, memory_order_relaxed);
	if (!rx->mapped) {
		entry.arrived = m2n__gpu_address(links->arrived + i * words);
		entry.seen = m2n__gpu_address(links->seen + i * words);
	}
	return entry;
}

static int write_tx(struct m2n__gpu_links *links, size_t i, const struct m2n__gpu_tx *want)
{
	struct m2n__gpu_tx *have = &links->tx[i], *at = &links->tx_table[i];
	struct m2n__cuda *cuda = links->gpu->cuda;
	uint32_t down = 0;
	int rc = 0;

	if (have->live)
		rc = m2n__cuda_write(cuda, &at->live, &down, sizeof(down));
	if (!rc && want->live) {
		struct m2n__gpu_tx dead = *want;

		dead.live = 0;
		rc = m2n__cuda_write(cuda, at, &dead, sizeof(dead));
	}
	if (!rc && want->live)
		rc = m2n__cuda_write(cuda, &at->live, &want->live, sizeof(want->live));
	if (!rc)
		*have = *want;
	return rc;
}

/* A link that starts over counts from 0 on both sides. */
static int write_rx(struct m2n__gpu_links *links, size_t i, const struct m2n__gpu_rx *want)
{
	size_t words = 2 * (size_t)links->x->spec.n_slots;
	struct m2n__cuda *cuda = links->gpu->cuda;
	int rc = 0;

	if (want->arrived) {
		for (size_t w = 0; w < words; w++)
			atomic_store_explicit(
				&links->arrived[i * words + w], 0, memory_order_relaxed);
		rc = m2n__cuda_write(
			cuda, links->seen + i * words, links->zeros, words * sizeof(*links->zeros));
	}
	if (!rc)
		rc = m2n__cuda_write(cuda, &links->rx_table[i], want, sizeof(*want));
	if (!rc)
		links->rx[i] = *want;
	return rc;
}

static int update_rx(struct m2n__gpu_links *links, size_t i)
{
	struct m2n__gpu_rx want = rx_entry(links, i);
	int rc = 0;

	if (!want.slots) { /* what had arrived is still there to be taken */
		atomic_store_explicit(&links->alive[i], 0, memory_order_release);
		return 0;
	}
	if (memcmp(&want, &links->rx[i], sizeof(want)) ||
		!atomic_load_explicit(&links->alive[i], memory_order_relaxed))
		rc = write_rx(links, i, &want);
	if (!rc) /* R12: the table before it, pairs with A12 in the kernels' waits. */
		atomic_store_explicit(&links->alive[i], 1, memory_order_release);
	return rc;
}

/* Messages need the progress thread, and what arrives a flush: is there one? */
static int note_messaging(struct m2n__gpu_links *links)
{
	int found = 0, rc = 0;

	for (size_t i = 0; i < links->x->n_tx; i++)
		found |= m2n__tx_up(&links->x->tx[i]) && is_messaging(links->x->tx[i].ep);
	for (size_t i = 0; i < links->x->n_rx && !rc; i++) {
		const struct m2n__rx *rx = &links->x->rx[i];

		if (!m2n__rx_up(rx) || rx->mapped)
			continue;
		found = 1;
		rc = rx->ep->ops->flush_device(rx->ep->iface);
	}
	if (found)
		atomic_store_explicit(&links->is_messaging, 1, memory_order_release);
	return rc;
}

static int update_all_rx(struct m2n__gpu_links *links)
{
	int rc = 0;

	for (size_t i = 0; i < links->x->n_rx && !rc; i++)
		rc = update_rx(links, i);
	return rc;
}

int m2n__gpu_links_changed(struct m2n__gpu_links *links)
{
	int rc = note_messaging(links);

	if (!rc)
		rc = update_all_rx(links);
	if (!rc && links == &links->gpu->dispatch) /* what replies come, hangs on it */
		rc = update_all_rx(&links->gpu->reply);
	for (size_t i = 0; i < links->x->n_tx && !rc; i++) {
		struct m2n__gpu_tx want = tx_entry(links, i);

		if (memcmp(&want, &links->tx[i], sizeof(want)))
			rc = write_tx(links, i, &want);
	}
	return rc;
}

int m2n__gpu_count(struct m2n__gpu_links *links, int is_tx, size_t i, struct m2n_counters *counters)
{
	const struct m2n__gpu_count *at = is_tx ? &links->tx_counts[i] : &links->rx_counts[i];
	struct m2n__gpu_count now;
	int rc = m2n__cuda_read(links->gpu->cuda, &now, at, sizeof(now));

	if (rc)
		return rc;
	counters->n_rounds = now.n_rounds;
	counters->n_rows = now.n_rows;
	counters->bytes = now.bytes;
	return 0;
}

static int side_is_busy(const struct m2n__gpu *gpu, const struct m2n__gpu_side *side)
{
	/* A17: pairs with R17 in gpu_round.c. A call that begins later finds the link down. */
	if (atomic_load_explicit(&side->in_call, memory_order_seq_cst))
		return 1;
	return atomic_load_explicit(&side->has_work, memory_order_relaxed) &&
	       gpu->cuda->driver->event_query(side->event) == M2N__CU_NOT_READY;
}

int m2n__gpu_is_busy(const struct m2n__gpu *gpu)
{
	int busy, mode;

	if (m2n__cuda_enter_relaxed(gpu->cuda, &mode))
		return 0;
	busy = side_is_busy(gpu, &gpu->source) || side_is_busy(gpu, &gpu->expert);
	m2n__cuda_leave_relaxed(gpu->cuda, &mode);
	return busy;
}
