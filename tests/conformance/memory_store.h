/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store made of callbacks, for tests: a table in memory that the ranks share, a futex for a
 * lock, another that counts puts and wakes those who wait for a key.
 */
#ifndef TESTS_MEMORY_STORE_H
#define TESTS_MEMORY_STORE_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/store.h>

size_t memory_store_bytes(void); /* zeroed shared memory of this size is an empty store */
void memory_store_callbacks(void *memory, struct m2n_store_callbacks *callbacks);
uint32_t memory_store_puts(void *memory);

#endif
