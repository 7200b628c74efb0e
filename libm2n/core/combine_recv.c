/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sink side: waits for the replies of every expert rank that took part, then sums each token's
 * replies in the order of k straight from the region they landed in.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

/* One combine in hand. */
struct combine {
	struct m2n_channel *ch;
	const struct m2n_plan *plan;
	const uint8_t *replies; /* start of this round's replies in the region */
	uint64_t *answered;     /* bitmap over expert ranks */
	const uint64_t *part;   /* own rounds: who got a head; NULL: who has rows */
	uint64_t *refused;      /* own rounds only */
	uint64_t round;
	uint32_t slot;        /* of the reply exchange */
	const float *weights; /* NULL: all 1 */
	int whole;            /* every rank with rows answered */
};

static int expects(const struct combine *c, uint32_t j)
{
	if (c->part)
		return m2n__bit(c->part, j);
	return c->plan->rank_first[j + 1] != c->plan->rank_first[j];
}

static void take_reply(
	const struct combine *c, struct m2n__rx *rx, uint32_t j, const struct m2n__wait *w)
{
	const struct m2n__slot_head *head = m2n__rx_head(c->ch->reply, rx, c->slot);
	uint32_t n = c->plan->reply_first[j + 1] - c->plan->reply_first[j];

	m2n__rx_take(c->ch->reply, rx, c->slot, 1);
	if (head->flags & M2N__SLOT_REFUSED && c->refused)
		m2n__bit_set(c->refused, j);
	else if (head->n_rows == n)
		m2n__bit_set(c->answered, j);
	m2n__tally_add(&rx->tally.n_rounds, 1);
	m2n__tally_add(&rx->tally.n_rows, head->n_rows);
	m2n__tally_add(&rx->tally.bytes, head->n_rows * (uint64_t)c->ch->p.out_row_bytes);
	if (w->start_ns)
		m2n__tally_add(&rx->tally.wait_ns, (uint64_t)m2n__waited_ns(w));
}

static int settled(const struct combine *c, uint32_t j)
{
	return !expects(c, j) || m2n__bit(c->answered, j) ||
	       (c->refused && m2n__bit(c->refused, j));
}

static int timed_out(const struct combine *c)
{
	char ranks[160] = "";
	size_t at = 0;

	for (uint32_t j = 0; j < c->ch->reply->n_rx && at < sizeof(ranks); j++)
		if (!settled(c, j))
			at += (size_t)snprintf(ranks + at, sizeof(ranks) - at, " %d (%u rows)",
				c->ch->reply->rx[j].peer->rank,
				c->plan->rank_first[j + 1] - c->plan->rank_first[j]);
	return m2n__error(-ETIMEDOUT, "%s: round %lu: no reply from ranks%s", c->ch->title,
		(unsigned long)c->round, ranks);
}

static int await(struct combine *c, int64_t timeout_ns)
{
	struct m2n_channel *ch = c->ch;
	struct m2n__wait w;
	uint32_t j = 0;
	int rc = 0;

	m2n__wait_begin(&w, ch->ctx, timeout_ns);
	while (j < ch->reply->n_rx && !rc) {
		struct m2n__rx *rx = &ch->reply->rx[j];
		int up = m2n__rx_up(rx);

		if (settled(c, j)) {
			j++;
		} else if (m2n__rx_ready(ch->reply, rx, c->slot, c->round) &&
			   m2n__rx_whole(ch->reply, rx, c->slot)) {
			take_reply(c, rx, j++, &w);
		} else if (!up ||
			   (ch->own_sinks && !m2n__tx_gets(&ch->dispatch->tx[j], c->round))) {
			j++; /* lost; or replaced by a process that never got this round */
		} else {
			m2n__send_granted(ch);
			rc = m2n__wait_step(&w);
		}
	}
	m2n__wait_end(&w);
	return rc == -ETIMEDOUT ? timed_out(c) : rc;
}

/* The n rows of rank j did not come: the text says why. */
static int note_one(const struct combine *c, uint32_t j, uint32_t n)
{
	struct m2n_channel *ch = c->ch;
	const struct m2n__peer *peer = ch->reply->rx[j].peer;

	if (c->refused && m2n__bit(c->refused, j))
		return m2n__error(
			ch->p.overflow == M2N_OVERFLOW_ERROR ? M2N_ERR_CAPACITY : M2N_PARTIAL,
			"%s: round %lu: rank %d has no room for %u rows (capacity %u)", ch->title,
			(unsigned long)c->round, peer->rank, n, ch->region_rows);
	return m2n__error(M2N_PARTIAL, "%s: round %lu: %u replies of rank %d are missing: %s",
		ch->title, (unsigned long)c->round, n, peer->rank,
		peer->reason[0] ? peer->reason : "it took no part");
}

/* Who with rows did not answer: the text names the last one. 0, PARTIAL or CAPACITY. */
static int note_missing(struct combine *c)
{
	const uint32_t *first = c->plan->rank_first;
	uint32_t n_rx = (uint32_t)c->ch->reply->n_rx;
	int rc = 0;

	c->whole = 1;
	for (uint32_t j = 0; j < n_rx; j++) {
		if (first[j + 1] == first[j] || m2n__bit(c->answered, j))
			continue;
		c->whole = 0;
		if (rc >= 0)
			rc = note_one(c, j, first[j + 1] - first[j]);
	}
	return rc;
}

/* A token's replies: pointers and weights in the order of k; the number that did not come. */
static uint32_t gather_token(const struct combine *c, uint32_t token, const void **rows,
	float *weights, uint32_t *n_rows)
{
	const struct m2n_plan *plan = c->plan;
	uint32_t top_k = c->ch->p.top_k, n = 0, missing = 0;
	size_t bytes = c->ch->p.out_row_bytes;

	for (uint32_t k = 0; k < top_k; k++) {
		size_t pair = (size_t)token * top_k + k;
		int32_t reply = plan->pair_reply[pair];

		if (plan->pair_row[pair] >= 0 && !c->whole &&
			!m2n__bit(c->answered, plan->pair_rank[pair])) {
			missing++;
			continue;
		}
		if (reply < 0)
			continue;
		rows[n] = c->replies + (uint32_t)reply * bytes;
		weights[n++] = c->weights ? c->weights[pair] : 1;
	}
	*n_rows = n;
	return missing;
}

static void copy_replies(const struct combine *c, uint32_t token, uint8_t *out)
{
	const struct m2n_plan *plan = c->plan;
	size_t bytes = c->ch->p.out_row_bytes;

	for (uint32_t k = 0; k < c->ch->p.top_k; k++, out += bytes) {
		size_t pair = (size_t)token * c->ch->p.top_k + k;
		int32_t reply = plan->pair_reply[pair];

		if (reply >= 0 && (c->whole || m2n__bit(c->answered, plan->pair_rank[pair])))
			memcpy(out, c->replies + (uint32_t)reply * bytes, bytes);
		else
			memset(out, 0, bytes);
	}
}

static void sum_tokens(const struct combine *c, const struct m2n_combine_recv_params *p)
{
	const struct m2n_channel *ch = c->ch;
	size_t bytes = ch->p.out_row_bytes;
	size_t out_stride = p->out_stride ? p->out_stride : bytes;
	size_t residual_stride = p->residual_stride ? p->residual_stride : bytes;
	int stream = c->plan->n_tokens * bytes > ch->ctx->options.nt_bytes;

	for (uint32_t t = 0; t < c->plan->n_tokens; t++) {
		const void *rows[M2N__MAX_TOP_K];
		float weights[M2N__MAX_TOP_K];
		uint32_t n, missing = gather_token(c, t, rows, weights, &n);

		if (p->out)
			ch->ctx->kernels->wsum[ch->p.dtype]((uint8_t *)p->out + t * out_stride,
				p->residual ? (const uint8_t *)p->residual + t * residual_stride
					    : NULL,
				rows, weights, n, ch->n_values, stream);
		if (p->replies)
			copy_replies(c, t, (uint8_t *)p->replies + t * ch->p.top_k * bytes);
		if (p->missing)
			p->missing[t] = (uint8_t)(missing < 255 ? missing : 255);
	}
	if (stream)
		ch->ctx->kernels->fence();
}

/* The params that most rounds leave alone. */
static int check_options(struct m2n_channel *ch, const struct m2n_combine_recv_params *p)
{
	if ((p->out_stride && p->out_stride < ch->p.out_row_bytes) ||
		(p->residual_stride && p->residual_stride < ch->p.out_row_bytes))
		return m2n__error(-EINVAL, "%s: out_stride %zu, residual_stride %zu, at least %zu",
			ch->title, p->out_stride, p->residual_stride, ch->p.out_row_bytes);
	if (p->stream && !ch->gpu)
		return m2n__error(-EINVAL, "%s: stream: the channel's memory is HOST", ch->title);
	if (ch->p.reduce_at_expert && (p->weights || p->unit_weights || p->replies))
		return m2n__error(-EINVAL,
			"%s: with reduce_at_expert the weights are the plan's and "
			"single replies do not travel",
			ch->title);
	if (p->source >= (int)ch->p.n_sources ||
		(ch->own_sinks && p->source >= 0 && p->source != ch->self_source))
		return m2n__error(-EINVAL, "%s: source %d, accepted: %s", ch->title, p->source,
			ch->own_sinks ? "-1: this rank's own" : "an index of the list");
	if (!ch->own_sinks && p->source < 0)
		return m2n__error(
			-EINVAL, "%s: sinks are not the sources: name the source", ch->title);
	return 0;
}

static int check(struct m2n_channel *ch, const struct m2n_combine_recv_params *p)
{
	if (ch->self_sink < 0)
		return m2n__error(-EINVAL, "%s: rank %d is not a sink", ch->title, ch->group->rank);
	if (!p->plan || (!p->out && !p->replies && p->plan->n_tokens))
		return m2n__error(-EINVAL, "%s: combine_recv: %s is NULL", ch->title,
			p->plan ? "out" : "plan");
	if ((p->out_stride | p->residual_stride) || p->stream || p->source >= 0 ||
		ch->p.reduce_at_expert || !ch->own_sinks)
		return check_options(ch, p);
	return 0;
}

/* In a context with a device: the addresses must not be its. */
static int check_memory(struct m2n_channel *ch, const struct m2n_combine_recv_params *p)
{
	int rc = m2n__check_host(ch, "out", p->out);

	if (!rc)
		rc = m2n__check_host(ch, "residual", p->residual);
	if (!rc)
		rc = m2n__check_host(ch, "weights", p->weights);
	if (!rc)
		rc = m2n__check_host(ch, "replies", p->replies);
	return rc;
}

static int find_own(
	struct m2n_channel *ch, const struct m2n_combine_recv_params *p, struct combine *c)
{
	uint64_t round = p->round == M2N_ROUND_NEXT ? ch->next_combine : p->round;
	struct m2n__open *open;

	c->slot = m2n__ring_slot(&ch->combine_ring, round, ch->p.depth);
	open = &ch->open[c->slot];
	if (!open->busy || open->round != round)
		return m2n__error(
			-EINVAL, "%s: round %lu is not in flight", ch->title, (unsigned long)round);
	if (p->plan != open->send.plan)
		return m2n__error(-EINVAL, "%s: round %lu was sent with another plan", ch->title,
			(unsigned long)round);
	c->round = round;
	c->part = open->part;
	c->answered = open->answered;
	c->refused = open->refused;
	c->replies = (const uint8_t *)ch->reply->region.mem->base +
		     open->place * ch->reply->spec.region_bytes;
	return 0;
}

/* To the expert ranks that wrote to a slot of this sink. */
static void give_credits(struct m2n_channel *ch, const struct combine *c, uint64_t round)
{
	m2n__exchange_enter(ch->reply, M2N__WRITER_RX);
	for (uint32_t j = 0; j < ch->reply->n_rx; j++)
		if (m2n__bit(c->answered, j) && m2n__rx_up(&ch->reply->rx[j]))
			m2n__rx_credit(ch->reply, &ch->reply->rx[j], c->slot, round);
	m2n__exchange_exit(ch->reply, M2N__WRITER_RX);
	memset(c->answered, 0, ch->n_words_experts * sizeof(*c->answered));
	ch->sink_owed[c->slot] = 0;
}

static int find_foreign(
	struct m2n_channel *ch, const struct m2n_combine_recv_params *p, struct combine *c)
{
	uint32_t source = (uint32_t)p->source, n_sources = (uint32_t)ch->p.n_sources;
	uint64_t round = p->round == M2N_ROUND_NEXT ? ch->sink_round[source] : p->round;

	c->round = round;
	c->slot = (uint32_t)(round % ch->p.depth) * n_sources + source;
	c->answered = ch->sink_answered + c->slot * ch->n_words_experts;
	c->replies = (const uint8_t *)ch->reply->region.mem->base +
		     c->slot * ch->reply->spec.region_bytes;
	if (!ch->sink_owed[c->slot])
		return 0;
	if (m2n__region_quarantined(ch->reply, c->slot))
		return m2n__error(-EAGAIN,
			"%s: a lost rank that is still alive may write to slot %u", ch->title,
			c->slot);
	give_credits(ch, c, ch->sink_owed[c->slot] - 1);
	return 0;
}

/* Ends a round at its own sink: the slot is free again. */
static void end_own(struct m2n_channel *ch, struct combine *c)
{
	struct m2n__open *open = &ch->open[c->slot];

	if (open->n_ungranted)
		m2n__forget_grants(ch, open);
	open->busy = 0;
	if (c->round >= ch->next_combine)
		ch->next_combine = c->round + 1;
	if (!c->whole)
		m2n__region_quarantine(ch->reply, open->place);
}

/* Ends a round at a sink that is not its source. Where a lost rank may still write to the slot,
 * its credits wait: see find_foreign(). */
static void end_foreign(struct m2n_channel *ch, struct combine *c, uint32_t source)
{
	ch->sink_round[source] = c->round + 1;
	if (!c->whole)
		m2n__region_quarantine(ch->reply, c->slot);
	if (!c->whole && m2n__region_quarantined(ch->reply, c->slot))
		ch->sink_owed[c->slot] = c->round + 1;
	else
		give_credits(ch, c, c->round);
}

int m2n_combine_recv(struct m2n_channel *ch, const struct m2n_combine_recv_params *params)
{
	static const struct m2n_combine_recv_params init = M2N_COMBINE_RECV_PARAMS_INIT;
	const struct m2n_combine_recv_params *p;
	struct m2n_combine_recv_params copy;
	struct combine c = {.ch = ch};
	int rc;

	p = m2n__params(&copy, sizeof(copy), &init, params, "m2n_combine_recv_params");
	if (!p || !ch)
		return p ? m2n__error(-EINVAL, "m2n_combine_recv: channel is NULL") : -EINVAL;
	rc = check(ch, p);
	if (!rc && ch->gpu)
		return m2n__gpu_combine_recv(ch->gpu, p);
	if (!rc && ch->ctx->cuda)
		rc = check_memory(ch, p);
	if (!rc)
		rc = ch->own_sinks ? find_own(ch, p, &c) : find_foreign(ch, p, &c);
	if (rc)
		return rc;
	c.plan = p->plan;
	if (!ch->p.reduce_at_expert && !p->unit_weights)
		c.weights = p->weights ? p->weights : p->plan->weight;
	rc = await(&c, p->timeout_ns);
	if (rc)
		return rc;
	rc = note_missing(&c);
	if (rc >= 0)
		sum_tokens(&c, p);
	if (ch->own_sinks)
		end_own(ch, &c);
	else
		end_foreign(ch, &c, (uint32_t)p->source);
	return rc;
}

int m2n_round_trip(struct m2n_channel *ch, const struct m2n_dispatch_send_params *dispatch,
	struct m2n_combine_recv_params *combine)
{
	uint64_t round;
	struct m2n_dispatch_send_params p;
	int sent, rc;

	if (!dispatch || !combine || dispatch->size != sizeof(p))
		return m2n__error(-EINVAL,
			"m2n_round_trip: dispatch or combine is NULL or of another "
			"size: start from the INIT macros");
	p = *dispatch;
	p.round = &round;
	sent = m2n_dispatch_send(ch, &p);
	if (sent < 0)
		return sent;
	if (dispatch->round)
		*dispatch->round = round;
	combine->round = round;
	if (!combine->plan)
		combine->plan = dispatch->plan;
	rc = m2n_combine_recv(ch, combine);
	return rc ? rc : sent;
}

int m2n_combine_backward(struct m2n_channel *ch, const struct m2n_dispatch_send_params *dispatch,
	const void *replies, float *grad_weights)
{
	struct m2n_dispatch_send_params p;
	const struct m2n_plan *plan;
	size_t stride, bytes;

	if (!ch || !dispatch || dispatch->size != sizeof(p) || !dispatch->plan)
		return m2n__error(
			-EINVAL, "m2n_combine_backward: channel, dispatch or plan is NULL");
	if (grad_weights && (!replies || !dispatch->rows))
		return m2n__error(-EINVAL, "%s: grad_weights needs replies and rows", ch->title);
	if (grad_weights && ch->p.row_bytes != ch->p.out_row_bytes)
		return m2n__error(-EINVAL,
			"%s: backward: row_bytes %zu and out_row_bytes %zu differ", ch->title,
			ch->p.row_bytes, ch->p.out_row_bytes);
	if (ch->gpu)
		return m2n__gpu_combine_backward(ch->gpu, dispatch, replies, grad_weights);
	p = *dispatch;
	plan = p.plan;
	if (!p.row_weights)
		p.row_weights = plan->weight;
	bytes = ch->p.out_row_bytes;
	stride = p.row_stride ? p.row_stride : bytes;
	for (size_t pair = 0; grad_weights && pair < (size_t)plan->n_tokens * ch->p.top_k; pair++)
		grad_weights[pair] =
			plan->pair_row[pair] < 0
				? 0
				: ch->ctx->kernels->dot[ch->p.dtype](
					  (const uint8_t *)p.rows + pair / ch->p.top_k * stride,
					  (const uint8_t *)replies + pair * bytes, ch->n_values);
	return m2n_dispatch_send(ch, &p);
}
