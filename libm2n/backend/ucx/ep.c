/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections. A greeting is the worker's address and the key of the signal table; meet() makes
 * the UCX endpoint from the peer's. When a peer fails UCX calls fail_ep(), and the connection stays
 * broken until core takes it down; others do not notice.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"
#include "util/error.h"
#include "util/time.h"

#define CLOSE_PATIENCE_NS INT64_C(1000000000)

struct greeting {
	struct m2n__ucx_seal seal;
	uint32_t version;
	uint32_t n_signals;
	uint32_t address_bytes;
	uint32_t rkey_bytes;
	uint64_t signal_base;
	uint64_t token;
	/* the worker's address, then the key */
};

void m2n__ucx_break(struct m2n__ucx_ep *e, ucs_status_t status)
{
	int none = UCS_OK;

	/* The status first: whoever sees the count grown asks all connections. */
	if (atomic_compare_exchange_strong(&e->status, &none, status))
		atomic_fetch_add(&e->ep.iface->n_broken, 1);
}

static void fail_ep(void *arg, ucp_ep_h ucp_ep, ucs_status_t status)
{
	(void)ucp_ep;
	m2n__ucx_break(arg, status);
}

int m2n__ucx_check(struct m2n__ep *ep)
{
	ucs_status_t status = (ucs_status_t)atomic_load(&m2n__ucx_ep(ep)->status);

	return status == UCS_OK ? 0
				: m2n__error(M2N_ERR_PEER_LOST, "ucx: the connection broke: %s",
					  m2n__ucx.ucs_status_string(status));
}

static void set_busy(struct m2n__ucx_ep *e, int busy)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(e->ep.iface);

	if (busy && !e->is_busy)
		atomic_fetch_add(&u->n_busy, 1);
	if (!busy && e->is_busy)
		atomic_fetch_sub(&u->n_busy, 1);
	e->is_busy = busy;
}

static void free_ep(struct m2n__ucx_ep *e)
{
	set_busy(e, 0);
	free(e->notes);
	free(e);
}

int m2n__ucx_connect(struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(iface);
	struct m2n__iface *before;
	struct m2n__ucx_ep *e;
	int rc;

	if (!iface->ops->reaches(iface, blob, bytes))
		return m2n__error(M2N_ERR_PROTOCOL, "ucx: the peer's address is damaged");
	rc = m2n__ucx_start(u);
	if (rc)
		return rc;
	e = calloc(1, sizeof(*e));
	if (e)
		e->notes = calloc(M2N__UCX_NOTES, sizeof(*e->notes));
	if (!e || !e->notes) {
		free(e);
		return m2n__error(-ENOMEM, "ucx: no memory for a connection");
	}
	e->ep.iface = iface;
	atomic_init(&e->status, UCS_OK);
	for (size_t i = 0; i < M2N__UCX_NOTES; i++) {
		e->notes[i].ep = e;
		e->notes[i].next = e->free_notes;
		e->free_notes = &e->notes[i];
	}
	set_busy(e, 1);
	before = m2n__ucx_lock(u);
	rc = m2n__ucx_table_add(&u->tokens, e, &e->token);
	m2n__ucx_unlock(u, before);
	if (rc)
		free_ep(e);
	else
		*ep = &e->ep;
	return rc;
}

static int pack_greeting(
	const struct m2n__ucx_ep *e, const ucp_worker_attr_t *attr, uint8_t *out, size_t *bytes)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(e->ep.iface);
	struct m2n__ucx_mr *mr = (struct m2n__ucx_mr *)u->signal_mr;
	struct greeting g = {.version = m2n__ucx.version,
		.n_signals = u->iface.params.n_signals,
		.address_bytes = (uint32_t)attr->address_length,
		.signal_base = mr->base,
		.token = e->token};
	ucs_status_t status;
	size_t rkey_bytes, all;
	void *rkey;

	status = m2n__ucx.ucp_rkey_pack(u->context, mr->memh, &rkey, &rkey_bytes);
	if (status)
		return m2n__ucx_error(status, "packing the key of the signal table");
	all = sizeof(g) + attr->address_length + rkey_bytes;
	if (all <= *bytes) {
		g.rkey_bytes = (uint32_t)rkey_bytes;
		memcpy(out, &g, sizeof(g));
		memcpy(out + sizeof(g), attr->address, attr->address_length);
		memcpy(out + sizeof(g) + attr->address_length, rkey, rkey_bytes);
		m2n__ucx_sign(out, all);
	}
	m2n__ucx.ucp_rkey_buffer_release(rkey);
	if (all > *bytes)
		return m2n__error(-ENOSPC,
			"ucx: a greeting of %zu bytes, room for %zu: name fewer devices in "
			"UCX_NET_DEVICES",
			all, *bytes);
	*bytes = all;
	return 0;
}

int m2n__ucx_greeting(struct m2n__ep *ep, void *greeting, size_t *bytes)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	ucp_worker_attr_t attr = {.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS};
	struct m2n__iface *before = m2n__ucx_lock(u);
	ucs_status_t status;
	int rc;

	status = m2n__ucx.ucp_worker_query(u->worker, &attr);
	if (!status && attr.address_length > M2N__GREETING_BYTES / 2) {
		/* Many devices: shared memory's part can go, peers of this host have the net. */
		m2n__ucx.ucp_worker_release_address(u->worker, attr.address);
		attr.field_mask |= UCP_WORKER_ATTR_FIELD_ADDRESS_FLAGS;
		attr.address_flags = UCP_WORKER_ADDRESS_FLAG_NET_ONLY;
		status = m2n__ucx.ucp_worker_query(u->worker, &attr);
	}
	if (status) {
		rc = m2n__ucx_error(status, "asking for the worker's address");
	} else {
		rc = pack_greeting(m2n__ucx_ep(ep), &attr, greeting, bytes);
		m2n__ucx.ucp_worker_release_address(u->worker, attr.address);
	}
	m2n__ucx_unlock(u, before);
	return rc;
}

/* Does an endpoint have a transport whose puts need nobody at the other end? */
static int has_rdma(ucp_ep_h ucp_ep)
{
	static const char *const transports[] = {":rc_", ":dc_", ":ugni_rdma"};
	char *text = NULL;
	size_t bytes;
	FILE *stream = open_memstream(&text, &bytes);
	int found = 0;

	if (!stream)
		return 0;
	m2n__ucx.ucp_ep_print_info(ucp_ep, stream);
	fclose(stream);
	/* "lane[1]: 3:rc_mlx5/mlx5_0:1.0 md[2] ..."; "put[1]: 0..<short>.." of lanes for puts */
	for (char *put = text; !found && put && (put = strstr(put, " put[")); put++) {
		char *lane = strstr(text, "lane[");

		while (lane && strtol(lane + 5, NULL, 10) != strtol(put + 5, NULL, 10))
			lane = strstr(lane + 5, "lane[");
		for (size_t i = 0; lane && i < sizeof(transports) / sizeof(transports[0]); i++) {
			char *name = strstr(lane, transports[i]);

			found |= name && name < strchrnul(lane, '\n');
		}
	}
	free(text);
	return found;
}

/* Whether the peer's memory is reached by puts, and the key of its signal table if so. */
static int choose_way(struct m2n__ucx_ep *e, const uint8_t *rkey)
{
	const struct m2n__iface_params *params = &e->ep.iface->params;
	ucs_status_t status;
	void *table;

	status = m2n__ucx.ucp_ep_rkey_unpack(e->ucp_ep, rkey, &e->signal_rkey);
	if (status)
		return m2n__ucx_error(status, "reading the key of the peer's signal table");
	if (m2n__ucx.ucp_rkey_ptr(e->signal_rkey, e->signal_base, &table) == UCS_OK)
		e->signals = table;
	e->is_direct = e->signals || has_rdma(e->ucp_ep);
	params->log(params->log_arg, M2N_LOG_DEBUG,
		e->is_direct ? "ucx: a peer is reached by puts" : "ucx: a peer takes messages");
	return 0;
}

static int open_ep(struct m2n__ucx_ep *e, const struct greeting *g, const uint8_t *parts)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(e->ep.iface);
	ucp_ep_params_t params = {
		.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
			      UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
		.address = (const ucp_address_t *)parts,
		.err_mode = UCP_ERR_HANDLING_MODE_PEER,
		.err_handler = {fail_ep, e},
	};
	ucs_status_t status = m2n__ucx.ucp_ep_create(u->worker, &params, &e->ucp_ep);
	int rc;

	if (status)
		return m2n__ucx_error(status, "connecting to the peer");
	rc = choose_way(e, parts + g->address_bytes);
	return rc ? rc : m2n__ucx_hello(e);
}

int m2n__ucx_meet(struct m2n__ep *ep, const void *greeting, size_t bytes)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before;
	struct greeting g;
	uint64_t parts;
	int rc = m2n__ucx_verify(greeting, bytes, sizeof(g), "greeting");

	if (rc)
		return rc;
	memcpy(&g, greeting, sizeof(g));
	parts = (uint64_t)g.address_bytes + g.rkey_bytes;
	if (!g.address_bytes || !g.rkey_bytes || parts != bytes - sizeof(g))
		return m2n__error(M2N_ERR_PROTOCOL, "ucx: greeting with lengths out of range");
	if (e->ucp_ep)
		return m2n__error(M2N_ERR_PROTOCOL, "ucx: a second greeting");
	e->n_signals = g.n_signals;
	e->signal_base = g.signal_base;
	e->peer_token = g.token;
	before = m2n__ucx_lock(u);
	rc = open_ep(e, &g, (const uint8_t *)greeting + sizeof(g));
	m2n__ucx_unlock(u, before);
	if (rc && g.version != m2n__ucx.version)
		return m2n__error_at(rc, "the peer's UCX is %u.%u.%u, this one %u.%u.%u",
			g.version >> 16, g.version >> 8 & 255, g.version & 255,
			m2n__ucx.version >> 16, m2n__ucx.version >> 8 & 255,
			m2n__ucx.version & 255);
	return rc;
}

/*
 * UCX's own wire-up needs the progress of both sides. It is through when a hello came each way, and
 * then what either side sends no longer waits for the other to look.
 */
int m2n__ucx_ready(struct m2n__ep *ep)
{
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	int rc;

	if (!e->ucp_ep)
		return -EAGAIN;
	ep->iface->ops->progress(ep->iface);
	rc = m2n__ucx_check(ep);
	if (rc || !e->is_greeted || e->n_in_flight)
		return rc ? rc : -EAGAIN;
	if (e->signals) /* and the peer, most likely, reaches us as we do it */
		set_busy(e, 0);
	return 0;
}

static void closed(void *request, ucs_status_t status, void *arg)
{
	(void)status;
	((struct m2n__ucx_ep *)arg)->is_closing = 0;
	m2n__ucx.ucp_request_free(request);
}

/* Drops what is queued, and waits until UCX lets go of its requests. Under the lock. */
static int close_ep(struct m2n__ucx_iface *u, struct m2n__ucx_ep *e)
{
	ucp_request_param_t param = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK |
				UCP_OP_ATTR_FIELD_USER_DATA,
		.flags = UCP_EP_CLOSE_FLAG_FORCE,
		.cb.send = closed,
		.user_data = e,
	};
	int64_t deadline = m2n__deadline_ns(CLOSE_PATIENCE_NS);
	ucs_status_ptr_t request;

	m2n__ucx_table_remove(&u->tokens, e->token);
	m2n__ucx_orphan(e);
	if (!e->ucp_ep)
		return 1;
	if (e->signal_rkey)
		m2n__ucx.ucp_rkey_destroy(e->signal_rkey);
	e->is_closing = 1;
	request = m2n__ucx.ucp_ep_close_nbx(e->ucp_ep, &param);
	if (!UCS_PTR_IS_PTR(request))
		e->is_closing = 0;
	while (e->is_closing || e->n_in_flight || e->is_flushing) {
		m2n__ucx.ucp_worker_progress(u->worker);
		if (m2n__now_ns() >= deadline)
			return 0;
	}
	return 1;
}

void m2n__ucx_disconnect(struct m2n__ep *ep)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(ep->iface);
	struct m2n__ucx_ep *e = m2n__ucx_ep(ep);
	struct m2n__iface *before = m2n__ucx_lock(u);
	int is_closed = close_ep(u, e);

	m2n__ucx_unlock(u, before);
	if (is_closed)
		free_ep(e); /* else a callback may come yet: a leak is the lesser evil */
}
