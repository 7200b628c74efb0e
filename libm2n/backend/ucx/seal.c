/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What guards us against a peer: digests over what is handed to UCX, and the tables of names.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"
#include "util/error.h"
#include "util/fnv.h"

#define MAGIC UINT32_C(0x3155326d) /* "m2U1" as little-endian bytes */

void m2n__ucx_sign(void *blob, size_t bytes)
{
	struct m2n__ucx_seal seal = {0, MAGIC};
	uint8_t *at = blob;

	memcpy(at, &seal, sizeof(seal));
	seal.digest = m2n__fnv_bytes(
		M2N__FNV_START, at + sizeof(seal.digest), bytes - sizeof(seal.digest));
	memcpy(at, &seal, sizeof(seal));
}

int m2n__ucx_verify(const void *blob, size_t bytes, size_t least, const char *what)
{
	struct m2n__ucx_seal seal;
	const uint8_t *at = blob;

	if (bytes < least)
		return m2n__error(M2N_ERR_PROTOCOL, "ucx: %s of %zu bytes, expected %zu or more",
			what, bytes, least);
	memcpy(&seal, at, sizeof(seal));
	if (seal.magic != MAGIC ||
		seal.digest != m2n__fnv_bytes(M2N__FNV_START, at + sizeof(seal.digest),
				       bytes - sizeof(seal.digest)))
		return m2n__error(
			M2N_ERR_PROTOCOL, "ucx: %s is damaged, or of another version", what);
	return 0;
}

int m2n__ucx_table_add(struct m2n__ucx_table *table, void *thing, uint64_t *name)
{
	struct m2n__ucx_entry *grown;
	uint32_t slot = 0;

	while (slot < table->n && table->entries[slot].thing)
		slot++;
	if (slot == table->n) {
		grown = realloc(table->entries, (2 * slot + 8) * sizeof(*grown));
		if (!grown)
			return m2n__error(-ENOMEM, "ucx: no memory for a table of %u", slot);
		memset(grown + slot, 0, (slot + 8) * sizeof(*grown));
		table->entries = grown;
		table->n = 2 * slot + 8;
	}
	*name = (uint64_t)++table->serial << 32 | slot;
	table->entries[slot] = (struct m2n__ucx_entry){*name, thing};
	return 0;
}

void m2n__ucx_table_remove(struct m2n__ucx_table *table, uint64_t name)
{
	if (m2n__ucx_table_find(table, name))
		table->entries[(uint32_t)name] = (struct m2n__ucx_entry){0};
}
