/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of a NIC's writes to GPU memory: by what backend/common/gpu_flush.h finds, or as the
 * last resort here. The NIC reads a word of that memory over a queue pair that is connected with
 * itself. A read does not overtake the writes before it on their way to the GPU, so when it is
 * done they are there. Each rail reads, as each is a way of its own.
 *
 * Chosen, told and made by the first flush. The word is registered without relaxed ordering.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/common/gpu_flush.h"
#include "backend/verbs/verbs.h"
#include "mem/cuda.h"
#include "util/error.h"
#include "util/time.h"

#define TIMEOUT_NS INT64_C(1000000000)
#define HOP_LIMIT 64
#define ACK_TIMEOUT 14 /* 67 ms: the way is short */
#define RETRIES 3

struct loop {
	struct ibv_cq *cq;
	struct ibv_qp *qp; /* connected with itself */
	struct ibv_mr *landing_mr;
	uint64_t landing;
};

struct verbs_loopback {
	struct m2n__mem *word;
	struct m2n__mr *word_mr;
	unsigned n;
	struct loop loops[VERBS_MAX_RAILS];
};

static int refuse(const struct verbs_rail *rail, const char *what, int error)
{
	return m2n__error(M2N_ERR_BACKEND, "verbs: %s: reading GPU memory over a loopback: %s: %s",
		rail->ctx->device->name, what, strerrordesc_np(error));
}

static int connect_loop(const struct verbs_rail *rail, struct ibv_qp *qp)
{
	struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT,
		.port_num = (uint8_t)rail->port,
		.qp_access_flags = IBV_ACCESS_REMOTE_READ};
	struct ibv_qp_attr rtr = {.qp_state = IBV_QPS_RTR,
		.path_mtu = rail->blob.mtu,
		.dest_qp_num = qp->qp_num,
		.max_dest_rd_atomic = 1,
		.ah_attr = {.dlid = rail->blob.lid,
			.port_num = (uint8_t)rail->port,
			.is_global = rail->blob.link_layer == IBV_LINK_LAYER_ETHERNET,
			.grh = {.sgid_index = (uint8_t)rail->gid_index, .hop_limit = HOP_LIMIT}}};
	struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS,
		.timeout = ACK_TIMEOUT,
		.retry_cnt = RETRIES,
		.max_rd_atomic = 1};
	int rc;

	memcpy(rtr.ah_attr.grh.dgid.raw, rail->blob.gid, sizeof(rail->blob.gid));
	rc = m2n__ibv.modify_qp(
		qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
	if (!rc)
		rc = m2n__ibv.modify_qp(qp, &rtr,
			IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
				IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
	if (!rc)
		rc = m2n__ibv.modify_qp(qp, &rts,
			IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
				IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC);
	return rc ? refuse(rail, "connecting", rc) : 0;
}

/* What it made before an error is for close_loop(). */
static int open_loop(const struct verbs_rail *rail, struct loop *loop)
{
	struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};

	loop->landing_mr = m2n__ibv.reg_mr_iova2(rail->pd, &loop->landing, sizeof(loop->landing),
		(uintptr_t)&loop->landing, IBV_ACCESS_LOCAL_WRITE);
	if (!loop->landing_mr)
		return refuse(rail, "registering a word", errno);
	loop->cq = m2n__ibv.create_cq(rail->ctx, 2, NULL, NULL, 0);
	if (!loop->cq)
		return refuse(rail, "completion queue", errno);
	attr.send_cq = attr.recv_cq = loop->cq;
	loop->qp = m2n__ibv.create_qp(rail->pd, &attr);
	if (!loop->qp)
		return refuse(rail, "queue pair", errno);
	return connect_loop(rail, loop->qp);
}

static void close_loop(struct loop *loop)
{
	if (loop->qp)
		m2n__ibv.destroy_qp(loop->qp);
	if (loop->cq)
		m2n__ibv.destroy_cq(loop->cq);
	if (loop->landing_mr)
		m2n__ibv.dereg_mr(loop->landing_mr);
}

static void close_loopback(struct verbs_iface *v)
{
	struct verbs_loopback *l = v->loopback;

	if (!l)
		return;
	for (unsigned i = 0; i < l->n; i++)
		close_loop(&l->loops[i]);
	if (l->word_mr)
		m2n__verbs_dereg(l->word_mr);
	m2n__mem_free(l->word);
	free(l);
	v->loopback = NULL;
}

static int register_word(struct verbs_iface *v, struct verbs_loopback *l)
{
	struct verbs_mr *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return m2n__error(-ENOMEM, "verbs: no memory for a registration");
	m->mr.iface = &v->iface;
	m->mr.mem = l->word;
	m->is_device = 1;
	l->word_mr = &m->mr;
	rc = m2n__verbs_reg_device(v, l->word, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ, m);
	return rc;
}

static int open_loopback(struct verbs_iface *v)
{
	struct m2n__cuda *cuda = v->iface.params.cuda;
	struct verbs_loopback *l;
	int rc;

	l = calloc(1, sizeof(*l));
	if (!l)
		return m2n__error(-ENOMEM, "verbs: no memory for a loopback");
	v->loopback = l;
	rc = m2n__mem_alloc_cuda(cuda, sizeof(uint64_t), &l->word);
	if (!rc)
		rc = register_word(v, l);
	while (!rc && l->n < v->n_rails) {
		rc = open_loop(&v->rails[l->n], &l->loops[l->n]);
		l->n++;
	}
	if (rc)
		close_loopback(v);
	return rc;
}

static int start_read(const struct verbs_rail *rail, struct verbs_loopback *l, unsigned i)
{
	struct loop *loop = &l->loops[i];
	const struct verbs_mr *word = (const struct verbs_mr *)l->word_mr;
	struct ibv_sge sge = {.addr = (uintptr_t)&loop->landing,
		.length = sizeof(loop->landing),
		.lkey = loop->landing_mr->lkey};
	struct ibv_send_wr wr = {.sg_list = &sge,
		.num_sge = 1,
		.opcode = IBV_WR_RDMA_READ,
		.send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = {(uintptr_t)l->word->base, word->rail[i]->rkey}};
	struct ibv_send_wr *bad;
	int rc = ibv_post_send(loop->qp, &wr, &bad);

	return rc ? refuse(rail, "ibv_post_send", rc) : 0;
}

static int await_read(const struct verbs_rail *rail, struct loop *loop, int64_t deadline_ns)
{
	struct ibv_wc wc;
	int n;

	while ((n = ibv_poll_cq(loop->cq, 1, &wc)) == 0)
		if (m2n__now_ns() >= deadline_ns)
			return refuse(rail, "the read", ETIMEDOUT);
	if (n < 0)
		return refuse(rail, "ibv_poll_cq", EIO);
	return wc.status ? m2n__error(M2N_ERR_BACKEND,
				   "verbs: %s: reading GPU memory over a loopback: %s",
				   rail->ctx->device->name, m2n__ibv.wc_status_str(wc.status))
			 : 0;
}

static int read_all(struct verbs_iface *v)
{
	int64_t deadline_ns = m2n__now_ns() + TIMEOUT_NS;
	int rc = 0;

	for (unsigned i = 0; i < v->n_rails && !rc; i++)
		rc = start_read(&v->rails[i], v->loopback, i);
	for (unsigned i = 0; i < v->n_rails && !rc; i++)
		rc = await_read(&v->rails[i], &v->loopback->loops[i], deadline_ns);
	/* One that failed is not used again. */
	if (rc)
		close_loopback(v);
	return rc;
}

/* Settles once how this device is flushed: v->gpu_flush, or NULL for the loopback. */
static int choose(struct verbs_iface *v)
{
	struct m2n__cuda *cuda = v->iface.params.cuda;
	int rc;

	if (!cuda)
		return m2n__error(-EINVAL, "verbs: a flush, but the context has no CUDA device");
	rc = m2n__gpu_flush_open(cuda, &v->gpu_flush);
	if (rc && rc != -ENOTSUP)
		return rc;
	v->is_flush_chosen = 1;
	m2n__verbs_log(v, M2N_LOG_INFO, "verbs: flush of writes to GPU memory: %s%s",
		rc ? "a read over a loopback: " : m2n__gpu_flush_name(v->gpu_flush),
		rc ? m2n_error_text() : "");
	return 0;
}

int m2n__verbs_flush_device(struct m2n__iface *iface)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;
	int rc;

	if (!atomic_load_explicit(&v->is_started, memory_order_acquire)) /* A8 */
		return 0; /* nobody has written yet */
	pthread_mutex_lock(&v->flush_lock);
	rc = v->is_flush_chosen ? 0 : choose(v);
	if (!rc && v->gpu_flush) {
		rc = m2n__gpu_flush(v->gpu_flush);
	} else if (!rc) {
		rc = v->loopback ? 0 : open_loopback(v);
		if (!rc)
			rc = read_all(v);
	}
	pthread_mutex_unlock(&v->flush_lock);
	return rc;
}

void m2n__verbs_flush_close(struct verbs_iface *v)
{
	close_loopback(v);
	m2n__gpu_flush_close(v->gpu_flush);
	v->gpu_flush = NULL;
	v->is_flush_chosen = 0;
}
