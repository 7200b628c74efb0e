/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact placement, source side: rows leave when the expert rank's grant has come. A grant names
 * the region slot and, per local expert, the row where this source's rows go (with dedup: one
 * place for all). Whoever waits on the context answers grants; one thread at a time does.
 */
#include <sched.h>
#include <string.h>

#include "core/channel.h"
#include "core/rows.h"
#include "util/error.h"

static size_t region_rows_offset(const struct m2n_channel *ch)
{
	size_t scales = ch->region_rows * ch->p.scale_bytes;

	return (scales + M2N__CACHE_LINE - 1) / M2N__CACHE_LINE * M2N__CACHE_LINE;
}

/* Travelling rows [first, end) to row `at` of the region slot that starts at `base`. */
static int send_range(struct m2n_channel *ch, struct m2n__open *open, uint32_t slot, uint32_t j,
	uint32_t first, uint32_t end, size_t base, uint32_t at, uint32_t *n_puts)
{
	struct m2n__tx *tx = &ch->dispatch->tx[j];
	size_t scales = base + at * ch->p.scale_bytes, pieces, n_scales;
	size_t rows = base + region_rows_offset(ch) + at * ch->p.row_bytes;
	int rc;

	if (first == end)
		return 0;
	if (tx->slots) {
		m2n__rows_store_range(ch, open, first, end, tx->region + rows, tx->region + scales);
		return 0;
	}
	pieces = m2n__rows_gather(ch, open, slot, first, end, 0, ch->pieces, 0, tx);
	/* the list is scales, then rows: they go to two places */
	for (n_scales = 0, rc = 0; n_scales < pieces && ch->p.scale_bytes; n_scales++) {
		if (rc == (int)((end - first) * ch->p.scale_bytes))
			break;
		rc += (int)ch->pieces[n_scales].bytes;
	}
	rc = n_scales
		     ? m2n__tx_put_region(
			       ch->dispatch, tx, slot, scales, ch->pieces, n_scales, n_puts)
		     : 0;
	return rc ? rc
		  : m2n__tx_put_region(ch->dispatch, tx, slot, rows, ch->pieces + n_scales,
			    pieces - n_scales, n_puts);
}

/* A grant is a peer's bytes: places must lie in the region. */
static int check_grant(const struct m2n_channel *ch, const struct m2n_plan *plan, uint32_t j,
	const struct m2n__slot_head *head, const uint32_t *at)
{
	const uint32_t *instances = plan->map->rank_first;
	const struct m2n__exchange_spec *spec = &ch->dispatch->spec;
	int bad = head->place >= spec->n_region_slots + spec->n_spare_slots;

	if (ch->p.dedup)
		bad |= (uint64_t)at[0] + (plan->unique_first[j + 1] - plan->unique_first[j]) >
		       ch->region_rows;
	for (uint32_t i = instances[j]; !ch->p.dedup && i < instances[j + 1]; i++)
		bad |= (uint64_t)at[i - instances[j]] + plan->count[i] > ch->region_rows;
	return bad ? m2n__error(M2N_ERR_PROTOCOL, "%s: rank %d granted a place outside its region",
			     ch->title, ch->dispatch->tx[j].peer->rank)
		   : 0;
}

static int answer(struct m2n_channel *ch, struct m2n__open *open, uint32_t slot, uint32_t j)
{
	const struct m2n_plan *plan = open->send.plan;
	const uint32_t *instances = plan->map->rank_first;
	const struct m2n__slot_head *head = m2n__rx_head(ch->grant, &ch->grant->rx[j], slot);
	const uint32_t *at = (const uint32_t *)(head + 1);
	uint32_t row = plan->rank_first[j], n_puts = 0;
	size_t base = head->place * ch->dispatch->spec.region_bytes;
	int rc = check_grant(ch, plan, j, head, at);

	if (!rc && ch->p.dedup)
		rc = send_range(ch, open, slot, j, plan->unique_first[j], plan->unique_first[j + 1],
			base, at[0], &n_puts);
	for (uint32_t i = instances[j]; !ch->p.dedup && !rc && i < instances[j + 1]; i++) {
		rc = send_range(ch, open, slot, j, row, row + plan->count[i], base,
			at[i - instances[j]], &n_puts);
		row += plan->count[i];
	}
	if (!rc)
		rc = m2n__tx_body_signal(
			ch->dispatch, &ch->dispatch->tx[j], slot, open->round, n_puts);
	if (!rc)
		m2n__tx_notify(&ch->dispatch->tx[j]);
	return rc;
}

/* Is the process behind the rank the one that got the head? */
static int knows_round(const struct m2n__tx *tx, uint64_t round)
{
	return m2n__tx_gets(tx, round);
}

static void answer_round(struct m2n_channel *ch, struct m2n__open *open, uint32_t slot)
{
	for (uint32_t j = 0; j < ch->dispatch->n_tx && open->n_ungranted; j++) {
		struct m2n__rx *rx = &ch->grant->rx[j];

		if (!m2n__bit(open->ungranted, j))
			continue;
		if (knows_round(&ch->dispatch->tx[j], open->round) &&
			!(m2n__rx_ready(ch->grant, rx, slot, open->round) &&
				m2n__rx_whole(ch->grant, rx, slot)))
			continue;
		m2n__bit_clear(open->ungranted, j);
		open->n_ungranted--;
		if (!knows_round(&ch->dispatch->tx[j], open->round))
			continue; /* combine_recv reports what is missing */
		m2n__rx_take(ch->grant, rx, slot, 1);
		if (m2n__rx_head(ch->grant, rx, slot)->flags & M2N__SLOT_REFUSED) {
			m2n__bit_set(open->refused, j);
		} else if (answer(ch, open, slot, j)) {
			m2n__log(&ch->ctx->log, M2N_LOG_ERROR, "%s", m2n_error_text());
			m2n_group_drop(ch->group, ch->dispatch->tx[j].peer->rank);
		}
	}
}

void m2n__grants_lock(struct m2n_channel *ch)
{
	while (atomic_flag_test_and_set_explicit(&ch->granting, memory_order_acquire))
		sched_yield();
}

void m2n__grants_unlock(struct m2n_channel *ch)
{
	atomic_flag_clear_explicit(&ch->granting, memory_order_release);
}

void m2n__forget_grants(struct m2n_channel *ch, struct m2n__open *open)
{
	if (!open->n_ungranted)
		return;
	m2n__grants_lock(ch);
	memset(open->ungranted, 0, ch->n_words_experts * sizeof(*open->ungranted));
	open->n_ungranted = 0;
	atomic_fetch_sub_explicit(&ch->ctx->n_ungranted, 1, memory_order_relaxed);
	m2n__grants_unlock(ch);
}

void m2n__send_granted(struct m2n_channel *ch)
{
	if (ch->p.placement != M2N_PLACEMENT_EXACT || ch->self_source < 0)
		return;
	if (atomic_flag_test_and_set_explicit(&ch->granting, memory_order_acquire))
		return;
	m2n__exchange_enter(ch->dispatch, M2N__WRITER_GRANT);
	for (uint32_t slot = 0; slot < ch->p.depth; slot++)
		if (ch->open[slot].n_ungranted) {
			answer_round(ch, &ch->open[slot], slot);
			if (!ch->open[slot].n_ungranted)
				atomic_fetch_sub_explicit(
					&ch->ctx->n_ungranted, 1, memory_order_relaxed);
		}
	m2n__exchange_exit(ch->dispatch, M2N__WRITER_GRANT);
	m2n__grants_unlock(ch);
}

void m2n__grants_send(struct m2n_ctx *ctx)
{
	if (pthread_mutex_trylock(&ctx->lock))
		return;
	for (struct m2n_channel *ch = ctx->exact; ch; ch = ch->next_exact)
		m2n__send_granted(ch);
	pthread_mutex_unlock(&ctx->lock);
}
