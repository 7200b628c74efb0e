/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving data. UCX has no gather list for puts: each piece is one ucp_put_nbx(). Behind the last
 * comes a fence, then a put of the signal word's new value, which is ours to know as the word has
 * one sender.
 */
#include <errno.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"
#include "util/error.h"

static void put_done(void *request, ucs_status_t status, void *arg)
{
	struct m2n__ucx_ep *e = arg;

	e->n_in_flight--;
	if (status != UCS_OK)
		m2n__ucx_break(e, status);
	m2n__ucx.ucp_request_free(request);
}

static void give_bounce(struct m2n__ucx_iface *u, struct m2n__ucx_bounce *b)
{
	b->next = u->free_bounces;
	u->free_bounces = b;
}

static void bounce_done(void *request, ucs_status_t status, void *arg)
{
	struct m2n__ucx_bounce *b = arg;

	give_bounce(m2n__ucx_iface(b->ep->ep.iface), b);
	put_done(request, status, b->ep);
}

/* What came of a put. 1: it is under way; 0: its bytes may be reused; or M2N_ERR_PEER_LOST. */
static int account(struct m2n__ucx_ep *e, ucs_status_ptr_t request)
{
	e->n_posted++;
	if (UCS_PTR_IS_ERR(request)) {
		m2n__ucx_break(e, UCS_PTR_STATUS(request));
		return m2n__ucx_check(&e->ep);
	}
	e->n_in_flight += request != NULL;
	return request != NULL;
}

static int put_piece(struct m2n__ucx_ep *e, struct m2n__put *put, const struct m2n__piece *piece)
{
	const struct m2n__mr *mr = piece->reg ? piece->reg->mr[e->ep.iface->params.index] : NULL;
	struct m2n__ucx_rmem *r = (struct m2n__ucx_rmem *)put->rmem;
	ucp_request_param_t param = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
		.cb.send = put_done,
		.user_data = e,
	};
	int rc;

	if (mr) {
		param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
		param.memh = ((const struct m2n__ucx_mr *)mr)->memh;
	}
	put->n_posted++;
	rc = account(e, m2n__ucx.ucp_put_nbx(e->ucp_ep, piece->base, piece->bytes,
				r->base + put->offset + put->next_offset, r->rkey, &param));
	return rc < 0 ? rc : 0;
}

static int put_bounce(struct m2n__ucx_iface *u, struct m2n__ucx_ep *e, struct m2n__ucx_bounce *b,
	size_t bytes, uint64_t to, ucp_rkey_h rkey)
{
	ucp_request_param_t param = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
		.cb.send = bounce_done,
		.user_data = b,
	};
	int rc;

	b->ep = e;
	rc = account(e, m2n__ucx.ucp_put_nbx(e->ucp_ep, b->bytes, bytes, to, rkey, &param));
	if (rc != 1)
		give_bounce(u, b);
	return rc < 0 ? rc : 0;
}

static int raise_signal(struct m2n__ucx_iface *u, struct m2n__ucx_ep *e, struct m2n__put *put)
{
	struct m2n__ucx_bounce *b = u->free_bounces;
	ucs_status_t status;
	int rc;

	if (!b)
		return -EAGAIN;
	u->free_bounces = b->next;
	status = m2n__ucx.ucp_worker_fence(u->worker);
	if (status != UCS_OK) {
		give_bounce(u, b);
		m2n__ucx_break(e, status);
		return m2n__ucx_check(&e->ep);
	}
	b->bytes[0] = put->raised + 1;
	rc = put_bounce(u, e, b, sizeof(b->bytes[0]),
		e->signal_base + put->signal * sizeof(b->bytes[0]), e->signal_rkey);
	put->n_signals = rc == 0;
	return rc;
}

static int check_put(const struct m2n__ucx_ep *e, const struct m2n__put *put)
{
	size_t bytes = 0, room = put->rmem->bytes;
	int fits = put->offset <= room;

	for (size_t i = 0; i < put->n_pieces && fits; i++) {
		fits = put->pieces[i].bytes <= room - put->offset - bytes;
		bytes += put->pieces[i].bytes;
	}
	if (!fits)
		return m2n__error(-EINVAL,
			"ucx: put of %zu bytes or more at %zu into memory of %zu", bytes,
			put->offset, room);
	if (put->signal != M2N__SIGNAL_NONE && put->signal >= e->n_signals)
		return m2n__error(
			-EINVAL, "ucx: signal %u, the peer has %u", put->signal, e->n_signals);
	return 0;
}

/* Goes on where the last call ended. -EAGAIN: too much is under way. Under the lock. */
static int post(struct m2n__ucx_iface *u, struct m2n__ucx_ep *e, struct m2n__put *put)
{
	int rc;

	while (put->next_piece < put->n_pieces) {
		const struct m2n__piece *piece = &put->pieces[put->next_piece];

		if (e->n_in_flight >= M2N__UCX_MAX_IN_FLIGHT)
			return -EAGAIN;
		rc = piece->bytes ? put_piece(e, put, piece) : 0;
		if (rc)
			return rc;
		put->next_offset += piece->bytes;
		put->next_piece++;
	}
	return put->signal == M2N__SIGNAL_NONE ? 0 : raise_signal(u, e, put);
}

int m2n__ucx_put(struct m2n__ep *ep, struct m2n__put *put)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before;
	int rc = put->next_piece ? 0 : check_put(e, put);

	if (!rc)
		rc = m2n__ucx_check(ep);
	if (rc)
		return rc;
	before = m2n__ucx_lock(u);
	rc = post(u, e, put);
	m2n__ucx_unlock(u, before);
	return rc;
}

static void flushed(void *request, ucs_status_t status, void *arg)
{
	struct m2n__ucx_ep *e = arg;

	e->is_flushing = 0;
	e->n_arrived = e->n_flush;
	if (status != UCS_OK)
		m2n__ucx_break(e, status);
	m2n__ucx.ucp_request_free(request);
}

/* Asks UCX to say when all that was posted has arrived. */
static void start_flush(struct m2n__ucx_ep *e)
{
	ucp_request_param_t param = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
		.cb.send = flushed,
		.user_data = e,
	};
	ucs_status_ptr_t request;

	e->n_flush = e->n_posted;
	request = m2n__ucx.ucp_ep_flush_nbx(e->ucp_ep, &param);
	e->is_flushing = UCS_PTR_IS_PTR(request);
	if (UCS_PTR_IS_ERR(request))
		m2n__ucx_break(e, UCS_PTR_STATUS(request));
	if (!e->is_flushing)
		e->n_arrived = e->n_flush;
}

int m2n__ucx_flush(struct m2n__ep *ep)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before = m2n__ucx_lock(u);
	int is_pending = e->n_in_flight > 0;

	if (is_pending)
		m2n__ucx.ucp_worker_progress(u->worker);
	m2n__ucx_unlock(u, before);
	return is_pending ? -EAGAIN : 0;
}

/* On a connection that broke nothing can still arrive once UCX gave its requests back. */
int m2n__ucx_arrived(struct m2n__ep *ep)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before = m2n__ucx_lock(u);
	int is_pending;

	if (!e->is_flushing && e->n_arrived != e->n_posted && e->status == UCS_OK)
		start_flush(e);
	if (e->is_flushing || e->n_in_flight)
		m2n__ucx.ucp_worker_progress(u->worker);
	is_pending = e->is_flushing || e->n_in_flight ||
		     (e->n_arrived != e->n_posted && e->status == UCS_OK);
	m2n__ucx_unlock(u, before);
	return is_pending ? -EAGAIN : 0;
}
