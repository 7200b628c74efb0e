/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Liars at both ends of a TCP store's connection. They are raw sockets that write bytes: servers
 * that do not know the secret or the protocol must be refused by the client, with the reason;
 * clients that break a rule must be dropped by the server while an honest one is served on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <cmocka.h>

#include "bootstrap/store_session.h"
#include "store_helpers.h"
#include "wire/store_wire.h"

/* Raw ends. */

static const uint8_t zeros[M2N__STORE_VALUE_MAX];

static int dial(uint16_t port)
{
	struct timeval limit = {.tv_sec = 30};
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_true(fd >= 0);
	/* Small, so that the server's answers soon wait in the server. */
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){65536}, sizeof(int)), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
	return fd;
}

static void say(int fd, const void *bytes, size_t n)
{
	/* The other side may close at any byte. */
	(void)!send(fd, bytes, n, MSG_NOSIGNAL);
}

/* Reads until the other side closes; the bytes it said first. Fails when it does not close. */
static size_t hear_to_end(int fd, uint8_t *bytes, size_t room)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint8_t rest[256];
	size_t n_bytes = 0;
	ssize_t n;

	for (;;) {
		must(poll(&p, 1, 30000) == 1);
		if (n_bytes < room)
			n = recv(fd, bytes + n_bytes, room - n_bytes, 0);
		else
			n = recv(fd, rest, sizeof(rest), 0);
		if (n <= 0)
			return n_bytes;
		if (n_bytes < room)
			n_bytes += (size_t)n;
	}
}

static void hear(int fd, uint8_t *bytes, size_t n_bytes)
{
	assert_int_equal(recv(fd, bytes, n_bytes, MSG_WAITALL), n_bytes);
}

static size_t pack(uint8_t *out, uint16_t type, const char *key, const void *value, size_t bytes)
{
	struct m2n__store_frame frame = {.type = type,
		.request = 1,
		.key = key,
		.key_bytes = key ? strlen(key) : 0,
		.value = value,
		.value_bytes = bytes};
	size_t n_bytes;

	assert_int_equal(m2n__store_frame_pack(&frame, out, M2N__STORE_FRAME_MAX, &n_bytes), 0);
	return n_bytes;
}

/* A raw client that has proven itself. */
static int dial_proven(uint16_t port, const struct m2n__auth_key *key)
{
	static const char context[] = M2N__STORE_AUTH_CONTEXT;
	uint8_t frame[M2N__STORE_HANDSHAKE_MAX], nonce[32] = {9}, proof[32];
	int fd = dial(port);

	say(fd, frame, pack(frame, M2N__STORE_HELLO, NULL, nonce, 32));
	hear(fd, frame, sizeof(frame));
	m2n__auth_prove(key, M2N__AUTH_CALLER, nonce, frame + M2N__STORE_HEADER_BYTES, context,
		sizeof(context), proof);
	say(fd, frame, pack(frame, M2N__STORE_PROOF, NULL, proof, 32));
	hear(fd, frame, sizeof(frame));
	assert_int_equal(frame[6], M2N__STORE_WELCOME);
	return fd;
}

/* A server of one connection that answers by script. */
struct liar {
	pthread_t thread;
	int listen_fd;
	char url[64];
	uint8_t said[2][200]; /* answers to the first and second thing heard */
	size_t n_said[2];
	int stay; /* silent, but connected, until the client leaves */
};

static void *liar_main(void *arg)
{
	struct liar *liar = arg;
	uint8_t heard[M2N__STORE_HANDSHAKE_MAX];
	int fd = accept(liar->listen_fd, NULL, NULL);

	for (int i = 0; i < 2 && fd >= 0 && liar->n_said[i]; i++) {
		(void)!recv(fd, heard, sizeof(heard), MSG_WAITALL);
		say(fd, liar->said[i], liar->n_said[i]);
	}
	if (liar->stay)
		hear_to_end(fd, heard, 0);
	close(fd);
	return NULL;
}

static int open_at(struct liar *liar, int64_t timeout_ns)
{
	struct m2n__store *store;
	uint16_t port;
	int status;

	liar->listen_fd = reserve_port(&port);
	assert_int_equal(listen(liar->listen_fd, 5), 0);
	snprintf(liar->url, sizeof(liar->url), "tcp://127.0.0.1:%u", port);
	assert_int_equal(pthread_create(&liar->thread, NULL, liar_main, liar), 0);
	status = m2n__store_open(liar->url, 0, &tea, timeout_ns, &store);
	pthread_join(liar->thread, NULL);
	close(liar->listen_fd);
	assert_text(liar->url);
	return status;
}

static void lying_servers_are_refused(void **state)
{
	static const char http[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
	struct liar liar;

	(void)state;
	/* One that lets everybody in, without knowing the secret. */
	memset(&liar, 0, sizeof(liar));
	liar.n_said[0] = pack(liar.said[0], M2N__STORE_CHALLENGE, NULL, zeros, 32);
	liar.n_said[1] = pack(liar.said[1], M2N__STORE_WELCOME, NULL, zeros, 32);
	liar.said[1][8] = 2; /* the second request */
	assert_int_equal(open_at(&liar, LONG), M2N_ERR_AUTH);
	assert_text("does not know the shared secret");

	liar.n_said[1] = 0;
	liar.said[0][4] = 77;
	assert_int_equal(open_at(&liar, LONG), M2N_ERR_VERSION);
	assert_text("wire version 77");
	assert_text("this library version 1");

	liar.said[0][4] = M2N__STORE_WIRE_VERSION;
	liar.said[0][6] = M2N__STORE_WELCOME; /* skips the proof */
	assert_int_equal(open_at(&liar, LONG), M2N_ERR_PROTOCOL);

	memcpy(liar.said[0], http, sizeof(http));
	liar.n_said[0] = sizeof(http);
	assert_int_equal(open_at(&liar, LONG), M2N_ERR_PROTOCOL);
	assert_text("not a libm2n store");

	liar.n_said[0] = 0;
	assert_int_equal(open_at(&liar, LONG), M2N_ERR_STORE);
	liar.stay = 1;
	assert_int_equal(open_at(&liar, SHORT), -ETIMEDOUT);
}

/* Lying clients. */

static void assert_serves(struct m2n__store *store)
{
	static int n;
	char text[32];

	snprintf(text, sizeof(text), "%d", n++);
	assert_int_equal(put(store, "honest", text), 0);
	must_get(store, "honest", text);
}

/* Says the bytes; the server must close, having answered nothing. */
static void assert_dropped(int fd, const void *bytes, size_t n)
{
	uint8_t heard[64];

	say(fd, bytes, n);
	assert_int_equal(hear_to_end(fd, heard, sizeof(heard)), 0);
	close(fd);
}

static void put_u32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static void strangers_are_dropped(void **state)
{
	static uint8_t f[M2N__STORE_FRAME_MAX];
	struct m2n__store_server *server;
	struct m2n__store *store;
	uint16_t port;
	char url[64];
	size_t n;
	int fd;

	(void)state;
	/* So long a handshake that who is dropped is so for what it said. */
	must(!m2n__store_server_start_tuned("127.0.0.1", 0, &tea, 3600 * S, &server, &port));
	snprintf(url, sizeof(url), "tcp://127.0.0.1:%u", port);
	store = opened(url, &tea);
	assert_dropped(dial(port), "GET / HTTP/1.1\r\n\r\n", 18);
	assert_dropped(dial(port), "M2NX", 4);
	/* Ends inside the header, and inside the value. */
	n = pack(f, M2N__STORE_HELLO, NULL, zeros, 32);
	for (size_t cut = 0; cut < n; cut += 7) {
		fd = dial(port);
		say(fd, f, cut);
		assert_int_equal(shutdown(fd, SHUT_WR), 0);
		assert_dropped(fd, NULL, 0);
	}
	/* Lengths that no frame of this type has: refused from the header alone. */
	put_u32(f + 16, 0xffffffff);
	assert_dropped(dial(port), f, M2N__STORE_HEADER_BYTES);
	put_u32(f + 16, 31);
	assert_dropped(dial(port), f, M2N__STORE_HEADER_BYTES);
	put_u32(f + 16, 32);
	put_u32(f + 12, 0xffffffff);
	assert_dropped(dial(port), f, M2N__STORE_HEADER_BYTES);
	/* Requests before the proof, also ones that a proven client could send. */
	n = pack(f, M2N__STORE_GET, "honest", NULL, 0);
	assert_dropped(dial(port), f, n);
	n = pack(f, M2N__STORE_PUT, "honest", zeros, 60000);
	assert_dropped(dial(port), f, n);
	/* A stranger's long frame is not even waited for. */
	assert_dropped(dial(port), f, M2N__STORE_HEADER_BYTES);
	n = pack(f, M2N__STORE_PROOF, NULL, zeros, 32);
	assert_dropped(dial(port), f, n);
	assert_serves(store);
	m2n__store_close(store);
	m2n__store_server_stop(server);
}

static void refusals_say_why(void **state)
{
	uint8_t f[M2N__STORE_HANDSHAKE_MAX], heard[200];
	struct m2n__store_server *server;
	struct m2n__store_frame frame;
	struct m2n__store *store;
	uint16_t port;
	char url[64];
	size_t n, need;
	int fd;

	(void)state;
	server = started(&tea, &port, url);
	store = opened(url, &tea);
	n = pack(f, M2N__STORE_HELLO, NULL, zeros, 32);
	f[4] = 99;
	fd = dial(port);
	say(fd, f, n);
	n = hear_to_end(fd, heard, sizeof(heard));
	close(fd);
	assert_int_equal(m2n__store_frame_unpack(heard, n, &frame, &need), 0);
	assert_int_equal(need, n);
	assert_int_equal(frame.type, M2N__STORE_REFUSED);
	assert_int_equal(m2n__store_status_unpack(frame.value), M2N_ERR_VERSION);

	fd = dial(port);
	say(fd, f, pack(f, M2N__STORE_HELLO, NULL, zeros, 32));
	say(fd, f, pack(f, M2N__STORE_PROOF, NULL, zeros, 32));
	hear(fd, heard, M2N__STORE_HANDSHAKE_MAX);
	assert_int_equal(heard[6], M2N__STORE_CHALLENGE);
	n = hear_to_end(fd, heard, sizeof(heard));
	close(fd);
	assert_int_equal(m2n__store_frame_unpack(heard, n, &frame, &need), 0);
	assert_int_equal(frame.type, M2N__STORE_REFUSED);
	assert_int_equal(m2n__store_status_unpack(frame.value), M2N_ERR_AUTH);
	assert_serves(store);
	m2n__store_close(store);
	m2n__store_server_stop(server);
}

static void proven_liars_are_dropped(void **state)
{
	static uint8_t f[M2N__STORE_FRAME_MAX];
	struct m2n__store_server *server;
	struct m2n__store *store;
	uint16_t port;
	char url[64];
	size_t n;

	(void)state;
	server = started(&tea, &port, url);
	store = opened(url, &tea);
	/* Types that are not requests. */
	n = pack(f, M2N__STORE_HELLO, NULL, zeros, 32);
	assert_dropped(dial_proven(port, &tea), f, n);
	n = pack(f, M2N__STORE_VALUE, NULL, zeros, 100);
	assert_dropped(dial_proven(port, &tea), f, n);
	n = pack(f, M2N__STORE_ENTRY, "k", zeros, 100);
	assert_dropped(dial_proven(port, &tea), f, n);
	n = pack(f, M2N__STORE_GET, "k", NULL, 0);
	f[6] = 200;
	assert_dropped(dial_proven(port, &tea), f, n);
	/* Lengths just over the limits, and far over. */
	n = pack(f, M2N__STORE_PUT, "k", NULL, 0);
	put_u32(f + 16, M2N__STORE_VALUE_MAX + 1);
	assert_dropped(dial_proven(port, &tea), f, n);
	put_u32(f + 16, 0x80000000);
	assert_dropped(dial_proven(port, &tea), f, n);
	put_u32(f + 16, 0);
	put_u32(f + 12, M2N__STORE_KEY_MAX + 1);
	assert_dropped(dial_proven(port, &tea), f, n);
	put_u32(f + 12, 0);
	assert_dropped(dial_proven(port, &tea), f, n);
	/* A key with a byte that keys do not have. */
	n = pack(f, M2N__STORE_PUT, "k", NULL, 0);
	f[n - 1] = ' ';
	assert_dropped(dial_proven(port, &tea), f, n);
	assert_serves(store);
	m2n__store_close(store);
	m2n__store_server_stop(server);
}

/* xorshift64: the same bytes on every run. */
static uint8_t random_byte(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return (uint8_t)(*seed >> 32);
}

static void random_bytes_harm_nobody(void **state)
{
	static const uint8_t start[] = {'M', '2', 'N', 'S', M2N__STORE_WIRE_VERSION, 0};
	uint8_t bytes[300];
	struct m2n__store_server *server;
	struct m2n__store *store;
	uint64_t seed = 20240229;
	uint16_t port;
	char url[64];
	size_t n;
	int fd;

	(void)state;
	server = started(&tea, &port, url);
	store = opened(url, &tea);
	for (int i = 0; i < 400; i++) {
		/* Half of them from clients that have proven themselves; half with a good start. */
		fd = i % 2 ? dial_proven(port, &tea) : dial(port);
		for (size_t j = 0; j < sizeof(bytes); j++)
			bytes[j] = random_byte(&seed);
		n = random_byte(&seed) + 1;
		if (i % 4 > 1)
			memcpy(bytes, start, sizeof(start));
		say(fd, bytes, n);
		close(fd);
	}
	assert_serves(store);
	m2n__store_close(store);
	m2n__store_server_stop(server);
}

static void the_silent_are_dropped(void **state)
{
	uint8_t f[M2N__STORE_HANDSHAKE_MAX];
	struct m2n__store_server *server;
	struct m2n__store *store;
	int silent, half;
	uint16_t port;
	char url[64];

	(void)state;
	assert_int_equal(m2n__store_server_start_tuned("127.0.0.1", 0, &tea, S, &server, &port), 0);
	snprintf(url, sizeof(url), "tcp://127.0.0.1:%u", port);
	store = opened(url, &tea);
	silent = dial(port);
	half = dial(port);
	say(half, f, pack(f, M2N__STORE_HELLO, NULL, zeros, 32));
	hear(half, f, sizeof(f));
	assert_dropped(silent, NULL, 0);
	assert_dropped(half, NULL, 0);
	/* One that has proven itself may be as silent as it likes. */
	assert_serves(store);
	m2n__store_close(store);
	m2n__store_server_stop(server);
}

/* Asks for big values and never reads: nobody waits for it, not even a put of the same key. */
static void a_client_that_does_not_read_stops_nobody(void **state)
{
	static uint8_t f[M2N__STORE_FRAME_MAX], value[M2N__STORE_VALUE_MAX];
	struct m2n__store_server *server;
	struct m2n__store *store;
	uint16_t port;
	char url[64];
	size_t n;
	int fd;

	(void)state;
	server = started(&tea, &port, url);
	store = opened(url, &tea);
	fd = dial_proven(port, &tea);
	assert_int_equal(store->ops->put(store, "big", value, sizeof(value), LONG), 0);
	n = pack(f, M2N__STORE_GET, "big", NULL, 0);
	/* Far more than socket buffers hold. */
	for (int i = 0; i < 500; i++)
		(void)!send(fd, f, n, MSG_NOSIGNAL | MSG_DONTWAIT);
	assert_serves(store);
	assert_int_equal(store->ops->put(store, "big", value, 1, LONG), 0);
	assert_serves(store);
	m2n__store_server_stop(server);
	m2n__store_close(store);
	close(fd);
}

#define N_TOGETHER 190

/* Requests in one packet are answered in order, whatever their sizes. */
static void requests_may_come_together(void **state)
{
	static uint8_t f[3 * M2N__STORE_FRAME_MAX], value[M2N__STORE_VALUE_MAX], heard[70000];
	struct m2n__store_server *server;
	struct m2n__store *store;
	uint16_t port;
	char url[64];
	size_t n = 0;
	int fd;

	(void)state;
	server = started(&tea, &port, url);
	fd = dial_proven(port, &tea);
	memset(value, 'v', sizeof(value));
	n += pack(f + n, M2N__STORE_PUT, "a", value, sizeof(value));
	n += pack(f + n, M2N__STORE_GET, "a", NULL, 0);
	n += pack(f + n, M2N__STORE_TRY, "b", NULL, 0);
	/* This GET would wait for ever, but the request behind it ends it. */
	n += pack(f + n, M2N__STORE_GET, "b", NULL, 0);
	n += pack(f + n, M2N__STORE_PUT, "c", "x", 1);
	say(fd, f, n);
	hear(fd, heard, M2N__STORE_HEADER_BYTES);
	assert_int_equal(heard[6], M2N__STORE_DONE);
	hear(fd, heard, M2N__STORE_HEADER_BYTES + sizeof(value));
	assert_int_equal(heard[6], M2N__STORE_VALUE);
	assert_memory_equal(heard + M2N__STORE_HEADER_BYTES, value, sizeof(value));
	hear(fd, heard, M2N__STORE_HEADER_BYTES);
	assert_int_equal(heard[6], M2N__STORE_MISSING);
	hear(fd, heard, M2N__STORE_HEADER_BYTES);
	assert_int_equal(heard[6], M2N__STORE_DONE);
	/* And it has: when its key comes, nothing is said about it. */
	store = opened(url, &tea);
	assert_int_equal(put(store, "b", "late"), 0);
	say(fd, f, pack(f, M2N__STORE_TRY, "c", NULL, 0));
	hear(fd, heard, M2N__STORE_HEADER_BYTES + 1);
	assert_int_equal(heard[16], 1);
	assert_int_equal(heard[M2N__STORE_HEADER_BYTES], 'x');
	/*
	 * More answers than socket buffers hold, asked for in one read of the server's, whose
	 * buffer the long request before has widened.
	 */
	say(fd, f, pack(f, M2N__STORE_PUT, "d", value, 4000));
	hear(fd, heard, M2N__STORE_HEADER_BYTES);
	for (n = 0; n < N_TOGETHER * (M2N__STORE_HEADER_BYTES + 1);)
		n += pack(f + n, M2N__STORE_GET, "a", NULL, 0);
	say(fd, f, n);
	/* Served after them: by then the answers fill what the kernel takes. */
	assert_serves(store);
	for (int i = 0; i < N_TOGETHER; i++) {
		hear(fd, heard, M2N__STORE_HEADER_BYTES + sizeof(value));
		assert_int_equal(heard[6], M2N__STORE_VALUE);
	}
	close(fd);
	m2n__store_close(store);
	m2n__store_server_stop(server);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(lying_servers_are_refused),
		CASE(strangers_are_dropped),
		CASE(refusals_say_why),
		CASE(proven_liars_are_dropped),
		CASE(random_bytes_harm_nobody),
		CASE(the_silent_are_dropped),
		CASE(a_client_that_does_not_read_stops_nobody),
		CASE(requests_may_come_together),
	};

	return cmocka_run_group_tests_name("store hostile", tests, NULL, NULL);
}
