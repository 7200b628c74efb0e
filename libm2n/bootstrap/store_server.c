/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server of a TCP store: one thread in poll() over its listening socket, an event fd that
 * stops it, and a session for each client. Blocking gets wait here, as a note in their session,
 * and are answered by the put they wait for. Deadlines are the clients'; the server's own are the
 * ones that end handshakes which do not get on.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/sock.h"
#include "bootstrap/store.h"
#include "bootstrap/store_session.h"
#include "util/error.h"
#include "util/time.h"

#define MAX_TABLE_BYTES ((size_t)256 << 20)
/* Strangers: above this, new connections wait in the kernel's queue until others proved or left. */
#define MAX_UNPROVEN 1024
/* Out of descriptors or memory: how long not to accept. */
#define ACCEPT_PAUSE_NS INT64_C(100000000)

struct m2n__store_server {
	pthread_t thread;
	int listen_fd;
	int stop_fd;
	int64_t handshake_ns;
	int64_t accept_after_ns;
	struct m2n__store_shared shared;
	struct pollfd *polls; /* [2 + sessions_room]: stop, listen, one a session */
};

/* Room for one session more, in both arrays. */
static int reserve(struct m2n__store_server *s)
{
	struct m2n__store_shared *shared = &s->shared;
	size_t n = shared->sessions_room ? 2 * shared->sessions_room : 64;
	struct m2n__store_session **sessions;
	struct pollfd *polls;

	if (shared->n_sessions < shared->sessions_room)
		return 0;
	polls = realloc(s->polls, (n + 2) * sizeof(*polls));
	if (!polls)
		return -ENOMEM;
	s->polls = polls;
	sessions = realloc(shared->sessions, n * sizeof(struct m2n__store_session *));
	if (!sessions)
		return -ENOMEM;
	shared->sessions = sessions;
	shared->sessions_room = n;
	return 0;
}

static size_t count_unproven(const struct m2n__store_shared *shared)
{
	size_t n = 0;

	for (size_t i = 0; i < shared->n_sessions; i++)
		n += shared->sessions[i]->phase != M2N__STORE_SERVING;
	return n;
}

static void accept_clients(struct m2n__store_server *s)
{
	struct m2n__store_session *session;
	size_t n_unproven = count_unproven(&s->shared);
	int fd;

	for (; n_unproven < MAX_UNPROVEN; n_unproven++) {
		if (reserve(s)) {
			s->accept_after_ns = m2n__deadline_ns(ACCEPT_PAUSE_NS);
			return;
		}
		fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
				s->accept_after_ns = m2n__deadline_ns(ACCEPT_PAUSE_NS);
			return;
		}
		m2n__sock_tune(fd);
		session = m2n__store_session_create(fd, s->handshake_ns);
		if (!session) {
			close(fd);
			s->accept_after_ns = m2n__deadline_ns(ACCEPT_PAUSE_NS);
			return;
		}
		s->shared.sessions[s->shared.n_sessions++] = session;
	}
}

/* Fills polls; returns until when poll() may sleep. */
static int64_t prepare(struct m2n__store_server *s)
{
	const struct m2n__store_shared *shared = &s->shared;
	int64_t wake_ns = INT64_MAX;
	int may_accept = count_unproven(shared) < MAX_UNPROVEN;

	if (s->accept_after_ns && m2n__now_ns() < s->accept_after_ns) {
		may_accept = 0;
		wake_ns = s->accept_after_ns;
	}
	s->polls[0] = (struct pollfd){.fd = s->stop_fd, .events = POLLIN};
	s->polls[1] = (struct pollfd){.fd = may_accept ? s->listen_fd : -1, .events = POLLIN};
	for (size_t i = 0; i < shared->n_sessions; i++) {
		struct m2n__store_session *session = shared->sessions[i];

		s->polls[i + 2] = (struct pollfd){
			.fd = session->fd, .events = m2n__store_session_events(session)};
		if (session->deadline_ns < wake_ns)
			wake_ns = session->deadline_ns;
	}
	return wake_ns;
}

static void drop_dead(struct m2n__store_shared *shared)
{
	int64_t now_ns = m2n__now_ns();
	size_t kept = 0;

	for (size_t i = 0; i < shared->n_sessions; i++) {
		struct m2n__store_session *session = shared->sessions[i];

		if (session->dead || session->deadline_ns <= now_ns)
			m2n__store_session_destroy(session);
		else
			shared->sessions[kept++] = session;
	}
	shared->n_sessions = kept;
}

static void *serve(void *arg)
{
	struct m2n__store_server *s = arg;
	size_t n_polled;
	int64_t wake_ns;

	for (;;) {
		wake_ns = prepare(s);
		n_polled = s->shared.n_sessions;
		if (poll(s->polls, n_polled + 2, m2n__poll_ms(wake_ns)) < 0) {
			/* EINTR, or the kernel is short of memory: poll() left no results. */
			if (errno != EINTR)
				m2n__sleep_ns(ACCEPT_PAUSE_NS);
			continue;
		}
		if (s->polls[0].revents)
			return NULL;
		for (size_t i = 0; i < n_polled; i++)
			m2n__store_session_progress(
				s->shared.sessions[i], &s->shared, s->polls[i + 2].revents);
		if (s->polls[1].revents)
			accept_clients(s);
		drop_dead(&s->shared);
	}
}

static int start_thread(struct m2n__store_server *s)
{
	sigset_t all, before;
	int status;

	/* The program's signals are for the program's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	status = pthread_create(&s->thread, NULL, serve, s);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (status)
		return m2n__error(M2N_ERR_STORE, "cannot start the store's thread: %s",
			m2n_strerror(-status));
	(void)pthread_setname_np(s->thread, "m2n-store");
	return 0;
}

static void destroy(struct m2n__store_server *s)
{
	for (size_t i = 0; i < s->shared.n_sessions; i++)
		m2n__store_session_destroy(s->shared.sessions[i]);
	m2n__store_table_close(&s->shared.table);
	if (s->listen_fd >= 0)
		close(s->listen_fd);
	if (s->stop_fd >= 0)
		close(s->stop_fd);
	explicit_bzero(&s->shared.key, sizeof(s->shared.key));
	free(s->shared.sessions);
	free(s->polls);
	free(s);
}

int m2n__store_server_start_tuned(const char *host, uint16_t port, const struct m2n__auth_key *key,
	int64_t handshake_ns, struct m2n__store_server **server, uint16_t *bound_port)
{
	struct m2n__store_server *s = calloc(1, sizeof(*s));
	uint16_t bound;
	int status;

	if (!s)
		return m2n__error(-ENOMEM, "no memory for a store server");
	s->listen_fd = s->stop_fd = -1;
	s->handshake_ns = handshake_ns;
	m2n__store_table_open(&s->shared.table, MAX_TABLE_BYTES);
	if (key)
		s->shared.key = *key;
	status = m2n__auth_init();
	if (status)
		goto undo;
	status = reserve(s);
	if (status) {
		m2n__error(status, "no memory for a store server");
		goto undo;
	}
	status = m2n__sock_listen(host, port, &s->listen_fd, &bound);
	if (status)
		goto undo;
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->stop_fd < 0) {
		status = m2n__error(
			M2N_ERR_STORE, "cannot make an event fd: %s", m2n_strerror(-errno));
		goto undo;
	}
	status = start_thread(s);
	if (status)
		goto undo;
	*bound_port = bound;
	*server = s;
	return 0;
undo:
	destroy(s);
	return status;
}

int m2n__store_server_start(const char *host, uint16_t port, const struct m2n__auth_key *key,
	struct m2n__store_server **server, uint16_t *bound_port)
{
	return m2n__store_server_start_tuned(
		host, port, key, M2N__STORE_HANDSHAKE_NS, server, bound_port);
}

void m2n__store_server_stop(struct m2n__store_server *server)
{
	if (!server)
		return;
	/* An event fd that was never written to takes this without blocking. */
	(void)!write(server->stop_fd, &(uint64_t){1}, sizeof(uint64_t));
	pthread_join(server->thread, NULL);
	destroy(server);
}
