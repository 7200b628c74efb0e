/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client of a TCP store: one connection, one request at a time. A request that ran into its
 * deadline leaves the connection usable: what is still to be sent goes first next time, and an
 * answer that comes late is known by its request number and dropped. While sending, what arrives
 * is read too, so that two full socket buffers cannot hold each other.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/sock.h"
#include "bootstrap/store_impl.h"
#include "bootstrap/store_session.h"
#include "util/error.h"
#include "util/time.h"
#include "wire/store_wire.h"

/* How long "at once" may take: one exchange with a server that is there. */
#define ANSWER_NS INT64_C(5000000000)

struct tcp_store {
	struct m2n__store base;
	struct m2n__store_server *hosted;
	int fd;
	uint32_t request;
	int broken; /* the status every later call returns; its stream cannot be understood */
	size_t out_bytes, out_sent;
	size_t in_bytes, in_used; /* in_used: the frame the last call returned */
	uint8_t out[M2N__STORE_FRAME_MAX];
	uint8_t in[M2N__STORE_FRAME_MAX];
};

static int give_up(struct tcp_store *s, int status, const char *why)
{
	s->broken = status;
	return m2n__error(status, "store %s: %s", s->base.url, why);
}

static int send_some(struct tcp_store *s)
{
	ssize_t n = send(s->fd, s->out + s->out_sent, s->out_bytes - s->out_sent, MSG_NOSIGNAL);

	if (n >= 0)
		s->out_sent += (size_t)n;
	else if (errno == EPIPE || errno == ECONNRESET)
		/* What the server said before is still to be read, then comes the end. */
		s->out_sent = s->out_bytes;
	else if (errno != EAGAIN && errno != EINTR)
		return give_up(s, M2N_ERR_STORE, m2n_strerror(-errno));
	return 0;
}

static int recv_some(struct tcp_store *s)
{
	ssize_t n = recv(s->fd, s->in + s->in_bytes, sizeof(s->in) - s->in_bytes, 0);

	if (n > 0)
		s->in_bytes += (size_t)n;
	else if (n == 0 || errno == ECONNRESET || errno == EPIPE)
		return give_up(s, M2N_ERR_STORE,
			"the connection was closed by the other side; has the host of the store "
			"ended?");
	else if (errno != EAGAIN && errno != EINTR)
		return give_up(s, M2N_ERR_STORE, m2n_strerror(-errno));
	return 0;
}

/* The next whole frame of the input, if there is one: 0, -EAGAIN, or the stream is broken. */
static int next_frame(struct tcp_store *s, struct m2n__store_frame *frame)
{
	size_t need;
	int status;

	if (s->in_used) {
		memmove(s->in, s->in + s->in_used, s->in_bytes - s->in_used);
		s->in_bytes -= s->in_used;
		s->in_used = 0;
	}
	status = m2n__store_frame_unpack(s->in, s->in_bytes, frame, &need);
	if (!status)
		s->in_used = need;
	if (status == M2N_ERR_PROTOCOL)
		return give_up(s, status, "what answers there is not a libm2n store");
	if (status == M2N_ERR_VERSION) {
		s->broken = status;
		return m2n__error(status,
			"store %s speaks wire version %u, this library version %d; use one "
			"libm2n for all ranks",
			s->base.url, frame->version, M2N__STORE_WIRE_VERSION);
	}
	return status;
}

static int pump(struct tcp_store *s, int64_t deadline_ns)
{
	short want = s->out_sent < s->out_bytes ? POLLIN | POLLOUT : POLLIN;
	int events = m2n__sock_wait(s->fd, want, deadline_ns);
	int status = 0;

	if (events == -ETIMEDOUT)
		return -ETIMEDOUT;
	if (events < 0)
		return give_up(s, M2N_ERR_STORE, m2n_strerror(events));
	if (events & POLLOUT && want & POLLOUT)
		status = send_some(s);
	if (!status && events & (POLLIN | POLLHUP | POLLERR))
		status = recv_some(s);
	return status;
}

/* Sends what an earlier call could not; answers to it are dropped. */
static int drain(struct tcp_store *s, int64_t deadline_ns)
{
	struct m2n__store_frame late;
	int status;

	while (s->out_sent < s->out_bytes) {
		do
			status = next_frame(s, &late);
		while (!status);
		if (status != -EAGAIN)
			return status;
		status = pump(s, deadline_ns);
		if (status)
			return status;
	}
	return 0;
}

/* One request and its answer, which stays valid until the next call. -ETIMEDOUT has no text. */
static int call(struct tcp_store *s, enum m2n__store_frame_type type, const char *key,
	const void *value, size_t bytes, int64_t deadline_ns, struct m2n__store_frame *answer)
{
	struct m2n__store_frame ask = {.type = (uint16_t)type,
		.request = s->request + 1,
		.key = key,
		.key_bytes = key ? strlen(key) : 0,
		.value = value,
		.value_bytes = bytes};
	int status;

	if (s->broken)
		return m2n__error(
			s->broken, "store %s: the connection was given up before", s->base.url);
	status = drain(s, deadline_ns);
	if (status)
		return status;
	status = m2n__store_frame_pack(&ask, s->out, sizeof(s->out), &s->out_bytes);
	if (status) {
		s->out_bytes = s->out_sent = 0;
		return m2n__error(status, "store %s: the request cannot be packed", s->base.url);
	}
	s->request++;
	s->out_sent = 0;
	for (;;) {
		status = next_frame(s, answer);
		if (!status && answer->request == s->request)
			return 0;
		if (status == -EAGAIN)
			status = pump(s, deadline_ns);
		if (status)
			return status;
	}
}

static int unexpected(struct tcp_store *s, const struct m2n__store_frame *answer)
{
	if (answer->type == M2N__STORE_FAILED)
		return m2n__error(M2N_ERR_STORE, "store %s refuses: %s", s->base.url,
			m2n_strerror(m2n__store_status_unpack(answer->value)));
	return give_up(s, M2N_ERR_PROTOCOL, "the server's answer does not fit the request");
}

static int silent(struct tcp_store *s, const char *what)
{
	return m2n__error(-ETIMEDOUT, "store %s: no answer to %s", s->base.url, what);
}

static int tcp_put(struct m2n__store *store, const char *key, const void *value, size_t bytes,
	int64_t timeout_ns)
{
	struct tcp_store *s = (struct tcp_store *)store;
	struct m2n__store_frame answer;
	int status;

	status = m2n__store_check_put(key, value, bytes, timeout_ns);
	if (status)
		return status;
	status = call(s, M2N__STORE_PUT, key, value, bytes,
		m2n__deadline_ns(timeout_ns ? timeout_ns : ANSWER_NS), &answer);
	if (status == -ETIMEDOUT)
		return silent(s, key);
	if (status)
		return status;
	return answer.type == M2N__STORE_DONE ? 0 : unexpected(s, &answer);
}

static int tcp_get(
	struct m2n__store *store, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	struct tcp_store *s = (struct tcp_store *)store;
	struct m2n__store_frame answer;
	int status;

	status = m2n__store_check_get(key, value, bytes, timeout_ns);
	if (status)
		return status;
	status = call(s, timeout_ns ? M2N__STORE_GET : M2N__STORE_TRY, key, NULL, 0,
		m2n__deadline_ns(timeout_ns ? timeout_ns : ANSWER_NS), &answer);
	if (status == -ETIMEDOUT)
		return timeout_ns ? m2n__store_missing(store, key, timeout_ns) : silent(s, key);
	if (status)
		return status;
	if (answer.type == M2N__STORE_MISSING && !timeout_ns)
		return m2n__store_missing(store, key, 0);
	if (answer.type != M2N__STORE_VALUE)
		return unexpected(s, &answer);
	return m2n__store_copy_out(store, key, answer.value, answer.value_bytes, value, bytes);
}

static void tcp_close(struct m2n__store *store)
{
	struct tcp_store *s = (struct tcp_store *)store;

	if (s->fd >= 0)
		close(s->fd);
	m2n__store_server_stop(s->hosted);
	free(s);
}

static const struct m2n__store_ops tcp_ops = {.put = tcp_put, .get = tcp_get, .close = tcp_close};

static int handshake(struct tcp_store *s, const struct m2n__auth_key *key, int64_t deadline_ns)
{
	static const char context[] = M2N__STORE_AUTH_CONTEXT;
	uint8_t mine[M2N__AUTH_NONCE_BYTES], theirs[M2N__AUTH_NONCE_BYTES];
	uint8_t proof[M2N__AUTH_PROOF_BYTES];
	struct m2n__store_frame answer;
	int status;

	m2n__auth_nonce(mine);
	status = call(s, M2N__STORE_HELLO, NULL, mine, sizeof(mine), deadline_ns, &answer);
	if (status)
		return status;
	if (answer.type == M2N__STORE_REFUSED)
		return give_up(s, M2N_ERR_STORE, "the server refuses the connection");
	if (answer.type != M2N__STORE_CHALLENGE)
		return unexpected(s, &answer);
	memcpy(theirs, answer.value, sizeof(theirs));
	m2n__auth_prove(key, M2N__AUTH_CALLER, mine, theirs, context, sizeof(context), proof);
	status = call(s, M2N__STORE_PROOF, NULL, proof, sizeof(proof), deadline_ns, &answer);
	if (status)
		return status;
	if (answer.type == M2N__STORE_REFUSED)
		return give_up(s, M2N_ERR_AUTH,
			"its shared secret differs from this rank's, or only one of both has one");
	if (answer.type != M2N__STORE_WELCOME)
		return unexpected(s, &answer);
	if (m2n__auth_check(
		    key, M2N__AUTH_LISTENER, mine, theirs, context, sizeof(context), answer.value))
		return give_up(s, M2N_ERR_AUTH, "the server does not know the shared secret");
	return 0;
}

/* Hosts the store if it can be done here; being refused the address only means being a client. */
static int host(
	struct tcp_store *s, const char *name, uint16_t *port, const struct m2n__auth_key *key)
{
	int status = m2n__store_server_start(name, *port, key, &s->hosted, port);

	return *port && (status == -EADDRINUSE || status == -EADDRNOTAVAIL) ? 0 : status;
}

int m2n__store_open_tcp(const char *name, uint16_t port, int host_it,
	const struct m2n__auth_key *key, int64_t timeout_ns, struct m2n__store **store)
{
	int64_t deadline_ns = m2n__deadline_ns(timeout_ns ? timeout_ns : ANSWER_NS);
	struct tcp_store *s = calloc(1, sizeof(*s));
	int status = 0;

	if (!s)
		return m2n__error(-ENOMEM, "no memory for a store client");
	s->base.ops = &tcp_ops;
	s->fd = -1;
	if (host_it)
		status = host(s, name, &port, key);
	if (!status && m2n__store_format_url(name, port, s->base.url, sizeof(s->base.url)))
		status = m2n__error(-EINVAL, "store URL is longer than 255 bytes");
	if (!status)
		status = m2n__sock_connect(name, port, deadline_ns, &s->fd);
	if (status)
		goto undo;
	m2n__sock_local_address(s->fd, s->base.local_addr, sizeof(s->base.local_addr));
	status = handshake(s, key, deadline_ns);
	if (status == -ETIMEDOUT)
		silent(s, "the first message; is it a libm2n store?");
	if (status)
		goto undo;
	*store = &s->base;
	return 0;
undo:
	tcp_close(&s->base);
	return status;
}
