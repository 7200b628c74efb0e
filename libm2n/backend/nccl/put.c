/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Putting: pieces are added to the batch that is gathered; progress() sends it. A list of more
 * pieces than one put of a notice holds becomes several, each of which raises the signal.
 */
#include <errno.h>

#include <m2n/status.h>

#include "backend/nccl/nccl.h"
#include "util/error.h"

static int check_piece(const struct m2n__nccl_iface *u, const struct m2n__piece *piece)
{
	const struct m2n__mr *mr = piece->reg ? piece->reg->mr[u->iface.params.index] : NULL;
	uintptr_t at = (uintptr_t)piece->base;

	if (mr && mr->mem->kind == M2N__MEM_CUDA && at >= (uintptr_t)mr->mem->base &&
		at - (uintptr_t)mr->mem->base <= mr->mem->bytes &&
		piece->bytes <= mr->mem->bytes - (at - (uintptr_t)mr->mem->base))
		return 0;
	if (!piece->bytes || m2n__cuda_pointer(u->cuda, piece->base, NULL) == M2N__POINTER_DEVICE)
		return 0;
	return m2n__error(-EINVAL,
		"nccl: bytes at %p are not memory of the context's GPU; this backend moves CUDA "
		"memory only",
		piece->base);
}

static int check_put(const struct m2n__nccl_iface *u, const struct m2n__put *put)
{
	size_t bytes = 0;

	for (size_t i = 0; i < put->n_pieces; i++) {
		int rc = check_piece(u, &put->pieces[i]);

		if (rc)
			return rc;
		bytes += put->pieces[i].bytes;
	}
	if (put->offset > put->rmem->bytes || bytes > put->rmem->bytes - put->offset)
		return m2n__error(-EINVAL, "nccl: put of %zu bytes at %zu into memory of %zu",
			bytes, put->offset, put->rmem->bytes);
	return 0;
}

/* How many of the list's next pieces are one put. */
static size_t part_of(const struct m2n__put *put)
{
	size_t left = put->n_pieces - put->next_piece;

	return left < M2N__NCCL_IOV ? left : M2N__NCCL_IOV;
}

static int add_part(struct m2n__nccl_ep *e, struct m2n__put *put)
{
	const struct m2n__nccl_rmem *r = (const struct m2n__nccl_rmem *)put->rmem;
	struct m2n__nccl_iface *u = m2n__nccl_iface(e->ep.iface);
	size_t n = part_of(put), offset = put->offset + put->next_offset, bytes = 0;
	struct m2n__nccl_batch *batch = m2n__nccl_gather(&e->out, n);
	uint8_t *to = NULL;
	unsigned first;

	if (!batch)
		return -EAGAIN;
	first = batch->n_pieces;
	for (size_t i = 0; i < n; i++)
		bytes += put->pieces[put->next_piece + i].bytes;
	if (e->is_self) {
		to = m2n__nccl_place(u, r->region, r->base + offset, bytes);
		if (!to)
			return m2n__error(-EINVAL, "nccl: put into memory that is not exported");
	}
	for (size_t i = 0; i < n; i++) {
		const struct m2n__piece *piece = &put->pieces[put->next_piece++];

		if (!piece->bytes)
			continue;
		batch->pieces[batch->n_pieces++] = (struct m2n__nccl_piece){
			(uint8_t *)(uintptr_t)piece->base, to, piece->bytes};
		to += e->is_self ? piece->bytes : 0;
	}
	m2n__nccl_notice_add(batch, r->region, r->base + offset, put->signal, first);
	put->next_offset += bytes;
	put->n_posted += batch->n_pieces - first;
	put->n_signals += put->signal != M2N__SIGNAL_NONE;
	return 0;
}

int m2n__nccl_put(struct m2n__ep *ep, struct m2n__put *put)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct m2n__nccl_ep *e = m2n__nccl_ep(ep);
	int rc = put->next_piece ? 0 : check_put(u, put);

	if (rc)
		return rc;
	pthread_mutex_lock(&u->lock);
	rc = e->status ? m2n__error(M2N_ERR_PEER_LOST, "%s", e->reason) : 0;
	while (!rc && (put->next_piece < put->n_pieces || !put->n_pieces)) {
		rc = add_part(e, put);
		if (!put->n_pieces)
			break;
	}
	m2n__nccl_look(e);
	pthread_mutex_unlock(&u->lock);
	return rc;
}

/* Are all batches done, the gathered one too, and with `acked` at the peer? */
static int all_are_done(struct m2n__ep *ep, int acked)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct m2n__nccl_ep *e = m2n__nccl_ep(ep);
	const struct m2n__nccl_lane *lane = &e->out;
	int rc = 0;

	pthread_mutex_lock(&u->lock);
	if (e->status)
		rc = m2n__error(M2N_ERR_PEER_LOST, "%s", e->reason);
	else if (lane->batches && (m2n__nccl_is_gathered(lane) || lane->n_done < lane->n_queued ||
					  (acked && lane->n_acked < lane->n_queued)))
		rc = -EAGAIN;
	pthread_mutex_unlock(&u->lock);
	return rc;
}

int m2n__nccl_flush(struct m2n__ep *ep)
{
	return all_are_done(ep, 0);
}

int m2n__nccl_arrived(struct m2n__ep *ep)
{
	return all_are_done(ep, 1);
}
