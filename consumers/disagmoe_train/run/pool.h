/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that is there from the start and given out in parts of any size: what one part leaves of
 * an even share, another that needs more may have. A part goes to the first gap that holds it, and
 * is allocated by itself where none does.
 */
#ifndef RUN_POOL_H
#define RUN_POOL_H

#include <stddef.h>

struct pool_part;
struct pool {
	char *base;
	size_t bytes;
	struct pool_part *first;      /* by address */
	size_t outside, most_outside; /* bytes of parts that found no gap */
};

/* 0 or -ENOMEM. */
int pool_open(struct pool *pool, size_t bytes);
/* Parts that are still taken are gone too, but for those outside. */
void pool_close(struct pool *pool);
/* Aligned to a cache line, of any content. NULL: no memory. */
void *pool_take(struct pool *pool, size_t bytes);
void pool_give(struct pool *pool, void *at);
/* The most that it ever held. */
size_t pool_bytes(const struct pool *pool);

#endif
