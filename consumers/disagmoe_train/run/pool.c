/* SPDX-License-Identifier: Apache-2.0 */
/* First fit over a list of parts; a part is preceded by a line of its own that links it. */
#include "run/pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LINE 64

struct pool_part {
	struct pool_part *next;
	size_t bytes; /* with the line */
};

int pool_open(struct pool *pool, size_t bytes)
{
	void *base;

	memset(pool, 0, sizeof(*pool));
	if (posix_memalign(&base, LINE, bytes ? bytes : LINE))
		return -ENOMEM;
	pool->base = base;
	pool->bytes = bytes;
	return 0;
}

void pool_close(struct pool *pool)
{
	free(pool->base);
	memset(pool, 0, sizeof(*pool));
}

static void *take_outside(struct pool *pool, size_t bytes)
{
	struct pool_part *part;
	void *at;

	if (posix_memalign(&at, LINE, bytes))
		return NULL;
	part = at;
	part->bytes = bytes;
	pool->outside += bytes;
	if (pool->outside > pool->most_outside)
		pool->most_outside = pool->outside;
	return (char *)at + LINE;
}

void *pool_take(struct pool *pool, size_t bytes)
{
	struct pool_part **at = &pool->first;
	char *gap = pool->base;

	bytes = LINE + (bytes + LINE - 1) / LINE * LINE;
	for (;;) {
		char *end = *at ? (char *)*at : pool->base + pool->bytes;

		if ((size_t)(end - gap) >= bytes)
			break;
		if (!*at)
			return take_outside(pool, bytes);
		gap = end + (*at)->bytes;
		at = &(*at)->next;
	}
	struct pool_part *part = (struct pool_part *)(void *)gap;

	part->next = *at;
	part->bytes = bytes;
	*at = part;
	return gap + LINE;
}

void pool_give(struct pool *pool, void *memory)
{
	struct pool_part *part = (struct pool_part *)(void *)((char *)memory - LINE);
	struct pool_part **at = &pool->first;

	while (*at && *at != part)
		at = &(*at)->next;
	if (*at) {
		*at = part->next;
		return;
	}
	pool->outside -= part->bytes;
	free(part);
}

size_t pool_bytes(const struct pool *pool)
{
	return pool->bytes + pool->most_outside;
}
