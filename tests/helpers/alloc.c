/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wrappers. Live blocks are kept in a table of pointers (open addressing), because a block may
 * be freed here that libc allocated unseen, and that must not count. Atomics, because the store's
 * server or a progress thread may allocate beside the test.
 */
#include "helpers/alloc.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define N_PLACES 65536
#define GONE ((void *)1)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *table[N_PLACES];
static size_t n_held;
static unsigned long n_allocations, fail_at;
static int has_failed;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *block, size_t bytes);
int __real_posix_memalign(void **block, size_t alignment, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t n);
void __real_free(void *block);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *block, size_t bytes);
int __wrap_posix_memalign(void **block, size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t n);
void __wrap_free(void *block);

void alloc_fail_at(unsigned long n)
{
	pthread_mutex_lock(&lock);
	fail_at = n;
	has_failed = 0;
	pthread_mutex_unlock(&lock);
}

int alloc_has_failed(void)
{
	return has_failed;
}

size_t alloc_held(void)
{
	return n_held;
}

unsigned long alloc_count(void)
{
	return n_allocations;
}

static int fails(void)
{
	int now;

	pthread_mutex_lock(&lock);
	n_allocations++;
	now = fail_at && --fail_at == 0;
	has_failed |= now;
	pthread_mutex_unlock(&lock);
	if (now)
		errno = ENOMEM;
	return now;
}

static size_t place_of(const void *block)
{
	return (size_t)(((uintptr_t)block >> 4) * 0x9e3779b97f4a7c15u >> 48);
}

static void *note(void *block)
{
	size_t i = place_of(block);

	if (!block)
		return NULL;
	pthread_mutex_lock(&lock);
	while (table[i] && table[i] != GONE)
		i = (i + 1) % N_PLACES;
	table[i] = block;
	n_held++;
	pthread_mutex_unlock(&lock);
	return block;
}

static void forget(const void *block)
{
	size_t i = place_of(block);

	if (!block)
		return;
	pthread_mutex_lock(&lock);
	for (; table[i]; i = (i + 1) % N_PLACES) {
		if (table[i] != block)
			continue;
		/* The end of a chain is free again; in the middle a mark keeps the chain. */
		table[i] = table[(i + 1) % N_PLACES] ? GONE : NULL;
		n_held--;
		break;
	}
	pthread_mutex_unlock(&lock);
}

void *__wrap_malloc(size_t bytes)
{
	return fails() ? NULL : note(__real_malloc(bytes));
}

void *__wrap_calloc(size_t n, size_t bytes)
{
	return fails() ? NULL : note(__real_calloc(n, bytes));
}

void *__wrap_realloc(void *block, size_t bytes)
{
	void *moved;

	if (fails())
		return NULL;
	forget(block);
	moved = __real_realloc(block, bytes);
	return note(moved);
}

int __wrap_posix_memalign(void **block, size_t alignment, size_t bytes)
{
	int status = fails() ? ENOMEM : __real_posix_memalign(block, alignment, bytes);

	if (status == 0)
		note(*block);
	return status;
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
	return fails() ? NULL : note(__real_aligned_alloc(alignment, bytes));
}

char *__wrap_strdup(const char *text)
{
	return fails() ? NULL : note(__real_strdup(text));
}

char *__wrap_strndup(const char *text, size_t n)
{
	return fails() ? NULL : note(__real_strndup(text, n));
}

void __wrap_free(void *block)
{
	forget(block);
	__real_free(block);
}
