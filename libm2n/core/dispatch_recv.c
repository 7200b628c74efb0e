/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert side of a round: waits for the share of every source, checks what it says (it is a
 * peer's bytes), and lays the batch out in the order local expert, source, (token, k).
 *
 * With exact placement it waits twice: for heads, which it answers with grants, then for bodies.
 * The phase is kept in the channel, so that a call that timed out goes on where it was.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

static struct m2n__rx *rx_of(const struct m2n_channel *ch, uint32_t source)
{
	return &ch->dispatch->rx[source];
}

static int protocol(const struct m2n_channel *ch, uint32_t source, uint64_t round, const char *what,
	uint64_t value, uint64_t limit)
{
	return m2n__error(M2N_ERR_PROTOCOL,
		"%s: round %lu: rank %d sent %s %lu, at most %lu allowed", ch->title,
		(unsigned long)round, ch->p.sources[source], what, (unsigned long)value,
		(unsigned long)limit);
}

static int check_head(struct m2n_channel *ch, struct m2n__batch *b, uint32_t source,
	const struct m2n__slot_head *head, const struct m2n_map *map)
{
	struct m2n__share *share = &b->shares[source];
	uint64_t pairs = (uint64_t)ch->p.max_tokens * ch->p.top_k;
	uint64_t most = ch->slot_rows ? ch->slot_rows : pairs;
	uint64_t n_reply = ch->p.reduce_at_expert ? head->n_sent : head->n_rows;
	uint64_t room =
		ch->reply->spec.region_bytes *
		(ch->own_sinks ? ch->reply->spec.n_region_slots + ch->reply->spec.n_spare_slots
			       : 1);

	if (head->map_digest != map->digest)
		return m2n__error(M2N_ERR_MAP,
			"%s: round %lu: rank %d used expert map %08x, rank %d has %08x", ch->title,
			(unsigned long)b->pub.round, ch->p.sources[source], head->map_digest,
			ch->group->rank, map->digest);
	if (head->n_rows > pairs)
		return protocol(ch, source, b->pub.round, "a number of rows", head->n_rows, pairs);
	if (head->n_sent > most || head->n_sent > head->n_rows)
		return protocol(ch, source, b->pub.round, "a number of travelling rows",
			head->n_sent, most);
	if (head->sink >= ch->p.n_sinks || (ch->own_sinks && head->sink != source))
		return protocol(ch, source, b->pub.round, "sink", head->sink, ch->p.n_sinks - 1);
	if (head->place > room || n_reply * ch->p.out_row_bytes > room - head->place)
		return protocol(ch, source, b->pub.round, "a place for replies", head->place, room);
	share->n_rows = head->n_rows;
	share->n_sent = head->n_sent;
	share->sink = head->sink;
	share->place = head->place;
	return 0;
}

/* Counts are copied before they are checked: the peer could still change the slot. */
static int take_counts(
	struct m2n_channel *ch, struct m2n__batch *b, uint32_t source, const uint8_t *payload)
{
	const uint32_t *from = (const uint32_t *)payload, *end = from + b->n_local;
	uint32_t *to = b->counts + source;
	size_t n_sources = ch->p.n_sources;
	uint64_t sum = 0;

	for (; from < end; from++, to += n_sources) {
		uint32_t n = *from;

		*to = n;
		sum += n;
	}
	return sum == b->shares[source].n_rows
		       ? 0
		       : protocol(ch, source, b->pub.round, "counts that add up to", sum,
				 b->shares[source].n_rows);
}

static int check_index(
	struct m2n_channel *ch, struct m2n__batch *b, uint32_t source, const uint32_t *index)
{
	const struct m2n__share *share = &b->shares[source];

	for (uint32_t r = 0; r < share->n_rows; r++)
		if (index[r] >= share->n_sent)
			return protocol(ch, source, b->pub.round, "an index of", index[r],
				share->n_sent ? share->n_sent - 1 : 0);
	return 0;
}

/* The head of one source is here: read it. */
static int take_head(struct m2n_channel *ch, struct m2n__batch *b, uint32_t source,
	struct m2n__rx *rx, uint32_t slot, const struct m2n_map *map)
{
	struct m2n__share *share = &b->shares[source];
	const struct m2n__slot_head *head = m2n__rx_head(ch->dispatch, rx, slot);
	struct m2n__layout l;
	int rc = check_head(ch, b, source, head, map);

	if (rc)
		return rc;
	share->payload = (const uint8_t *)(head + 1);
	m2n__layout(ch, b->n_local, share->n_rows, share->n_sent, &l);
	rc = take_counts(ch, b, source, share->payload);
	if (!rc && ch->p.dedup)
		rc = check_index(ch, b, source, (const uint32_t *)(share->payload + l.index));
	if (rc)
		return rc;
	share->index = ch->p.dedup ? (const uint32_t *)(share->payload + l.index) : NULL;
	share->rows = share->payload + l.rows;
	share->scales = ch->p.scale_bytes ? share->payload + l.scales : NULL;
	if (ch->p.placement == M2N_PLACEMENT_EXACT && share->n_rows) {
		share->state = SHARE_HEAD;
		return 0;
	}
	m2n__rx_take(ch->dispatch, rx, slot, 1);
	share->state = SHARE_PRESENT;
	return 0;
}

static void account(const struct m2n_channel *ch, struct m2n__batch *b,
	const struct m2n__share *share, struct m2n__tally *tally, const struct m2n__wait *w)
{
	b->n_present++;
	b->n_present_rows += share->n_rows;
	m2n__tally_add(&tally->n_rounds, 1);
	m2n__tally_add(&tally->n_rows, share->n_rows);
	m2n__tally_add(
		&tally->bytes, share->n_sent * (uint64_t)(ch->p.row_bytes + ch->p.scale_bytes));
	if (w->start_ns)
		m2n__tally_add(&tally->wait_ns, (uint64_t)m2n__waited_ns(w));
}

/* Looks once at one source. 1: settled; 0: still awaited; negative: it sent nonsense. */
static int look(struct m2n_channel *ch, struct m2n__batch *b, uint32_t source, uint32_t slot,
	const struct m2n_map *map, const struct m2n__wait *w)
{
	struct m2n__rx *rx = rx_of(ch, source);
	struct m2n__share *share = &b->shares[source];
	uint64_t round = b->pub.round;
	int rc = 0;

	if (share->state == SHARE_AWAITED && rx->slots &&
		m2n__rx_ready(ch->dispatch, rx, slot, round) &&
		(ch->p.placement == M2N_PLACEMENT_EXACT || m2n__rx_whole(ch->dispatch, rx, slot)))
		rc = take_head(ch, b, source, rx, slot, map);
	else if (share->state == SHARE_HEAD && m2n__rx_body_ready(ch->dispatch, rx, slot, round)) {
		m2n__rx_take(ch->dispatch, rx, slot, 2);
		share->state = SHARE_PRESENT;
	} else if (!m2n__rx_comes(rx, round) && !m2n__rx_gets(rx, round))
		/* what had arrived was looked at first */
		share->state = share->state == SHARE_HEAD ? SHARE_LOST : SHARE_ABSENT;
	if (rc)
		return rc;
	if (share->state == SHARE_PRESENT)
		account(ch, b, share, &rx->tally, w);
	return share->state != SHARE_AWAITED && (share->state != SHARE_HEAD || !ch->recv_phase);
}

/* A source whose bytes make no sense is dropped: it must not hurt the others. */
static void expel(struct m2n_channel *ch, struct m2n__batch *b, uint32_t source)
{
	char text[256];

	snprintf(text, sizeof(text), "%s", m2n_error_text());
	m2n__log(&ch->ctx->log, M2N_LOG_ERROR, "%s", text);
	m2n_group_drop(ch->group, ch->p.sources[source]);
	m2n__error(M2N_PARTIAL, "%s", text);
	b->shares[source].state = SHARE_ABSENT;
}

static int timed_out(struct m2n_channel *ch, struct m2n__batch *b, int rc)
{
	char ranks[160] = "";
	size_t at = 0;

	if (rc == -EAGAIN)
		return rc;
	for (uint32_t i = 0; i < ch->p.n_sources && at < sizeof(ranks); i++)
		if (b->shares[i].state == SHARE_AWAITED || b->shares[i].state == SHARE_HEAD)
			at += (size_t)snprintf(
				ranks + at, sizeof(ranks) - at, " %d", ch->p.sources[i]);
	return m2n__error(rc, "%s: round %lu: nothing came from ranks%s", ch->title,
		(unsigned long)b->pub.round, ranks);
}

/* Waits until one source is settled for this phase. */
static int await_source(struct m2n_channel *ch, struct m2n__batch *b, uint32_t source,
	uint32_t slot, const struct m2n_map *map, struct m2n__wait *w)
{
	int seen, rc = 0;

	while (!rc) {
		seen = look(ch, b, source, slot, map, w);
		if (seen > 0)
			return 0;
		if (seen == M2N_ERR_MAP)
			return seen;
		if (seen < 0) {
			expel(ch, b, source);
			return 0;
		}
		m2n__send_granted(ch);
		rc = m2n__wait_step(w);
	}
	return rc;
}

static int await(struct m2n_channel *ch, struct m2n__batch *b, uint32_t slot,
	const struct m2n_map *map, int64_t timeout_ns)
{
	int wanted = ch->recv_phase ? SHARE_HEAD : SHARE_AWAITED;
	struct m2n__wait w;
	int rc = 0;

	m2n__wait_begin(&w, ch->ctx, timeout_ns);
	for (uint32_t i = 0; i < ch->p.n_sources && !rc; i++)
		if ((int)b->shares[i].state == wanted)
			rc = await_source(ch, b, i, slot, map, &w);
	m2n__wait_end(&w);
	return rc == -EAGAIN || rc == -ETIMEDOUT ? timed_out(ch, b, rc) : rc;
}

/* Exact placement: where each source's rows of each local expert go, and who finds no room. */
static void place_rows(struct m2n_channel *ch, struct m2n__batch *b)
{
	uint32_t n_sources = (uint32_t)ch->p.n_sources, at = 0;
	uint64_t total = 0;

	for (uint32_t i = 0; i < n_sources; i++) {
		struct m2n__share *share = &b->shares[i];
		uint32_t n = ch->p.dedup ? share->n_sent : share->n_rows;

		if (share->state != SHARE_HEAD)
			continue;
		if (total + n > ch->region_rows) {
			share->state = SHARE_REFUSED;
			continue;
		}
		share->region_row = (uint32_t)total;
		total += n;
	}
	for (uint32_t e = 0; e < b->n_local; e++)
		for (uint32_t i = 0; i < n_sources; i++) {
			b->first[e * n_sources + i] = at;
			if (b->shares[i].state == SHARE_HEAD)
				at += b->counts[e * n_sources + i];
		}
}

static void send_grant(struct m2n_channel *ch, struct m2n__batch *b, uint32_t source, uint32_t slot)
{
	struct m2n_exchange *x = ch->grant;
	struct m2n__tx *tx = &x->tx[source];
	struct m2n__share *share = &b->shares[source];
	uint32_t n_sources = (uint32_t)ch->p.n_sources;
	struct m2n__slot_head staged = {0}, *head = &staged;
	uint32_t *at;

	if (!m2n__tx_up(tx))
		return;
	if (tx->slots)
		head = m2n__tx_head(x, tx, slot);
	at = tx->slots ? (uint32_t *)(head + 1) : (uint32_t *)m2n__tx_stage(x, tx, slot);
	head->place = b->place;
	head->flags = share->state == SHARE_REFUSED ? M2N__SLOT_REFUSED : 0;
	head->bytes = b->n_local * sizeof(*at);
	for (uint32_t e = 0; e < b->n_local; e++)
		at[e] = ch->p.dedup ? share->region_row : b->first[e * n_sources + source];
	if (tx->slots) {
		m2n__tx_signal(x, tx, slot, b->pub.round);
		m2n__tx_notify(tx);
	} else {
		struct m2n__piece piece = {at, head->bytes, tx->stage.reg};

		(void)m2n__tx_put_slot(x, tx, slot, b->pub.round, head, &piece, 1);
	}
	/* a refused source sends no body: its head is all there is to take */
	if (share->state == SHARE_REFUSED)
		m2n__rx_take(ch->dispatch, rx_of(ch, source), slot, 1);
}

static int grant_all(struct m2n_channel *ch, struct m2n__batch *b, uint32_t slot)
{
	int rc = m2n__region_pick(ch->dispatch, slot, &b->place);

	if (rc)
		return rc;
	place_rows(ch, b);
	m2n__exchange_enter(ch->grant, M2N__WRITER_TX);
	for (uint32_t i = 0; i < ch->p.n_sources; i++)
		if (b->shares[i].state == SHARE_HEAD || b->shares[i].state == SHARE_REFUSED)
			send_grant(ch, b, i, slot);
	m2n__exchange_exit(ch->grant, M2N__WRITER_TX);
	return 0;
}

static void point_into_region(struct m2n_channel *ch, struct m2n__batch *b)
{
	size_t scales = (ch->region_rows * ch->p.scale_bytes + M2N__CACHE_LINE - 1) /
			M2N__CACHE_LINE * M2N__CACHE_LINE;
	const uint8_t *base = (const uint8_t *)ch->dispatch->region.mem->base +
			      b->place * ch->dispatch->spec.region_bytes;

	for (uint32_t i = 0; i < ch->p.n_sources; i++) {
		struct m2n__share *share = &b->shares[i];

		share->rows =
			base + scales + (ch->p.dedup ? share->region_row : 0) * ch->p.row_bytes;
		share->scales = ch->p.scale_bytes ? base + (ch->p.dedup ? share->region_row : 0) *
								    ch->p.scale_bytes
						  : NULL;
	}
	/* rows of a source that died in between leave a hole: then there is no one block */
	if (!ch->p.dedup) {
		b->pub.rows = base + scales;
		b->pub.scales = ch->p.scale_bytes ? base : NULL;
	}
}

/* The next segment of a batch: the rows of one cell. */
static void add_segment(struct m2n_channel *ch, struct m2n__batch *b, uint32_t cell, uint32_t e,
	uint32_t source, int32_t expert)
{
	struct m2n__share *share = &b->shares[source];
	uint32_t number = b->pub.n_segments++;
	struct m2n_segment *s = &b->segments[number];
	int exact = ch->p.placement == M2N_PLACEMENT_EXACT && !ch->p.dedup;
	uint32_t at = exact ? b->first[cell] : share->n_laid; /* behind share->rows */

	s->expert = expert;
	s->local_expert = e;
	s->source = source;
	s->first_row = b->pub.n_rows;
	s->n_rows = b->counts[cell];
	s->index = NULL;
	if (share->index) {
		s->index = share->index + at;
		at = 0;
	}
	s->rows = share->rows + at * ch->p.row_bytes;
	s->scales = share->scales ? share->scales + at * ch->p.scale_bytes : NULL;
	b->first[cell] = s->first_row;
	share->n_laid += s->n_rows;
	*share->link = number + 1;
	share->link = &b->next_segment[number];
	*share->link = 0;
	b->expert_rows[e] += s->n_rows;
	b->pub.n_rows += s->n_rows;
}

/*
 * Segments, row numbers, totals: from counts, in the order local expert, source. Looks no further
 * than the last row: the counts were checked to add up.
 */
static void lay_out(struct m2n_channel *ch, struct m2n__batch *b, const struct m2n_map *map)
{
	const uint32_t *expert = map->expert_of + map->rank_first[ch->self_expert];
	const uint32_t *count = b->counts;
	uint32_t n_sources = (uint32_t)ch->p.n_sources;
	uint32_t e = 0, end = n_sources; /* of e's cells */

	memset(b->expert_rows, 0, b->n_local * sizeof(*b->expert_rows));
	for (; b->pub.n_rows < b->n_present_rows; count++) {
		uint32_t cell;

		while (!*count)
			count++;
		cell = (uint32_t)(count - b->counts);
		for (; cell >= end; end += n_sources)
			e++;
		add_segment(ch, b, cell, e, cell + n_sources - end, (int32_t)expert[e]);
	}
}

/* A source that is not there has no rows, whatever its counts said. Returns what the call does. */
static int note_absent(
	struct m2n_channel *ch, struct m2n__batch *b, uint32_t source, const uint64_t *mask, int rc)
{
	int state = b->shares[source].state, rank = ch->p.sources[source];
	unsigned long round = b->pub.round;

	m2n__bit_set(b->missing, source);
	for (uint32_t e = 0; e < b->n_local; e++)
		b->counts[e * (uint32_t)ch->p.n_sources + source] = 0;
	if (state == SHARE_LOST) /* a hole in the region: there is no one block */
		b->pub.rows = b->pub.scales = NULL;
	if (state == SHARE_REFUSED)
		return m2n__error(M2N_PARTIAL,
			"%s: round %lu: no room for the rows of rank %d: capacity is %u rows",
			ch->title, round, rank, ch->region_rows);
	if (!rc && (!mask || m2n__bit(mask, source)) && !m2n__rx_up(rx_of(ch, source)))
		return m2n__error(M2N_PARTIAL, "%s: round %lu: rank %d is lost: %s", ch->title,
			round, rank, m2n__peer_reason(rx_of(ch, source)->peer));
	return rc;
}

static void start(struct m2n_channel *ch, struct m2n__batch *b, uint64_t round,
	const uint64_t *mask, const struct m2n_map *map)
{
	b->pub = (struct m2n_batch){.round = round};
	b->n_local = map->rank_first[ch->self_expert + 1] - map->rank_first[ch->self_expert];
	for (uint32_t i = 0; i < ch->p.n_sources; i++) {
		struct m2n__share *share = &b->shares[i];

		share->state = mask && !m2n__bit(mask, i) ? SHARE_ABSENT : SHARE_AWAITED;
		share->n_laid = share->segment = 0;
		share->link = &share->segment;
		if (i % 64 == 0)
			b->missing[i / 64] = 0;
	}
	b->n_present = b->n_present_rows = 0;
	ch->recv_phase = 0;
	b->held = 1;
}

/* Both phases; 0 or why not. */
static int receive(struct m2n_channel *ch, struct m2n__batch *b, uint32_t slot,
	const struct m2n_map *map, int64_t timeout_ns)
{
	int rc = 0;

	if (!ch->recv_phase)
		rc = await(ch, b, slot, map, timeout_ns);
	if (rc || ch->p.placement == M2N_PLACEMENT_SLOT)
		return rc;
	if (!ch->recv_phase) {
		rc = grant_all(ch, b, slot);
		if (rc)
			return rc;
		ch->recv_phase = 1;
	}
	rc = await(ch, b, slot, map, timeout_ns);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < ch->p.n_sources; i++)
		if (b->shares[i].state == SHARE_LOST)
			m2n__region_quarantine(ch->dispatch, b->place);
	point_into_region(ch, b);
	return 0;
}

int m2n_dispatch_recv(struct m2n_channel *ch, const struct m2n_dispatch_recv_params *params,
	const struct m2n_batch **batch)
{
	static const struct m2n_dispatch_recv_params init = M2N_DISPATCH_RECV_PARAMS_INIT;
	const struct m2n_dispatch_recv_params *p;
	struct m2n_dispatch_recv_params copy;
	const struct m2n_map *map;
	struct m2n__batch *b;
	uint64_t round;
	uint32_t slot;
	int rc;

	p = m2n__params(&copy, sizeof(copy), &init, params, "m2n_dispatch_recv_params");
	if (!p)
		return -EINVAL;
	if (!ch || !batch || ch->self_expert < 0)
		return m2n__error(-EINVAL, "m2n_dispatch_recv: %s",
			ch && batch ? "this rank is not an expert rank of the channel"
				    : "channel or batch is NULL");
	if (p->stream && !ch->gpu)
		return m2n__error(-EINVAL, "%s: stream: the channel's memory is HOST", ch->title);
	if (ch->gpu)
		return m2n__gpu_dispatch_recv(ch->gpu, p, batch);
	round = atomic_load_explicit(&ch->next_recv, memory_order_relaxed);
	slot = m2n__ring_slot(&ch->recv_ring, round, ch->p.depth);
	b = &ch->batches[slot];
	map = m2n__channel_map(ch, round);
	if (b->held && b->pub.segments)
		return m2n__error(-EBUSY, "%s: round %lu: the batch of round %lu is still held",
			ch->title, (unsigned long)round, (unsigned long)b->pub.round);
	if (!b->held)
		start(ch, b, round, p->mask, map);
	rc = receive(ch, b, slot, map, p->timeout_ns);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; b->n_present < ch->p.n_sources && i < ch->p.n_sources; i++)
		if (b->shares[i].state != SHARE_PRESENT)
			rc = note_absent(ch, b, i, p->mask, rc);
	lay_out(ch, b, map);
	b->pub.segments = b->segments;
	b->pub.expert_rows = b->expert_rows;
	b->pub.n_local_experts = b->n_local;
	b->pub.missing = b->missing;
	atomic_store_explicit(&ch->next_recv, round + 1, memory_order_relaxed);
	*batch = &b->pub;
	return rc;
}
