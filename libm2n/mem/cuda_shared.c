/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that a process has open, with their modules and blocks. Every block of ours is in its
 * device's list from its allocation to its end, in use or kept. The lock is held while a module is
 * loaded, never while memory is freed.
 */
#include "mem/cuda_shared.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "util/error.h"

struct block {
	enum m2n__cuda_block_kind kind;
	int is_kept;
	void *at;
	size_t bytes;
	struct block *next;
};

struct loaded {
	const void *image;
	const char *const *names;
	m2n__cu_module module;
	m2n__cu_function kernels[M2N__CUDA_MAX_KERNELS];
	struct loaded *next;
};

struct m2n__cuda_shared {
	int ordinal;
	unsigned n_open, n_loaded; /* of those open, who have kernels */
	struct block *blocks;
	struct loaded *loaded;
	struct m2n__cuda_shared *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct m2n__cuda_shared *devices;

int m2n__cuda_share(struct m2n__cuda *cuda)
{
	struct m2n__cuda_shared *s;

	pthread_mutex_lock(&lock);
	for (s = devices; s && s->ordinal != cuda->ordinal;)
		s = s->next;
	if (!s) {
		s = calloc(1, sizeof(*s));
		if (s) {
			s->ordinal = cuda->ordinal;
			s->next = devices;
			devices = s;
		}
	}
	if (s)
		s->n_open++;
	pthread_mutex_unlock(&lock);
	cuda->shared = s;
	return s ? 0 : m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*s));
}

static void free_block(const struct m2n__cuda *cuda, struct block *block)
{
	if (block->kind == M2N__BLOCK_DEVICE)
		cuda->driver->mem_free((uintptr_t)block->at);
	else
		cuda->driver->host_free(block->at);
	free(block);
}

/* Takes out of the list: what is kept, or only `at`. The lock is held. */
static struct block *take_out(struct m2n__cuda_shared *s, const void *at)
{
	struct block **from = &s->blocks, *taken = NULL;

	while (*from) {
		struct block *b = *from;

		if (at ? b->at != at : !b->is_kept) {
			from = &b->next;
			continue;
		}
		*from = b->next;
		b->next = taken;
		taken = b;
	}
	return taken;
}

static void free_blocks(const struct m2n__cuda *cuda, struct block *blocks)
{
	while (blocks) {
		struct block *b = blocks;

		blocks = b->next;
		free_block(cuda, b);
	}
}

static void remove_device(const struct m2n__cuda_shared *s)
{
	struct m2n__cuda_shared **from = &devices;

	while (*from != s)
		from = &(*from)->next;
	*from = s->next;
}

void m2n__cuda_unshare(struct m2n__cuda *cuda)
{
	struct m2n__cuda_shared *s = cuda->shared;
	struct block *blocks = NULL;
	struct loaded *loaded;
	int is_last;

	pthread_mutex_lock(&lock);
	s->n_loaded -= cuda->module != NULL;
	is_last = !--s->n_open;
	if (is_last)
		remove_device(s);
	if (!s->n_loaded)
		blocks = take_out(s, NULL);
	pthread_mutex_unlock(&lock);
	free_blocks(cuda, blocks);
	if (!is_last)
		return;
	while ((loaded = s->loaded)) {
		s->loaded = loaded->next;
		cuda->driver->module_unload(loaded->module);
		free(loaded);
	}
	free(s);
}

/* ---- modules ---- */

int m2n__cuda_shared_load(struct m2n__cuda *cuda, const void *image, const char *const *names,
	int (*load)(struct m2n__cuda *cuda, const void *image, const char *const *names))
{
	struct m2n__cuda_shared *s = cuda->shared;
	struct loaded *l;
	int ret = 0;

	pthread_mutex_lock(&lock);
	if (cuda->module)
		goto unlock;
	for (l = s->loaded; l && (l->image != image || l->names != names);)
		l = l->next;
	if (l) {
		memcpy(cuda->kernels, l->kernels, sizeof(l->kernels));
		cuda->module = l->module;
		s->n_loaded++;
		goto unlock;
	}
	l = calloc(1, sizeof(*l));
	ret = l ? load(cuda, image, names) :
		m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*l));
	if (ret) {
		free(l);
		goto unlock;
	}
	l->image = image;
	l->names = names;
	l->module = cuda->module;
	memcpy(l->kernels, cuda->kernels, sizeof(l->kernels));
	l->next = s->loaded;
	s->loaded = l;
	s->n_loaded++;
unlock:
	pthread_mutex_unlock(&lock);
	return ret;
}

/* ---- blocks ---- */

static m2n__cu_result allocate(const struct m2n__cuda *cuda, enum m2n__cuda_block_kind kind,
	size_t bytes, void **out)
{
	m2n__cu_result result;
	m2n__cu_ptr at;

	if (kind == M2N__BLOCK_PINNED)
		return cuda->driver->host_alloc(out, bytes,
			M2N__CU_HOST_PORTABLE | M2N__CU_HOST_MAPPED);
	result = cuda->driver->mem_alloc(&at, bytes);
	if (!result)
		*out = (void *)(uintptr_t)at;
	return result;
}

static struct block *find_kept(struct m2n__cuda_shared *s, enum m2n__cuda_block_kind kind,
	size_t bytes)
{
	struct block *b;

	for (b = s->blocks; b && (!b->is_kept || b->kind != kind || b->bytes != bytes);)
		b = b->next;
	return b;
}

m2n__cu_result m2n__cuda_block_get(struct m2n__cuda *cuda, enum m2n__cuda_block_kind kind,
	size_t bytes, void **at)
{
	struct m2n__cuda_shared *s = cuda->shared;
	struct block *b, *kept;
	m2n__cu_result result;

	pthread_mutex_lock(&lock);
	b = find_kept(s, kind, bytes);
	if (b) {
		b->is_kept = 0;
		*at = b->at;
	}
	pthread_mutex_unlock(&lock);
	if (b)
		return 0;
	b = malloc(sizeof(*b));
	if (!b)
		return M2N__CU_OUT_OF_MEMORY;
	result = allocate(cuda, kind, bytes, &b->at);
	if (result == M2N__CU_OUT_OF_MEMORY) {
		pthread_mutex_lock(&lock);
		kept = take_out(s, NULL);
		pthread_mutex_unlock(&lock);
		if (kept) {
			free_blocks(cuda, kept);
			result = allocate(cuda, kind, bytes, &b->at);
		}
	}
	if (result) {
		free(b);
		return result;
	}
	b->kind = kind;
	b->is_kept = 0;
	b->bytes = bytes;
	*at = b->at;
	pthread_mutex_lock(&lock);
	b->next = s->blocks;
	s->blocks = b;
	pthread_mutex_unlock(&lock);
	return 0;
}

void m2n__cuda_blocks_free(struct m2n__cuda *cuda)
{
	struct block *blocks;

	pthread_mutex_lock(&lock);
	blocks = take_out(cuda->shared, NULL);
	pthread_mutex_unlock(&lock);
	free_blocks(cuda, blocks);
}

void m2n__cuda_block_put(struct m2n__cuda *cuda, enum m2n__cuda_block_kind kind, void *at)
{
	struct m2n__cuda_shared *s = cuda->shared;
	struct block *b, *freed = NULL;

	pthread_mutex_lock(&lock);
	if (s->n_loaded) {
		for (b = s->blocks; b && (b->at != at || b->kind != kind);)
			b = b->next;
		if (b)
			b->is_kept = 1;
	} else {
		freed = take_out(s, at);
	}
	pthread_mutex_unlock(&lock);
	free_blocks(cuda, freed);
}
