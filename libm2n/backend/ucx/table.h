/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names that a peer is given for things of ours: a slot and a serial number, so that a name whose
 * thing is gone, or that was never given, finds nothing.
 */
#ifndef M2N_BACKEND_UCX_TABLE_H
#define M2N_BACKEND_UCX_TABLE_H

#include <stdint.h>

struct m2n__ucx_table {
	struct m2n__ucx_entry *entries;
	uint32_t n, serial;
};

struct m2n__ucx_entry {
	uint64_t name;
	void *thing; /* NULL: free */
};

/* 0, or -ENOMEM with text. */
int m2n__ucx_table_add(struct m2n__ucx_table *table, void *thing, uint64_t *name);
void m2n__ucx_table_remove(struct m2n__ucx_table *table, uint64_t name);

static inline void *m2n__ucx_table_find(const struct m2n__ucx_table *table, uint64_t name)
{
	uint32_t slot = (uint32_t)name;

	return slot < table->n && table->entries[slot].name == name ? table->entries[slot].thing
								    : NULL;
}

#endif
