/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP sockets as the bootstrap uses them: non-blocking, close-on-exec, keep-alive, no delay, with
 * deadlines on m2n__now_ns()'s clock. Names go through getaddrinfo(), IPv4 and IPv6 alike. Looking
 * up a name (not a numeric address) takes as long as the system's resolver takes.
 */
#ifndef M2N_SOCK_H
#define M2N_SOCK_H

#include <stddef.h>
#include <stdint.h>

/*
 * Binds and listens. host NULL or "": every address of the machine. A name that leads only to
 * loopback addresses, as Debian's /etc/hosts has it for the machine's own name, means every
 * address too, or no other host could reach it ("localhost" stays loopback). -EADDRINUSE: the port
 * is taken; -EADDRNOTAVAIL: not an address of this machine; M2N_ERR_STORE: anything else.
 */
int m2n__sock_listen(const char *host, uint16_t port, int *fd, uint16_t *bound_port);

/*
 * Connects, and tries again with growing pauses while the host refuses, cannot be reached or its
 * name is unknown: it may start later. -ETIMEDOUT names the last reason.
 */
int m2n__sock_connect(const char *host, uint16_t port, int64_t deadline_ns, int *fd);

/* Keep-alive and no delay, best effort: a socket without them works, only later or slower. */
void m2n__sock_tune(int fd);

/*
 * Waits for poll() events; returns those that came (> 0), -ETIMEDOUT, or a negative errno.
 */
int m2n__sock_wait(int fd, short events, int64_t deadline_ns);

/* Milliseconds for poll() until a deadline, rounded up; -1 when there is none. */
int m2n__poll_ms(int64_t deadline_ns);

/* The numeric address of this end, "" when it cannot be told. */
void m2n__sock_local_address(int fd, char *text, size_t text_bytes);

#endif
