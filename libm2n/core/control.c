/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control connections: one TCP connection between each two ranks that have a link. It proves who
 * the peer is, carries set-up (LINK frames), and shows by its end that the peer's process ended.
 * Non-blocking throughout: a state machine per connection, driven by m2n__control_poll().
 *
 *   caller:   DIALING -> WAIT_CHALLENGE -> OPEN
 *   listener: WAIT_HELLO -> WAIT_PROOF -> OPEN
 *   LINGERING: we are done with the peer, which may still be writing to our memory; the
 *   connection waits for its end (see quarantine in link.c).
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/group.h"
#include "util/error.h"
#include "util/time.h"
#include "wire/wire.h"

#define HANDSHAKE_NS INT64_C(10000000000)
#define MAX_EVENTS 64
#define MAX_TURNS 16 /* looks in one poll while there are many events */
#define FRAME_BYTES_MAX (M2N__FRAME_HEAD_BYTES + M2N__FRAME_BODY_MAX)

enum conn_state { DIALING, WAIT_CHALLENGE, WAIT_HELLO, WAIT_PROOF, OPEN, LINGERING, DEAD };

struct m2n__conn {
	struct m2n__conn *next;
	struct m2n_group *group;
	struct m2n__peer *peer; /* NULL until a listener knows who calls */
	uint64_t id;
	int fd;
	enum conn_state state;
	uint32_t watched; /* epoll events */
	int dialed;       /* we called */
	int end_wanted;             /* close as soon as no call writes into the peer's memory */
	int peer_ended;             /* its end was seen */
	int is_refused;             /* nobody listens where it called */
	int is_heard;               /* a frame came since it is open */
	int64_t deadline_ns;        /* of the handshake */
	struct m2n__record *record; /* the caller's, until it is proven */
	uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES];
	uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES];
	uint8_t context[96]; /* what proofs are bound to: group, caller, listener */
	uint8_t *in;
	size_t in_bytes, in_room;
	uint8_t *out;
	size_t out_bytes, out_room;
};

static void watch(struct m2n__conn *conn, int op)
{
	struct epoll_event event = {.data.ptr = conn};

	event.events = EPOLLIN | (conn->out_bytes || conn->state == DIALING ? EPOLLOUT : 0);
	if (op == EPOLL_CTL_MOD && event.events == conn->watched)
		return;
	conn->watched = event.events;
	epoll_ctl(conn->group->epoll_fd, op, conn->fd, &event);
}

/*
 * A host is given up after the option's time without a word. Half of it is idle, the rest is for
 * several probes: one that a busy machine answers late must not cost a peer.
 */
static void tune_socket(struct m2n_group *group, int fd)
{
	int one = 1, s = (int)(group->ctx->options.keepalive_ns / 1000000000);
	unsigned ms = (unsigned)(group->ctx->options.keepalive_ns / 1000000);
	int idle, interval, count;

	s = s > 2 ? s : 2;
	idle = s / 2;
	interval = (s - idle) / 4 > 0 ? (s - idle) / 4 : 1;
	count = (s - idle) / interval;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

static struct m2n__conn *new_conn(struct m2n_group *group, int fd, enum conn_state state)
{
	struct m2n__conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		return NULL;
	conn->group = group;
	conn->fd = fd;
	conn->state = state;
	conn->id = ++group->next_conn_id;
	conn->deadline_ns = m2n__deadline_ns(HANDSHAKE_NS);
	conn->next = group->conns;
	group->conns = conn;
	if (state == DIALING)
		tune_socket(group, fd); /* one that was accepted has it from the listener */
	watch(conn, EPOLL_CTL_ADD);
	return conn;
}

/* Marks the connection for removal; memory goes in sweep(), when no event can name it. */
static void kill_conn(struct m2n__conn *conn)
{
	if (conn->state == DEAD)
		return;
	conn->state = DEAD;
	close(conn->fd);
	conn->fd = -1;
	if (conn->peer && conn->peer->conn == conn)
		conn->peer->conn = NULL;
	conn->peer = NULL;
}

static void sweep(struct m2n_group *group)
{
	struct m2n__conn **at = &group->conns;

	m2n__old_eps_close(group); /* before our end says that nothing of ours is under way */
	while (*at) {
		struct m2n__conn *conn = *at;

		if (conn->end_wanted && conn->state != DEAD && m2n__group_is_idle(group)) {
			conn->end_wanted = 0;
			shutdown(conn->fd, SHUT_WR);
			if (conn->state != LINGERING || conn->peer_ended)
				kill_conn(conn);
		}
		if (conn->state != DEAD) {
			at = &conn->next;
			continue;
		}
		*at = conn->next;
		free(conn->record);
		free(conn->in);
		free(conn->out);
		free(conn);
	}
}

void m2n__conn_end(struct m2n__conn *conn, int linger)
{
	if (conn->peer && conn->peer->conn == conn)
		conn->peer->conn = NULL;
	conn->peer = NULL;
	conn->out_bytes = 0;
	conn->end_wanted = 1;
	if (linger)
		conn->state = LINGERING;
	watch(conn, EPOLL_CTL_MOD);
	/* sweep() closes it, once no call of ours writes into that peer's memory */
}

int m2n__conn_lingers(struct m2n_group *group, uint64_t id)
{
	for (struct m2n__conn *conn = group->conns; conn; conn = conn->next)
		if (conn->id <= id && conn->state == LINGERING && !conn->peer_ended)
			return 1;
	return 0;
}

/*
 * The connection ended or broke. An open one is closed on our side by sweep(): a peer that
 * dropped us takes our end for the word that none of our calls writes into its memory any more.
 */
static void conn_ended(struct m2n__conn *conn, const char *reason)
{
	struct m2n__peer *peer = conn->peer;

	if (conn->state == OPEN) {
		int is_doubtful = conn->dialed && !conn->is_heard;

		conn->peer_ended = 1;
		m2n__conn_end(conn, 0);
		if (peer && is_doubtful) {
			/* Did it die, or take our proof for too late? Calling again tells. */
			m2n__peer_lost(peer, M2N_PEER_JOINING, reason);
			m2n__peer_want(peer);
			peer->is_doubtful = 1;
		} else if (peer) {
			m2n__peer_lost(peer, M2N_PEER_LOST, reason);
		}
		return;
	}
	kill_conn(conn);
	if (peer)
		peer->retry_ns = m2n__deadline_ns(5000000);
	if (peer && peer->is_doubtful && conn->is_refused)
		m2n__peer_gone(peer, reason);
}

static void flush_out(struct m2n__conn *conn)
{
	size_t sent = 0;

	if (conn->state == DIALING)
		return;
	while (sent < conn->out_bytes) {
		ssize_t n = send(conn->fd, conn->out + sent, conn->out_bytes - sent,
			MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n <= 0)
			break; /* a broken connection shows when it is read */
		sent += (size_t)n;
	}
	memmove(conn->out, conn->out + sent, conn->out_bytes - sent);
	conn->out_bytes -= sent;
	watch(conn, EPOLL_CTL_MOD);
}

static int grow(uint8_t **buffer, size_t *room, size_t want)
{
	uint8_t *grown;

	if (want <= *room)
		return 0;
	grown = realloc(*buffer, want + want / 2);
	if (!grown)
		return -1;
	*buffer = grown;
	*room = want + want / 2;
	return 0;
}

void m2n__conn_send(
	struct m2n__conn *conn, enum m2n__frame_type type, const void *body, size_t bytes)
{
	struct m2n__frame_head head = {M2N__WIRE_VERSION, (uint16_t)type, (uint32_t)bytes};

	if (conn->state == DEAD || conn->end_wanted || conn->state == LINGERING)
		return;
	if (grow(&conn->out, &conn->out_room, conn->out_bytes + M2N__FRAME_HEAD_BYTES + bytes)) {
		conn_ended(conn, "no memory for a control frame");
		return;
	}
	m2n__frame_pack(&head, conn->out + conn->out_bytes);
	if (bytes)
		memcpy(conn->out + conn->out_bytes + M2N__FRAME_HEAD_BYTES, body, bytes);
	conn->out_bytes += M2N__FRAME_HEAD_BYTES + bytes;
	flush_out(conn);
}

void m2n__conn_reject(struct m2n__conn *conn, int status)
{
	uint8_t body[600];
	struct m2n__cursor c = {body, body + sizeof(body), 0};
	const char *text = m2n_error_text();

	m2n__put_u32(&c, (uint32_t)-status);
	m2n__put_blob(&c, text, strlen(text));
	m2n__conn_send(conn, M2N__FRAME_REJECT, body, (size_t)(c.at - body));
	if (status != -EALREADY)
		m2n__log(&conn->group->ctx->log, M2N_LOG_WARN, "refused a peer: %s", text);
	conn_ended(conn, text);
}

static void set_context(struct m2n__conn *conn, int caller, int listener)
{
	snprintf((char *)conn->context, sizeof(conn->context), "%s %d %d", conn->group->name,
		caller, listener);
}

static void send_hello(struct m2n__conn *conn)
{
	struct m2n_group *group = conn->group;
	uint8_t body[M2N__RECORD_BYTES_MAX];
	struct m2n__cursor c = {body, body + sizeof(body), 0};

	set_context(conn, group->rank, conn->peer->rank);
	m2n__auth_nonce(conn->caller_nonce);
	m2n__put_blob(&c, group->name, strlen(group->name));
	m2n__put_u32(&c, (uint32_t)group->rank);
	m2n__put_u32(&c, (uint32_t)conn->peer->rank);
	m2n__put_u64(&c, conn->record->incarnation); /* whom we mean to call */
	m2n__put_bytes(&c, conn->caller_nonce, sizeof(conn->caller_nonce));
	m2n__record_pack(&group->record, &c);
	conn->state = WAIT_CHALLENGE;
	m2n__conn_send(conn, M2N__FRAME_HELLO, body, (size_t)(c.at - body));
}

/* Is another connection with this peer in the way? Changes nothing: the caller is not proven. */
static int rival_stands(
	const struct m2n__conn *conn, const struct m2n__peer *peer, uint64_t incarnation)
{
	const struct m2n__conn *rival = peer->conn;

	if (!rival)
		return 0;
	/* Calls that crossed: both sides keep the lower rank's. */
	if (rival->state == OPEN && peer->incarnation == incarnation)
		return rival->dialed && peer->rank < conn->group->rank
			? 0
			: m2n__error(-EALREADY, "connected already");
	if (rival->state == OPEN)
		return 0;
	if (conn->group->rank < peer->rank && !conn->group->replacing &&
		(!peer->incarnation || peer->incarnation == incarnation))
		return m2n__error(-EALREADY, "the lower rank's call stands");
	return 0;
}

/* The caller is proven: its connection takes the place of a rival. */
static void end_rival(struct m2n__peer *peer, uint64_t incarnation)
{
	if (peer->conn && peer->conn->state == OPEN && peer->incarnation == incarnation)
		m2n__peer_lost(peer, M2N_PEER_JOINING, "calls crossed");
	else if (peer->conn && peer->conn->state == OPEN)
		m2n__peer_lost(peer, M2N_PEER_LOST, "replaced by a new process");
	else if (peer->conn)
		kill_conn(peer->conn);
}

static int read_hello(struct m2n__conn *conn, struct m2n__cursor *c)
{
	struct m2n_group *group = conn->group;
	uint64_t to_incarnation;
	uint32_t from, to;
	char name[64];
	int rc;

	m2n__get_text(c, name, sizeof(name));
	from = m2n__get_u32(c);
	to = m2n__get_u32(c);
	to_incarnation = m2n__get_u64(c);
	m2n__get_bytes(c, conn->caller_nonce, sizeof(conn->caller_nonce));
	conn->record = malloc(sizeof(*conn->record));
	if (!conn->record)
		return m2n__error(-ENOMEM, "no memory for an address record");
	rc = m2n__record_unpack(conn->record, c);
	if (rc)
		return rc;
	if (strcmp(name, group->name) != 0)
		return m2n__error(M2N_ERR_PROTOCOL, "rank %u called for group '%s', this is '%s'",
			from, name, group->name);
	if (to != (uint32_t)group->rank || to_incarnation != group->record.incarnation)
		return m2n__error(-EALREADY, "the call is for another process");
	if (from == to || from > INT32_MAX)
		return m2n__error(M2N_ERR_PROTOCOL, "a peer calls itself rank %u", from);
	if (conn->record->n_ranks != (uint32_t)group->n_ranks && (int)from < group->n_ranks &&
		to < conn->record->n_ranks)
		return m2n__error(M2N_ERR_SHAPE,
			"group '%s': size is %d on rank %d but %u on rank %u", group->name,
			group->n_ranks, group->rank, conn->record->n_ranks, from);
	set_context(conn, (int)from, group->rank);
	return (int)from;
}

static int on_hello(struct m2n__conn *conn, struct m2n__cursor *c)
{
	struct m2n_group *group = conn->group;
	uint8_t body[M2N__RECORD_BYTES_MAX], proof[M2N__AUTH_PROOF_BYTES];
	struct m2n__cursor out = {body, body + sizeof(body), 0};
	int from = read_hello(conn, c);
	struct m2n__peer *peer;
	int rc;

	if (from < 0)
		return from;
	peer = m2n__group_peer(group, from);
	if (!peer)
		return -ENOMEM;
	rc = rival_stands(conn, peer, conn->record->incarnation);
	if (rc)
		return rc;
	m2n__auth_nonce(conn->listener_nonce);
	m2n__auth_prove(&group->key, M2N__AUTH_LISTENER, conn->caller_nonce, conn->listener_nonce,
		conn->context, strlen((char *)conn->context), proof);
	m2n__put_bytes(&out, conn->listener_nonce, sizeof(conn->listener_nonce));
	m2n__put_bytes(&out, proof, sizeof(proof));
	m2n__record_pack(&group->record, &out);
	conn->peer = peer;
	conn->state = WAIT_PROOF;
	m2n__conn_send(conn, M2N__FRAME_CHALLENGE, body, (size_t)(out.at - body));
	return 0;
}

static int check_proof(struct m2n__conn *conn, enum m2n__auth_role role, const uint8_t *proof)
{
	int rc = m2n__auth_check(&conn->group->key, role, conn->caller_nonce, conn->listener_nonce,
		conn->context, strlen((char *)conn->context), proof);

	return rc ? m2n__error(rc, "group '%s': rank %d does not know the secret (option SECRET)",
			    conn->group->name, conn->peer->rank)
		  : 0;
}

static int opened(struct m2n__conn *conn)
{
	int rc;

	conn->state = OPEN;
	rc = m2n__peer_opened(conn->peer, conn, conn->record);
	free(conn->record);
	conn->record = NULL;
	return rc;
}

static int on_challenge(struct m2n__conn *conn, struct m2n__cursor *c)
{
	uint8_t proof[M2N__AUTH_PROOF_BYTES];
	int rc;

	m2n__get_bytes(c, conn->listener_nonce, sizeof(conn->listener_nonce));
	m2n__get_bytes(c, proof, sizeof(proof));
	rc = m2n__record_unpack(conn->record, c);
	if (rc)
		return rc;
	rc = check_proof(conn, M2N__AUTH_LISTENER, proof);
	if (rc)
		return rc;
	if (conn->peer->conn != conn)
		return m2n__error(-EALREADY, "the peer's own call came first");
	m2n__auth_prove(&conn->group->key, M2N__AUTH_CALLER, conn->caller_nonce,
		conn->listener_nonce, conn->context, strlen((char *)conn->context), proof);
	m2n__conn_send(conn, M2N__FRAME_PROOF, proof, sizeof(proof));
	if (conn->state == DEAD)
		return 0;
	return opened(conn);
}

static int on_proof(struct m2n__conn *conn, struct m2n__cursor *c)
{
	uint8_t proof[M2N__AUTH_PROOF_BYTES];
	int rc;

	m2n__get_bytes(c, proof, sizeof(proof));
	rc = check_proof(conn, M2N__AUTH_CALLER, proof);
	if (!rc) /* a rival may have come in between */
		rc = rival_stands(conn, conn->peer, conn->record->incarnation);
	if (rc)
		return rc;
	end_rival(conn->peer, conn->record->incarnation);
	return opened(conn);
}

static void on_reject(struct m2n__conn *conn, struct m2n__cursor *c)
{
	struct m2n__peer *peer = conn->peer;
	uint32_t code = m2n__get_u32(c);
	char text[200];

	m2n__get_text(c, text, sizeof(text));
	if (peer && (conn->state != OPEN || peer->connecting) && code != EALREADY && code > 0 &&
		code < 2000) {
		peer->fatal = -(int)code;
		snprintf(peer->fatal_text, sizeof(peer->fatal_text), "rank %d refused: %s",
			peer->rank, text);
	}
	if (peer && conn->state == OPEN && !peer->connecting && code == EALREADY) {
		/* calls crossed, and the other one stands: its proof is on the way */
		m2n__peer_lost(peer, M2N_PEER_JOINING, text);
		m2n__peer_want(peer);
	}
	conn_ended(conn, text);
}

static int on_frame(struct m2n__conn *conn, const struct m2n__frame_head *head, uint8_t *body)
{
	struct m2n__cursor c = {body, body + head->body_bytes, 0};

	if (head->type == M2N__FRAME_REJECT) {
		on_reject(conn, &c);
		return 0;
	}
	if (head->version != M2N__WIRE_VERSION)
		return m2n__error(M2N_ERR_VERSION, "wire version %u here, %u at the peer",
			M2N__WIRE_VERSION, head->version);
	if (head->type == M2N__FRAME_HELLO && conn->state == WAIT_HELLO)
		return on_hello(conn, &c);
	if (head->type == M2N__FRAME_CHALLENGE && conn->state == WAIT_CHALLENGE)
		return on_challenge(conn, &c);
	if (head->type == M2N__FRAME_PROOF && conn->state == WAIT_PROOF)
		return on_proof(conn, &c);
	if (conn->state != OPEN)
		return m2n__error(M2N_ERR_PROTOCOL, "frame of type %u before the peer was proven",
			head->type);
	conn->is_heard = 1;
	conn->peer->is_doubtful = 0;
	switch (head->type) {
	case M2N__FRAME_LINK:
	case M2N__FRAME_UNLINK:
	case M2N__FRAME_START:
	case M2N__FRAME_UNLINKED:
		return m2n__link_frame(conn->peer, head->type, body, head->body_bytes);
	case M2N__FRAME_GREET:
		return m2n__peer_greeted(conn->peer, body, head->body_bytes);
	case M2N__FRAME_NOTICE:
		return m2n__peer_noticed(conn->peer, body, head->body_bytes);
	case M2N__FRAME_BYE:
		m2n__peer_lost(conn->peer, M2N_PEER_LEFT, "it left the group");
		return 0;
	default:
		return m2n__error(M2N_ERR_PROTOCOL, "frame of unknown type %u", head->type);
	}
}

/* Frames that are whole, one after the other. */
static void take_frames(struct m2n__conn *conn)
{
	size_t at = 0;

	while (conn->state != DEAD && !conn->end_wanted &&
		conn->in_bytes - at >= M2N__FRAME_HEAD_BYTES) {
		struct m2n__frame_head head;
		int rc = m2n__frame_unpack(conn->in + at, &head);

		if (!rc && conn->in_bytes - at - M2N__FRAME_HEAD_BYTES < head.body_bytes)
			break;
		if (!rc)
			rc = on_frame(conn, &head, conn->in + at + M2N__FRAME_HEAD_BYTES);
		if (rc) {
			if (conn->peer && conn->state != OPEN && rc != -EALREADY &&
				conn->state == WAIT_CHALLENGE) {
				conn->peer->fatal = rc;
				snprintf(conn->peer->fatal_text, sizeof(conn->peer->fatal_text),
					"%s", m2n_error_text());
			}
			if (conn->state != DEAD)
				m2n__conn_reject(conn, rc);
			return;
		}
		conn->deadline_ns = m2n__deadline_ns(HANDSHAKE_NS);
		at += M2N__FRAME_HEAD_BYTES + head.body_bytes;
	}
	if (conn->state == DEAD)
		return;
	if (conn->end_wanted)
		at = conn->in_bytes;
	memmove(conn->in, conn->in + at, conn->in_bytes - at);
	conn->in_bytes -= at;
}

/* Of a connection that we are done with only its end matters. */
static void drain(struct m2n__conn *conn)
{
	char nothing[512];
	ssize_t n;

	do
		n = recv(conn->fd, nothing, sizeof(nothing), MSG_DONTWAIT);
	while (n > 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	conn->peer_ended = 1;
	epoll_ctl(conn->group->epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL);
	if (!conn->end_wanted)
		kill_conn(conn);
}

static void on_readable(struct m2n__conn *conn)
{
	if (conn->end_wanted || conn->state == LINGERING) {
		drain(conn);
		return;
	}
	for (;;) {
		ssize_t n;
		size_t room;

		if (grow(&conn->in, &conn->in_room, conn->in_bytes + 4096) ||
			conn->in_bytes > FRAME_BYTES_MAX) {
			conn_ended(conn, "no memory for control frames");
			return;
		}
		room = conn->in_room - conn->in_bytes;
		n = recv(conn->fd, conn->in + conn->in_bytes, room, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			char reason[100];

			snprintf(reason, sizeof(reason), "control connection %s%s",
				n ? "broke: " : "closed: its process ended or dropped us",
				n ? strerrordesc_np(errno) : "");
			conn_ended(conn, reason);
			return;
		}
		conn->in_bytes += (size_t)n;
		take_frames(conn);
		if (conn->state == DEAD || conn->end_wanted || (size_t)n < room)
			return; /* what comes after a short read is an event of its own */
	}
}

static void on_connected(struct m2n__conn *conn)
{
	int error = 0;
	socklen_t bytes = sizeof(error);

	getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
	conn->is_refused = error == ECONNREFUSED;
	if (error)
		conn_ended(conn, strerrordesc_np(error));
	else
		send_hello(conn);
}

int m2n__control_dial(struct m2n__peer *peer, const struct m2n__record *record)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found;
	struct m2n_group *group = peer->group;
	struct m2n__conn *conn;
	char port[16];
	int fd, rc;

	snprintf(port, sizeof(port), "%u", record->port);
	rc = getaddrinfo(record->address, port, &hints, &found);
	if (rc)
		return m2n__error(M2N_ERR_PROTOCOL, "rank %d published the address '%s': %s",
			peer->rank, record->address, gai_strerror(rc));
	fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	rc = fd < 0 ? -errno : 0;
	if (!rc && connect(fd, found->ai_addr, found->ai_addrlen) && errno != EINPROGRESS)
		rc = -errno;
	freeaddrinfo(found);
	conn = rc ? NULL : new_conn(group, fd, DIALING);
	if (!conn || !(conn->record = malloc(sizeof(*conn->record)))) {
		if (conn)
			kill_conn(conn);
		else if (fd >= 0)
			close(fd);
		return m2n__error(rc ? rc : -ENOMEM, "cannot call rank %d at %s port %s: %s",
			peer->rank, record->address, port, strerrordesc_np(rc ? -rc : ENOMEM));
	}
	memcpy(conn->record, record, sizeof(*record));
	conn->peer = peer;
	conn->dialed = 1;
	peer->conn = conn;
	return 0;
}

static void accept_all(struct m2n_group *group)
{
	for (;;) {
		int fd = accept4(group->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0)
			return;
		if (!new_conn(group, fd, WAIT_HELLO))
			close(fd);
	}
}

static void expire(struct m2n_group *group)
{
	int64_t now = m2n__now_ns();

	for (struct m2n__conn *conn = group->conns; conn; conn = conn->next)
		if (conn->state < OPEN && now > conn->deadline_ns)
			conn_ended(conn, "the handshake took too long");
}

static void on_event(struct m2n_group *group, struct m2n__conn *conn, uint32_t events)
{
	if (!conn) {
		accept_all(group);
		return;
	}
	if (conn->state == DIALING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
		on_connected(conn);
	else if (conn->state != DEAD && events & EPOLLOUT)
		flush_out(conn);
	if (conn->state != DEAD && conn->state != DIALING &&
		events & (EPOLLIN | EPOLLERR | EPOLLHUP))
		on_readable(conn);
}

int m2n__control_poll(struct m2n_group *group)
{
	struct epoll_event events[MAX_EVENTS];
	int n = MAX_EVENTS, all = 0;

	/* All that came, before anybody is found to be too late. */
	for (int turn = 0; turn < MAX_TURNS && n == MAX_EVENTS; turn++) {
		n = epoll_wait(group->epoll_fd, events, MAX_EVENTS, 0);
		for (int i = 0; i < n; i++)
			on_event(group, events[i].data.ptr, events[i].events);
		all += n > 0 ? n : 0;
	}
	if (n < MAX_EVENTS)
		expire(group);
	sweep(group);
	return all;
}

int m2n__control_open(struct m2n_group *group, const char *address)
{
	struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_PASSIVE};
	struct sockaddr_storage bound;
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
	socklen_t bytes = sizeof(bound);
	struct addrinfo *found;
	int rc;

	group->listen_fd = -1;
	group->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (group->epoll_fd < 0)
		return m2n__error(-errno, "epoll_create1: %s", strerrordesc_np(errno));
	rc = getaddrinfo(address, "0", &hints, &found);
	if (rc)
		return m2n__error(M2N_ERR_OPTION, "option ADDRESS: '%s' is not an IP address: %s",
			address, gai_strerror(rc));
	group->listen_fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (group->listen_fd >= 0)
		tune_socket(group, group->listen_fd);
	if (group->listen_fd < 0 || bind(group->listen_fd, found->ai_addr, found->ai_addrlen) ||
		listen(group->listen_fd, 1024) ||
		getsockname(group->listen_fd, (struct sockaddr *)&bound, &bytes) ||
		epoll_ctl(group->epoll_fd, EPOLL_CTL_ADD, group->listen_fd, &event))
		rc = m2n__error(-errno, "cannot listen on %s (option ADDRESS): %s", address,
			strerrordesc_np(errno));
	freeaddrinfo(found);
	if (rc)
		return rc;
	group->record.port =
		ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
						  : ((struct sockaddr_in *)&bound)->sin_port);
	return 0;
}

void m2n__control_close(struct m2n_group *group)
{
	for (struct m2n__conn *conn = group->conns; conn; conn = conn->next)
		kill_conn(conn);
	sweep(group);
	if (group->listen_fd >= 0)
		close(group->listen_fd);
	if (group->epoll_fd >= 0)
		close(group->epoll_fd);
}
