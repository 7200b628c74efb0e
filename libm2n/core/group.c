/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Peers of a group: their states, who is called and when, and the choice of a backend for each.
 * Connections themselves are in control.c, links in link.c, joining and leaving in join.c.
 */
#include "core/group.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/error.h"
#include "util/time.h"

#define RETRY_NS INT64_C(2000000)

void m2n__peer_key(const struct m2n_group *group, int rank, char key[M2N__STORE_KEY_MAX])
{
	snprintf(key, M2N__STORE_KEY_MAX, "%s/rank/%d", group->name, rank);
}

struct m2n__peer *m2n__group_peer(struct m2n_group *group, int rank)
{
	struct m2n__peer *peer;

	if (rank < 0 || rank >= M2N__MAX_RANKS) {
		m2n__error(-EINVAL, "rank %d is out of range 0..%d", rank, M2N__MAX_RANKS - 1);
		return NULL;
	}
	if (rank >= group->n_peers) {
		int n = rank + 1 > group->n_ranks ? rank + 1 : group->n_ranks;
		struct m2n__peer **grown = realloc(group->peers, (size_t)n * sizeof(*grown));

		if (!grown) {
			m2n__error(-ENOMEM, "no memory for %d peers", n);
			return NULL;
		}
		memset(grown + group->n_peers, 0, (size_t)(n - group->n_peers) * sizeof(*grown));
		group->peers = grown;
		group->n_peers = n;
	}
	if (group->peers[rank])
		return group->peers[rank];
	peer = calloc(1, sizeof(*peer));
	if (!peer) {
		m2n__error(-ENOMEM, "no memory for a peer");
		return NULL;
	}
	peer->group = group;
	peer->rank = rank;
	group->peers[rank] = peer;
	return peer;
}

static enum m2n_peer_state state_of(const struct m2n__peer *peer)
{
	return (enum m2n_peer_state)atomic_load_explicit(&peer->state, memory_order_acquire);
}

static void set_state(struct m2n__peer *peer, enum m2n_peer_state state)
{
	atomic_store_explicit(&peer->state, (int)state, memory_order_release);
}

/* Ranks that outnumber cores must not spin: the one they wait for needs the core. */
void m2n__count_local(struct m2n_ctx *ctx, int change)
{
	unsigned n = atomic_fetch_add_explicit(
			     &ctx->n_local_peers, (unsigned)change, memory_order_relaxed) +
		     (unsigned)change;
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	atomic_store_explicit(&ctx->spin_ns, (long)n + 1 > cores ? 0 : ctx->options.spin_ns,
		memory_order_relaxed);
}

/* The best backend that both sides have; *at: its place in the record. -1: none. */
static int best_backend(
	const struct m2n_ctx *ctx, const struct m2n__record *record, unsigned *at)
{
	int best = -1;

	for (unsigned i = 0; i < ctx->n_backends; i++) {
		const struct m2n__backend *b = &ctx->backends[i];

		for (unsigned k = 0; b->iface && k < record->n_backends; k++) {
			if (strcmp(record->backends[k].name, b->ops.name) != 0 ||
				b->ops.priority <=
					(best < 0 ? -1 : ctx->backends[best].ops.priority) ||
				!b->ops.reaches(b->iface, record->backends[k].blob,
					record->backends[k].bytes))
				continue;
			best = (int)i;
			*at = k;
		}
	}
	return best;
}

static int connect_backend(struct m2n__peer *peer, const struct m2n__record *record)
{
	struct m2n_ctx *ctx = peer->group->ctx;
	struct m2n__backend *b;
	unsigned at = 0;
	int best = best_backend(ctx, record, &at), rc;

	if (best < 0)
		return m2n__error(M2N_ERR_BACKEND,
			"no backend of rank %d reaches rank %d (BACKEND is '%s', host '%s' and "
			"'%s'); "
			"m2n_info says why others are not used",
			peer->group->rank, peer->rank, ctx->options.backend, ctx->host_id,
			record->host_id);
	b = &ctx->backends[best];
	peer->backend = (unsigned)best;
	rc = b->started ? 0 : m2n__backend_start(ctx, peer->backend);
	if (!rc)
		rc = b->ops.connect(b->iface, record->backends[at].blob,
			record->backends[at].bytes, &peer->ep);
	if (rc)
		return m2n__error_at(rc, "rank %d to rank %d", peer->group->rank, peer->rank);
	peer->ep->ops = &b->ops;
	peer->ep->owner = peer;
	peer->ep->serial = ++ctx->n_eps;
	if (b->ops.caps & M2N__CAP_NOTICES)
		atomic_store_explicit(&ctx->notices_matter, 1, memory_order_relaxed);
	rc = m2n__backend_started(ctx, peer->backend);
	if (rc)
		b->ops.disconnect(peer->ep);
	return rc;
}

static int fail(struct m2n__peer *peer, int rc)
{
	peer->fatal = rc;
	snprintf(peer->fatal_text, sizeof(peer->fatal_text), "%s", m2n_error_text());
	return rc;
}

/* Forgets a connection that never came to be ready. */
static void abandon(struct m2n__peer *peer, const char *reason)
{
	peer->connecting = 0;
	peer->group->n_connecting--;
	peer->ep->ops->disconnect(peer->ep);
	peer->ep = NULL;
	peer->retry_ns = m2n__deadline_ns(RETRY_NS);
	snprintf(peer->reason, sizeof(peer->reason), "%.127s", reason);
	if (peer->conn)
		m2n__conn_end(peer->conn, 0);
}

/* The connection is ready: links come up. */
static void go_live(struct m2n__peer *peer)
{
	struct m2n_group *group = peer->group;

	if (peer->connecting)
		group->n_connecting--;
	peer->connecting = 0;
	peer->reason[0] = '\0';
	peer->fatal = 0;
	if (peer->wanted)
		group->n_to_dial--;
	peer->wanted = 0;
	if (peer->same_host && peer->conn)
		m2n__count_local(group->ctx, 1);
	set_state(peer, M2N_PEER_LIVE);
	m2n__log(&group->ctx->log, M2N_LOG_DEBUG, "rank %d: peer %d by %s", group->rank,
		peer->rank, peer->ep->ops->name);
	for (struct m2n_exchange *x = group->exchanges; x; x = m2n__exchange_next(x))
		m2n__exchange_peer_live(x, peer);
}

static int greet(struct m2n__peer *peer)
{
	uint8_t greeting[M2N__GREETING_BYTES];
	size_t n = sizeof(greeting);
	int rc = peer->ep->ops->greeting(peer->ep, greeting, &n);

	if (rc)
		return rc;
	if (!peer->conn)
		return m2n__peer_greeted(peer, greeting, n);
	m2n__conn_send(peer->conn, M2N__FRAME_GREET, greeting, n);
	return 0;
}

int m2n__peer_opened(
	struct m2n__peer *peer, struct m2n__conn *conn, const struct m2n__record *record)
{
	struct m2n_ctx *ctx = peer->group->ctx;
	int rc = connect_backend(peer, record);

	if (rc) {
		peer->ep = NULL;
		return fail(peer, rc);
	}
	peer->conn = conn;
	peer->incarnation = record->incarnation;
	peer->same_host = strcmp(record->host_id, ctx->host_id) == 0;
	if (!(peer->ep->ops->caps & M2N__CAP_GREETS)) {
		go_live(peer);
		return 0;
	}
	peer->connecting = 1;
	peer->met = 0;
	peer->group->n_connecting++;
	rc = greet(peer);
	if (!rc)
		return 0;
	fail(peer, rc);
	peer->conn = NULL; /* the caller ends it with the reason */
	abandon(peer, peer->fatal_text);
	return m2n__error(rc, "%s", peer->fatal_text);
}

int m2n__peer_greeted(struct m2n__peer *peer, const void *greeting, size_t bytes)
{
	int rc;

	if (!peer->connecting || peer->met)
		return m2n__error(M2N_ERR_PROTOCOL, "rank %d sent a greeting that nobody waits for",
			peer->rank);
	peer->met = 1;
	rc = peer->ep->ops->meet(peer->ep, greeting, bytes);
	return rc ? fail(peer, rc) : 0;
}

/* Connections that greet: which of them became ready, which cannot? */
static void look_at_connecting(struct m2n_group *group)
{
	for (int r = 0; group->n_connecting && r < group->n_peers; r++) {
		struct m2n__peer *peer = group->peers[r];
		int rc = peer && peer->connecting && peer->met ? peer->ep->ops->ready(peer->ep)
							       : -EAGAIN;

		if (rc == -EAGAIN)
			continue;
		if (!rc) {
			go_live(peer);
			continue;
		}
		fail(peer, rc);
		m2n__log(&group->ctx->log, M2N_LOG_WARN, "rank %d: peer %d: %s", group->rank,
			peer->rank, peer->fatal_text);
		if (peer->conn)
			m2n__conn_reject(peer->conn, rc);
		else
			abandon(peer, peer->fatal_text);
	}
}

void m2n__peer_lost(struct m2n__peer *peer, enum m2n_peer_state state, const char *reason)
{
	struct m2n_group *group = peer->group;
	struct m2n__old_ep *old;

	if (peer->connecting) {
		abandon(peer, reason);
		return;
	}
	if (state_of(peer) != M2N_PEER_LIVE)
		return;
	set_state(peer, state);
	snprintf(peer->reason, sizeof(peer->reason), "%s", reason);
	m2n__log(&group->ctx->log, state == M2N_PEER_LOST ? M2N_LOG_WARN : M2N_LOG_DEBUG,
		"rank %d: peer %d is %s: %s", group->rank, peer->rank,
		state == M2N_PEER_LOST ? "lost" : "gone", peer->reason);
	if (peer->conn)
		m2n__conn_end(peer->conn, state == M2N_PEER_LOST);
	if (peer->same_host && peer->rank != group->rank)
		m2n__count_local(group->ctx, -1);
	for (struct m2n_exchange *x = group->exchanges; x; x = m2n__exchange_next(x))
		m2n__exchange_peer_lost(x, peer);
	m2n__group_forget(group, peer->rank);
	old = malloc(sizeof(*old));
	if (old) { /* else it stays open until the process ends */
		old->ep = peer->ep;
		old->next = group->old_eps;
		group->old_eps = old;
	}
	peer->ep = NULL;
}

void m2n__peer_gone(struct m2n__peer *peer, const char *reason)
{
	if (state_of(peer) == M2N_PEER_LIVE)
		return;
	if (peer->wanted)
		peer->group->n_to_dial--;
	peer->wanted = 0;
	peer->is_doubtful = 0;
	snprintf(peer->reason, sizeof(peer->reason), "%s", reason);
	set_state(peer, M2N_PEER_LOST);
}

void m2n__old_eps_close(struct m2n_group *group)
{
	struct m2n__old_ep **at = &group->old_eps;
	int is_idle = -1;

	while (*at) {
		struct m2n__old_ep *old = *at;

		if (!(old->ep->ops->caps & M2N__CAP_MAPPED) && is_idle < 0)
			is_idle = m2n__group_is_idle(group);
		if (old->ep->ops->caps & M2N__CAP_MAPPED || !is_idle) {
			at = &old->next;
			continue;
		}
		for (struct m2n_exchange *x = group->exchanges; x; x = m2n__exchange_next(x))
			m2n__exchange_forget_ep(x, old->ep);
		old->ep->ops->disconnect(old->ep);
		*at = old->next;
		free(old);
	}
}

const char *m2n__peer_reason(const struct m2n__peer *peer)
{
	return state_of(peer) != M2N_PEER_LIVE && peer->reason[0] ? peer->reason
								  : "it closed its side";
}

void m2n__peer_want(struct m2n__peer *peer)
{
	if (state_of(peer) == M2N_PEER_LIVE || peer->wanted)
		return;
	peer->wanted = 1;
	peer->fatal = 0;
	peer->retry_ns = 0;
	peer->group->n_to_dial++;
	set_state(peer, M2N_PEER_JOINING);
}

int m2n__peer_status(struct m2n__peer *peer)
{
	if (peer->fatal)
		return m2n__error(peer->fatal, "%s", peer->fatal_text);
	if (state_of(peer) == M2N_PEER_LOST || state_of(peer) == M2N_PEER_LEFT)
		return m2n__error(M2N_ERR_PEER_LOST, "rank %d is lost: %s", peer->rank,
			m2n__peer_reason(peer));
	return 0;
}

void m2n__peer_send(
	struct m2n__peer *peer, enum m2n__frame_type type, const void *body, size_t bytes)
{
	if (state_of(peer) != M2N_PEER_LIVE)
		return;
	if (peer->conn)
		m2n__conn_send(peer->conn, type, body, bytes);
	else if (peer->rank == peer->group->rank)
		(void)m2n__link_frame(peer, type, body, bytes); /* to ourselves */
}

/*
 * Calls one peer, if it is for us to call and its address is known. A process that was lost and
 * is still the one in the store may be called again by either side: its link may have come back.
 */
static void dial(struct m2n__peer *peer)
{
	struct m2n_group *group = peer->group;
	uint8_t bytes[M2N__RECORD_BYTES_MAX];
	struct m2n__cursor cursor = {bytes, NULL, 0};
	struct m2n__record record;
	char key[M2N__STORE_KEY_MAX];
	size_t n = sizeof(bytes);
	int calls = group->rank < peer->rank || group->replacing;

	if (peer->rank == group->rank) {
		m2n__peer_opened(peer, NULL, &group->record);
		return;
	}
	if (!calls && !peer->incarnation)
		return; /* it calls us */
	peer->retry_ns = m2n__deadline_ns(RETRY_NS);
	m2n__peer_key(group, peer->rank, key);
	if (group->store->ops->get(group->store, key, bytes, &n, 0))
		return;
	cursor.end = bytes + n;
	if (m2n__record_unpack(&record, &cursor) ||
		(!calls && record.incarnation != peer->incarnation))
		return; /* unreadable, or for the new process to call */
	if (m2n__control_dial(peer, &record))
		m2n__log(&group->ctx->log, M2N_LOG_DEBUG, "%s", m2n_error_text());
}

static void dial_all(struct m2n_group *group)
{
	int64_t now = m2n__now_ns();

	group->n_retries = 0;
	for (int r = 0; r < group->n_peers; r++) {
		struct m2n__peer *peer = group->peers[r];

		if (peer && peer->wanted && !peer->conn && !peer->fatal && !peer->connecting &&
			peer->retry_ns <= now)
			dial(peer);
		group->n_retries += peer && peer->wanted && !peer->conn && peer->retry_ns > now;
	}
}

/* Connections that broke, as backends know them. Returns how many. */
static int check_connections(struct m2n_group *group)
{
	struct m2n_ctx *ctx = group->ctx;
	unsigned n_polled = atomic_load_explicit(&ctx->n_polled, memory_order_acquire);
	unsigned n_broken = 0;
	int n = 0;

	for (unsigned i = 0; i < n_polled; i++)
		n_broken += atomic_load_explicit(&ctx->polled[i]->n_broken, memory_order_acquire);
	if (n_broken == group->n_broken)
		return 0;
	group->n_broken = n_broken;
	for (int r = 0; r < group->n_peers; r++) {
		struct m2n__peer *peer = group->peers[r];

		if (!peer || !peer->ep || peer->connecting || !peer->ep->ops->check(peer->ep))
			continue;
		m2n__peer_lost(peer, M2N_PEER_LOST, m2n_error_text());
		n++;
	}
	return n;
}

int m2n__group_poll(struct m2n_group *group)
{
	int n;

	if (group->n_to_dial)
		dial_all(group);
	n = m2n__control_poll(group);
	if (group->n_connecting)
		look_at_connecting(group);
	n += check_connections(group);
	if (group->graves || group->answers)
		m2n__graves_poll(group);
	if (atomic_load_explicit(&group->ctx->n_owing, memory_order_relaxed))
		m2n__credits_poll(group);
	return n;
}

/*
 * How long nothing can happen that no control connection tells: calls to make again, connections
 * that librdmacm or UCX is at, messages. Many ranks of one host that look each millisecond would
 * have no time for anything else.
 */
static int nap_ms(struct m2n_group *group)
{
	int nap;

	m2n__ctx_lock(group->ctx);
	nap = group->n_connecting || group->n_retries ? 1 : M2N__GROUP_NAP_MS;
	m2n__ctx_unlock(group->ctx);
	return nap > 5 && m2n__ctx_is_messaging(group->ctx) ? 5 : nap;
}

void m2n__group_wait(struct m2n_group *group, int max_ms)
{
	struct pollfd p = {.fd = group->epoll_fd, .events = POLLIN};
	int n, ms;

	if (m2n__ctx_poll(group->ctx))
		return;
	ms = nap_ms(group);
	n = poll(&p, 1, ms < max_ms ? ms : max_ms);
	if (n > 0)
		m2n__ctx_poll(group->ctx);
}

int m2n_group_rank(const struct m2n_group *group)
{
	return group->rank;
}

int m2n_group_size(const struct m2n_group *group)
{
	return group->n_ranks;
}

int m2n_group_peer(struct m2n_group *group, int rank, struct m2n_peer_attr *attr)
{
	struct m2n__peer *peer;

	if (!group || !attr || rank < 0)
		return m2n__error(
			-EINVAL, "m2n_group_peer: rank %d, or group or attr is NULL", rank);
	m2n__ctx_lock(group->ctx);
	m2n__group_poll(group);
	memset(attr, 0, sizeof(*attr));
	attr->backend = "";
	peer = rank < group->n_peers ? group->peers[rank] : NULL;
	if (peer) {
		attr->state = state_of(peer);
		attr->incarnation = peer->incarnation;
		memcpy(attr->reason, peer->reason, sizeof(attr->reason));
		if (peer->ep)
			attr->backend = peer->ep->ops->name;
	}
	m2n__ctx_unlock(group->ctx);
	if (!peer && rank >= group->n_ranks)
		return m2n__error(
			-EINVAL, "rank %d is not below the group's size %d", rank, group->n_ranks);
	return 0;
}

int m2n_group_drop(struct m2n_group *group, int rank)
{
	if (!group || rank < 0 || rank >= group->n_peers || rank == group->rank)
		return m2n__error(-EINVAL, "m2n_group_drop: rank %d is not a peer", rank);
	m2n__ctx_lock(group->ctx);
	if (group->peers[rank])
		m2n__peer_lost(group->peers[rank], M2N_PEER_LOST, "dropped by this rank");
	m2n__control_poll(group); /* the peer sees it when it next looks */
	m2n__ctx_unlock(group->ctx);
	return 0;
}

int m2n_group_add(struct m2n_group *group, int rank, int64_t timeout_ns)
{
	struct m2n__peer *peer;
	int64_t deadline;
	int rc = 0;

	if (!group)
		return m2n__error(-EINVAL, "m2n_group_add: group is NULL");
	deadline = m2n__deadline_ns(timeout_ns < 0 ? group->ctx->options.timeout_ns : timeout_ns);
	m2n__ctx_lock(group->ctx);
	peer = m2n__group_peer(group, rank);
	if (peer)
		m2n__peer_want(peer);
	m2n__ctx_unlock(group->ctx);
	if (!peer)
		return -EINVAL;
	while (state_of(peer) != M2N_PEER_LIVE && !rc) {
		m2n__group_wait(group, M2N__GROUP_NAP_MS);
		m2n__ctx_lock(group->ctx);
		rc = peer->fatal ? m2n__peer_status(peer) : 0;
		m2n__ctx_unlock(group->ctx);
		if (!rc && state_of(peer) != M2N_PEER_LIVE && m2n__now_ns() > deadline)
			rc = m2n__error(-ETIMEDOUT, "rank %d did not come", rank);
	}
	return rc;
}
