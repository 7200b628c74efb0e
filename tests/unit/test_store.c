/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every kind of store must do, run over all of them: TCP with and without a secret, directory,
 * callbacks. Each case opens its stores through the kind's row in `kinds`. The callbacks are
 * a table in shared memory, so that they reach across fork() as the others do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "bootstrap/store.h"
#include "util/error.h"

#define S INT64_C(1000000000)
#define LONG (30 * S)
#define SHORT (S / 50)
#define N_PEERS 8

/* The exchange behind the callbacks. */
#define TABLE_ENTRIES 64
struct table {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int n;
	struct {
		char key[M2N__STORE_KEY_MAX + 1];
		size_t bytes;
		uint8_t value[M2N__STORE_VALUE_MAX];
	} entry[TABLE_ENTRIES];
};

struct kind {
	const char *name;
	const char *secret;
	int (*setup)(struct kind *kind);
	void (*teardown)(struct kind *kind);
	char url[256];
	struct m2n__auth_key key;
	struct m2n__store_server *server;
	struct table *table;
};

static int find(const struct table *t, const char *key)
{
	for (int i = 0; i < t->n; i++)
		if (!strcmp(t->entry[i].key, key))
			return i;
	return -1;
}

static int table_put(void *arg, const char *key, const void *value, size_t bytes)
{
	struct table *t = arg;
	int i;

	pthread_mutex_lock(&t->lock);
	i = find(t, key);
	if (i < 0)
		i = t->n++;
	strcpy(t->entry[i].key, key);
	if (bytes)
		memcpy(t->entry[i].value, value, bytes);
	t->entry[i].bytes = bytes;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int table_get(void *arg, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	struct table *t = arg;
	struct timespec until;
	int i, status = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += timeout_ns / S;
	until.tv_nsec += timeout_ns % S;
	until.tv_sec += until.tv_nsec / S;
	until.tv_nsec %= S;
	pthread_mutex_lock(&t->lock);
	while ((i = find(t, key)) < 0 && timeout_ns && !status)
		status = -pthread_cond_timedwait(&t->changed, &t->lock, &until);
	if (i < 0) {
		status = timeout_ns ? -ETIMEDOUT : -EAGAIN;
	} else if (t->entry[i].bytes > *bytes) {
		status = -ENOSPC;
	} else {
		status = 0;
		*bytes = t->entry[i].bytes;
		memcpy(value, t->entry[i].value, *bytes);
	}
	pthread_mutex_unlock(&t->lock);
	return status;
}

static int setup_tcp(struct kind *kind)
{
	uint16_t port;

	assert_int_equal(m2n__auth_key_derive(kind->secret, &kind->key), 0);
	assert_int_equal(
		m2n__store_server_start("127.0.0.1", 0, &kind->key, &kind->server, &port), 0);
	snprintf(kind->url, sizeof(kind->url), "tcp://127.0.0.1:%u", port);
	return 0;
}

static void teardown_tcp(struct kind *kind)
{
	m2n__store_server_stop(kind->server);
}

static int setup_dir(struct kind *kind)
{
	char path[] = "/tmp/m2n-test-XXXXXX";

	assert_non_null(mkdtemp(path));
	snprintf(kind->url, sizeof(kind->url), "dir:%s/store", path);
	return 0;
}

/* The host's close removes the store's directory; the rest is this test's. */
static void teardown_dir(struct kind *kind)
{
	struct m2n__store *host;
	char *path = kind->url + strlen("dir:");

	assert_int_equal(m2n__store_open(kind->url, 1, NULL, LONG, &host), 0);
	m2n__store_close(host);
	assert_int_equal(access(path, F_OK), -1);
	*strrchr(path, '/') = '\0';
	assert_int_equal(rmdir(path), 0);
}

static int setup_callbacks(struct kind *kind)
{
	pthread_mutexattr_t lock;
	pthread_condattr_t changed;

	kind->table = mmap(NULL, sizeof(*kind->table), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(kind->table != MAP_FAILED);
	pthread_mutexattr_init(&lock);
	pthread_mutexattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&kind->table->lock, &lock);
	pthread_condattr_init(&changed);
	pthread_condattr_setpshared(&changed, PTHREAD_PROCESS_SHARED);
	pthread_cond_init(&kind->table->changed, &changed);
	strcpy(kind->url, "callbacks");
	return 0;
}

static void teardown_callbacks(struct kind *kind)
{
	munmap(kind->table, sizeof(*kind->table));
}

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static int n_fds_before;

static int setup(void **state)
{
	struct kind *kind = *state;

	n_fds_before = count_fds();
	return kind->setup(kind);
}

static int teardown(void **state)
{
	struct kind *kind = *state;

	kind->teardown(kind);
	assert_int_equal(count_fds(), n_fds_before);
	return 0;
}

static int open_store(const struct kind *kind, struct m2n__store **store)
{
	struct m2n_store_callbacks callbacks = M2N_STORE_CALLBACKS_INIT;

	if (!kind->table)
		return m2n__store_open(kind->url, 0, &kind->key, LONG, store);
	callbacks.arg = kind->table;
	callbacks.put = table_put;
	callbacks.get = table_get;
	return m2n__store_open_callbacks(&callbacks, store);
}

static struct m2n__store *opened(const struct kind *kind)
{
	struct m2n__store *store;

	if (open_store(kind, &store))
		fail_msg("%s: %s", kind->name, m2n_error_text());
	return store;
}

static int put(struct m2n__store *store, const char *key, const void *value, size_t bytes)
{
	return store->ops->put(store, key, value, bytes, LONG);
}

static int get(
	struct m2n__store *store, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	return store->ops->get(store, key, value, bytes, timeout_ns);
}

static void what_is_put_is_got(void **state)
{
	static const size_t sizes[] = {0, 1, 255, 4097, M2N__STORE_VALUE_MAX, 3};
	static uint8_t in[M2N__STORE_VALUE_MAX], out[M2N__STORE_VALUE_MAX + 1];
	struct m2n__store *a = opened(*state), *b = opened(*state);
	char longest[M2N__STORE_KEY_MAX + 1];
	const char *keys[] = {"k", "group/0/address", "~!@#$%^&*()..", "..", "", "/"};
	size_t bytes;

	memset(longest, '/', M2N__STORE_KEY_MAX);
	longest[M2N__STORE_KEY_MAX] = '\0';
	keys[4] = longest;
	/* Each size replaces the one before it under the same keys. */
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		for (size_t k = 0; k < sizeof(keys) / sizeof(keys[0]); k++) {
			for (size_t j = 0; j < sizes[i]; j++)
				in[j] = (uint8_t)(j * 7 + i + k * 31);
			memset(out, 0xee, sizeof(out));
			assert_int_equal(put(a, keys[k], in, sizes[i]), 0);
			bytes = sizes[i];
			assert_int_equal(get(b, keys[k], out, &bytes, LONG), 0);
			assert_int_equal(bytes, sizes[i]);
			assert_memory_equal(in, out, sizes[i]);
			assert_int_equal(out[sizes[i]], 0xee);
		}
	}
	m2n__store_close(a);
	m2n__store_close(b);
}

static void keys_do_not_mix(void **state)
{
	static const char *const keys[] = {"a/b", "a.b", "a%2fb", "a_b", "A/b", "a//b", "a"};
	struct m2n__store *store = opened(*state);
	size_t bytes;
	char value[16];

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		assert_int_equal(put(store, keys[i], keys[i], strlen(keys[i]) + 1), 0);
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		bytes = sizeof(value);
		assert_int_equal(get(store, keys[i], value, &bytes, 0), 0);
		assert_string_equal(value, keys[i]);
	}
	m2n__store_close(store);
}

static void bad_arguments_are_refused(void **state)
{
	static const char *const keys[] = {"", "a b", "a\n", "\x7f", "k\xc3\xa9", NULL};
	struct m2n__store *store = opened(*state);
	static char huge[M2N__STORE_VALUE_MAX + 1];
	char long_key[M2N__STORE_KEY_MAX + 2];
	size_t bytes = sizeof(huge);

	memset(long_key, 'k', sizeof(long_key) - 1);
	long_key[sizeof(long_key) - 1] = '\0';
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		assert_int_equal(put(store, keys[i], "v", 1), -EINVAL);
		assert_non_null(strstr(m2n_error_text(), "1 to 200"));
		assert_int_equal(get(store, keys[i], huge, &bytes, 0), -EINVAL);
	}
	assert_int_equal(put(store, long_key, "v", 1), -EINVAL);
	assert_int_equal(get(store, long_key, huge, &bytes, 0), -EINVAL);
	assert_int_equal(put(store, "k", huge, sizeof(huge)), -EINVAL);
	assert_non_null(strstr(m2n_error_text(), "65536"));
	assert_int_equal(put(store, "k", NULL, 1), -EINVAL);
	assert_int_equal(store->ops->put(store, "k", "v", 1, -1), -EINVAL);
	assert_int_equal(get(store, "k", huge, &bytes, -1), -EINVAL);
	assert_int_equal(get(store, "k", huge, NULL, 0), -EINVAL);
	assert_int_equal(get(store, "k", NULL, &bytes, 0), -EINVAL);
	assert_int_equal(bytes, sizeof(huge));
	assert_int_equal(get(store, "k", huge, &bytes, 0), -EAGAIN);
	m2n__store_close(store);
}

static void a_missing_key_is_named(void **state)
{
	struct m2n__store *a = opened(*state), *b = opened(*state);
	char value[8] = "before";
	size_t bytes = sizeof(value);

	assert_int_equal(get(a, "never/came", value, &bytes, SHORT), -ETIMEDOUT);
	assert_non_null(strstr(m2n_error_text(), "'never/came'"));
	assert_non_null(strstr(m2n_error_text(), a->url));
	assert_non_null(strstr(m2n_error_text(), "20 ms"));
	assert_int_equal(get(a, "never/came", value, &bytes, 0), -EAGAIN);
	assert_non_null(strstr(m2n_error_text(), "'never/came'"));
	assert_int_equal(bytes, sizeof(value));
	assert_string_equal(value, "before");
	/* It comes after all: the get that gave up must not spoil the ones that follow. */
	assert_int_equal(get(a, "never/came", value, &bytes, SHORT), -ETIMEDOUT);
	assert_int_equal(put(b, "never/came", "late", 5), 0);
	assert_int_equal(put(b, "other", "other", 6), 0);
	assert_int_equal(get(a, "other", value, &bytes, LONG), 0);
	assert_string_equal(value, "other");
	bytes = sizeof(value);
	assert_int_equal(get(a, "never/came", value, &bytes, LONG), 0);
	assert_string_equal(value, "late");
	m2n__store_close(a);
	m2n__store_close(b);
}

static void too_little_room_is_refused(void **state)
{
	struct m2n__store *store = opened(*state);
	char value[8] = "before";
	size_t bytes = 5;

	assert_int_equal(put(store, "k", "sixsix", 6), 0);
	assert_int_equal(get(store, "k", value, &bytes, LONG), -ENOSPC);
	assert_non_null(strstr(m2n_error_text(), "'k'"));
	assert_int_equal(bytes, 5);
	assert_string_equal(value, "before");
	bytes = 6;
	assert_int_equal(get(store, "k", value, &bytes, LONG), 0);
	assert_memory_equal(value, "sixsix", 6);
	m2n__store_close(store);
}

/* One of N_PEERS: puts its number, gets everybody's. 0, or the line that failed. */
static int exchange(const struct kind *kind, unsigned self)
{
	struct m2n__store *store;
	char key[32];
	unsigned got;
	size_t bytes;

	if (open_store(kind, &store))
		return __LINE__;
	snprintf(key, sizeof(key), "rank/%u", self);
	if (put(store, key, &self, sizeof(self)))
		return __LINE__;
	for (unsigned i = 0; i < N_PEERS; i++) {
		snprintf(key, sizeof(key), "rank/%u", i);
		bytes = sizeof(got);
		if (get(store, key, &got, &bytes, LONG))
			return __LINE__;
		if (bytes != sizeof(got) || got != i)
			return __LINE__;
	}
	m2n__store_close(store);
	return 0;
}

struct peer {
	const struct kind *kind;
	unsigned self;
	pthread_t thread;
};

static void *peer_main(void *arg)
{
	struct peer *peer = arg;

	return (void *)(intptr_t)exchange(peer->kind, peer->self);
}

static void threads_find_each_other(void **state)
{
	struct peer peers[N_PEERS];
	void *line;

	for (unsigned i = 0; i < N_PEERS; i++) {
		peers[i] = (struct peer){.kind = *state, .self = i};
		assert_int_equal(pthread_create(&peers[i].thread, NULL, peer_main, &peers[i]), 0);
	}
	for (unsigned i = 0; i < N_PEERS; i++) {
		pthread_join(peers[i].thread, &line);
		assert_int_equal((intptr_t)line, 0);
	}
}

static void processes_find_each_other(void **state)
{
	pid_t pids[N_PEERS];
	int status;

	for (unsigned i = 0; i < N_PEERS; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (!pids[i]) {
			alarm(50);
			_exit(exchange(*state, i) != 0);
		}
	}
	for (unsigned i = 0; i < N_PEERS; i++) {
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
}

/* A reader never sees half of a value that is being replaced. */
static void *replace_main(void *arg)
{
	struct m2n__store *store;
	char value[5000];
	intptr_t failed = open_store(arg, &store);

	for (int i = 0; i < 200 && !failed; i++) {
		memset(value, i, sizeof(value));
		failed = put(store, "v", value, 100 + (size_t)i * 20);
	}
	if (!failed)
		failed = put(store, "end", "", 0);
	m2n__store_close(store);
	return (void *)failed;
}

static void replacing_is_atomic(void **state)
{
	struct m2n__store *store = opened(*state);
	char value[5000], none;
	pthread_t writer;
	size_t bytes, n_none = 0;
	void *failed;

	assert_int_equal(pthread_create(&writer, NULL, replace_main, *state), 0);
	do {
		bytes = sizeof(value);
		assert_int_equal(get(store, "v", value, &bytes, LONG), 0);
		assert_int_equal(bytes, 100 + (size_t)(uint8_t)value[0] * 20);
		for (size_t i = 1; i < bytes; i++)
			assert_int_equal(value[i], value[0]);
	} while (get(store, "end", &none, &n_none, 0));
	pthread_join(writer, &failed);
	assert_null(failed);
	m2n__store_close(store);
}

static struct kind kinds[] = {
	{.name = "tcp", .setup = setup_tcp, .teardown = teardown_tcp},
	{.name = "tcp+secret", .secret = "s", .setup = setup_tcp, .teardown = teardown_tcp},
	{.name = "dir", .setup = setup_dir, .teardown = teardown_dir},
	{.name = "callbacks", .setup = setup_callbacks, .teardown = teardown_callbacks},
};

#define CASE(name, k)                                                                              \
	{                                                                                          \
#name, name, setup, teardown, &kinds[k]                                            \
	}
#define CASES(k)                                                                                   \
	CASE(what_is_put_is_got, k), CASE(keys_do_not_mix, k), CASE(bad_arguments_are_refused, k), \
		CASE(a_missing_key_is_named, k), CASE(too_little_room_is_refused, k),              \
		CASE(threads_find_each_other, k), CASE(processes_find_each_other, k),              \
		CASE(replacing_is_atomic, k)

int main(void)
{
	const struct CMUnitTest tests[] = {CASES(0), CASES(1), CASES(2), CASES(3)};

	return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
