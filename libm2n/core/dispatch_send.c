/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Source side of a round: heads and rows to the expert ranks.
 *
 * Mapped peers: rows are stored straight into the peers' slots, token by token so that a row is
 * read once for all its copies, and the signals go last. Messaging peers: head, counts and rows
 * leave as one gather list from the caller's memory; only rows that do not exist as bytes (a
 * cast, a weight) are made in staging first, and counted.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/gpu.h"
#include "core/rows.h"
#include "util/error.h"

/* The params that most rounds leave alone. */
static int check_options(struct m2n_channel *ch, const struct m2n_dispatch_send_params *p)
{
	if (p->row_weights && (ch->p.cast || ch->p.dedup))
		return m2n__error(-EINVAL, "%s: row_weights do not go with %s", ch->title,
			ch->p.cast ? "a cast" : "dedup");
	if (p->row_weights && ch->p.row_bytes % m2n__dtype_bytes(ch->p.dtype))
		return m2n__error(-EINVAL,
			"%s: row_weights: row_bytes %zu is no multiple of the dtype", ch->title,
			ch->p.row_bytes);
	if (p->plan->n_rows && ch->p.scale_bytes && !ch->p.cast && !p->scales)
		return m2n__error(-EINVAL, "%s: the channel has scale_bytes %zu, scales is NULL",
			ch->title, ch->p.scale_bytes);
	if (p->row_stride && p->row_stride < ch->p.row_bytes * (ch->p.cast ? 2 : 1))
		return m2n__error(-EINVAL, "%s: row_stride %zu, at least %zu", ch->title,
			p->row_stride, ch->p.row_bytes * (ch->p.cast ? 2 : 1));
	if (p->scale_stride && p->scale_stride < ch->p.scale_bytes)
		return m2n__error(-EINVAL, "%s: scale_stride %zu, at least %zu", ch->title,
			p->scale_stride, ch->p.scale_bytes);
	if (p->stream && !ch->gpu)
		return m2n__error(-EINVAL, "%s: stream: the channel's memory is HOST", ch->title);
	if (p->sink >= (int)ch->p.n_sinks ||
		(ch->own_sinks && p->sink >= 0 && p->sink != ch->self_source))
		return m2n__error(-EINVAL, "%s: sink %d, accepted: %s", ch->title, p->sink,
			ch->own_sinks ? "-1: the sinks are the sources" : "an index of the list");
	if (!ch->own_sinks && p->sink < 0 && (size_t)ch->self_source >= ch->p.n_sinks)
		return m2n__error(-EINVAL, "%s: sink -1, but source %d has no sink of its index",
			ch->title, ch->self_source);
	return 0;
}

static int check(struct m2n_channel *ch, const struct m2n_dispatch_send_params *p)
{
	const struct m2n_plan *plan = p->plan;

	if (ch->self_source < 0)
		return m2n__error(
			-EINVAL, "%s: rank %d is not a source", ch->title, ch->group->rank);
	if (!plan || (plan->n_rows && !p->rows))
		return m2n__error(-EINVAL, "%s: dispatch_send: %s is NULL", ch->title,
			plan ? "rows" : "plan");
	if (plan->limits.n_ranks != ch->p.n_expert_ranks || plan->limits.top_k != ch->p.top_k ||
		plan->limits.dedup != !!ch->p.dedup)
		return m2n__error(-EINVAL, "%s: the plan was made for another channel", ch->title);
	if (p->row_weights || (p->row_stride | p->scale_stride | ch->p.scale_bytes) || p->stream ||
		p->sink >= 0 || !ch->own_sinks)
		return check_options(ch, p);
	return 0;
}

/* In a context with a device: the addresses must not be its. */
static int check_memory(struct m2n_channel *ch, const struct m2n_dispatch_send_params *p)
{
	int rc = m2n__check_host(ch, "rows", p->rows);

	if (!rc)
		rc = m2n__check_host(ch, "scales", p->scales);
	if (!rc)
		rc = m2n__check_host(ch, "row_weights", p->row_weights);
	return rc;
}

static inline void clear_word(struct m2n__open *open, uint32_t w)
{
	open->part[w] = open->answered[w] = open->refused[w] = open->ungranted[w] = 0;
}

static int note_unsent(
	struct m2n_channel *ch, const struct m2n_plan *plan, uint32_t j, uint64_t round)
{
	const struct m2n__peer *peer = ch->dispatch->tx[j].peer;
	uint32_t n = plan->rank_first[j + 1] - plan->rank_first[j];

	if (!n)
		return 0;
	return m2n__error(M2N_PARTIAL, "%s: round %lu: %u rows for rank %d go nowhere: %s",
		ch->title, (unsigned long)round, n, peer->rank,
		peer->reason[0] ? peer->reason : "it is masked or not linked");
}

/* Who takes part: links up, admitted to this round, in the mask. PARTIAL if rows go nowhere. */
static int choose_peers(struct m2n_channel *ch, const struct m2n_dispatch_send_params *p,
	struct m2n__open *open, uint64_t round)
{
	int rc = 0;

	for (uint32_t j = 0; j < ch->dispatch->n_tx; j++) {
		if (j % 64 == 0)
			clear_word(open, j / 64);
		ch->row_base[j] = NULL;
		if (m2n__tx_gets(&ch->dispatch->tx[j], round) && (!p->mask || m2n__bit(p->mask, j)))
			m2n__bit_set(open->part, j);
		else if (note_unsent(ch, p->plan, j, round))
			rc = M2N_PARTIAL;
	}
	return rc;
}

/* Sinks that are not the sources: each expert rank must have given the slot back. */
static int wait_credits(struct m2n_channel *ch, struct m2n__open *open, uint32_t slot,
	uint64_t round, int64_t timeout_ns)
{
	struct m2n__wait w;
	uint32_t j = 0;
	int rc = 0;

	m2n__wait_begin(&w, ch->ctx, timeout_ns);
	while (j < ch->dispatch->n_tx && !rc) {
		struct m2n__tx *tx = &ch->dispatch->tx[j];

		if (!m2n__bit(open->part, j) || m2n__tx_free(ch->dispatch, tx, slot))
			j++;
		else if (!m2n__tx_up(tx))
			m2n__bit_clear(open->part, j);
		else
			rc = m2n__wait_step(&w);
	}
	m2n__wait_end(&w);
	if (w.start_ns && j)
		m2n__tally_add(
			&ch->dispatch->tx[j - 1].tally.wait_ns, (uint64_t)m2n__waited_ns(&w));
	return rc == -ETIMEDOUT
		       ? m2n__error(rc, "%s: round %lu: rank %d has not given slot %u back",
				 ch->title, (unsigned long)round, ch->dispatch->tx[j].peer->rank,
				 slot)
		       : rc;
}

static inline void fill_head(struct m2n_channel *ch, const struct m2n__open *open, uint32_t j,
	struct m2n__slot_head *head, struct m2n__layout *l)
{
	const struct m2n_plan *plan = open->send.plan;
	uint32_t n_local = plan->map->rank_first[j + 1] - plan->map->rank_first[j];

	head->n_rows = plan->rank_first[j + 1] - plan->rank_first[j];
	head->n_sent = plan->unique_first[j + 1] - plan->unique_first[j];
	head->map_digest = plan->map->digest;
	head->sink = (uint32_t)(open->send.sink < 0 ? ch->self_source : open->send.sink);
	head->place = plan->reply_first[j] * (uint64_t)ch->p.out_row_bytes;
	if (ch->own_sinks) /* a sink of its own places by (slot, source) itself */
		head->place += open->place * (uint64_t)ch->reply->spec.region_bytes;
	head->n_body_puts = 0;
	head->flags = 0;
	m2n__layout(ch, n_local, head->n_rows, head->n_sent, l);
	head->bytes = l->end;
}

/* Counts, index and weights: all of the payload but scales and rows. */
static inline void fill_meta(struct m2n_channel *ch, const struct m2n_plan *plan, uint32_t j,
	const struct m2n__layout *l, uint8_t *payload)
{
	const uint32_t *first = plan->map->rank_first;
	uint32_t *index = (uint32_t *)(payload + l->index);
	float *weights = (float *)(payload + l->weights);

	memcpy(payload, plan->count + first[j], (first[j + 1] - first[j]) * sizeof(uint32_t));
	if (!ch->p.dedup)
		return;
	for (uint32_t r = plan->rank_first[j]; r < plan->rank_first[j + 1]; r++)
		*index++ = plan->row_unique[r] - plan->unique_first[j];
	for (uint32_t r = plan->rank_first[j];
		ch->p.reduce_at_expert && r < plan->rank_first[j + 1]; r++)
		*weights++ = plan->weight[plan->row_pair[r]];
}

static void prepare_mapped(
	struct m2n_channel *ch, const struct m2n__open *open, uint32_t j, uint32_t slot)
{
	struct m2n__tx *tx = &ch->dispatch->tx[j];
	struct m2n__slot_head *head = m2n__tx_head(ch->dispatch, tx, slot);
	uint8_t *payload = (uint8_t *)head + sizeof(*head);
	struct m2n__layout l;

	fill_head(ch, open, j, head, &l);
	fill_meta(ch, open->send.plan, j, &l, payload);
	ch->row_base[j] = payload + l.rows;
	ch->scale_base[j] = payload + l.scales;
}

static void count_round(struct m2n_channel *ch, const struct m2n_plan *plan, uint32_t j)
{
	struct m2n__tally *tally = &ch->dispatch->tx[j].tally;
	uint32_t n_sent = plan->unique_first[j + 1] - plan->unique_first[j];

	m2n__tally_add(&tally->n_rounds, 1);
	m2n__tally_add(&tally->n_rows, plan->rank_first[j + 1] - plan->rank_first[j]);
	m2n__tally_add(&tally->bytes, n_sent * (uint64_t)(ch->p.row_bytes + ch->p.scale_bytes));
}

/* One peer by messages: head, meta and, with slot placement, rows in one gather list. */
static int send_messages(
	struct m2n_channel *ch, const struct m2n__open *open, uint32_t j, uint32_t slot)
{
	const struct m2n_plan *plan = open->send.plan;
	struct m2n__tx *tx = &ch->dispatch->tx[j];
	uint8_t *meta = m2n__tx_stage(ch->dispatch, tx, slot);
	struct m2n__slot_head head = {0};
	struct m2n__layout l;
	size_t n = 1;

	fill_head(ch, open, j, &head, &l);
	fill_meta(ch, plan, j, &l, meta);
	ch->pieces[0] = (struct m2n__piece){meta, l.scales, tx->stage.reg};
	if (ch->p.placement == M2N_PLACEMENT_SLOT)
		n = m2n__rows_gather(ch, open, slot, plan->unique_first[j],
			plan->unique_first[j + 1], l.rows - l.scales, ch->pieces, n, tx);
	return m2n__tx_put_slot(ch->dispatch, tx, slot, open->round, &head, ch->pieces, n);
}

/* Everything that goes out at once: heads, and rows unless they wait for a grant. */
static void send_all(struct m2n_channel *ch, struct m2n__open *open, uint32_t slot)
{
	struct m2n_exchange *x = ch->dispatch;
	const struct m2n_plan *plan = open->send.plan;
	int any_mapped = 0;

	for (uint32_t j = 0; j < x->n_tx; j++) {
		if (!m2n__bit(open->part, j) || !x->tx[j].slots)
			continue;
		any_mapped = 1;
		prepare_mapped(ch, open, j, slot);
	}
	if (any_mapped && ch->p.placement == M2N_PLACEMENT_SLOT)
		m2n__rows_store(ch, open);
	for (uint32_t j = 0; j < x->n_tx; j++) {
		struct m2n__tx *tx = &x->tx[j];

		if (!m2n__bit(open->part, j))
			continue;
		if (tx->slots)
			m2n__tx_signal(x, tx, slot, open->round);
		else if (send_messages(ch, open, j, slot))
			m2n__bit_clear(
				open->part, j); /* the link is broken: it will show as lost */
		count_round(ch, plan, j);
	}
	for (uint32_t j = 0; j < x->n_tx; j++)
		if (m2n__bit(open->part, j) && x->tx[j].slots)
			m2n__tx_notify(&x->tx[j]);
}

static void expect_grants(struct m2n_channel *ch, struct m2n__open *open)
{
	const struct m2n_plan *plan = open->send.plan;

	for (uint32_t j = 0; j < ch->dispatch->n_tx; j++) {
		if (!m2n__bit(open->part, j) || plan->rank_first[j] == plan->rank_first[j + 1])
			continue;
		m2n__bit_set(open->ungranted, j);
		open->n_ungranted++;
	}
	if (open->n_ungranted)
		atomic_fetch_add_explicit(&ch->ctx->n_ungranted, 1, memory_order_relaxed);
}

static int begin(struct m2n_channel *ch, const struct m2n_dispatch_send_params *p,
	struct m2n__open *open, uint32_t slot, uint64_t round)
{
	int rc = choose_peers(ch, p, open, round), waited = 0;

	if (!ch->own_sinks)
		waited = wait_credits(ch, open, slot, round, p->timeout_ns);
	else
		waited = m2n__region_pick(ch->reply, slot, &open->place);
	if (waited)
		return waited;
	open->send = *p;
	if (!p->row_stride)
		open->send.row_stride = ch->p.row_bytes * (ch->p.cast ? 2 : 1);
	if (!p->scale_stride)
		open->send.scale_stride = ch->p.scale_bytes;
	if (m2n__ctx_is_messaging(ch->ctx)) {
		waited = m2n__rows_prepare(ch, open);
		if (waited)
			return waited;
	}
	open->round = round;
	open->busy = ch->own_sinks;
	return rc;
}

int m2n_dispatch_send(struct m2n_channel *ch, const struct m2n_dispatch_send_params *params)
{
	static const struct m2n_dispatch_send_params init = M2N_DISPATCH_SEND_PARAMS_INIT;
	const struct m2n_dispatch_send_params *p;
	struct m2n_dispatch_send_params copy;
	struct m2n__open *open;
	uint64_t round;
	uint32_t slot;
	int rc;

	p = m2n__params(&copy, sizeof(copy), &init, params, "m2n_dispatch_send_params");
	if (!p || !ch)
		return p ? m2n__error(-EINVAL, "m2n_dispatch_send: channel is NULL") : -EINVAL;
	rc = check(ch, p);
	if (rc)
		return rc;
	if (ch->gpu)
		return m2n__gpu_dispatch_send(ch->gpu, p);
	if (ch->ctx->cuda) {
		rc = check_memory(ch, p);
		if (rc)
			return rc;
	}
	round = atomic_load_explicit(&ch->next_send, memory_order_relaxed);
	if (p->plan->map->digest != m2n__channel_map(ch, round)->digest)
		return m2n__error(M2N_ERR_MAP,
			"%s: round %lu: the plan was routed with another map", ch->title,
			(unsigned long)round);
	slot = m2n__ring_slot(&ch->send_ring, round, ch->p.depth);
	open = &ch->open[slot];
	if (open->n_ungranted)
		m2n__send_granted(ch);
	if (open->busy || open->n_ungranted)
		return m2n__error(-EAGAIN,
			"%s: round %lu still uses the slot of round %lu: call "
			"combine_recv for that one first",
			ch->title, (unsigned long)round, (unsigned long)open->round);
	/* Links that come up from here on start with the next round. */
	atomic_store_explicit(&ch->next_send, round + 1, memory_order_seq_cst);
	while (atomic_load_explicit(&ch->dispatch->linking, memory_order_seq_cst))
		;
	m2n__exchange_enter(ch->dispatch, M2N__WRITER_TX);
	rc = begin(ch, p, open, slot, round);
	if (rc >= 0) {
		if (ch->grant) {
			m2n__grants_lock(ch);
			expect_grants(ch, open);
		}
		send_all(ch, open, slot);
		if (ch->grant)
			m2n__grants_unlock(ch);
	}
	m2n__exchange_exit(ch->dispatch, M2N__WRITER_TX);
	if (rc < 0) {
		atomic_store_explicit(&ch->next_send, round, memory_order_seq_cst);
		return rc;
	}
	if (ch->p.placement == M2N_PLACEMENT_EXACT)
		m2n__send_granted(ch);
	if (p->round)
		*p->round = round;
	return rc;
}

int m2n_send_wait(struct m2n_channel *ch, uint64_t round, int64_t timeout_ns)
{
	struct m2n__wait w;
	int rc = 0, partial = 0;

	if (!ch || ch->self_source < 0)
		return m2n__error(-EINVAL, "m2n_send_wait: not a source of this channel");
	if (ch->gpu)
		return 0; /* in stream order rows may be reused at once */
	m2n__wait_begin(&w, ch->ctx, timeout_ns);
	for (uint32_t i = 0; i < ch->p.depth && !rc; i++) {
		struct m2n__open *open = &ch->open[i];

		while (open->n_ungranted && open->round <= round && !rc) {
			m2n__send_granted(ch);
			if (open->n_ungranted)
				rc = m2n__wait_step(&w);
		}
	}
	m2n__wait_end(&w);
	if (rc)
		return rc == -EAGAIN ? rc
				     : m2n__error(rc,
					       "%s: expert ranks have not granted room for "
					       "rounds up to %lu",
					       ch->title, (unsigned long)round);
	for (uint32_t j = 0; j < ch->dispatch->n_tx && !rc; j++) {
		rc = m2n__tx_flush(ch->dispatch, &ch->dispatch->tx[j], timeout_ns);
		if (rc == M2N_ERR_PEER_LOST) {
			rc = 0;
			partial = M2N_PARTIAL;
		}
	}
	return rc ? rc : partial;
}
