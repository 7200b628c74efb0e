/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections. Both sides make the queue pairs when core connects them, knowing only each other's
 * address; the greetings carry their numbers, and meet() brings them to life, at once by exchange
 * or by calls of librdmacm (cm.c).
 *
 * Queue pair i of one side talks to i of the other. When one side wants another class for its
 * acknowledgements (M2N_VERBS_REPLY_TC), and with ourselves, there are twice as many: those of the
 * first half send, and talk to the second half of the other side, which only answers.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

#define BLOB_MAGIC 0x4256324dU     /* "M2VB" */
#define GREETING_MAGIC 0x4756324dU /* "M2VG" */

static int is_blob(const struct verbs_blob *b)
{
	if (b->magic != BLOB_MAGIC || b->n_rails < 1 || b->n_rails > VERBS_MAX_RAILS ||
		b->n_qps < 1 || b->n_qps > VERBS_MAX_QPS || b->is_paired > 1 || b->is_cm > 1)
		return 0;
	for (unsigned i = 0; i < b->n_rails; i++)
		if (b->rails[i].mtu < IBV_MTU_256 || b->rails[i].mtu > IBV_MTU_4096 ||
			b->rails[i].gid_type > IBV_GID_TYPE_ROCE_V2)
			return 0;
	return 1;
}

/* Same kind of network; InfiniBand: also the same subnet. */
static int are_joined(const struct verbs_rail_blob *a, const struct verbs_rail_blob *b)
{
	if (a->link_layer != b->link_layer || a->gid_type != b->gid_type)
		return 0;
	if (a->link_layer == IBV_LINK_LAYER_ETHERNET)
		return m2n__verbs_is_ipv4(a->gid) == m2n__verbs_is_ipv4(b->gid);
	return memcmp(a->gid, b->gid, 8) == 0;
}

static unsigned smaller(unsigned a, unsigned b)
{
	return a < b ? a : b;
}

int m2n__verbs_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	const struct verbs_blob *own = &((struct verbs_iface *)iface)->blob;
	struct verbs_blob b;

	if (bytes != sizeof(b))
		return 0;
	memcpy(&b, blob, sizeof(b));
	if (!is_blob(&b))
		return 0;
	for (unsigned i = 0; i < smaller(own->n_rails, b.n_rails); i++)
		if (!are_joined(&own->rails[i], &b.rails[i]))
			return 0;
	return 1;
}

void m2n__verbs_blob_fill(struct verbs_iface *v)
{
	struct verbs_blob *b = &v->blob;
	const struct m2n__options *o = v->options;

	memset(b, 0, sizeof(*b));
	b->magic = BLOB_MAGIC;
	b->n_rails = (uint8_t)v->n_rails;
	b->n_qps = (uint8_t)o->verbs_qps;
	b->is_paired = o->verbs_reply_tc >= 0 || o->verbs_reply_sl >= 0;
	b->is_cm = o->verbs_connect == VERBS_CONNECT_CM;
	if (getrandom(&b->nonce, sizeof(b->nonce), 0) < 0)
		b->nonce = (uintptr_t)v;
	for (unsigned i = 0; i < v->n_rails; i++)
		b->rails[i] = v->rails[i].blob;
}

/* All that connections share, made with the first one. */
static int start(struct verbs_iface *v)
{
	int rc = m2n__verbs_sleep_start(v);

	for (unsigned i = 0; i < v->n_rails && !rc; i++)
		rc = m2n__verbs_rail_start(&v->rails[i]);
	if (!rc && v->blob.is_cm)
		rc = m2n__verbs_cm_start(v);
	/* R8: rails and descriptors before the mark, pairs with A8 in the readers of is_started. */
	if (!rc)
		atomic_store_explicit(&v->is_started, 1, memory_order_release);
	return rc;
}

static struct verbs_ep *make(struct verbs_iface *v, const struct verbs_blob *peer)
{
	unsigned n_rails = smaller(v->n_rails, peer->n_rails);
	unsigned n_paths = n_rails * smaller(v->blob.n_qps, peer->n_qps);
	int is_self = memcmp(&v->blob, peer, sizeof(*peer)) == 0;
	unsigned n_qps = n_paths << (v->blob.is_paired || peer->is_paired || is_self);
	struct verbs_ep *e = calloc(1, sizeof(*e) + n_qps * sizeof(e->paths[0]));

	if (!e)
		return NULL;
	e->ep.iface = &v->iface;
	e->peer = *peer;
	e->is_self = is_self;
	e->is_cm = v->blob.is_cm && peer->is_cm && !is_self;
	e->n_rails = n_rails;
	e->n_paths = n_paths;
	e->n_qps = n_qps;
	e->depth = (unsigned)v->options->verbs_sq;
	return e;
}

static int make_paths(struct verbs_iface *v, struct verbs_ep *e)
{
	for (unsigned i = 0; i < e->n_qps; i++) {
		struct verbs_path *path = &e->paths[i];
		int rc;

		path->ep = e;
		path->rail_idx = i % e->n_rails;
		path->rail = &v->rails[path->rail_idx];
		path->uid = ++v->next_uid ? v->next_uid : ++v->next_uid;
		if (getrandom(&path->psn, sizeof(path->psn), 0) < 0)
			path->psn = path->uid;
		path->psn &= 0xffffff;
		rc = m2n__verbs_qp_create(v, path);
		if (!rc)
			rc = m2n__verbs_rail_add(path->rail, path);
		if (rc)
			return rc;
	}
	return 0;
}

int m2n__verbs_connect(
	struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;
	struct verbs_blob peer;
	struct verbs_ep *e;
	int rc;

	if (!m2n__verbs_reaches(iface, blob, bytes))
		return m2n__error(M2N_ERR_PROTOCOL,
			"verbs: an address of %zu bytes that is not of a peer on the same network",
			bytes);
	memcpy(&peer, blob, sizeof(peer));
	rc = start(v);
	if (rc)
		return rc;
	e = make(v, &peer);
	if (!e)
		return m2n__error(-ENOMEM, "verbs: no memory for a connection");
	rc = make_paths(v, e);
	if (!rc && getrandom(e->token, sizeof(e->token), 0) != sizeof(e->token))
		rc = m2n__error(-errno, "verbs: getrandom: %s", strerrordesc_np(errno));
	if (rc) {
		m2n__verbs_disconnect(&e->ep);
		return rc;
	}
	/* Only now: calls find it by its token. */
	pthread_mutex_lock(&v->cm_lock);
	e->next = v->eps;
	v->eps = e;
	e->is_calling = e->is_cm;
	atomic_fetch_add(&v->n_calling, (unsigned)e->is_calling);
	pthread_mutex_unlock(&v->cm_lock);
	*ep = &e->ep;
	return 0;
}

int m2n__verbs_greeting(struct m2n__ep *ep, void *greeting, size_t *bytes)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	struct verbs_greeting g;

	if (*bytes < sizeof(g))
		return m2n__error(-ENOSPC, "verbs: no room for the greeting");
	memset(&g, 0, sizeof(g));
	g.magic = GREETING_MAGIC;
	g.n_paths = (uint16_t)e->n_qps;
	g.is_cm = (uint8_t)e->is_cm;
	memcpy(g.token, e->token, sizeof(g.token));
	if (e->is_cm)
		m2n__verbs_cm_describe((struct verbs_iface *)ep->iface, &g);
	for (unsigned i = 0; i < e->n_qps; i++) {
		g.paths[i].qp_num = e->paths[i].qp->qp_num;
		g.paths[i].psn = e->paths[i].psn;
	}
	memcpy(greeting, &g, sizeof(g));
	*bytes = sizeof(g);
	return 0;
}

unsigned m2n__verbs_partner(const struct verbs_ep *e, unsigned i)
{
	return e->n_qps == e->n_paths ? i : (i + e->n_paths) % e->n_qps;
}

int m2n__verbs_meet(struct m2n__ep *ep, const void *greeting, size_t bytes)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	struct verbs_greeting g;
	int rc = 0;

	if (bytes != sizeof(g))
		return m2n__error(M2N_ERR_PROTOCOL, "verbs: greeting of %zu bytes, expected %zu",
			bytes, sizeof(g));
	memcpy(&g, greeting, sizeof(g));
	if (g.magic != GREETING_MAGIC || g.n_paths != e->n_qps || g.is_cm != e->is_cm)
		return m2n__error(M2N_ERR_PROTOCOL,
			"verbs: a greeting for %u queue pairs%s, expected %u%s", g.n_paths,
			g.is_cm ? " by librdmacm" : "", e->n_qps, e->is_cm ? " by librdmacm" : "");
	if (e->is_met)
		return m2n__error(M2N_ERR_PROTOCOL, "verbs: a second greeting");
	e->is_met = 1;
	if (e->is_cm)
		return m2n__verbs_cm_meet(e, &g);
	for (unsigned i = 0; i < e->n_qps && !rc; i++) {
		unsigned partner = m2n__verbs_partner(e, i);

		if (g.paths[partner].qp_num > 0xffffff || g.paths[partner].psn > 0xffffff)
			rc = m2n__error(M2N_ERR_PROTOCOL, "verbs: queue pair %u is none",
				g.paths[partner].qp_num);
		else
			rc = m2n__verbs_qp_connect(
				&e->paths[i], g.paths[partner].qp_num, g.paths[partner].psn);
	}
	if (!rc)
		atomic_store_explicit(&e->state, VERBS_READY, memory_order_release);
	return rc;
}

int m2n__verbs_ready(struct m2n__ep *ep)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	int rc;

	if (e->is_cm) {
		m2n__verbs_cm_progress((struct verbs_iface *)ep->iface, 1);
		m2n__verbs_cm_expire(e);
	}
	rc = m2n__verbs_check(ep);
	if (rc)
		return rc;
	if (atomic_load_explicit(&e->state, memory_order_acquire) != VERBS_READY)
		return -EAGAIN;
	/* not 0: the peer may inline more than we do */
	ep->max_sealed = ep->iface->max_inline ? ep->iface->max_inline : 1;
	return 0;
}

void m2n__verbs_disconnect(struct m2n__ep *ep)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	struct verbs_iface *v;

	if (!ep)
		return;
	v = (struct verbs_iface *)ep->iface;
	m2n__verbs_cm_leave(e);
	for (unsigned i = 0; i < e->n_qps; i++)
		if (e->paths[i].qp)
			m2n__verbs_rail_remove(e->paths[i].rail, &e->paths[i]);
	/* From here on completions find no path, and are dropped. */
	for (unsigned i = 0; i < e->n_qps; i++)
		m2n__verbs_qp_destroy(&e->paths[i]);
	pthread_mutex_lock(&v->cm_lock);
	for (struct verbs_ep **at = &v->eps; *at; at = &(*at)->next) {
		if (*at != e)
			continue;
		*at = e->next;
		break;
	}
	pthread_mutex_unlock(&v->cm_lock);
	free(e);
}

int m2n__verbs_check(struct m2n__ep *ep)
{
	struct verbs_ep *e = (struct verbs_ep *)ep;
	/* A9: the text before the status, pairs with R9 in m2n__verbs_break(). */
	int status = atomic_load_explicit(&e->status, memory_order_acquire);

	return status ? m2n__error(status, "verbs: %s", e->why) : 0;
}

void m2n__verbs_break(struct verbs_ep *e, const char *format, ...)
{
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
	va_list args;

	if (atomic_exchange(&e->breaking, 1))
		return;
	va_start(args, format);
	vsnprintf(e->why, sizeof(e->why), format, args);
	va_end(args);
	/* R9: pairs with A9 in m2n__verbs_check(). */
	atomic_store_explicit(&e->status, M2N_ERR_PEER_LOST, memory_order_release);
	atomic_fetch_add(&e->ep.iface->n_broken, 1);
	/* Nothing of it shall move any more: neither reads of our rows nor the peer's writes. */
	for (unsigned i = 0; i < e->n_qps; i++)
		if (e->paths[i].qp)
			(void)m2n__ibv.modify_qp(e->paths[i].qp, &attr, IBV_QP_STATE);
}
