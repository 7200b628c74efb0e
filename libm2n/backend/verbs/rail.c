/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rail: one port of one device, with one completion queue for everything and one shared receive
 * queue. The receives have no memory: they only carry immediates. The completion queue has room
 * for all that can complete at once, also when every connection breaks at the same time, since a
 * full one takes all connections with it; so it grows with each path.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

#define FIRST_BUCKETS 16
#define RESTOCK_BATCH 64

static const char *rail_name(const struct verbs_rail *rail)
{
	return rail->ctx->device->name;
}

static int read_port(struct verbs_rail *rail, const struct m2n__options *options)
{
	struct ibv_port_attr attr;
	int rc;

	memset(&attr, 0, sizeof(attr));
	/* The library's symbol fills the part that it had first; all that is used is in it. */
	rc = m2n__ibv.query_port(
		rail->ctx, (uint8_t)rail->port, (struct _compat_ibv_port_attr *)&attr);
	if (rc)
		return m2n__error(M2N_ERR_BACKEND, "verbs: %s:%u cannot be queried: %s",
			rail_name(rail), rail->port, strerrordesc_np(rc));
	if (attr.state != IBV_PORT_ACTIVE)
		return m2n__error(M2N_ERR_BACKEND, "verbs: %s:%u is not active but %s",
			rail_name(rail), rail->port, m2n__ibv.port_state_str(attr.state));
	rail->max_message = attr.max_msg_sz;
	rail->blob.lid = attr.lid;
	rail->blob.link_layer = attr.link_layer;
	rail->blob.mtu = (uint8_t)attr.active_mtu;
	if (options->verbs_mtu && options->verbs_mtu < rail->blob.mtu)
		rail->blob.mtu = (uint8_t)options->verbs_mtu;
	return m2n__verbs_gid_choose(options, rail, &attr);
}

int m2n__verbs_rail_open(
	struct verbs_iface *v, struct verbs_rail *rail, const struct verbs_port *port)
{
	int rc;

	rail->iface = v;
	rail->port = port->number;
	rail->ctx = m2n__ibv.open_device(port->device);
	if (!rail->ctx)
		return m2n__error(M2N_ERR_BACKEND, "verbs: device %s cannot be opened: %s",
			port->device->name, strerrordesc_np(errno));
	rc = m2n__ibv.query_device(rail->ctx, &rail->limits);
	if (rc)
		rc = m2n__error(M2N_ERR_BACKEND, "verbs: device %s cannot be queried: %s",
			rail_name(rail), strerrordesc_np(rc));
	if (!rc)
		rc = read_port(rail, v->options);
	if (!rc && fcntl(rail->ctx->async_fd, F_SETFL,
			   fcntl(rail->ctx->async_fd, F_GETFL) | O_NONBLOCK))
		rc = m2n__error(-errno, "verbs: device %s: fcntl: %s", rail_name(rail),
			strerrordesc_np(errno));
	if (rc)
		m2n__verbs_rail_close(rail);
	return rc;
}

static void stop(struct verbs_rail *rail)
{
	if (rail->srq)
		m2n__ibv.destroy_srq(rail->srq);
	if (rail->cq)
		m2n__ibv.destroy_cq(rail->cq);
	if (rail->channel)
		m2n__ibv.destroy_comp_channel(rail->channel);
	if (rail->pd)
		m2n__ibv.dealloc_pd(rail->pd);
	free(rail->paths);
	rail->srq = NULL;
	rail->cq = NULL;
	rail->channel = NULL;
	rail->pd = NULL;
	rail->paths = NULL;
}

void m2n__verbs_rail_close(struct verbs_rail *rail)
{
	if (!rail->ctx)
		return;
	stop(rail);
	m2n__ibv.close_device(rail->ctx);
	memset(rail, 0, sizeof(*rail));
}

int m2n__verbs_rail_restock(struct verbs_rail *rail)
{
	struct ibv_recv_wr chain[RESTOCK_BATCH], *bad;

	while (rail->n_taken) {
		unsigned n = rail->n_taken < RESTOCK_BATCH ? rail->n_taken : RESTOCK_BATCH;
		int rc;

		for (unsigned i = 0; i < n; i++)
			chain[i] = (struct ibv_recv_wr){.next = i + 1 < n ? &chain[i + 1] : NULL};
		rc = ibv_post_srq_recv(rail->srq, chain, &bad);
		if (rc)
			return m2n__error(M2N_ERR_BACKEND, "verbs: %s: ibv_post_srq_recv: %s",
				rail_name(rail), strerrordesc_np(rc));
		rail->n_taken -= n;
	}
	return 0;
}

static int no_resource(const struct verbs_rail *rail, const char *what, const char *remedy)
{
	return m2n__error(M2N_ERR_BACKEND, "verbs: %s: no %s: %s%s", rail_name(rail), what,
		strerrordesc_np(errno), remedy);
}

static int start_srq(struct verbs_rail *rail, const struct m2n__options *options)
{
	struct ibv_srq_init_attr attr = {.attr = {.max_sge = 1}};
	struct ibv_srq_attr alarm;

	rail->n_recvs = (unsigned)options->verbs_recvs;
	if (rail->n_recvs > (unsigned)rail->limits.max_srq_wr)
		rail->n_recvs = (unsigned)rail->limits.max_srq_wr;
	if (rail->n_recvs > (unsigned)rail->limits.max_cqe / 2)
		rail->n_recvs = (unsigned)rail->limits.max_cqe / 2;
	attr.attr.max_wr = rail->n_recvs;
	rail->srq = m2n__ibv.create_srq(rail->pd, &attr);
	if (!rail->srq)
		return no_resource(rail, "shared receive queue", "; lower M2N_VERBS_RECVS");
	rail->n_taken = rail->n_recvs;
	if (m2n__verbs_rail_restock(rail))
		return M2N_ERR_BACKEND;
	/* An event when few are left; a device without it only loses the warning. */
	memset(&alarm, 0, sizeof(alarm));
	alarm.srq_limit = rail->n_recvs / 8;
	(void)m2n__ibv.modify_srq(rail->srq, &alarm, IBV_SRQ_LIMIT);
	return 0;
}

static int start(struct verbs_rail *rail, const struct m2n__options *options)
{
	int cqes;

	rail->pd = m2n__ibv.alloc_pd(rail->ctx);
	if (!rail->pd)
		return no_resource(rail, "protection domain", "");
	rail->channel = m2n__ibv.create_comp_channel(rail->ctx);
	if (!rail->channel ||
		fcntl(rail->channel->fd, F_SETFL, fcntl(rail->channel->fd, F_GETFL) | O_NONBLOCK))
		return no_resource(rail, "completion channel", "");
	rail->n_buckets = FIRST_BUCKETS;
	rail->paths = calloc(rail->n_buckets, sizeof(rail->paths[0]));
	if (!rail->paths)
		return m2n__error(-ENOMEM, "verbs: no memory for a table of connections");
	if (start_srq(rail, options))
		return M2N_ERR_BACKEND;
	rail->n_cqes = rail->n_recvs;
	cqes = (int)(rail->n_recvs + 8 * (unsigned)options->verbs_sq);
	if (cqes > rail->limits.max_cqe)
		cqes = rail->limits.max_cqe;
	rail->cq = m2n__ibv.create_cq(rail->ctx, cqes, NULL, rail->channel,
		(int)(rail->iface->blob.nonce % (unsigned)rail->ctx->num_comp_vectors));
	if (!rail->cq)
		return no_resource(rail, "completion queue", "; lower M2N_VERBS_RECVS");
	return 0;
}

int m2n__verbs_rail_start(struct verbs_rail *rail)
{
	int rc = rail->cq ? 0 : start(rail, rail->iface->options);

	if (rc)
		stop(rail);
	return rc;
}

static void put_in_table(struct verbs_path **table, unsigned n_buckets, struct verbs_path *path)
{
	unsigned i = path->qp->qp_num & (n_buckets - 1);

	while (table[i])
		i = (i + 1) & (n_buckets - 1);
	table[i] = path;
}

/* All paths in a new table. */
static void rehash(struct verbs_rail *rail, struct verbs_path **table, unsigned n_buckets)
{
	for (unsigned i = 0; i < rail->n_buckets; i++)
		if (rail->paths[i])
			put_in_table(table, n_buckets, rail->paths[i]);
}

struct verbs_path *m2n__verbs_rail_find(struct verbs_rail *rail, uint32_t qp_num)
{
	unsigned i = qp_num & (rail->n_buckets - 1);

	while (rail->paths[i] && rail->paths[i]->qp->qp_num != qp_num)
		i = (i + 1) & (rail->n_buckets - 1);
	return rail->paths[i];
}

static int reserve_cqes(struct verbs_rail *rail, unsigned more)
{
	unsigned want = rail->n_cqes + more, room = (unsigned)rail->cq->cqe;
	int rc;

	if (want > (unsigned)rail->limits.max_cqe)
		return m2n__error(M2N_ERR_BACKEND,
			"verbs: %s: a completion queue of %u entries is too small for one more "
			"connection (%u needed); lower M2N_VERBS_SQ, M2N_VERBS_RECVS or "
			"M2N_VERBS_QPS",
			rail_name(rail), (unsigned)rail->limits.max_cqe, want);
	if (want <= room)
		return 0;
	room = 2 * want < (unsigned)rail->limits.max_cqe ? 2 * want
							 : (unsigned)rail->limits.max_cqe;
	rc = m2n__ibv.resize_cq(rail->cq, (int)room);
	if (!rc)
		return 0;
	return m2n__error(M2N_ERR_BACKEND,
		"verbs: %s: completion queue cannot grow to %u: %s; lower M2N_VERBS_SQ or "
		"M2N_VERBS_RECVS",
		rail_name(rail), room, strerrordesc_np(rc));
}

int m2n__verbs_rail_add(struct verbs_rail *rail, struct verbs_path *path)
{
	unsigned n_buckets = rail->n_buckets;
	struct verbs_path **table = NULL;
	int rc = 0;

	if (2 * (rail->n_paths + 1) > n_buckets) {
		n_buckets *= 2;
		table = calloc(n_buckets, sizeof(table[0]));
		if (!table)
			return m2n__error(-ENOMEM, "verbs: no memory for a table of connections");
	}
	m2n__verbs_lock(&rail->lock);
	rc = reserve_cqes(rail, path->ep->depth);
	if (!rc && table) {
		rehash(rail, table, n_buckets);
		free(rail->paths);
		rail->paths = table;
		rail->n_buckets = n_buckets;
		table = NULL;
	}
	if (!rc) {
		put_in_table(rail->paths, rail->n_buckets, path);
		rail->n_paths++;
		rail->n_cqes += path->ep->depth;
	}
	m2n__verbs_unlock(&rail->lock);
	free(table);
	return rc;
}

void m2n__verbs_rail_remove(struct verbs_rail *rail, struct verbs_path *path)
{
	unsigned i, hole;

	m2n__verbs_lock(&rail->lock);
	hole = path->qp->qp_num & (rail->n_buckets - 1);
	while (rail->paths[hole] && rail->paths[hole] != path)
		hole = (hole + 1) & (rail->n_buckets - 1);
	if (rail->paths[hole]) {
		/* Those behind it in the same run of buckets may have been pushed on by it. */
		rail->paths[hole] = NULL;
		for (i = (hole + 1) & (rail->n_buckets - 1); rail->paths[i];
			i = (i + 1) & (rail->n_buckets - 1)) {
			struct verbs_path *pushed = rail->paths[i];

			rail->paths[i] = NULL;
			put_in_table(rail->paths, rail->n_buckets, pushed);
		}
		rail->n_paths--;
		rail->n_cqes -= path->ep->depth;
	}
	m2n__verbs_unlock(&rail->lock);
}
