/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections: greetings, the way to being ready, and the end. A greeting tells the communicator's
 * id of the direction that this side sends, the version of NCCL and the GPU. Both communicators
 * are then made at once; the lanes are warmed one after the other.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/nccl/nccl.h"
#include "util/error.h"

struct greeting {
	struct m2n__nccl_seal seal;
	uint64_t iface; /* its random number */
	int32_t version;
	uint32_t reserved;
	struct m2n__cu_uuid uuid;
	struct m2n__nccl_id id;
};

void m2n__nccl_look(struct m2n__nccl_ep *e)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(e->ep.iface);
	const struct m2n__nccl_lane *out = &e->out, *in = &e->in;
	int is_active = e->has_met && !e->status &&
			(!e->is_ready || m2n__nccl_is_gathered(out) ||
				out->n_done < out->n_queued || in->n_done < in->n_queued);

	if (is_active && !e->is_active)
		atomic_fetch_add(&u->n_active, 1);
	if (!is_active && e->is_active)
		atomic_fetch_sub(&u->n_active, 1);
	e->is_active = is_active;
}

/* One GPU for two ranks is what NCCL refuses unless it is told: with the remedy. */
static void add_remedy(struct m2n__nccl_ep *e)
{
	size_t n = strlen(e->reason);

	if (!e->is_same_gpu || e->is_ready)
		return;
	snprintf(e->reason + n, sizeof(e->reason) - n,
		m2n__nccl.version >= 23000
			? "; both ranks use one GPU: set NCCL_MULTI_RANK_GPU_ENABLE=1, "
			  "NCCL_MAX_CTAS=2 and NCCL_NVLS_ENABLE=0 on all ranks"
			: "; both ranks use one GPU: NCCL 2.30 or newer can that with "
			  "NCCL_MULTI_RANK_GPU_ENABLE=1, an older one for tests with another "
			  "NCCL_HOSTID on each rank and NCCL_NET=Socket");
}

void m2n__nccl_break(struct m2n__nccl_ep *e, int status)
{
	if (e->status)
		return;
	snprintf(e->reason, sizeof(e->reason), "%.250s", m2n_error_text());
	add_remedy(e);
	e->status = status;
	m2n__nccl_look(e);
	/* The status first: whoever sees the count grown asks all connections. */
	atomic_fetch_add(&e->ep.iface->n_broken, 1);
}

int m2n__nccl_check(struct m2n__ep *ep)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct m2n__nccl_ep *e = m2n__nccl_ep(ep);
	int rc;

	pthread_mutex_lock(&u->lock);
	rc = e->status ? m2n__error(e->status, "%s", e->reason) : 0;
	pthread_mutex_unlock(&u->lock);
	return rc;
}

/* Device memory for warming: made with the first connection. */
static int start(struct m2n__nccl_iface *u)
{
	m2n__cu_result result;
	int rc, mode;

	if (u->warm)
		return 0;
	rc = m2n__cuda_enter_relaxed(u->cuda, &mode);
	if (rc)
		return rc;
	result = u->cuda->driver->mem_alloc(&u->warm, 2 * M2N__NCCL_WARM_BYTES);
	m2n__cuda_leave_relaxed(u->cuda, &mode);
	if (result)
		u->warm = 0;
	return result ? m2n__cuda_error(u->cuda, result, "nccl: device memory") : 0;
}

int m2n__nccl_connect(struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(iface);
	struct m2n__nccl_ep *e;
	int rc = 0, result;

	if (!iface->ops->reaches(iface, blob, bytes))
		rc = m2n__error(M2N_ERR_PROTOCOL, "nccl: the peer's address is damaged");
	if (!rc)
		rc = start(u);
	if (rc)
		return rc;
	e = calloc(1, sizeof(*e));
	if (!e)
		return m2n__error(-ENOMEM, "nccl: no memory for a connection");
	e->ep.iface = iface;
	e->out.ep = e->in.ep = e;
	e->out.is_sender = 1;
	result = m2n__nccl.ncclGetUniqueId(&e->id);
	if (result) {
		free(e);
		return m2n__nccl_error(result, NULL, "making an id (NCCL_SOCKET_IFNAME may help)");
	}
	pthread_mutex_lock(&u->lock);
	e->next = u->eps;
	u->eps = e;
	pthread_mutex_unlock(&u->lock);
	*ep = &e->ep;
	return 0;
}

int m2n__nccl_greeting(struct m2n__ep *ep, void *greeting, size_t *bytes)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct greeting g = {
		.iface = u->id,
		.version = m2n__nccl.version,
		.uuid = u->cuda->uuid,
		.id = m2n__nccl_ep(ep)->id,
	};

	if (*bytes < sizeof(g))
		return m2n__error(-ENOSPC, "nccl: no room for a greeting of %zu bytes", sizeof(g));
	m2n__nccl_sign(&g, sizeof(g));
	memcpy(greeting, &g, sizeof(g));
	*bytes = sizeof(g);
	return 0;
}

static int check_greeting(const struct m2n__nccl_ep *e, const struct greeting *g)
{
	char peers[24], own[24];

	if (e->has_met)
		return m2n__error(M2N_ERR_PROTOCOL, "nccl: a second greeting");
	if (g->version / 100 != m2n__nccl.version / 100)
		return m2n__error(M2N_ERR_BACKEND,
			"nccl: the peer has NCCL %s, this rank %s; load the same one on all ranks",
			m2n__nccl_version_text(g->version, peers),
			m2n__nccl_version_text(m2n__nccl.version, own));
	return 0;
}

int m2n__nccl_meet(struct m2n__ep *ep, const void *greeting, size_t bytes)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct m2n__nccl_ep *e = m2n__nccl_ep(ep);
	struct greeting g;
	int rc = m2n__nccl_verify(greeting, bytes, sizeof(g), "greeting"), mode;

	if (rc)
		return rc;
	memcpy(&g, greeting, sizeof(g));
	rc = check_greeting(e, &g);
	if (!rc)
		rc = m2n__cuda_enter_relaxed(u->cuda, &mode);
	if (rc)
		return rc;
	e->is_self = g.iface == u->id;
	e->is_same_gpu = memcmp(&g.uuid, &u->cuda->uuid, sizeof(g.uuid)) == 0;
	e->warms_out_first = u->id < g.iface;
	rc = m2n__nccl_lane_open(&e->out, e->is_self ? NULL : &e->id);
	if (!rc && !e->is_self)
		rc = m2n__nccl_lane_open(&e->in, &g.id);
	m2n__cuda_leave_relaxed(u->cuda, &mode);
	pthread_mutex_lock(&u->lock);
	e->has_met = !rc;
	m2n__nccl_look(e);
	pthread_mutex_unlock(&u->lock);
	return rc;
}

/* What comes next on the way to being ready. */
static void warm(struct m2n__nccl_ep *e)
{
	struct m2n__nccl_lane *first = e->warms_out_first ? &e->out : &e->in;
	struct m2n__nccl_lane *second = e->warms_out_first ? &e->in : &e->out;

	if (first->state >= M2N__NCCL_OPEN && second->state >= M2N__NCCL_OPEN)
		m2n__nccl_lane_warm(first);
	if (first->n_done)
		m2n__nccl_lane_warm(second);
	e->is_ready = first->n_done && second->n_done;
}

int m2n__nccl_ep_progress(struct m2n__nccl_ep *e)
{
	int n = m2n__nccl_lane_progress(&e->out);
	int rc = n < 0 ? n : m2n__nccl_lane_progress(&e->in);

	if (rc < 0) {
		m2n__nccl_break(e, rc);
		return 1;
	}
	if (!e->is_ready && !e->is_self)
		warm(e);
	e->is_ready |= e->is_self;
	m2n__nccl_look(e);
	return n + rc;
}

int m2n__nccl_ready(struct m2n__ep *ep)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct m2n__nccl_ep *e = m2n__nccl_ep(ep);
	int is_ready, rc;

	ep->iface->ops->progress(ep->iface);
	rc = m2n__nccl_check(ep);
	pthread_mutex_lock(&u->lock);
	is_ready = e->is_ready;
	pthread_mutex_unlock(&u->lock);
	return rc ? rc : is_ready ? 0 : -EAGAIN;
}

void m2n__nccl_disconnect(struct m2n__ep *ep)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(ep->iface);
	struct m2n__nccl_ep *e = m2n__nccl_ep(ep);
	int mode;

	pthread_mutex_lock(&u->lock);
	for (struct m2n__nccl_ep **at = &u->eps; *at; at = &(*at)->next) {
		if (*at == e) {
			*at = e->next;
			break;
		}
	}
	e->status = M2N_ERR_PEER_LOST;
	m2n__nccl_look(e);
	pthread_mutex_unlock(&u->lock);
	/* This takes a while; nobody else sees the connection any more. */
	if (m2n__cuda_enter_relaxed(u->cuda, &mode))
		return;
	m2n__nccl_lane_abort(&e->out);
	m2n__nccl_lane_abort(&e->in);
	m2n__nccl_lane_close(&e->out);
	m2n__nccl_lane_close(&e->in);
	m2n__cuda_leave_relaxed(u->cuda, &mode);
	m2n__nccl_reap(u, 0);
	free(e);
}
