/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is particular to TCP stores: hosting, addresses, secrets, many clients, a server that goes
 * away; and the public server.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <cmocka.h>

#include "store_helpers.h"

/* Opening and hosting. */

static void urls_are_checked(void **state)
{
	static const char *const urls[] = {"", "tcp", "tcp://", "tcp://h", "tcp://h:", "tcp://:1",
		"tcp://h:65536", "tcp://h:-1", "tcp://h:1x", "tcp://h:1/", "tcp://a:b:1",
		"tcp://[::1:1", "tcp://::1:1", "tcp://[]:1", "tcp://h:0", "dir:", "http://h:1",
		"tcp://[::1]x:1", "tcp://a/b:1", NULL};
	struct m2n__store *store = NULL;
	char url[400] = "tcp://";

	(void)state;
	for (size_t i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {
		if (m2n__store_open(urls[i], 0, NULL, 0, &store) != -EINVAL)
			fail_msg("'%s' is accepted", urls[i]);
		assert_text("tcp://HOST:PORT");
		assert_text("dir:PATH");
	}
	memset(url + 6, 'h', 300);
	strcpy(url + 306, ":1");
	assert_int_equal(m2n__store_open(url, 0, NULL, 0, &store), -EINVAL);
	assert_null(store);
	m2n__store_close(NULL);
	m2n__store_server_stop(NULL);
}

static void the_first_host_serves(void **state)
{
	struct m2n__store *a, *b, *c;

	(void)state;
	assert_int_equal(m2n__store_open("tcp://127.0.0.1:0", 1, &tea, LONG, &a), 0);
	assert_string_equal(a->local_addr, "127.0.0.1");
	/* The address is taken, so these are clients though they may host. */
	assert_int_equal(m2n__store_open(a->url, 1, &tea, LONG, &b), 0);
	assert_int_equal(m2n__store_open(a->url, 1, &tea, LONG, &c), 0);
	assert_int_equal(put(b, "k", "v"), 0);
	must_get(a, "k", "v");
	m2n__store_close(b);
	must_get(c, "k", "v");
	m2n__store_close(a);
	assert_int_equal(put(c, "k", "w"), M2N_ERR_STORE);
	assert_text(c->url);
	assert_int_equal(put(c, "k", "w"), M2N_ERR_STORE);
	m2n__store_close(c);
}

static void ipv6_works(void **state)
{
	struct m2n__store *a, *b;

	(void)state;
	if (m2n__store_open("tcp://[::1]:0", 1, NULL, LONG, &a))
		skip();
	assert_string_equal(a->local_addr, "::1");
	assert_int_equal(strncmp(a->url, "tcp://[::1]:", 12), 0);
	assert_int_equal(m2n__store_open(a->url, 0, NULL, LONG, &b), 0);
	assert_int_equal(put(b, "k", "v"), 0);
	must_get(a, "k", "v");
	m2n__store_close(b);
	m2n__store_close(a);
}

static void names_are_resolved(void **state)
{
	struct m2n__store *a, *b;

	(void)state;
	assert_int_equal(m2n__store_open("tcp://localhost:0", 1, NULL, LONG, &a), 0);
	assert_int_equal(m2n__store_open(a->url, 0, NULL, LONG, &b), 0);
	assert_int_equal(put(b, "k", "v"), 0);
	must_get(a, "k", "v");
	m2n__store_close(b);
	m2n__store_close(a);
}

static void nobody_there_is_a_timeout(void **state)
{
	struct m2n__store *store;
	uint16_t port;
	char url[100], port_text[16];
	int fd = reserve_port(&port);

	(void)state;
	snprintf(url, sizeof(url), "tcp://127.0.0.1:%u", port);
	snprintf(port_text, sizeof(port_text), "%u", port);
	assert_int_equal(m2n__store_open(url, 0, NULL, SHORT, &store), -ETIMEDOUT);
	assert_text("127.0.0.1");
	assert_text(port_text);
	assert_text("refused");
	/* A label that is too long for any resolver to be asked about. */
	snprintf(url, sizeof(url), "tcp://%070d:1", 0);
	assert_int_equal(m2n__store_open(url, 0, NULL, SHORT, &store), -ETIMEDOUT);
	assert_text("0000");
	close(fd);
}

static void *early_main(void *arg)
{
	struct m2n__store *store = opened(arg, &tea);

	must_get(store, "k", "v");
	m2n__store_close(store);
	return NULL;
}

static void the_host_may_start_later(void **state)
{
	struct m2n__store_server *server;
	struct m2n__store *store;
	pthread_t early;
	uint16_t port;
	char url[64];
	int fd = reserve_port(&port);

	(void)state;
	snprintf(url, sizeof(url), "tcp://127.0.0.1:%u", port);
	/* Makes it likely, not certain, that the thread is refused first; both must end well. */
	assert_int_equal(pthread_create(&early, NULL, early_main, url), 0);
	assert_int_equal(m2n__store_open(url, 0, NULL, SHORT, &store), -ETIMEDOUT);
	assert_int_equal(m2n__store_server_start("127.0.0.1", port, &tea, &server, &port), 0);
	store = opened(url, &tea);
	assert_int_equal(put(store, "k", "v"), 0);
	pthread_join(early, NULL);
	m2n__store_close(store);
	m2n__store_server_stop(server);
	close(fd);
}

/* Secrets. */

static void assert_refused(const char *url, const struct m2n__auth_key *key)
{
	struct m2n__store *store = NULL;

	assert_int_equal(m2n__store_open(url, 0, key, LONG, &store), M2N_ERR_AUTH);
	assert_text(url);
	assert_text("secret");
	assert_null(store);
}

static void other_secrets_are_refused(void **state)
{
	const struct m2n__auth_key *const keys[] = {&tea, &coffee, NULL};
	struct m2n__store_server *server;
	struct m2n__store *store;
	uint16_t port;
	char url[64];

	(void)state;
	for (int i = 0; i < 3; i++) {
		server = started(keys[i], &port, url);
		for (int j = 0; j < 3; j++)
			if (j != i)
				assert_refused(url, keys[j]);
		store = opened(url, keys[i]);
		assert_int_equal(put(store, "k", "v"), 0);
		must_get(store, "k", "v");
		m2n__store_close(store);
		m2n__store_server_stop(server);
	}
}

/* Many clients. */

#define N_CLIENTS 64

struct client {
	pthread_t thread;
	const char *url;
	int self;
};

static void *client_main(void *arg)
{
	struct client *client = arg;
	struct m2n__store *store = opened(client->url, &tea);
	char key[32], text[32];

	must_get(store, "go", "now");
	snprintf(key, sizeof(key), "c/%d", client->self);
	snprintf(text, sizeof(text), "text %d", client->self);
	must(!put(store, key, text));
	snprintf(key, sizeof(key), "c/%d", (client->self + 1) % N_CLIENTS);
	snprintf(text, sizeof(text), "text %d", (client->self + 1) % N_CLIENTS);
	must_get(store, key, text);
	m2n__store_close(store);
	return NULL;
}

static void many_clients_wait_at_once(void **state)
{
	struct client clients[N_CLIENTS];
	struct m2n__store_server *server;
	struct m2n__store *store;
	uint16_t port;
	char url[64];

	(void)state;
	server = started(&tea, &port, url);
	for (int i = 0; i < N_CLIENTS; i++) {
		clients[i] = (struct client){.url = url, .self = i};
		assert_int_equal(
			pthread_create(&clients[i].thread, NULL, client_main, &clients[i]), 0);
	}
	store = opened(url, &tea);
	assert_int_equal(put(store, "go", "now"), 0);
	for (int i = 0; i < N_CLIENTS; i++)
		pthread_join(clients[i].thread, NULL);
	m2n__store_close(store);
	m2n__store_server_stop(server);
}

static void *waiting_main(void *arg)
{
	struct m2n__store *store = arg;
	char value[8];
	size_t bytes = sizeof(value);

	return (void *)(intptr_t)store->ops->get(store, "never", value, &bytes, LONG);
}

static void stopping_frees_those_who_wait(void **state)
{
	struct m2n__store_server *server;
	struct m2n__store *stores[4];
	pthread_t threads[4];
	uint16_t port;
	char url[64];
	void *status;

	(void)state;
	server = started(&tea, &port, url);
	for (int i = 0; i < 4; i++) {
		stores[i] = opened(url, &tea);
		assert_int_equal(pthread_create(&threads[i], NULL, waiting_main, stores[i]), 0);
	}
	m2n__store_server_stop(server);
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], &status);
		assert_int_equal((intptr_t)status, M2N_ERR_STORE);
		m2n__store_close(stores[i]);
	}
}

/* The public server. */

static void the_public_server_serves(void **state)
{
	static const char *const listens[] = {"127.0.0.1:0", "localhost:0", ":0"};
	struct m2n_store_server *server;
	struct m2n__store *store;
	char url[256], port[16];

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(
			m2n_store_server_start(listens[i], "tea", url, sizeof(url), &server), 0);
		/* The name of this machine need not lead anywhere in a container. */
		snprintf(port, sizeof(port), "%s", strrchr(url, ':'));
		if (listens[i][0] == ':')
			snprintf(url, sizeof(url), "tcp://127.0.0.1%s", port);
		store = opened(url, &tea);
		assert_int_equal(put(store, "k", "v"), 0);
		must_get(store, "k", "v");
		m2n__store_close(store);
		assert_refused(url, &coffee);
		m2n_store_server_stop(server);
	}
}

static void bad_listens_are_refused(void **state)
{
	static const char *const listens[] = {NULL, "", "h", "h:", "h:x", "[::1:1", "h:99999"};
	struct m2n_store_server *server = NULL, *second;
	char url[256] = "before", small[8] = "before";

	(void)state;
	for (size_t i = 0; i < sizeof(listens) / sizeof(listens[0]); i++) {
		assert_int_equal(
			m2n_store_server_start(listens[i], NULL, url, 256, &server), -EINVAL);
		assert_text("HOST:PORT");
	}
	assert_int_equal(m2n_store_server_start("127.0.0.1:0", NULL, NULL, 0, &server), -EINVAL);
	assert_int_equal(m2n_store_server_start("127.0.0.1:0", NULL, url, 256, NULL), -EINVAL);
	assert_int_equal(m2n_store_server_start("127.0.0.1:0", NULL, small, 8, &server), -ENOSPC);
	/* An address for documentation, never this machine's. */
	assert_int_equal(
		m2n_store_server_start("192.0.2.1:0", NULL, url, 256, &server), -EADDRNOTAVAIL);
	assert_text("192.0.2.1");
	assert_null(server);
	assert_string_equal(url, "before");
	assert_string_equal(small, "before");
	m2n_store_server_stop(NULL);
	assert_int_equal(m2n_store_server_start("127.0.0.1:0", NULL, url, 256, &server), 0);
	assert_int_equal(m2n_store_server_start(url + strlen("tcp://"), NULL, small, 8, &second),
		-EADDRINUSE);
	m2n_store_server_stop(server);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(urls_are_checked),
		CASE(the_first_host_serves),
		CASE(ipv6_works),
		CASE(names_are_resolved),
		CASE(nobody_there_is_a_timeout),
		CASE(the_host_may_start_later),
		CASE(other_secrets_are_refused),
		CASE(many_clients_wait_at_once),
		CASE(stopping_frees_those_who_wait),
		CASE(the_public_server_serves),
		CASE(bad_listens_are_refused),
	};

	return cmocka_run_group_tests_name("store server", tests, NULL, NULL);
}
