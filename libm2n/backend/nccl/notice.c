/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the ends of a lane tell each other by notices; little-endian words:
 *
 *   BATCH  u32 1, u32 puts, u64 number; for each put u64 region, u64 offset, u32 signal, u32 pieces
 *          and for each of its pieces u64 bytes
 *   DONE   u32 2, u32 0, u64 batches that are done
 *
 * A receiver believes nothing: every length is read by the cursor, every place is looked up in the
 * memory that was exported, numbers must be the next ones.
 */
#include <errno.h>

#include <m2n/status.h>

#include "backend/nccl/nccl.h"
#include "util/error.h"
#include "wire/control_wire.h"

#define KIND_BATCH 1
#define KIND_DONE 2
#define HEAD_BYTES 16
#define PUT_BYTES 24

static void put_head(uint8_t head[HEAD_BYTES], uint32_t kind, uint32_t n_puts, uint64_t number)
{
	struct m2n__cursor c = {head, head + HEAD_BYTES, 0};

	m2n__put_u32(&c, kind);
	m2n__put_u32(&c, n_puts);
	m2n__put_u64(&c, number);
}

void m2n__nccl_notice_begin(struct m2n__nccl_batch *batch)
{
	batch->n_pieces = batch->n_puts = 0;
	batch->notice_bytes = HEAD_BYTES;
}

int m2n__nccl_notice_fits(const struct m2n__nccl_batch *batch, size_t n_pieces)
{
	return batch->n_puts < M2N__NCCL_PUTS &&
	       batch->n_pieces + n_pieces <= M2N__NCCL_PIECES &&
	       batch->notice_bytes + PUT_BYTES + 8 * n_pieces <= sizeof(batch->notice);
}

void m2n__nccl_notice_add(struct m2n__nccl_batch *batch, uint64_t region, uint64_t offset,
	uint32_t signal, unsigned first)
{
	struct m2n__cursor c = {batch->notice + batch->notice_bytes,
		batch->notice + sizeof(batch->notice), 0};

	m2n__put_u64(&c, region);
	m2n__put_u64(&c, offset);
	m2n__put_u32(&c, signal);
	m2n__put_u32(&c, batch->n_pieces - first);
	for (unsigned i = first; i < batch->n_pieces; i++)
		m2n__put_u64(&c, batch->pieces[i].bytes);
	batch->notice_bytes = (size_t)(c.at - batch->notice);
	batch->signals[batch->n_puts++] = signal;
}

static int say(struct m2n__nccl_lane *lane, const void *bytes, size_t n)
{
	struct m2n__ep *ep = &lane->ep->ep;

	return ep->iface->params.say(ep->iface->params.say_arg, ep, bytes, n);
}

int m2n__nccl_say_batch(struct m2n__nccl_lane *lane, uint64_t number)
{
	struct m2n__nccl_batch *batch = m2n__nccl_batch(lane, number);

	put_head(batch->notice, KIND_BATCH, batch->n_puts, number);
	return say(lane, batch->notice, batch->notice_bytes);
}

int m2n__nccl_say_done(struct m2n__nccl_lane *lane)
{
	uint8_t notice[HEAD_BYTES];

	put_head(notice, KIND_DONE, 0, lane->n_done);
	return say(lane, notice, sizeof(notice));
}

static int hear_put(
	struct m2n__nccl_lane *lane, struct m2n__nccl_batch *batch, struct m2n__cursor *c)
{
	struct m2n__iface *iface = lane->ep->ep.iface;
	uint64_t region = m2n__get_u64(c), offset = m2n__get_u64(c), all = 0;
	uint32_t signal = m2n__get_u32(c), n = m2n__get_u32(c);
	unsigned first = batch->n_pieces;
	uint8_t *at;

	if (c->overrun || n > M2N__NCCL_PIECES - batch->n_pieces)
		return m2n__error(M2N_ERR_PROTOCOL, "nccl: a notice with %u pieces", n);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t bytes = m2n__get_u64(c);

		if (c->overrun || !bytes || bytes > UINT64_MAX - all)
			return m2n__error(M2N_ERR_PROTOCOL,
				"nccl: a notice with a piece of %llu bytes",
				(unsigned long long)bytes);
		batch->pieces[batch->n_pieces++].bytes = bytes;
		all += bytes;
	}
	at = m2n__nccl_place(m2n__nccl_iface(iface), region, offset, all);
	if (!at || (signal != M2N__SIGNAL_NONE && signal >= iface->params.n_signals))
		return m2n__error(M2N_ERR_PROTOCOL,
			"nccl: a notice of %llu bytes at %llu of region %llu, signal %u: not what "
			"was exported",
			(unsigned long long)all, (unsigned long long)offset,
			(unsigned long long)region, signal);
	for (unsigned i = first; i < batch->n_pieces; i++) {
		batch->pieces[i].at = at;
		at += batch->pieces[i].bytes;
	}
	batch->signals[batch->n_puts++] = signal;
	return 0;
}

static int hear_batch(struct m2n__nccl_lane *lane, uint32_t n_puts, struct m2n__cursor *c)
{
	struct m2n__nccl_batch *batch;

	if (lane->n_queued - lane->n_done >= M2N__NCCL_BATCHES || n_puts > M2N__NCCL_PUTS)
		return m2n__error(M2N_ERR_PROTOCOL, "nccl: a notice of more than was acknowledged");
	batch = m2n__nccl_batch(lane, lane->n_queued);
	batch->n_pieces = batch->n_puts = 0;
	while (n_puts--) {
		int rc = hear_put(lane, batch, c);

		if (rc)
			return rc;
	}
	lane->n_queued++;
	return 0;
}

static int hear(struct m2n__nccl_ep *e, struct m2n__cursor *c)
{
	uint32_t kind = m2n__get_u32(c), n_puts = m2n__get_u32(c);
	uint64_t number = m2n__get_u64(c);
	int rc = -EPROTO;

	m2n__nccl_lane_warm(&e->in); /* the peer may have come to be ready first */
	if (!c->overrun && kind == KIND_BATCH && number == e->in.n_queued)
		rc = hear_batch(&e->in, n_puts, c);
	if (!c->overrun && kind == KIND_DONE && number > e->out.n_acked &&
		number <= e->out.n_launched) {
		e->out.n_acked = number;
		rc = 0;
	}
	if (rc == -EPROTO || (!rc && c->at != c->end))
		return m2n__error(M2N_ERR_PROTOCOL,
			"nccl: a notice of kind %u, number %llu: neither the next batch nor one "
			"that is under way",
			kind, (unsigned long long)number);
	return rc;
}

int m2n__nccl_hear(struct m2n__ep *ep, const void *bytes, size_t n)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct m2n__nccl_ep *e = m2n__nccl_ep(ep);
	uint8_t *at = (uint8_t *)(uintptr_t)bytes; /* only read */
	struct m2n__cursor c = {at, at + n, 0};
	int rc;

	if (!e->has_met || e->is_self)
		return m2n__error(M2N_ERR_PROTOCOL, "nccl: a notice before the greeting");
	pthread_mutex_lock(&u->lock);
	rc = e->status ? 0 : hear(e, &c);
	m2n__nccl_look(e);
	pthread_mutex_unlock(&u->lock);
	return rc;
}
