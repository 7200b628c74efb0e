/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and values of a store's server: a chained hash table that doubles, with a bound on the
 * bytes it holds. Used by the server's thread alone.
 */
#ifndef M2N_STORE_TABLE_H
#define M2N_STORE_TABLE_H

#include <stddef.h>

struct m2n__store_entry {
	struct m2n__store_entry *next;
	size_t hash;
	size_t bytes;
	void *value;
	char key[]; /* terminated */
};

struct m2n__store_table {
	struct m2n__store_entry **buckets; /* [n_buckets], a power of two; NULL while empty */
	size_t n_buckets;
	size_t n_entries;
	size_t bytes; /* of all keys, values and entries */
	size_t max_bytes;
};

void m2n__store_table_open(struct m2n__store_table *table, size_t max_bytes);
void m2n__store_table_close(struct m2n__store_table *table);
/* Stores a copy. 0; -ENOMEM; -ENOSPC: the bound is reached. On failure the old value stays. */
int m2n__store_table_put(
	struct m2n__store_table *table, const char *key, const void *value, size_t bytes);
/* Borrowed until the next put; NULL: not there. */
const struct m2n__store_entry *m2n__store_table_get(
	const struct m2n__store_table *table, const char *key);

#endif
