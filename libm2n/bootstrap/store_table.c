/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hash table behind a store's server: FNV-1a over the key, buckets doubled at one entry each.
 * Only clients that proved the secret put keys, so the hash needs no defence against chosen keys.
 */
#include "bootstrap/store_table.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKETS 64

void m2n__store_table_open(struct m2n__store_table *table, size_t max_bytes)
{
	memset(table, 0, sizeof(*table));
	table->max_bytes = max_bytes;
}

void m2n__store_table_close(struct m2n__store_table *table)
{
	struct m2n__store_entry *entry, *next;

	for (size_t i = 0; i < table->n_buckets; i++) {
		for (entry = table->buckets[i]; entry; entry = next) {
			next = entry->next;
			free(entry->value);
			free(entry);
		}
	}
	free(table->buckets);
	memset(table, 0, sizeof(*table));
}

static size_t hash_of(const char *key)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (; *key; key++)
		hash = (hash ^ (uint8_t)*key) * UINT64_C(0x100000001b3);
	return (size_t)(hash ^ hash >> 32);
}

static struct m2n__store_entry *find(
	const struct m2n__store_table *table, const char *key, size_t hash)
{
	struct m2n__store_entry *entry;

	if (!table->n_buckets)
		return NULL;
	entry = table->buckets[hash & (table->n_buckets - 1)];
	while (entry && (entry->hash != hash || strcmp(entry->key, key) != 0))
		entry = entry->next;
	return entry;
}

static int grow(struct m2n__store_table *table)
{
	size_t n = table->n_buckets ? 2 * table->n_buckets : FIRST_BUCKETS;
	struct m2n__store_entry **buckets = calloc(n, sizeof(struct m2n__store_entry *));
	struct m2n__store_entry *entry, *next, **bucket;

	if (!buckets)
		return -ENOMEM;
	for (size_t i = 0; i < table->n_buckets; i++) {
		for (entry = table->buckets[i]; entry; entry = next) {
			next = entry->next;
			bucket = &buckets[entry->hash & (n - 1)];
			entry->next = *bucket;
			*bucket = entry;
		}
	}
	free(table->buckets);
	table->buckets = buckets;
	table->n_buckets = n;
	return 0;
}

static int insert(
	struct m2n__store_table *table, const char *key, size_t hash, void *value, size_t bytes)
{
	size_t key_bytes = strlen(key) + 1;
	size_t cost = sizeof(struct m2n__store_entry) + key_bytes + bytes;
	struct m2n__store_entry *entry, **bucket;

	if (cost > table->max_bytes - table->bytes)
		return -ENOSPC;
	if (table->n_entries >= table->n_buckets && grow(table))
		return -ENOMEM;
	entry = malloc(sizeof(*entry) + key_bytes);
	if (!entry)
		return -ENOMEM;
	entry->hash = hash;
	entry->value = value;
	entry->bytes = bytes;
	memcpy(entry->key, key, key_bytes);
	bucket = &table->buckets[hash & (table->n_buckets - 1)];
	entry->next = *bucket;
	*bucket = entry;
	table->n_entries++;
	table->bytes += cost;
	return 0;
}

static int replace(
	struct m2n__store_table *table, struct m2n__store_entry *entry, void *value, size_t bytes)
{
	if (bytes > table->max_bytes - (table->bytes - entry->bytes))
		return -ENOSPC;
	table->bytes += bytes - entry->bytes;
	free(entry->value);
	entry->value = value;
	entry->bytes = bytes;
	return 0;
}

int m2n__store_table_put(
	struct m2n__store_table *table, const char *key, const void *value, size_t bytes)
{
	size_t hash = hash_of(key);
	struct m2n__store_entry *entry = find(table, key, hash);
	void *copy = malloc(bytes ? bytes : 1);
	int status;

	if (!copy)
		return -ENOMEM;
	if (bytes)
		memcpy(copy, value, bytes);
	status = entry ? replace(table, entry, copy, bytes) : insert(table, key, hash, copy, bytes);
	if (status)
		free(copy);
	return status;
}

const struct m2n__store_entry *m2n__store_table_get(
	const struct m2n__store_table *table, const char *key)
{
	return find(table, key, hash_of(key));
}
