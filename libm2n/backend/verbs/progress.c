/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions. An immediate that came adds one to its word of the signal table; an acknowledged
 * write moves its path's count; anything else breaks its connection and no other. Completions of
 * queue pairs that are gone are dropped: their paths are not in the rail's table, or have another
 * uid. Who finds a rail's lock taken leaves the rail to the holder.
 */
#include <endian.h>
#include <string.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

#define POLL_BATCH 32
#define MAX_BATCHES 8
#define IDLE_BETWEEN_LOOKS 4096

/* Broken for good: what is asked of the port takes its time. */
static void fail(struct verbs_rail *rail, struct verbs_path *path, const struct ibv_wc *wc)
{
	struct ibv_port_attr port;
	const char *hint = "";

	if (wc->status == IBV_WC_RETRY_EXC_ERR)
		hint = ": the peer's host or the link does not answer, retries are spent";
	else if (wc->status == IBV_WC_REM_ACCESS_ERR)
		hint = ": the peer refused the address or the key";
	else if (wc->status == IBV_WC_LOC_PROT_ERR)
		hint = ": bytes to send are not inside registered memory";
	else if (wc->status == IBV_WC_WR_FLUSH_ERR)
		hint = ": the device gave the queue pair up";
	memset(&port, 0, sizeof(port));
	(void)m2n__ibv.query_port(
		rail->ctx, (uint8_t)rail->port, (struct _compat_ibv_port_attr *)&port);
	m2n__verbs_break(path->ep, "%s:%u (%s), queue pair %u: %s (status %d, vendor error 0x%x)%s",
		rail->ctx->device->name, rail->port, m2n__ibv.port_state_str(port.state),
		path->qp->qp_num, m2n__ibv.wc_status_str(wc->status), wc->status, wc->vendor_err,
		hint);
}

static void take_signal(struct verbs_rail *rail, struct verbs_path *path, const struct ibv_wc *wc)
{
	const struct m2n__iface_params *params = &rail->iface->iface.params;
	uint32_t signal = be32toh(wc->imm_data);

	if (wc->opcode != IBV_WC_RECV_RDMA_WITH_IMM || signal >= params->n_signals) {
		m2n__verbs_break(path->ep,
			"the peer raised signal %u of %u: it breaks the protocol", signal,
			params->n_signals);
		return;
	}
	/* R10: the bytes of the write before its signal, pairs with core's look at the word. The
	 * device wrote them before the completion that was polled. */
	atomic_fetch_add_explicit(&params->signals[signal], 1, memory_order_release);
}

/* All up to the work request whose number ends like that. */
static void take_done(struct verbs_path *path, uint32_t number)
{
	uint64_t n_done = atomic_load_explicit(&path->n_done, memory_order_relaxed);

	n_done += number - (uint32_t)n_done;
	/* R7: pairs with A7 in put.c. */
	atomic_store_explicit(&path->n_done, n_done, memory_order_release);
}

static void take(struct verbs_rail *rail, const struct ibv_wc *wc)
{
	struct verbs_path *path = m2n__verbs_rail_find(rail, wc->qp_num);
	int is_recv = wc->wr_id == 0;

	rail->n_taken += is_recv;
	if (!path || (!is_recv && path->uid != wc->wr_id >> 32))
		return;
	if (wc->status != IBV_WC_SUCCESS)
		fail(rail, path, wc);
	else if (is_recv)
		take_signal(rail, path, wc);
	else
		take_done(path, (uint32_t)wc->wr_id);
}

/* The first batch has come; the rest. Under the rail's lock. Events, or a negative code. */
static int take_all(struct verbs_rail *rail, struct ibv_wc *wc, int n)
{
	int events = 0;

	for (int i = 0; n > 0; n = ibv_poll_cq(rail->cq, POLL_BATCH, wc)) {
		for (int w = 0; w < n; w++)
			take(rail, &wc[w]);
		events += n;
		if (n < POLL_BATCH || ++i == MAX_BATCHES)
			break;
	}
	if (n >= 0 && rail->n_taken >= rail->n_recvs / 8 && m2n__verbs_rail_restock(rail))
		n = -1;
	return n < 0 ? n : events;
}

/* Mostly there is nothing: that has to be short. */
static int poll_rail(struct verbs_rail *rail)
{
	struct ibv_wc wc[POLL_BATCH];
	int n;

	if (!m2n__verbs_trylock(&rail->lock))
		return 0;
	n = ibv_poll_cq(rail->cq, POLL_BATCH, wc);
	if (n)
		n = take_all(rail, wc, n);
	m2n__verbs_unlock(&rail->lock);
	if (n < 0)
		return m2n__error(M2N_ERR_BACKEND,
			"verbs: %s: the completion queue or the receive queue failed",
			rail->ctx->device->name);
	return n;
}

int m2n__verbs_progress(struct m2n__iface *iface)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;
	unsigned n_idle;
	int events = 0;

	/* A8: pairs with R8 in connect.c. */
	if (!atomic_load_explicit(&v->is_started, memory_order_acquire))
		return 0;
	for (unsigned i = 0; i < v->n_rails; i++) {
		int n = poll_rail(&v->rails[i]);

		if (n < 0)
			return n;
		events += n;
	}
	if (atomic_load_explicit(&v->n_calling, memory_order_relaxed))
		m2n__verbs_cm_progress(v, 0);
	if (events) {
		m2n__verbs_kick(v);
		return events;
	}
	/* several threads may count at once: it only says that it was long */
	n_idle = atomic_load_explicit(&v->n_idle, memory_order_relaxed) + 1;
	atomic_store_explicit(&v->n_idle, n_idle % IDLE_BETWEEN_LOOKS, memory_order_relaxed);
	if (n_idle == IDLE_BETWEEN_LOOKS)
		m2n__verbs_look(v);
	return 0;
}
