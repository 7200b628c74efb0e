/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of TCP stores share: two keys, an honest client, and a count of descriptors that
 * must be the same before and after. must() is an assertion that other threads may use: cmocka's
 * belong to the main one.
 */
#ifndef TESTS_STORE_HELPERS_H
#define TESTS_STORE_HELPERS_H

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/store.h"
#include "util/error.h"

#define S INT64_C(1000000000)
#define LONG (30 * S)
#define SHORT (S / 20)

#define must(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #cond,             \
				m2n_error_text());                                                 \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

static struct m2n__auth_key tea, coffee;
static int n_fds_before;

static inline int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	must(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static inline int setup(void **state)
{
	(void)state;
	m2n__auth_key_derive("tea", &tea);
	m2n__auth_key_derive("coffee", &coffee);
	n_fds_before = count_fds();
	return 0;
}

static inline int teardown(void **state)
{
	(void)state;
	assert_int_equal(count_fds(), n_fds_before);
	return 0;
}

static inline struct m2n__store_server *started(
	const struct m2n__auth_key *key, uint16_t *port, char url[64])
{
	struct m2n__store_server *server;

	must(!m2n__store_server_start("127.0.0.1", 0, key, &server, port));
	snprintf(url, 64, "tcp://127.0.0.1:%u", *port);
	return server;
}

static inline struct m2n__store *opened(const char *url, const struct m2n__auth_key *key)
{
	struct m2n__store *store;

	must(!m2n__store_open(url, 0, key, LONG, &store));
	return store;
}

static inline int put(struct m2n__store *store, const char *key, const char *text)
{
	return store->ops->put(store, key, text, strlen(text) + 1, LONG);
}

static inline void must_get(struct m2n__store *store, const char *key, const char *text)
{
	char value[100];
	size_t bytes = sizeof(value);

	must(!store->ops->get(store, key, value, &bytes, LONG));
	must(!strcmp(value, text));
}

static inline void assert_text(const char *part)
{
	if (!strstr(m2n_error_text(), part))
		fail_msg("no '%s' in '%s'", part, m2n_error_text());
}

/* A port that is taken and refuses, as before its host started; the host may still bind it. */
static inline int reserve_port(uint16_t *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t bytes = sizeof(at);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	must(!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)));
	must(!bind(fd, (struct sockaddr *)&at, sizeof(at)));
	must(!getsockname(fd, (struct sockaddr *)&at, &bytes));
	*port = ntohs(at.sin_port);
	return fd;
}

#endif
