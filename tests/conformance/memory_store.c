/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table is small and searched from the start; the lock is held for copies only. It is taken
 * by exchange, contended by futex: a rank that died with it would stop the others, which these
 * tests do not do.
 */
#include "conformance/memory_store.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define N_ENTRIES 64
#define KEY_BYTES 204
#define VALUE_BYTES 4096

struct entry {
	char key[KEY_BYTES];
	size_t bytes;
	char value[VALUE_BYTES];
};

struct memory_store {
	_Atomic uint32_t locked;
	_Atomic uint32_t n_puts;
	struct entry entry[N_ENTRIES];
};

static void lock(struct memory_store *store)
{
	while (atomic_exchange(&store->locked, 1))
		syscall(SYS_futex, &store->locked, FUTEX_WAIT, 1, NULL, NULL, 0);
}

static void unlock(struct memory_store *store)
{
	atomic_store(&store->locked, 0);
	syscall(SYS_futex, &store->locked, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* The entry of a key, or the first free one. */
static struct entry *find(struct memory_store *store, const char *key)
{
	for (int i = 0; i < N_ENTRIES; i++) {
		if (!store->entry[i].key[0] || !strcmp(store->entry[i].key, key))
			return &store->entry[i];
	}
	return NULL;
}

static int put(void *arg, const char *key, const void *value, size_t bytes)
{
	struct memory_store *store = arg;
	struct entry *entry;

	if (strlen(key) >= KEY_BYTES || bytes > VALUE_BYTES)
		return -E2BIG;
	lock(store);
	entry = find(store, key);
	if (entry) {
		strcpy(entry->key, key);
		memcpy(entry->value, value, bytes);
		entry->bytes = bytes;
		atomic_fetch_add(&store->n_puts, 1);
	}
	unlock(store);
	syscall(SYS_futex, &store->n_puts, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	return entry ? 0 : -ENOSPC;
}

static int try_get(struct memory_store *store, const char *key, void *value, size_t *bytes)
{
	struct entry *entry;
	int status = -EAGAIN;

	lock(store);
	entry = find(store, key);
	if (entry && entry->key[0]) {
		status = entry->bytes > *bytes ? -ENOSPC : 0;
		if (status == 0) {
			memcpy(value, entry->value, entry->bytes);
			*bytes = entry->bytes;
		}
	}
	unlock(store);
	return status;
}

static int get(void *arg, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	struct memory_store *store = arg;
	struct timespec start, now, wait = {0, 50000000};

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (;;) {
		uint32_t seen = atomic_load(&store->n_puts);
		int status = try_get(store, key, value, bytes);
		int64_t passed;

		if (status != -EAGAIN || timeout_ns == 0)
			return status;
		clock_gettime(CLOCK_MONOTONIC, &now);
		passed = (now.tv_sec - start.tv_sec) * 1000000000LL + now.tv_nsec - start.tv_nsec;
		if (passed > timeout_ns)
			return -ETIMEDOUT;
		syscall(SYS_futex, &store->n_puts, FUTEX_WAIT, seen, &wait, NULL, 0);
	}
}

size_t memory_store_bytes(void)
{
	return sizeof(struct memory_store);
}

void memory_store_callbacks(void *memory, struct m2n_store_callbacks *callbacks)
{
	callbacks->arg = memory;
	callbacks->put = put;
	callbacks->get = get;
}

uint32_t memory_store_puts(void *memory)
{
	struct memory_store *store = memory;

	return atomic_load(&store->n_puts);
}
