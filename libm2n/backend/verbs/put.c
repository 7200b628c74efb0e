/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending. A list of pieces becomes RDMA writes of as many pieces as the device gathers (and, over
 * several paths, of at most M2N_VERBS_STRIPE bytes) that go round the paths. A queue pair executes
 * its writes in order, so only the last one on each path carries the immediate that raises the
 * peer's signal: it vouches for all before it. What goes to one path is posted as one chain: one
 * doorbell for the put.
 *
 * Of the writes of one put on one path, the last is acknowledged to us, unless it was copied into
 * the work request (inline); and one in every quarter of the queue, so that there is room again.
 * flush() and arrived() count acknowledgements.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

#define BATCH 32

struct batch {
	unsigned n;
	struct ibv_send_wr wr[BATCH];
	struct ibv_sge sge[BATCH][VERBS_MAX_SGE];
};

struct place {
	size_t piece, byte;
};

/*
 * Moves `at` over the pieces of the next write. `sge` NULL: only counts. The number of entries;
 * *bytes is what they hold.
 */
static int cut(const struct verbs_ep *e, const struct m2n__put *put, struct place *at,
	const struct verbs_path *path, struct ibv_sge *sge, size_t *bytes)
{
	const struct m2n__iface *iface = e->ep.iface;
	size_t left = iface->max_bytes, n = 0;

	while (at->piece < put->n_pieces && n < iface->max_iov && left) {
		const struct m2n__piece *p = &put->pieces[at->piece];
		size_t some = p->bytes - at->byte < left ? p->bytes - at->byte : left;

		if (some && sge) {
			const struct m2n__mr *mr = p->reg ? p->reg->mr[iface->params.index] : NULL;
			const struct verbs_mr *m = (const struct verbs_mr *)mr;

			sge[n].addr = (uint64_t)(uintptr_t)p->base + at->byte;
			sge[n].length = (uint32_t)some;
			sge[n].lkey = m ? m->rail[path->rail_idx]->lkey : 0;
		}
		n += some > 0;
		left -= some;
		at->byte += some;
		if (at->byte == p->bytes) {
			at->piece++;
			at->byte = 0;
		}
	}
	while (at->piece < put->n_pieces && put->pieces[at->piece].bytes == 0)
		at->piece++; /* or they would be a write of their own */
	*bytes = iface->max_bytes - left;
	return (int)n;
}

/*
 * Is a write small enough to be copied into the work request, and made of memory that the
 * processor can read? Those that are borrowed need not be looked at.
 */
static int is_inline(const struct verbs_ep *e, const struct m2n__put *put, struct place at,
	const struct place *end, size_t bytes)
{
	const struct m2n__iface *iface = e->ep.iface;

	if (bytes > iface->max_inline)
		return 0;
	for (; at.piece < put->n_pieces && at.piece <= end->piece; at.piece++) {
		const struct m2n__reg *reg = put->pieces[at.piece].reg;
		const struct m2n__mr *mr = reg ? reg->mr[iface->params.index] : NULL;

		if (mr && ((const struct verbs_mr *)mr)->is_device)
			return 0;
	}
	return 1;
}

/* Writes that the rest of the list takes. */
static unsigned count_writes(const struct verbs_ep *e, const struct m2n__put *put)
{
	struct place at = {put->next_piece, put->next_byte};
	size_t bytes;
	unsigned n = 0;

	do {
		(void)cut(e, put, &at, NULL, NULL, &bytes);
		n++;
	} while (at.piece < put->n_pieces);
	return n;
}

/* The first look at a list. */
static int begin(struct verbs_ep *e, struct m2n__put *put)
{
	const struct m2n__iface *iface = e->ep.iface;
	size_t bytes = 0, room = put->rmem->bytes;
	int needs_mr = 0;

	for (size_t i = 0; i < put->n_pieces; i++) {
		const struct m2n__piece *p = &put->pieces[i];

		if (p->bytes > room - bytes)
			bytes = SIZE_MAX;
		else
			bytes += p->bytes;
		if (bytes == SIZE_MAX)
			break;
		needs_mr |= p->bytes && (!p->reg || !p->reg->mr[iface->params.index]);
	}
	if (bytes == SIZE_MAX || put->offset > room || bytes > room - put->offset)
		return m2n__error(-EINVAL,
			"verbs: a put at offset %zu does not fit in the peer's %zu bytes",
			put->offset, room);
	if (needs_mr && (bytes > iface->max_inline || put->n_pieces > iface->max_iov))
		return m2n__error(-EINVAL,
			"verbs: a put of %zu bytes from memory that is not registered", bytes);
	put->n_posted = 0;
	put->n_signals = 0;
	put->next_path = e->rotor;
	return 0;
}

static unsigned room_of(const struct verbs_path *path)
{
	/* A7: what was acknowledged, pairs with R7 in m2n__verbs_progress(). */
	uint64_t n_done = atomic_load_explicit(&path->n_done, memory_order_acquire);

	return path->ep->depth - (unsigned)(path->n_posted - n_done);
}

/* Are bytes of the caller's still to be read by the device? */
static int borrows(const struct verbs_path *path)
{
	return path->n_borrowed >
	       atomic_load_explicit(&path->n_done, memory_order_acquire); /* A7 */
}

/*
 * The work request of the next write of the list, but for what it gathers. Only what an RDMA
 * write has is filled in. `is_last`: on its path.
 */
static void describe(struct verbs_path *path, const struct m2n__put *put, struct ibv_send_wr *wr,
	int is_copied, int is_last)
{
	const struct verbs_rmem *rmem = (const struct verbs_rmem *)put->rmem;

	wr->next = NULL;
	wr->send_flags = 0;
	wr->opcode = IBV_WR_RDMA_WRITE;
	if (is_last && put->signal != M2N__SIGNAL_NONE) {
		wr->opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
		wr->imm_data = htobe32(put->signal);
	}
	wr->wr.rdma.remote_addr = rmem->address + put->offset + put->next_offset;
	wr->wr.rdma.rkey = rmem->rkey[path->rail_idx];
	path->n_posted++;
	wr->wr_id = (uint64_t)path->uid << 32 | (uint32_t)path->n_posted;
	if (is_copied)
		wr->send_flags = IBV_SEND_INLINE;
	else
		path->n_borrowed = path->n_posted;
	if ((is_last && path->n_borrowed == path->n_posted) ||
		path->n_posted - path->n_marked >= path->ep->depth / 4) {
		wr->send_flags |= IBV_SEND_SIGNALED;
		path->n_marked = path->n_posted;
	}
}

static unsigned path_after(const struct verbs_ep *e, unsigned path)
{
	return path + 1 == e->n_paths ? 0 : path + 1;
}

/* The next write of the list, at the end of its path's chain. `left`: writes with this one. */
static void append(struct verbs_ep *e, struct m2n__put *put, struct batch *batch, unsigned left)
{
	struct verbs_path *path = &e->paths[put->next_path];
	struct ibv_send_wr *wr = &batch->wr[batch->n];
	const struct place first = {put->next_piece, put->next_byte};
	struct place at = first;
	size_t bytes;

	wr->sg_list = batch->sge[batch->n];
	wr->num_sge = cut(e, put, &at, path, wr->sg_list, &bytes);
	describe(path, put, wr, is_inline(e, put, first, &at, bytes), left <= put->n_signals);
	if (path->last)
		path->last->next = wr;
	else
		path->first = wr;
	path->last = wr;
	batch->n++;
	put->n_posted++;
	put->next_piece = at.piece;
	put->next_byte = at.byte;
	put->next_offset += bytes;
	put->next_path = path_after(e, put->next_path);
}

/* One doorbell for each path that has something. */
static int ring(struct verbs_ep *e, struct batch *batch)
{
	int rc = 0;

	for (unsigned i = 0; i < e->n_paths; i++) {
		struct verbs_path *path = &e->paths[i];
		struct ibv_send_wr *bad;

		if (path->first && !rc)
			rc = ibv_post_send(path->qp, path->first, &bad);
		path->first = path->last = NULL;
	}
	batch->n = 0;
	if (rc)
		m2n__verbs_break(e, "ibv_post_send: %s", strerrordesc_np(rc));
	return rc ? M2N_ERR_PEER_LOST : 0;
}

static int post(struct verbs_ep *e, struct m2n__put *put)
{
	unsigned left = count_writes(e, put);
	struct batch batch;
	int rc = 0, full = 0;

	batch.n = 0;
	put->n_signals = put->n_posted + left < e->n_paths ? put->n_posted + left : e->n_paths;
	while (left && !rc && !full) {
		full = !room_of(&e->paths[put->next_path]);
		if (full)
			break;
		append(e, put, &batch, left--);
		if (batch.n == BATCH)
			rc = ring(e, &batch);
	}
	if (batch.n && !rc)
		rc = ring(e, &batch);
	if (!rc && !left)
		e->rotor = put->next_path;
	if (put->signal == M2N__SIGNAL_NONE)
		put->n_signals = 0;
	return rc ? rc : full ? -EAGAIN : 0;
}

/*
 * What a put gathers that is one write, as most are. 0: it is not, or something is wrong with it,
 * which begin() says. *is_copied: see is_inline().
 */
static int gather(const struct verbs_ep *e, const struct m2n__put *put,
	const struct verbs_path *path, struct ibv_sge *sge, int *is_copied)
{
	const struct m2n__iface *iface = e->ep.iface;
	const size_t room = put->rmem->bytes, limit = iface->max_bytes;
	int is_foreign = 0, is_device = 0;
	size_t bytes = 0, n = 0;

	if (put->n_pieces > iface->max_iov)
		return 0;
	for (const struct m2n__piece *p = put->pieces, *end = p + put->n_pieces; p < end; p++) {
		const struct m2n__mr *mr = p->reg ? p->reg->mr[iface->params.index] : NULL;
		const struct verbs_mr *m = (const struct verbs_mr *)mr;

		if (!p->bytes)
			continue;
		if (p->bytes > limit - bytes)
			return 0;
		bytes += p->bytes;
		is_foreign |= !m;
		is_device |= m && m->is_device;
		sge[n].addr = (uint64_t)(uintptr_t)p->base;
		sge[n].length = (uint32_t)p->bytes;
		sge[n++].lkey = m ? m->rail[path->rail_idx]->lkey : 0;
	}
	*is_copied = bytes <= iface->max_inline && !is_device;
	if (put->offset > room || bytes > room - put->offset || (is_foreign && !*is_copied))
		return 0;
	return (int)n;
}

/* Without counting, cutting and chains. */
static int post_one(struct verbs_ep *e, struct m2n__put *put, struct verbs_path *path,
	struct ibv_send_wr *wr, int is_copied)
{
	struct ibv_send_wr *bad;
	int rc;

	describe(path, put, wr, is_copied, 1);
	rc = ibv_post_send(path->qp, wr, &bad);
	if (rc) {
		m2n__verbs_break(e, "ibv_post_send: %s", strerrordesc_np(rc));
		return M2N_ERR_PEER_LOST;
	}
	put->n_posted = 1;
	put->n_signals = put->signal != M2N__SIGNAL_NONE;
	put->next_piece = put->n_pieces;
	e->rotor = path_after(e, e->rotor);
	return 0;
}

static int put_locked(struct verbs_ep *e, struct m2n__put *put)
{
	struct verbs_path *path = &e->paths[e->rotor];
	struct ibv_sge sge[VERBS_MAX_SGE];
	struct ibv_send_wr wr;
	int is_copied, rc;

	if (put->next_piece || put->next_byte)
		return post(e, put);
	wr.sg_list = sge;
	wr.num_sge = gather(e, put, path, sge, &is_copied);
	if (wr.num_sge)
		return room_of(path) ? post_one(e, put, path, &wr, is_copied) : -EAGAIN;
	rc = begin(e, put);
	return rc ? rc : post(e, put);
}

int m2n__verbs_put(struct m2n__ep *ep, struct m2n__put *put)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	int rc;

	if (atomic_load_explicit(&e->status, memory_order_relaxed))
		return m2n__verbs_check(ep);
	if (atomic_load_explicit(&e->state, memory_order_acquire) != VERBS_READY)
		return m2n__error(-EINVAL, "verbs: a put before the connection is ready");
	m2n__verbs_lock(&e->lock);
	rc = put_locked(e, put);
	m2n__verbs_unlock(&e->lock);
	return rc == M2N_ERR_PEER_LOST ? m2n__verbs_check(ep) : rc;
}

/* Something without bytes that is acknowledged, behind what is not. */
static int mark_end(struct verbs_ep *e, struct verbs_path *path)
{
	struct ibv_send_wr nothing = {.opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED};
	struct ibv_send_wr *bad;
	int rc;

	if (path->n_marked == path->n_posted || !room_of(path))
		return 0;
	path->n_marked = ++path->n_posted;
	nothing.wr_id = (uint64_t)path->uid << 32 | (uint32_t)path->n_posted;
	rc = ibv_post_send(path->qp, &nothing, &bad);
	if (rc)
		m2n__verbs_break(e, "ibv_post_send: %s", strerrordesc_np(rc));
	return rc ? M2N_ERR_PEER_LOST : 0;
}

int m2n__verbs_arrived(struct m2n__ep *ep)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	int rc = m2n__verbs_check(ep);

	if (rc)
		return rc;
	m2n__verbs_lock(&e->lock);
	for (unsigned i = 0; i < e->n_paths && rc != M2N_ERR_PEER_LOST; i++)
		if (room_of(&e->paths[i]) < e->depth)
			rc = mark_end(e, &e->paths[i]) ? M2N_ERR_PEER_LOST : -EAGAIN;
	m2n__verbs_unlock(&e->lock);
	return rc == M2N_ERR_PEER_LOST ? m2n__verbs_check(ep) : rc;
}

int m2n__verbs_flush(struct m2n__ep *ep)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	int rc = m2n__verbs_check(ep);

	if (rc)
		return rc;
	m2n__verbs_lock(&e->lock);
	for (unsigned i = 0; i < e->n_paths && !rc; i++)
		if (borrows(&e->paths[i]))
			rc = -EAGAIN;
	m2n__verbs_unlock(&e->lock);
	return rc;
}
