/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FNV-1a, 32 bits: a digest to notice disagreement, not to resist an attacker. Words are hashed
 * as little-endian bytes, so that the digest is the same on every machine.
 */
#ifndef M2N_FNV_H
#define M2N_FNV_H

#include <stddef.h>
#include <stdint.h>

#define M2N__FNV_START 2166136261u
#define M2N__FNV_PRIME 16777619u

static inline uint32_t m2n__fnv_bytes(uint32_t hash, const void *data, size_t bytes)
{
	const uint8_t *byte = data;

	for (size_t i = 0; i < bytes; i++)
		hash = (hash ^ byte[i]) * M2N__FNV_PRIME;
	return hash;
}

static inline uint32_t m2n__fnv_u32(uint32_t hash, uint32_t word)
{
	const uint8_t bytes[4] = {
		(uint8_t)word, (uint8_t)(word >> 8), (uint8_t)(word >> 16), (uint8_t)(word >> 24)};

	return m2n__fnv_bytes(hash, bytes, sizeof(bytes));
}

#endif
