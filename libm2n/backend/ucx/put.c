/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving data: messages, or direct puts. UCX has no gather list for puts, so each piece is one
 * ucp_put_nbx(). Behind the last comes a fence, then a put of the signal word's new value, which
 * is ours to know as the word has one sender.
 */
#include <errno.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"
#include "kernel/kernel.h"
#include "util/error.h"
#include "util/options.h"

void m2n__ucx_done(void *request, ucs_status_t status, void *arg)
{
	struct m2n__ucx_note *note = arg;
	struct m2n__ucx_ep *e = note->ep;

	note->next = e->free_notes;
	e->free_notes = note;
	e->n_in_flight--;
	if (status != UCS_OK)
		m2n__ucx_break(e, status);
	m2n__ucx.ucp_request_free(request);
}

int m2n__ucx_posted(
	struct m2n__ucx_ep *e, struct m2n__ucx_note *note, ucs_status_ptr_t request)
{
	if (request == NULL)
		return 0;
	if (!UCS_PTR_IS_ERR(request)) {
		e->free_notes = note->next;
		e->n_in_flight++;
		return 0;
	}
	m2n__ucx_break(e, UCS_PTR_STATUS(request));
	return m2n__ucx_check(&e->ep);
}

/* One put that has the next free note; `mr` NULL: UCX finds out. 0, or M2N_ERR_PEER_LOST. */
static int put_bytes(struct m2n__ucx_ep *e, const void *data, size_t bytes, uint64_t to,
	ucp_rkey_h rkey, const struct m2n__ucx_mr *mr)
{
	struct m2n__ucx_note *note = e->free_notes;
	ucp_request_param_t param = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
		.cb.send = m2n__ucx_done,
		.user_data = note,
	};
	ucs_status_ptr_t request;

	if (mr) {
		param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
		param.memh = mr->memh;
		param.memory_type = m2n__ucx_memory_type(mr->mr.mem);
	}
	request = m2n__ucx.ucp_put_nbx(e->ucp_ep, data, bytes, to, rkey, &param);
	e->n_posted++;
	return m2n__ucx_posted(e, note, request);
}

static int raise_signal(struct m2n__ucx_iface *u, struct m2n__ucx_ep *e, struct m2n__put *put)
{
	struct m2n__ucx_note *note = e->free_notes;
	ucs_status_t status;
	int rc;

	if (!note)
		return -EAGAIN;
	status = m2n__ucx.ucp_worker_fence(u->worker);
	if (status != UCS_OK) {
		m2n__ucx_break(e, status);
		return m2n__ucx_check(&e->ep);
	}
	note->raised = put->raised + 1;
	rc = put_bytes(e, &note->raised, sizeof(note->raised),
		e->signal_base + put->signal * sizeof(note->raised), e->signal_rkey, NULL);
	put->n_signals = rc == 0;
	return rc;
}

/* Goes on where the last call ended. -EAGAIN: too much is under way. Under the lock. */
static int put_direct(struct m2n__ucx_iface *u, struct m2n__ucx_ep *e, struct m2n__put *put)
{
	struct m2n__ucx_rmem *r = (struct m2n__ucx_rmem *)put->rmem;
	int rc;

	while (put->next_piece < put->n_pieces) {
		const struct m2n__piece *piece = &put->pieces[put->next_piece];
		const struct m2n__mr *mr =
			piece->reg ? piece->reg->mr[u->iface.params.index] : NULL;

		if (!e->free_notes)
			return -EAGAIN;
		if (piece->bytes) {
			rc = put_bytes(e, piece->base, piece->bytes,
				r->base + put->offset + put->next_offset, r->rkey,
				(const struct m2n__ucx_mr *)mr);
			if (rc)
				return rc;
			put->n_posted++;
		}
		put->next_offset += piece->bytes;
		put->next_piece++;
	}
	return put->signal == M2N__SIGNAL_NONE ? 0 : raise_signal(u, e, put);
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

/* Is a piece GPU memory, which the processor cannot read? */
static int reads_device(const struct m2n__ucx_iface *u, const struct m2n__put *put)
{
	for (size_t i = 0; u->has_cuda && i < put->n_pieces; i++) {
		const struct m2n__reg *reg = put->pieces[i].reg;
		const struct m2n__mr *mr = reg ? reg->mr[u->iface.params.index] : NULL;

		if (mr && mr->mem->kind == M2N__MEM_CUDA)
			return 1;
	}
	return 0;
}

/*
 * To memory that is mapped here: stores, without the lock. 0: this is not such a list, a piece is
 * left to UCX (M2N_UCX_STORE), or something is under way that its signal must stay behind.
 */
static int store(struct m2n__ucx_ep *e, struct m2n__put *put)
{
	const struct m2n__iface_params *params = &e->ep.iface->params;
	uint8_t *to = ((struct m2n__ucx_rmem *)put->rmem)->ptr;
	size_t at = put->offset;

	if (!to || put->next_offset || atomic_load_explicit(&e->n_in_flight, memory_order_relaxed))
		return 0;
	for (size_t i = 0; i < put->n_pieces; i++)
		if (put->pieces[i].bytes > params->options->ucx_store)
			return 0;
	for (size_t i = 0; i < put->n_pieces; i++) {
		params->kernels->copy(to + at, put->pieces[i].base, put->pieces[i].bytes);
		at += put->pieces[i].bytes;
	}
	put->n_posted = 1;
	put->n_signals = put->signal != M2N__SIGNAL_NONE;
	/* G2: the bytes before the signal, pairs with A2 in m2n__rx_ready(). */
	if (put->n_signals)
		atomic_store_explicit(
			&e->signals[put->signal], put->raised + 1, memory_order_release);
	return 1;
}

int m2n__ucx_put(struct m2n__ep *ep, struct m2n__put *put)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before;
	int rc = put->next_offset ? 0 : check_put(e, put), is_device;

	if (!rc)
		rc = m2n__ucx_check(ep);
	if (rc)
		return rc;
	is_device = reads_device(u, put);
	if (is_device && !e->is_direct)
		return m2n__ucx_no_device();
	if (!is_device && store(e, put))
		return 0;
	before = m2n__ucx_lock(u);
	rc = e->is_direct ? put_direct(u, e, put) : m2n__ucx_send(e, put);
	m2n__ucx_unlock(u, before);
	return rc;
}

int m2n__ucx_flush(struct m2n__ep *ep)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before;

	if (!atomic_load_explicit(&e->n_in_flight, memory_order_acquire))
		return 0;
	before = m2n__ucx_lock(u);
	m2n__ucx.ucp_worker_progress(u->worker);
	m2n__ucx_unlock(u, before);
	return -EAGAIN;
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

/* Messages that arrive later than wanted are dropped by the names in them: to have sent them is
 * enough. On a connection that broke nothing can still arrive. */
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
