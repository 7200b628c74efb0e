/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connecting through librdmacm: it resolves addresses and routes, so that ranks may sit behind
 * routers, and the subnet's manager says which path to take. The queue pairs are ours; librdmacm
 * only finds out how to bring them to life.
 *
 * Every rail listens at its own address; the greeting says where. The side with the smaller token
 * calls, once for each queue pair, and says the other's token, which only its greeting tells: who
 * does not know it is rejected and hurts nobody. All events come through one channel that does
 * not block, looked at by ready() and, rarely, by progress().
 */
#include "backend/verbs/cm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "util/error.h"
#include "util/time.h"

#define CALL_MAGIC 0x4343324dU /* "M2CC" */
#define BACKLOG 1024
#define STEP_MS 500
#define MAX_TRIES 6 /* of each step */

enum cm_state {
	CM_NONE = 0,
	CM_ADDRESS, /* caller: resolving the address */
	CM_ROUTE,   /* caller: resolving the route */
	CM_CALL,    /* caller: waiting for the answer */
	CM_ANSWER,  /* called: answered, waiting for the caller to take note */
	CM_OPEN,
};

static const char *const doing[] = {
	[CM_NONE] = "waiting for the peer's call",
	[CM_ADDRESS] = "resolving the peer's address",
	[CM_ROUTE] = "resolving the route to the peer",
	[CM_CALL] = "calling the peer",
	[CM_ANSWER] = "answering the peer's call",
	[CM_OPEN] = "connected",
};

/* Private data of a call. */
struct call {
	uint32_t magic;
	uint32_t path; /* the called side's */
	uint8_t token[VERBS_TOKEN_BYTES];
};

/* A copy of what is used of an event: it goes back before it is worked on. */
struct occurrence {
	enum rdma_cm_event_type type;
	struct rdma_cm_id *id;
	int status;
	size_t bytes;
	struct call call;
};

int m2n__verbs_cm_start(struct verbs_iface *v)
{
	int rc = 0;

	if (v->cm_channel)
		return 0;
	rc = m2n__rdma_load();
	if (rc)
		return rc;
	v->cm_channel = m2n__rdma.create_event_channel();
	if (!v->cm_channel ||
		fcntl(v->cm_channel->fd, F_SETFL, fcntl(v->cm_channel->fd, F_GETFL) | O_NONBLOCK))
		rc = m2n__error(M2N_ERR_BACKEND,
			"verbs: librdmacm has no event channel: %s; is the kernel module rdma_ucm "
			"loaded? Or set M2N_VERBS_CONNECT=exchange",
			strerrordesc_np(errno));
	for (unsigned i = 0; i < v->n_rails && !rc; i++) {
		rc = m2n__verbs_cm_bind(v, &v->rails[i]);
		if (!rc && m2n__rdma.listen(v->rails[i].listener, BACKLOG))
			rc = m2n__error(
				M2N_ERR_BACKEND, "verbs: rdma_listen: %s", strerrordesc_np(errno));
	}
	if (rc)
		m2n__verbs_cm_stop(v);
	return rc;
}

void m2n__verbs_cm_stop(struct verbs_iface *v)
{
	for (unsigned i = 0; i < v->n_rails; i++) {
		if (v->rails[i].listener)
			m2n__rdma.destroy_id(v->rails[i].listener);
		v->rails[i].listener = NULL;
	}
	if (v->cm_channel)
		m2n__rdma.destroy_event_channel(v->cm_channel);
	v->cm_channel = NULL;
}

int m2n__verbs_cm_fd(struct verbs_iface *v)
{
	return v->cm_channel ? v->cm_channel->fd : -1;
}

static int is_caller(const struct verbs_ep *e)
{
	return memcmp(e->token, e->peer_token, sizeof(e->token)) < 0;
}

/* The library's calls set errno; the connection breaks with it. */
static void fail_call(struct verbs_path *path, const char *what)
{
	m2n__verbs_break(path->ep, "%s:%u: %s, %s: %s", path->rail->ctx->device->name,
		path->rail->port, doing[path->cm_state], what, strerrordesc_np(errno));
}

/*
 * Short tries: while the neighbour is not known, the kernel may miss its answer and take the whole
 * time that it was given before it looks again.
 */
static void resolve_address(struct verbs_path *path, struct sockaddr *from, struct sockaddr *to)
{
	path->cm_state = CM_ADDRESS;
	path->n_tries++;
	if (m2n__rdma.resolve_addr(path->id, from, to, STEP_MS))
		fail_call(path, "rdma_resolve_addr");
}

/* Starts the call for one queue pair. */
static void call(
	struct verbs_iface *v, struct verbs_path *path, const struct verbs_greeting *greeting)
{
	union verbs_address to, from = path->rail->cm_address;

	path->cm_state = CM_ADDRESS;
	path->n_tries = 0;
	if (m2n__verbs_cm_address(path->rail, greeting->rails[path->rail_idx].ip,
		    greeting->rails[path->rail_idx].port, &to)) {
		m2n__verbs_break(path->ep, "the peer's greeting has no address to call");
		return;
	}
	m2n__verbs_cm_set_port(&from, 0);
	if (m2n__rdma.create_id(v->cm_channel, &path->id, path, RDMA_PS_TCP)) {
		path->id = NULL;
		fail_call(path, "rdma_create_id");
		return;
	}
	resolve_address(path, &from.any, &to.any);
}

/* progress() need not look for it any more. */
static void stop_calling(struct verbs_ep *e)
{
	struct verbs_iface *v = (struct verbs_iface *)e->ep.iface;

	atomic_fetch_sub(&v->n_calling, (unsigned)e->is_calling);
	e->is_calling = 0;
}

int m2n__verbs_cm_meet(struct verbs_ep *e, const struct verbs_greeting *greeting)
{
	struct verbs_iface *v = (struct verbs_iface *)e->ep.iface;

	pthread_mutex_lock(&v->cm_lock);
	memcpy(e->peer_token, greeting->token, sizeof(e->peer_token));
	e->cm_deadline_ns = m2n__deadline_ns(v->options->timeout_ns);
	if (is_caller(e))
		for (unsigned i = 0; i < e->n_qps && !atomic_load(&e->status); i++)
			call(v, &e->paths[i], greeting);
	pthread_mutex_unlock(&v->cm_lock);
	return 0;
}

void m2n__verbs_cm_leave(struct verbs_ep *e)
{
	struct verbs_iface *v = (struct verbs_iface *)e->ep.iface;

	if (!e->is_cm)
		return;
	pthread_mutex_lock(&v->cm_lock);
	for (unsigned i = 0; i < e->n_qps; i++) {
		if (e->paths[i].id)
			m2n__rdma.destroy_id(e->paths[i].id);
		e->paths[i].id = NULL;
		e->paths[i].cm_state = CM_OPEN; /* a call that comes now is a stranger's */
	}
	stop_calling(e);
	pthread_mutex_unlock(&v->cm_lock);
}

static struct rdma_conn_param connection(const struct verbs_path *path, struct call *call)
{
	return (struct rdma_conn_param){
		.private_data = call,
		.private_data_len = call ? (uint8_t)sizeof(*call) : 0,
		.responder_resources = 1,
		.initiator_depth = 1,
		.retry_count = (uint8_t)path->rail->iface->options->verbs_retries,
		.rnr_retry_count = 7,
		.srq = 1,
		.qp_num = path->qp->qp_num,
	};
}

static int is_on_rail(const struct rdma_cm_id *id, const struct verbs_rail *rail)
{
	return id->verbs && strcmp(id->verbs->device->name, rail->ctx->device->name) == 0 &&
	       id->port_num == rail->port;
}

static void resolve_route(struct verbs_path *path)
{
	path->n_tries = path->cm_state == CM_ROUTE ? path->n_tries + 1 : 1;
	path->cm_state = CM_ROUTE;
	if (!is_on_rail(path->id, path->rail))
		m2n__verbs_break(path->ep,
			"%s:%u: the peer's address is reached through %s, port %u",
			path->rail->ctx->device->name, path->rail->port,
			path->id->verbs ? path->id->verbs->device->name : "no RDMA device",
			path->id->port_num);
	else if (m2n__rdma.resolve_route(path->id, STEP_MS))
		fail_call(path, "rdma_resolve_route");
}

static void say_token(struct verbs_path *path)
{
	unsigned idx = (unsigned)(path - path->ep->paths);
	struct call call = {.magic = CALL_MAGIC, .path = m2n__verbs_partner(path->ep, idx)};
	struct rdma_conn_param param = connection(path, &call);

	memcpy(call.token, path->ep->peer_token, sizeof(call.token));
	path->cm_state = CM_CALL;
	if (m2n__rdma.connect(path->id, &param))
		fail_call(path, "rdma_connect");
}

static void open_path(struct verbs_path *path)
{
	struct verbs_ep *e = path->ep;

	if (path->cm_state == CM_OPEN)
		return;
	path->cm_state = CM_OPEN;
	if (++e->n_open < e->n_qps)
		return;
	stop_calling(e);
	atomic_store_explicit(&e->state, VERBS_READY, memory_order_release);
}

static void take_answer(struct verbs_path *path)
{
	if (m2n__verbs_qp_follow(path))
		m2n__verbs_break(path->ep, "%s", m2n_error_text());
	else if (m2n__rdma.establish(path->id))
		fail_call(path, "rdma_establish");
	else
		open_path(path);
}

/* The path that a call is for; NULL: a stranger's. */
static struct verbs_path *find_called(struct verbs_iface *v, const struct occurrence *o)
{
	if (o->bytes < sizeof(o->call) || o->call.magic != CALL_MAGIC)
		return NULL;
	for (struct verbs_ep *e = v->eps; e; e = e->next) {
		struct verbs_path *path;

		if (!e->is_cm || memcmp(e->token, o->call.token, sizeof(e->token)) != 0)
			continue;
		path = o->call.path < e->n_qps ? &e->paths[o->call.path] : NULL;
		if (!path || path->id || path->cm_state != CM_NONE || atomic_load(&e->status) ||
			!is_on_rail(o->id, path->rail))
			return NULL;
		return path;
	}
	return NULL;
}

static void answer(struct verbs_iface *v, const struct occurrence *o)
{
	struct verbs_path *path = find_called(v, o);
	struct rdma_conn_param param;

	if (!path) {
		char from[VERBS_ADDRESS_TEXT];

		/* Not a line for each of many. */
		v->n_strangers++;
		if ((v->n_strangers & (v->n_strangers - 1)) == 0)
			m2n__verbs_log(v, M2N_LOG_WARN,
				"verbs: rejected a connection from %s that knows no token of ours "
				"(%u so far)",
				m2n__verbs_cm_text(&o->id->route.addr.dst_addr, from),
				v->n_strangers);
		(void)m2n__rdma.reject(o->id, NULL, 0);
		m2n__rdma.destroy_id(o->id);
		return;
	}
	path->id = o->id;
	path->id->context = path;
	path->cm_state = CM_ANSWER;
	param = connection(path, NULL);
	if (m2n__verbs_qp_follow(path))
		m2n__verbs_break(path->ep, "%s", m2n_error_text());
	else if (m2n__rdma.accept(path->id, &param))
		fail_call(path, "rdma_accept");
}

/* Why a call did not go through, in words. */
static void fail_event(struct verbs_path *path, const struct occurrence *o)
{
	char to[VERBS_ADDRESS_TEXT];
	const char *why = o->status < 0 ? strerrordesc_np(-o->status) : "";

	if (o->type == RDMA_CM_EVENT_REJECTED)
		why = o->status == 8    ? "nobody listens there"
		      : o->status == 28 ? "the peer rejected the call"
					: "rejected";
	else if (o->type == RDMA_CM_EVENT_ADDR_ERROR)
		why = "address not resolved: no route, or no host there answers";
	else if (o->type == RDMA_CM_EVENT_ROUTE_ERROR)
		why = "no path to the peer: the subnet manager knows none, or does not answer";
	m2n__verbs_break(path->ep, "%s:%u: %s at %s: %s (%s, status %d)",
		path->rail->ctx->device->name, path->rail->port, doing[path->cm_state],
		m2n__verbs_cm_text(&path->id->route.addr.dst_addr, to), why ? why : "",
		m2n__rdma.event_str(o->type), o->status);
}

/* 1: a step that ran out of time is tried again. */
static int try_again(struct verbs_path *path, const struct occurrence *o)
{
	struct rdma_addr *addr = &path->id->route.addr;

	if (o->status != -ETIMEDOUT || path->n_tries >= MAX_TRIES)
		return 0;
	if (o->type == RDMA_CM_EVENT_ADDR_ERROR)
		resolve_address(path, NULL, &addr->dst_addr);
	else if (o->type == RDMA_CM_EVENT_ROUTE_ERROR)
		resolve_route(path);
	else
		return 0;
	return 1;
}

static void work(struct verbs_iface *v, const struct occurrence *o)
{
	struct verbs_path *path = o->id->context;

	if (o->type == RDMA_CM_EVENT_CONNECT_REQUEST) {
		answer(v, o);
		return;
	}
	if (!path || path->id != o->id)
		return;
	switch (o->type) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
		resolve_route(path);
		return;
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		say_token(path);
		return;
	case RDMA_CM_EVENT_CONNECT_RESPONSE:
		take_answer(path);
		return;
	case RDMA_CM_EVENT_ESTABLISHED:
		open_path(path);
		return;
	case RDMA_CM_EVENT_DISCONNECTED:
		/* Of an open one: the peer left, which core hears from the peer itself. */
		if (path->cm_state != CM_OPEN)
			fail_event(path, o);
		return;
	case RDMA_CM_EVENT_TIMEWAIT_EXIT:
		return;
	default:
		if (!try_again(path, o))
			fail_event(path, o);
	}
}

static int next_event(struct verbs_iface *v, struct occurrence *o)
{
	struct rdma_cm_event *event;

	if (m2n__rdma.get_cm_event(v->cm_channel, &event))
		return 0;
	memset(o, 0, sizeof(*o));
	o->type = event->event;
	o->id = event->id;
	o->status = event->status;
	if (o->type == RDMA_CM_EVENT_CONNECT_REQUEST && event->param.conn.private_data) {
		o->bytes = event->param.conn.private_data_len;
		memcpy(&o->call, event->param.conn.private_data,
			o->bytes < sizeof(o->call) ? o->bytes : sizeof(o->call));
	}
	m2n__rdma.ack_cm_event(event);
	return 1;
}

void m2n__verbs_cm_progress(struct verbs_iface *v, int wait)
{
	struct occurrence o;

	if (wait)
		pthread_mutex_lock(&v->cm_lock);
	else if (pthread_mutex_trylock(&v->cm_lock))
		return;
	while (v->cm_channel && next_event(v, &o))
		work(v, &o);
	pthread_mutex_unlock(&v->cm_lock);
}

void m2n__verbs_cm_expire(struct verbs_ep *e)
{
	struct verbs_iface *v = (struct verbs_iface *)e->ep.iface;

	if (!e->is_met || m2n__now_ns() < e->cm_deadline_ns ||
		atomic_load(&e->state) == VERBS_READY)
		return;
	pthread_mutex_lock(&v->cm_lock);
	for (unsigned i = 0; i < e->n_qps; i++)
		if (e->paths[i].cm_state != CM_OPEN)
			m2n__verbs_break(e, "%s:%u: %s took longer than M2N_TIMEOUT",
				e->paths[i].rail->ctx->device->name, e->paths[i].rail->port,
				doing[e->paths[i].cm_state]);
	pthread_mutex_unlock(&v->cm_lock);
}
