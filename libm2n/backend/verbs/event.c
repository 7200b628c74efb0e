/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a device says rarely: ports that go down and come back, queues and devices that fail.
 * Looked at when progress() was idle for long, and when a waiter was woken for it. A port that
 * is down breaks nothing by itself: reliable connections live through a short cut, and say so
 * themselves when retries are spent.
 */
#include <string.h>

#include "backend/verbs/verbs.h"

/* All connections with a path on this rail, or the one with that queue pair. */
static void break_paths(struct verbs_rail *rail, const struct ibv_qp *qp, const char *why)
{
	m2n__verbs_lock(&rail->lock);
	for (unsigned i = 0; i < rail->n_buckets; i++) {
		struct verbs_path *path = rail->paths[i];

		if (path && (!qp || path->qp == qp))
			m2n__verbs_break(
				path->ep, "%s:%u: %s", rail->ctx->device->name, rail->port, why);
	}
	m2n__verbs_unlock(&rail->lock);
}

static void warn_few_receives(struct verbs_rail *rail)
{
	struct ibv_srq_attr alarm;

	m2n__verbs_log(rail->iface, M2N_LOG_WARN,
		"verbs: %s: fewer than %u of %u receives are left: peers may have to send again; "
		"raise M2N_VERBS_RECVS",
		rail->ctx->device->name, rail->n_recvs / 8, rail->n_recvs);
	memset(&alarm, 0, sizeof(alarm));
	m2n__verbs_lock(&rail->lock);
	if (!m2n__verbs_rail_restock(rail)) {
		alarm.srq_limit = rail->n_recvs / 8;
		(void)m2n__ibv.modify_srq(rail->srq, &alarm, IBV_SRQ_LIMIT);
	}
	m2n__verbs_unlock(&rail->lock);
}

static void take_event(struct verbs_rail *rail, const struct ibv_async_event *event)
{
	const char *text = m2n__ibv.event_type_str(event->event_type);

	switch (event->event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_PATH_MIG_ERR:
		break_paths(rail, event->element.qp, text);
		return;
	case IBV_EVENT_CQ_ERR:
	case IBV_EVENT_SRQ_ERR:
	case IBV_EVENT_DEVICE_FATAL:
		break_paths(rail, NULL, text);
		return;
	case IBV_EVENT_SRQ_LIMIT_REACHED:
		warn_few_receives(rail);
		return;
	case IBV_EVENT_PORT_ERR:
	case IBV_EVENT_PORT_ACTIVE:
		if (event->element.port_num == (int)rail->port)
			m2n__verbs_log(rail->iface,
				event->event_type == IBV_EVENT_PORT_ERR ? M2N_LOG_WARN
									: M2N_LOG_INFO,
				"verbs: %s:%u: %s", rail->ctx->device->name, rail->port, text);
		return;
	default:
		m2n__verbs_log(
			rail->iface, M2N_LOG_DEBUG, "verbs: %s: %s", rail->ctx->device->name, text);
	}
}

void m2n__verbs_look(struct verbs_iface *v)
{
	for (unsigned i = 0; i < v->n_rails; i++) {
		struct ibv_async_event event;

		while (m2n__ibv.get_async_event(v->rails[i].ctx, &event) == 0) {
			take_event(&v->rails[i], &event);
			m2n__ibv.ack_async_event(&event);
		}
	}
	m2n__verbs_cm_progress(v, 0);
}
