/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One RC queue pair: made with the queues that the options ask for (less, where the device has
 * less), then brought to life by what both sides told each other, or by what librdmacm found out.
 * Timeouts, retries and classes are the options' in both cases.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

#define RNR_RETRY_FOREVER 7
#define RNR_TIMER_640_US 12
#define HOP_LIMIT 64

static int refuse(const struct verbs_path *path, const char *what, int rc)
{
	return m2n__error(M2N_ERR_BACKEND, "verbs: %s:%u: %s: %s", path->rail->ctx->device->name,
		path->rail->port, what, strerrordesc_np(rc));
}

static int to_init(struct verbs_path *path)
{
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_INIT,
		.port_num = (uint8_t)path->rail->port,
		.qp_access_flags = IBV_ACCESS_REMOTE_WRITE,
	};
	int rc = m2n__ibv.modify_qp(path->qp, &attr,
		IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);

	return rc ? refuse(path, "queue pair to INIT", rc) : 0;
}

int m2n__verbs_qp_create(struct verbs_iface *v, struct verbs_path *path)
{
	struct verbs_rail *rail = path->rail;
	struct ibv_qp_init_attr attr = {
		.send_cq = rail->cq,
		.recv_cq = rail->cq,
		.srq = rail->srq,
		.cap = {.max_send_wr = path->ep->depth, .max_send_sge = (uint32_t)v->iface.max_iov},
		.qp_type = IBV_QPT_RC,
	};
	uint32_t want_inline = (uint32_t)v->iface.max_inline;

	for (;;) {
		attr.cap.max_inline_data = want_inline;
		path->qp = m2n__ibv.create_qp(rail->pd, &attr);
		if (path->qp || !want_inline)
			break;
		want_inline /= 2;
	}
	if (!path->qp)
		return m2n__error(M2N_ERR_BACKEND,
			"verbs: %s: no queue pair with %u work requests of %zu pieces: %s; lower "
			"M2N_VERBS_SQ",
			rail->ctx->device->name, path->ep->depth, v->iface.max_iov,
			strerrordesc_np(errno));
	if (want_inline < v->iface.max_inline) {
		m2n__verbs_log(v, M2N_LOG_WARN,
			"verbs: %s sends at most %u bytes inline, not %zu (M2N_VERBS_INLINE)",
			rail->ctx->device->name, want_inline, v->iface.max_inline);
		v->iface.max_inline = want_inline;
	}
	return to_init(path);
}

void m2n__verbs_qp_destroy(struct verbs_path *path)
{
	if (path->qp)
		m2n__ibv.destroy_qp(path->qp);
	path->qp = NULL;
}

static uint8_t mtu_of(const struct verbs_path *path)
{
	uint8_t theirs = path->ep->peer.rails[path->rail_idx].mtu;

	return theirs < path->rail->blob.mtu ? theirs : path->rail->blob.mtu;
}

/* Queue pairs after the first n_paths only answer: their packets are acknowledgements. */
static void set_class(const struct verbs_path *path, struct ibv_ah_attr *ah)
{
	const struct m2n__options *o = path->rail->iface->options;
	int answers = path >= path->ep->paths + path->ep->n_paths;
	int64_t tc = answers && o->verbs_reply_tc >= 0 ? o->verbs_reply_tc : o->verbs_tc;
	int64_t sl = answers && o->verbs_reply_sl >= 0 ? o->verbs_reply_sl : o->verbs_sl;

	if (sl >= 0)
		ah->sl = (uint8_t)sl;
	if (tc >= 0)
		ah->grh.traffic_class = (uint8_t)tc;
}

static int to_rtr(struct verbs_path *path, struct ibv_qp_attr *attr)
{
	int rc;

	attr->qp_state = IBV_QPS_RTR;
	attr->max_dest_rd_atomic = 1;
	attr->min_rnr_timer = RNR_TIMER_640_US;
	if (attr->path_mtu > mtu_of(path))
		attr->path_mtu = mtu_of(path);
	set_class(path, &attr->ah_attr);
	rc = m2n__ibv.modify_qp(path->qp, attr,
		IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
			IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
	return rc ? refuse(path, "queue pair to RTR (is the peer's address reachable?)", rc) : 0;
}

static int to_rts(struct verbs_path *path, uint32_t psn)
{
	const struct m2n__options *o = path->rail->iface->options;
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTS,
		.sq_psn = psn,
		.timeout = (uint8_t)o->verbs_timeout,
		.retry_cnt = (uint8_t)o->verbs_retries,
		.rnr_retry = RNR_RETRY_FOREVER,
		.max_rd_atomic = 1,
	};
	int rc = m2n__ibv.modify_qp(path->qp, &attr,
		IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
			IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC);

	return rc ? refuse(path, "queue pair to RTS", rc) : 0;
}

/* What librdmacm knows for the next state. */
static int ask(
	struct verbs_path *path, enum ibv_qp_state state, struct ibv_qp_attr *attr, int *mask)
{
	memset(attr, 0, sizeof(*attr));
	attr->qp_state = state;
	if (m2n__rdma.init_qp_attr(path->id, attr, mask))
		return refuse(path, "rdma_init_qp_attr", errno);
	return 0;
}

int m2n__verbs_qp_follow(struct verbs_path *path)
{
	struct ibv_qp_attr attr;
	int mask = 0, rc = ask(path, IBV_QPS_INIT, &attr, &mask);

	if (rc)
		return rc;
	/* From INIT to INIT: the partition key is what may be another. */
	attr.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
	rc = m2n__ibv.modify_qp(path->qp, &attr, mask);
	if (rc)
		return refuse(path, "queue pair to INIT", rc);
	rc = ask(path, IBV_QPS_RTR, &attr, &mask);
	if (!rc)
		rc = to_rtr(path, &attr);
	if (!rc)
		rc = ask(path, IBV_QPS_RTS, &attr, &mask);
	return rc ? rc : to_rts(path, attr.sq_psn);
}

int m2n__verbs_qp_connect(struct verbs_path *path, uint32_t peer_qp_num, uint32_t peer_psn)
{
	const struct verbs_rail_blob *peer = &path->ep->peer.rails[path->rail_idx];
	struct ibv_qp_attr attr;
	int rc;

	memset(&attr, 0, sizeof(attr));
	attr.path_mtu = mtu_of(path);
	attr.dest_qp_num = peer_qp_num;
	attr.rq_psn = peer_psn;
	attr.ah_attr.port_num = (uint8_t)path->rail->port;
	attr.ah_attr.dlid = peer->lid;
	attr.ah_attr.is_global = path->rail->blob.link_layer == IBV_LINK_LAYER_ETHERNET;
	memcpy(attr.ah_attr.grh.dgid.raw, peer->gid, sizeof(peer->gid));
	attr.ah_attr.grh.sgid_index = (uint8_t)path->rail->gid_index;
	attr.ah_attr.grh.hop_limit = HOP_LIMIT;
	rc = to_rtr(path, &attr);
	return rc ? rc : to_rts(path, path->psn);
}
