/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process holds: open file descriptors, shared mappings (libm2n's segments; private ones
 * come and go with malloc), threads. Taken before and after, compared, named when more.
 * Also guard bytes around outputs.
 */
#ifndef TESTS_LEAK_H
#define TESTS_LEAK_H

#include <stddef.h>

struct leak_state {
	int n_fds;
	int n_shared_maps;
	int n_threads;
};

void leak_take(struct leak_state *state);
/* Fails the rank (or program) when more is held than before, and names one of them. */
void leak_check(const struct leak_state *before);

/* Memory with guard bytes on both sides, filled with a pattern. The end is exact. */
void *guard_alloc(size_t bytes);
/* Fails when a guard byte changed; frees. NULL is allowed. */
void guard_free(void *base);
void guard_check(const void *base);

#endif
