/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets with deadlines. connect() is started without blocking and awaited in poll(); after a
 * refusal the address list is fetched anew, because a name may lead elsewhere by then.
 */
#include "bootstrap/sock.h"

#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/error.h"
#include "util/time.h"

#define MS INT64_C(1000000)
#define FIRST_PAUSE (2 * MS)
#define MAX_PAUSE (200 * MS)
/* One attempt: a host that drops packets must not eat the time in which another address works. */
#define MAX_ATTEMPT (10000 * MS)

int m2n__poll_ms(int64_t deadline_ns)
{
	int64_t left;

	if (deadline_ns == INT64_MAX)
		return -1;
	left = deadline_ns - m2n__now_ns();
	if (left <= 0)
		return 0;
	return left / MS >= INT_MAX ? INT_MAX : (int)((left + MS - 1) / MS);
}

int m2n__sock_wait(int fd, short events, int64_t deadline_ns)
{
	struct pollfd p = {.fd = fd, .events = events};
	int n;

	for (;;) {
		n = poll(&p, 1, m2n__poll_ms(deadline_ns));
		if (n > 0)
			return p.revents;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (deadline_ns != INT64_MAX && m2n__now_ns() >= deadline_ns)
			return -ETIMEDOUT;
	}
}

void m2n__sock_tune(int fd)
{
	static const struct {
		int level, name, value;
	} options[] = {
		{SOL_SOCKET, SO_KEEPALIVE, 1},
		{IPPROTO_TCP, TCP_KEEPIDLE, 10},
		{IPPROTO_TCP, TCP_KEEPINTVL, 5},
		{IPPROTO_TCP, TCP_KEEPCNT, 4},
		{IPPROTO_TCP, TCP_NODELAY, 1},
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		(void)setsockopt(
			fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

static int look_up(const char *host, uint16_t port, struct addrinfo **list)
{
	struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	char service[8];

	snprintf(service, sizeof(service), "%u", port);
	return getaddrinfo(host, service, &hints, list);
}

static int is_numeric(const char *host)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST};
	struct addrinfo *list;

	if (getaddrinfo(host, NULL, &hints, &list))
		return 0;
	freeaddrinfo(list);
	return 1;
}

static int is_loopback(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)address;

		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	}
	if (address->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)address;

		return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
	}
	return 0;
}

static int only_loopback(const struct addrinfo *list)
{
	for (; list; list = list->ai_next)
		if (!is_loopback(list->ai_addr))
			return 0;
	return 1;
}

static int listen_at(const struct addrinfo *at, int *fd, uint16_t *bound_port)
{
	struct sockaddr_storage bound;
	socklen_t bytes = sizeof(bound);
	int s, status;

	s = socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s < 0)
		return -errno;
	/* Without it the port of a job that just ended stays taken for a minute. */
	(void)setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (at->ai_family == AF_INET6)
		(void)setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &(int){0}, sizeof(int));
	if (bind(s, at->ai_addr, at->ai_addrlen) || listen(s, SOMAXCONN) ||
		getsockname(s, (struct sockaddr *)&bound, &bytes)) {
		status = -errno;
		close(s);
		return status;
	}
	*bound_port =
		ntohs(bound.ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)&bound)->sin6_port
						  : ((const struct sockaddr_in *)&bound)->sin_port);
	*fd = s;
	return 0;
}

static int listen_everywhere(uint16_t port, int *fd, uint16_t *bound_port)
{
	struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct addrinfo at6 = {.ai_family = AF_INET6,
		.ai_addr = (struct sockaddr *)&any6,
		.ai_addrlen = sizeof(any6)};
	struct addrinfo at4 = {.ai_family = AF_INET,
		.ai_addr = (struct sockaddr *)&any4,
		.ai_addrlen = sizeof(any4)};
	int status;

	status = listen_at(&at6, fd, bound_port);
	if (status == -EAFNOSUPPORT || status == -EADDRNOTAVAIL)
		status = listen_at(&at4, fd, bound_port);
	return status;
}

static int listen_on(const char *host, uint16_t port, int *fd, uint16_t *bound_port)
{
	struct addrinfo *list;
	int status;

	if (!host || !host[0])
		return listen_everywhere(port, fd, bound_port);
	status = look_up(host, port, &list);
	if (status)
		return m2n__error(
			M2N_ERR_STORE, "cannot resolve '%s': %s", host, gai_strerror(status));
	if (only_loopback(list) && !is_numeric(host) && strcmp(host, "localhost") != 0) {
		status = listen_everywhere(port, fd, bound_port);
		goto free_list;
	}
	status = -EADDRNOTAVAIL;
	/* A taken port ends the search: the next address would make a second, empty store. */
	for (const struct addrinfo *at = list; at && status && status != -EADDRINUSE;
		at = at->ai_next)
		status = listen_at(at, fd, bound_port);
free_list:
	freeaddrinfo(list);
	return status;
}

int m2n__sock_listen(const char *host, uint16_t port, int *fd, uint16_t *bound_port)
{
	int status = listen_on(host, port, fd, bound_port);

	if (status && status != M2N_ERR_STORE) {
		if (status != -EADDRINUSE && status != -EADDRNOTAVAIL)
			return m2n__error(M2N_ERR_STORE, "cannot listen on '%s' port %u: %s",
				host ? host : "", port, m2n_strerror(status));
		m2n__error(status, "cannot listen on '%s' port %u: %s", host ? host : "", port,
			m2n_strerror(status));
	}
	return status;
}

/*
 * A connect() to a local port of the ephemeral range on which nobody listens can meet itself: the
 * kernel picks that very port for this end.
 */
static int is_own_end(int fd)
{
	struct sockaddr_storage here, there;
	socklen_t here_bytes = sizeof(here), there_bytes = sizeof(there);

	memset(&here, 0, sizeof(here));
	memset(&there, 0, sizeof(there));
	if (getsockname(fd, (struct sockaddr *)&here, &here_bytes) ||
		getpeername(fd, (struct sockaddr *)&there, &there_bytes))
		return 0;
	return here_bytes == there_bytes && memcmp(&here, &there, here_bytes) == 0;
}

static int await_connect(int fd, int64_t deadline_ns)
{
	int64_t attempt_ns = m2n__deadline_ns(MAX_ATTEMPT);
	int error = 0;
	socklen_t bytes = sizeof(error);
	int status;

	status = m2n__sock_wait(fd, POLLOUT, attempt_ns < deadline_ns ? attempt_ns : deadline_ns);
	if (status < 0)
		return status;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes))
		return -errno;
	return -error;
}

static int connect_to(const struct addrinfo *at, int64_t deadline_ns, int *fd)
{
	int s, status = 0;

	s = socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s < 0)
		return -errno;
	if (connect(s, at->ai_addr, at->ai_addrlen))
		status = errno == EINPROGRESS || errno == EINTR ? await_connect(s, deadline_ns)
								: -errno;
	if (!status && is_own_end(s))
		status = -ECONNREFUSED;
	if (status) {
		close(s);
		return status;
	}
	m2n__sock_tune(s);
	*fd = s;
	return 0;
}

/* One round over all addresses. *why: a constant text. 0, -EAGAIN: try again, or final. */
static int connect_round(
	const char *host, uint16_t port, int64_t deadline_ns, int *fd, const char **why)
{
	struct addrinfo *list;
	int status;

	status = look_up(host, port, &list);
	if (status) {
		*why = gai_strerror(status);
		return status == EAI_MEMORY ? -ENOMEM : -EAGAIN;
	}
	status = -EADDRNOTAVAIL;
	for (const struct addrinfo *at = list; at; at = at->ai_next) {
		status = connect_to(at, deadline_ns, fd);
		if (!status)
			break;
		*why = m2n_strerror(status);
	}
	freeaddrinfo(list);
	switch (status) {
	case 0:
	case -EMFILE:
	case -ENFILE:
	case -ENOMEM:
	case -EACCES:
	case -EPERM:
		return status;
	default:
		return -EAGAIN;
	}
}

int m2n__sock_connect(const char *host, uint16_t port, int64_t deadline_ns, int *fd)
{
	int64_t pause = FIRST_PAUSE, left;
	const char *why = "no address";
	int status;

	for (;;) {
		status = connect_round(host, port, deadline_ns, fd, &why);
		if (!status)
			return 0;
		if (status != -EAGAIN)
			return m2n__error(
				M2N_ERR_STORE, "cannot connect to %s port %u: %s", host, port, why);
		left = deadline_ns - m2n__now_ns();
		if (left <= 0)
			return m2n__error(-ETIMEDOUT,
				"nobody answers at %s port %u (last: %s); is the rank that hosts "
				"the store running?",
				host, port, why);
		m2n__sleep_ns(pause < left ? pause : left);
		pause = pause * 2 < MAX_PAUSE ? pause * 2 : MAX_PAUSE;
	}
}

void m2n__sock_local_address(int fd, char *text, size_t text_bytes)
{
	struct sockaddr_storage here;
	socklen_t bytes = sizeof(here);

	text[0] = '\0';
	if (getsockname(fd, (struct sockaddr *)&here, &bytes))
		return;
	if (here.ss_family == AF_INET6) {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&here;

		if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
			struct sockaddr_in in = {.sin_family = AF_INET};

			memcpy(&in.sin_addr, &in6->sin6_addr.s6_addr[12], 4);
			memcpy(&here, &in, sizeof(in));
			bytes = sizeof(in);
		}
	}
	if (getnameinfo((struct sockaddr *)&here, bytes, text, (socklen_t)text_bytes, NULL, 0,
		    NI_NUMERICHOST))
		text[0] = '\0';
}
