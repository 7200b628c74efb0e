/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert side of the way back: output rows to the sinks, each source's in the order of its rows,
 * at the place its head named. A reply of no rows is still sent to a source that is its own sink:
 * it is the credit of its slot.
 */
#include <errno.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

struct reply {
	struct m2n_channel *ch;
	struct m2n__batch *b;
	const uint8_t *rows;
	size_t stride;
	uint32_t round_slot;
	const struct m2n__reg *reg; /* of the rows; NULL: not registered */
	const uint64_t *in_place;
};

static int is_in_place(const struct reply *r, uint32_t source)
{
	return r->in_place && m2n__bit(r->in_place, source) && r->b->shares[source].reply_place;
}

static uint32_t reply_slot(const struct m2n_channel *ch, uint32_t round_slot, uint32_t source)
{
	return ch->own_sinks ? round_slot : round_slot * (uint32_t)ch->p.n_sources + source;
}

/* The rows of one (local expert, source) cell, as the caller laid them out. */
static const uint8_t *cell_rows(const struct reply *r, uint32_t cell)
{
	return r->rows + r->b->first[cell] * r->stride;
}

/* Copies one source's output rows to dst, dense. */
static void store_rows(const struct reply *r, uint32_t source, uint8_t *dst)
{
	const struct m2n_channel *ch = r->ch;
	const struct m2n__batch *b = r->b;
	size_t bytes = ch->p.out_row_bytes;
	int stream = b->shares[source].n_rows * bytes > ch->ctx->options.nt_bytes;

	if (is_in_place(r, source)) {
		/* the link may have been made anew since: then they lie where it was */
		if (dst != b->shares[source].reply_place)
			memmove(dst, b->shares[source].reply_place,
				b->shares[source].n_rows * bytes);
		return;
	}
	for (uint32_t i = b->shares[source].segment; i; i = b->next_segment[i - 1]) {
		uint32_t n = b->segments[i - 1].n_rows;
		const uint8_t *src = r->rows + b->segments[i - 1].first_row * r->stride;

		if (r->stride == bytes) {
			m2n__move(ch, stream, dst, src, n * bytes);
			dst += n * bytes;
			continue;
		}
		for (; n; n--, dst += bytes, src += r->stride)
			m2n__move(ch, stream, dst, src, bytes);
	}
	if (stream)
		ch->ctx->kernels->fence();
}

/* Rows of each unique row, in row order: CSR in ch->reduce_first, reduce_row (batch rows). */
static void index_unique(const struct reply *r, uint32_t source, const uint32_t *index)
{
	struct m2n_channel *ch = r->ch;
	uint32_t *first = ch->reduce_first, n_sent = r->b->shares[source].n_sent;
	uint32_t n_rows = r->b->shares[source].n_rows;

	memset(first, 0, (n_sent + 2) * sizeof(*first));
	for (uint32_t i = 0; i < n_rows; i++)
		first[index[i] + 2]++;
	for (uint32_t u = 0; u < n_sent; u++)
		first[u + 2] += first[u + 1];
	for (uint32_t i = 0; i < n_rows; i++)
		ch->reduce_row[first[index[i] + 1]++] = i;
}

/* reduce_at_expert: one sum per travelling row, weights as they came, in row order. */
static void reduce_rows(const struct reply *r, uint32_t source, uint8_t *dst)
{
	struct m2n_channel *ch = r->ch;
	const struct m2n__share *share = &r->b->shares[source];
	uint32_t n_sources = (uint32_t)ch->p.n_sources;
	const float *all_weights;
	const uint32_t *index;
	struct m2n__layout l;

	m2n__layout(ch, r->b->n_local, share->n_rows, share->n_sent, &l);
	index = (const uint32_t *)(share->payload + l.index);
	all_weights = (const float *)(share->payload + l.weights);
	index_unique(r, source, index);
	for (uint32_t u = 0; u < share->n_sent; u++, dst += ch->p.out_row_bytes) {
		const void *rows[M2N__MAX_TOP_K];
		float weights[M2N__MAX_TOP_K];
		uint32_t n = 0, e = 0, before = 0;

		for (uint32_t k = ch->reduce_first[u]; k < ch->reduce_first[u + 1]; k++) {
			uint32_t row = ch->reduce_row[k];

			while (row >= before + r->b->counts[e * n_sources + source])
				before += r->b->counts[e++ * n_sources + source];
			if (n == M2N__MAX_TOP_K)
				break; /* a peer's index may lie; no token has more */
			rows[n] = cell_rows(r, e * n_sources + source) + (row - before) * r->stride;
			weights[n++] = all_weights[row];
		}
		ch->ctx->kernels->wsum[ch->p.dtype](dst, NULL, rows, weights, n, ch->n_values, 0);
	}
}

static uint32_t n_reply_rows(const struct m2n_channel *ch, const struct m2n__share *share)
{
	return ch->p.reduce_at_expert ? share->n_sent : share->n_rows;
}

/* Pieces of a gather list, where the caller's rows are dense: segments, joined where they touch. */
static size_t gather_rows(const struct reply *r, uint32_t source, struct m2n__piece *pieces)
{
	const struct m2n__batch *b = r->b;
	size_t n = 0;

	for (uint32_t i = b->shares[source].segment; i; i = b->next_segment[i - 1]) {
		const struct m2n_segment *s = &b->segments[i - 1];

		const uint8_t *rows = r->rows + s->first_row * r->stride;

		if (n && (const uint8_t *)pieces[n - 1].base + pieces[n - 1].bytes == rows)
			pieces[n - 1].bytes += s->n_rows * r->stride;
		else
			pieces[n++] = (struct m2n__piece){rows, s->n_rows * r->stride, r->reg};
	}
	return n;
}

/* Messaging with sums, or with rows that are not dense or not registered: staging first. */
static int put_rows(const struct reply *r, struct m2n__tx *tx, uint32_t source, uint32_t slot,
	size_t place, uint32_t *n_puts)
{
	struct m2n_channel *ch = r->ch;
	const struct m2n__share *share = &r->b->shares[source];
	size_t bytes = n_reply_rows(ch, share) * ch->p.out_row_bytes;
	struct m2n__piece one;
	uint8_t *made;

	if (!bytes)
		return 0;
	if (!ch->p.reduce_at_expert && r->stride == ch->p.out_row_bytes &&
		!is_in_place(r, source) && (r->reg || !ch->ctx->needs_mr))
		return m2n__tx_put_region(ch->reply, tx, slot, place, ch->reply_pieces,
			gather_rows(r, source, ch->reply_pieces), n_puts);
	made = m2n__replies_staging(ch, r->round_slot, source);
	if (!made)
		return m2n__error(-ENOMEM, "%s: no memory to stage replies", ch->title);
	if (ch->p.reduce_at_expert)
		reduce_rows(r, source, made);
	else
		store_rows(r, source, made);
	m2n__tally_add(&tx->tally.staged_bytes, bytes);
	one = (struct m2n__piece){made, bytes, ch->made_replies.reg};
	return m2n__tx_put_region(ch->reply, tx, slot, place, &one, 1, n_puts);
}

static int send_reply(const struct reply *r, uint32_t source, struct m2n__tx *tx)
{
	struct m2n_channel *ch = r->ch;
	const struct m2n__share *share = &r->b->shares[source];
	struct m2n_exchange *x = ch->reply;
	uint32_t slot = reply_slot(ch, r->round_slot, source), n_puts = 0;
	struct m2n__slot_head staged, *head = &staged;
	int refused = share->state == SHARE_REFUSED, rc = 0;
	size_t place = share->place;

	if (tx->slots)
		head = m2n__tx_head(x, tx, slot);
	else
		staged = (struct m2n__slot_head){0};
	if (!ch->own_sinks)
		place += slot * x->spec.region_bytes;
	if (!refused && !tx->slots)
		rc = put_rows(r, tx, source, slot, place, &n_puts);
	else if (!refused && ch->p.reduce_at_expert)
		reduce_rows(r, source, tx->region + place);
	else if (!refused)
		store_rows(r, source, tx->region + place);
	if (rc)
		return rc;
	head->n_rows = refused ? 0 : n_reply_rows(ch, share);
	head->flags = refused ? M2N__SLOT_REFUSED : 0;
	head->bytes = 0;
	head->n_body_puts = n_puts;
	if (tx->slots)
		m2n__tx_signal(x, tx, slot, r->b->pub.round);
	else
		rc = m2n__tx_put_slot(x, tx, slot, r->b->pub.round, head, NULL, 0);
	m2n__tally_add(&tx->tally.n_rounds, 1);
	m2n__tally_add(&tx->tally.n_rows, head->n_rows);
	m2n__tally_add(&tx->tally.bytes, head->n_rows * (uint64_t)ch->p.out_row_bytes);
	m2n__tx_notify(tx);
	return rc;
}

static int wants_reply(const struct m2n_channel *ch, const struct m2n__share *share)
{
	if (share->state != SHARE_PRESENT && share->state != SHARE_REFUSED)
		return 0;
	return ch->own_sinks || share->n_rows;
}

static struct m2n__tx *sink_of(
	const struct m2n_channel *ch, const struct m2n__batch *b, uint32_t source)
{
	return &ch->reply->tx[ch->own_sinks ? source : b->shares[source].sink];
}

/* Sinks that are not the sources must have given their slots back. */
static int wait_credits(
	struct m2n_channel *ch, struct m2n__batch *b, uint32_t round_slot, int64_t timeout_ns)
{
	struct m2n__wait w;
	uint32_t i = 0;
	int rc = 0;

	m2n__wait_begin(&w, ch->ctx, timeout_ns);
	while (i < ch->p.n_sources && !rc) {
		struct m2n__tx *tx = sink_of(ch, b, i);

		if (!wants_reply(ch, &b->shares[i]) || !m2n__tx_up(tx) ||
			m2n__tx_free(ch->reply, tx, reply_slot(ch, round_slot, i)))
			i++;
		else
			rc = m2n__wait_step(&w);
	}
	m2n__wait_end(&w);
	return rc == -ETIMEDOUT
		       ? m2n__error(rc, "%s: round %lu: rank %d has not taken earlier replies",
				 ch->title, (unsigned long)b->pub.round,
				 sink_of(ch, b, i)->peer->rank)
		       : rc;
}

/*
 * Rows of a newcomer may be here before the word that its sink is linked: waits for that. Not
 * as one who writes to peers: connections may have to be closed meanwhile.
 */
static int sink_comes(struct m2n_channel *ch, const struct m2n__tx *tx, int64_t timeout_ns)
{
	struct m2n__wait w;

	if (m2n__tx_up(tx))
		return 1;
	m2n__exchange_exit(ch->reply, M2N__WRITER_TX);
	m2n__wait_begin(&w, ch->ctx, timeout_ns);
	while (!m2n__tx_up(tx) && m2n__link_coming(&tx->prepared, tx->peer) && !m2n__wait_step(&w))
		;
	m2n__wait_end(&w);
	m2n__exchange_enter(ch->reply, M2N__WRITER_TX);
	return m2n__tx_up(tx);
}

static int reply_all(const struct reply *r, int64_t timeout_ns)
{
	struct m2n_channel *ch = r->ch;
	int rc = 0;

	m2n__exchange_enter(ch->reply, M2N__WRITER_TX);
	for (uint32_t i = 0; i < ch->p.n_sources; i++) {
		struct m2n__tx *tx = sink_of(ch, r->b, i);

		if (!wants_reply(ch, &r->b->shares[i]))
			continue;
		if (!sink_comes(ch, tx, timeout_ns))
			rc = m2n__error(M2N_PARTIAL, "%s: round %lu: rank %d is lost: %s",
				ch->title, (unsigned long)r->b->pub.round, tx->peer->rank,
				m2n__peer_reason(tx->peer));
		else if (send_reply(r, i, tx))
			rc = m2n__error_at(M2N_PARTIAL, "%s: round %lu: rank %d", ch->title,
				(unsigned long)r->b->pub.round, tx->peer->rank);
	}
	m2n__exchange_exit(ch->reply, M2N__WRITER_TX);
	if (ch->own_sinks)
		return rc;
	m2n__exchange_enter(ch->dispatch, M2N__WRITER_RX);
	for (uint32_t i = 0; i < ch->p.n_sources;
		i++) /* the dispatch slots go back by themselves */
		if (r->b->shares[i].state == SHARE_PRESENT ||
			r->b->shares[i].state == SHARE_REFUSED)
			m2n__rx_credit(
				ch->dispatch, &ch->dispatch->rx[i], r->round_slot, r->b->pub.round);
	m2n__exchange_exit(ch->dispatch, M2N__WRITER_RX);
	return rc;
}

/* The last one received comes first: most often it is answered at once. */
static struct m2n__batch *find_batch(
	const struct m2n_channel *ch, const struct m2n_batch *pub, uint32_t *slot)
{
	uint32_t i = ch->recv_ring.slot;

	for (uint32_t n = ch->p.depth; n; n--) {
		if (&ch->batches[i].pub == pub) {
			*slot = i;
			return &ch->batches[i];
		}
		i = i ? i - 1 : ch->p.depth - 1;
	}
	return NULL;
}

void *m2n_reply_place(struct m2n_channel *ch, const struct m2n_batch *pub, uint32_t source)
{
	struct m2n__batch *b;
	struct m2n__tx *tx;
	uint32_t slot;

	if (!ch || ch->self_expert < 0 || ch->gpu || !ch->own_sinks || ch->p.reduce_at_expert ||
		source >= ch->p.n_sources)
		return NULL;
	b = find_batch(ch, pub, &slot);
	if (!b || !b->held || !b->pub.segments || b->shares[source].state != SHARE_PRESENT ||
		!b->shares[source].n_rows)
		return NULL;
	if (b->shares[source].reply_place)
		return b->shares[source].reply_place;
	tx = sink_of(ch, b, source);
	m2n__exchange_enter(ch->reply, M2N__WRITER_PLACE);
	if (m2n__tx_up(tx) && tx->slots) {
		b->shares[source].reply_place = tx->region + b->shares[source].place;
		ch->n_with_places += !b->has_places;
		b->has_places = 1;
	} else if (!ch->n_with_places) {
		m2n__exchange_exit(ch->reply, M2N__WRITER_PLACE);
	}
	return b->shares[source].reply_place;
}

/* The application writes to peers no more, unless it does for other batches. */
static void end_places(struct m2n_channel *ch, struct m2n__batch *b)
{
	for (uint32_t i = 0; i < ch->p.n_sources; i++)
		b->shares[i].reply_place = NULL;
	b->has_places = 0;
	if (!--ch->n_with_places)
		m2n__exchange_exit(ch->reply, M2N__WRITER_PLACE);
}

/* Some replies lie in their places; those of other sources have to be given. */
static int check_places(const struct m2n_channel *ch, const struct m2n__batch *b,
	const struct m2n_combine_send_params *p)
{
	for (uint32_t i = 0; i < ch->p.n_sources; i++) {
		const struct m2n__share *share = &b->shares[i];

		if (share->state != SHARE_PRESENT || !share->n_rows)
			continue;
		if (m2n__bit(p->in_place, i) && !share->reply_place)
			return m2n__error(-EINVAL,
				"%s: combine_send: in_place: source %u has no m2n_reply_place()",
				ch->title, i);
		if (!m2n__bit(p->in_place, i) && !p->rows)
			return m2n__error(-EINVAL, "%s: combine_send: rows is NULL", ch->title);
	}
	return 0;
}

static int check_rows(const struct m2n_channel *ch, const struct m2n__batch *b,
	const struct m2n_combine_send_params *p)
{
	int rc;

	if (b->pub.n_rows && !p->rows && !p->in_place)
		return m2n__error(-EINVAL, "%s: combine_send: rows is NULL", ch->title);
	if (p->in_place && (rc = check_places(ch, b, p)))
		return rc;
	if (p->row_stride && p->row_stride < ch->p.out_row_bytes)
		return m2n__error(-EINVAL, "%s: combine_send: row_stride %zu, at least %zu",
			ch->title, p->row_stride, ch->p.out_row_bytes);
	if (p->stream && !ch->gpu)
		return m2n__error(-EINVAL, "%s: stream: the channel's memory is HOST", ch->title);
	return 0;
}

int m2n_combine_send(struct m2n_channel *ch, const struct m2n_combine_send_params *params)
{
	static const struct m2n_combine_send_params init = M2N_COMBINE_SEND_PARAMS_INIT;
	const struct m2n_combine_send_params *p;
	struct m2n_combine_send_params copy;
	struct m2n__batch *b;
	struct reply r;
	uint32_t slot;
	int rc;

	p = m2n__params(&copy, sizeof(copy), &init, params, "m2n_combine_send_params");
	if (!p)
		return -EINVAL;
	if (!ch || ch->self_expert < 0 || !p->batch)
		return m2n__error(-EINVAL, "m2n_combine_send: %s",
			ch && ch->self_expert >= 0 ? "batch is NULL"
						   : "not an expert rank of a channel");
	b = find_batch(ch, p->batch, &slot);
	if (!b || !b->held || !b->pub.segments)
		return m2n__error(-EINVAL, "%s: combine_send: the batch is not held", ch->title);
	rc = check_rows(ch, b, p);
	if (rc)
		return rc;
	if (ch->gpu)
		return m2n__gpu_combine_send(ch->gpu, p, b, slot);
	rc = m2n__check_host(ch, "rows", p->rows);
	if (rc)
		return rc;
	rc = ch->own_sinks ? 0 : wait_credits(ch, b, slot, p->timeout_ns);
	if (rc)
		return rc;
	r = (struct reply){.ch = ch,
		.b = b,
		.rows = p->rows,
		.stride = p->row_stride ? p->row_stride : ch->p.out_row_bytes,
		.round_slot = slot,
		.in_place = p->in_place};
	if (m2n__ctx_is_messaging(ch->ctx) && b->pub.n_rows && r.rows)
		r.reg = m2n__mem_find(
			ch->ctx, r.rows, (b->pub.n_rows - 1) * r.stride + ch->p.out_row_bytes);
	rc = reply_all(&r, p->timeout_ns);
	if (b->has_places)
		end_places(ch, b);
	b->held = 0;
	b->pub.segments = NULL;
	return rc;
}

int m2n_reply_wait(struct m2n_channel *ch, int64_t timeout_ns)
{
	int rc = 0, partial = 0;

	if (!ch || ch->self_expert < 0)
		return m2n__error(-EINVAL, "m2n_reply_wait: not an expert rank of this channel");
	if (ch->gpu)
		return 0; /* in stream order rows may be reused at once */
	for (size_t i = 0; i < ch->reply->n_tx && !rc; i++) {
		rc = m2n__tx_flush(ch->reply, &ch->reply->tx[i], timeout_ns);
		if (rc == M2N_ERR_PEER_LOST) {
			rc = 0;
			partial = M2N_PARTIAL;
		}
	}
	return rc ? rc : partial;
}
