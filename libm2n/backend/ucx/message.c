/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data by active messages. A list is cut into messages that fit into one segment of any transport,
 * so that UCX never has to put one together; each raises the signal by one. The receiver looks the
 * connection and the memory up by name and checks the bounds: what comes late, or was made up,
 * finds nothing and is dropped.
 */
#include <errno.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"
#include "util/error.h"

#define MESSAGE_ID 1
#define HELLO_ID 2

static ucs_status_t take_message(void *arg, const void *header, size_t header_bytes, void *data,
	size_t bytes, const ucp_am_recv_param_t *param)
{
	struct m2n__ucx_iface *u = arg;
	const struct m2n__ucx_mr *m;
	struct m2n__ucx_head head;

	if (header_bytes != sizeof(head) || param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)
		return UCS_OK;
	memcpy(&head, header, sizeof(head));
	m = m2n__ucx_table_find(&u->regions, head.region);
	/* GPU memory takes puts only: the processor cannot write to it. */
	if (!m || !m2n__ucx_table_find(&u->tokens, head.token) || head.bytes != bytes ||
		m->mr.mem->kind != M2N__MEM_HOST ||
		head.offset > m->mr.mem->bytes || bytes > m->mr.mem->bytes - head.offset)
		return UCS_OK;
	memcpy((uint8_t *)m->mr.mem->base + head.offset, data, bytes);
	/* G1: the bytes before the signal, pairs with A2 in m2n__rx_ready(). */
	if (head.signal < u->iface.params.n_signals)
		atomic_fetch_add_explicit(
			&u->iface.params.signals[head.signal], 1, memory_order_release);
	return UCS_OK;
}

static ucs_status_t take_hello(void *arg, const void *header, size_t header_bytes, void *data,
	size_t bytes, const ucp_am_recv_param_t *param)
{
	struct m2n__ucx_iface *u = arg;
	struct m2n__ucx_head head;
	struct m2n__ucx_ep *e;

	(void)data, (void)bytes, (void)param;
	if (header_bytes != sizeof(head))
		return UCS_OK;
	memcpy(&head, header, sizeof(head));
	e = m2n__ucx_table_find(&u->tokens, head.token);
	if (e)
		e->is_greeted = 1;
	return UCS_OK;
}

int m2n__ucx_listen(struct m2n__ucx_iface *u)
{
	ucp_am_handler_param_t param = {
		.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
			      UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
		.id = MESSAGE_ID,
		.cb = take_message,
		.arg = u,
		.flags = UCP_AM_FLAG_WHOLE_MSG,
	};
	ucs_status_t status = m2n__ucx.ucp_worker_set_am_recv_handler(u->worker, &param);

	if (status == UCS_OK) {
		param.id = HELLO_ID;
		param.cb = take_hello;
		status = m2n__ucx.ucp_worker_set_am_recv_handler(u->worker, &param);
	}
	return status ? m2n__ucx_error(status, "setting a handler of messages") : 0;
}

/* Takes pieces off the list until a message is full; moves the list's place. */
static size_t fill(struct m2n__ucx_note *note, struct m2n__put *put)
{
	size_t n = 0, bytes = 0;

	while (put->next_piece < put->n_pieces && n < M2N__UCX_PIECES &&
		bytes < M2N__UCX_MESSAGE_BYTES) {
		const struct m2n__piece *piece = &put->pieces[put->next_piece];
		size_t left = piece->bytes - put->next_byte;
		size_t room = M2N__UCX_MESSAGE_BYTES - bytes;
		size_t take = left < room ? left : room;

		if (take)
			note->iov[n++] = (ucp_dt_iov_t){
				(uint8_t *)(uintptr_t)piece->base + put->next_byte, take};
		bytes += take;
		put->next_byte += take;
		if (take == left) {
			put->next_piece++;
			put->next_byte = 0;
		}
	}
	note->head.bytes = (uint32_t)bytes;
	return n;
}

static int send_note(struct m2n__ucx_ep *e, unsigned id, struct m2n__ucx_note *note, size_t n)
{
	ucp_request_param_t param = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
				UCP_OP_ATTR_FIELD_FLAGS,
		.flags = UCP_AM_SEND_FLAG_EAGER,
		.cb.send = m2n__ucx_done,
		.user_data = note,
	};
	const void *data = n ? note->iov[0].buffer : NULL;
	size_t count = n ? note->iov[0].length : 0;
	ucs_status_ptr_t request;

	if (n > 1) {
		param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
		param.datatype = ucp_dt_make_iov();
		data = note->iov;
		count = n;
	}
	request = m2n__ucx.ucp_am_send_nbx(
		e->ucp_ep, id, &note->head, sizeof(note->head), data, count, &param);
	return m2n__ucx_posted(e, note, request);
}

int m2n__ucx_hello(struct m2n__ucx_ep *e)
{
	struct m2n__ucx_note *note = e->free_notes;

	note->head = (struct m2n__ucx_head){.token = e->peer_token};
	return send_note(e, HELLO_ID, note, 0);
}

int m2n__ucx_send(struct m2n__ucx_ep *e, struct m2n__put *put)
{
	const struct m2n__ucx_rmem *r = (const struct m2n__ucx_rmem *)put->rmem;
	int rc;

	do {
		struct m2n__ucx_note *note = e->free_notes;
		size_t n;

		if (!note)
			return -EAGAIN;
		note->head = (struct m2n__ucx_head){
			.token = e->peer_token,
			.region = r->region,
			.offset = r->base + put->offset + put->next_offset,
			.signal = put->signal,
		};
		n = fill(note, put);
		rc = send_note(e, MESSAGE_ID, note, n);
		if (rc)
			return rc;
		put->next_offset += note->head.bytes;
		put->n_posted++;
		put->n_signals += put->signal != M2N__SIGNAL_NONE;
	} while (put->next_piece < put->n_pieces);
	return 0;
}
