/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocations counted and made to fail. A program that links alloc.c wraps malloc, calloc,
 * realloc, posix_memalign, aligned_alloc, strdup, strndup and free with the linker (--wrap). Only
 * one thread may allocate at a time.
 */
#ifndef TESTS_ALLOC_H
#define TESTS_ALLOC_H

#include <stddef.h>

/* The n-th allocation from now fails (1: the next); 0: none. */
void alloc_fail_at(unsigned long n);
int alloc_has_failed(void); /* since alloc_fail_at() */
size_t alloc_held(void); /* blocks allocated and not freed */
unsigned long alloc_count(void); /* allocations so far */

#endif
