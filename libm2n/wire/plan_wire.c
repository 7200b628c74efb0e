/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The form of packed plans. Numbers are put together byte by byte, so neither alignment nor byte
 * order of the machine matters; compilers turn this into plain loads and stores.
 */
#include "wire/plan_wire.h"

#include <string.h>

#include "util/error.h"

static void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)value;
	at[1] = (uint8_t)(value >> 8);
}

static void put32(uint8_t *at, uint32_t value)
{
	put16(at, value);
	put16(at + 2, value >> 16);
}

static uint32_t get16(const uint8_t *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static uint32_t get32(const uint8_t *at)
{
	return get16(at) | get16(at + 2) << 16;
}

void m2n__plan_wire_layout(struct m2n__plan_wire *wire)
{
	/* Pairs fit 64 bits: both factors are 32. At most 8 bytes each, checked before this. */
	uint64_t n_pairs = (uint64_t)wire->n_tokens * wire->top_k;
	uint64_t instance_bytes = wire->flags & M2N__PLAN_WIDE ? 4 : 2;

	wire->instances_at = M2N__PLAN_HEADER_BYTES;
	wire->weights_at = wire->instances_at + (n_pairs * instance_bytes + 3) / 4 * 4;
	wire->dropped_at = wire->weights_at + (wire->flags & M2N__PLAN_WEIGHTS ? 4 * n_pairs : 0);
	wire->bytes = wire->dropped_at + (wire->flags & M2N__PLAN_DROPPED ? wire->n_tokens : 0);
}

void m2n__plan_wire_encode(const struct m2n__plan_wire *wire, void *buffer)
{
	uint8_t *at = buffer;

	put32(at, M2N__PLAN_MAGIC);
	put16(at + 4, M2N__PLAN_VERSION);
	put16(at + 6, wire->flags);
	put32(at + 8, (uint32_t)wire->bytes);
	put32(at + 12, (uint32_t)(wire->bytes >> 32));
	put32(at + 16, wire->digest);
	put32(at + 20, wire->source);
	put32(at + 24, wire->n_tokens);
	put32(at + 28, wire->top_k);
	put32(at + 32, wire->n_instances);
	put32(at + 36, wire->n_rows);
	put32(at + 40, wire->n_dropped);
	put32(at + 44, wire->n_dropped_lost);
	/* The padding of an odd number of 16-bit instances. */
	if (wire->weights_at > wire->instances_at)
		memset(at + wire->weights_at - 4, 0, 4);
}

/* Sizes that later arithmetic relies on, and the length that follows from them. */
static int check_sizes(struct m2n__plan_wire *wire, uint64_t said_bytes, size_t bytes)
{
	uint64_t n_pairs = (uint64_t)wire->n_tokens * wire->top_k;

	if (wire->flags & ~M2N__PLAN_ALL_FLAGS)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 6: flags are 0x%x, accepted: bits of 0x%x",
			wire->flags, M2N__PLAN_ALL_FLAGS);
	if (n_pairs > INT32_MAX)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 24: %u tokens x top_k %u, accepted: up to %d pairs",
			wire->n_tokens, wire->top_k, INT32_MAX);
	if (!(wire->flags & M2N__PLAN_WIDE) != (wire->n_instances <= UINT16_MAX))
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 32: %u instances do not go with flags 0x%x",
			wire->n_instances, wire->flags);
	m2n__plan_wire_layout(wire);
	if (wire->bytes != bytes || said_bytes != bytes)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 8: the length says %llu bytes, the sizes say %llu, "
			"there are %zu",
			(unsigned long long)said_bytes, (unsigned long long)wire->bytes, bytes);
	return 0;
}

int m2n__plan_wire_decode(const void *buffer, size_t bytes, struct m2n__plan_wire *wire)
{
	const uint8_t *at = buffer;

	if (!buffer || bytes < M2N__PLAN_HEADER_BYTES)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan: %zu bytes, the header alone has %d", buffer ? bytes : 0,
			M2N__PLAN_HEADER_BYTES);
	if (get32(at) != M2N__PLAN_MAGIC)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 0: magic is 0x%08x, expected 0x%08x", get32(at),
			M2N__PLAN_MAGIC);
	if (get16(at + 4) != M2N__PLAN_VERSION)
		return m2n__error(M2N_ERR_VERSION,
			"packed plan, offset 4: version is %u, this library reads %d",
			get16(at + 4), M2N__PLAN_VERSION);
	memset(wire, 0, sizeof(*wire));
	wire->flags = (uint16_t)get16(at + 6);
	wire->digest = get32(at + 16);
	wire->source = get32(at + 20);
	wire->n_tokens = get32(at + 24);
	wire->top_k = get32(at + 28);
	wire->n_instances = get32(at + 32);
	wire->n_rows = get32(at + 36);
	wire->n_dropped = get32(at + 40);
	wire->n_dropped_lost = get32(at + 44);
	return check_sizes(wire, get32(at + 8) | (uint64_t)get32(at + 12) << 32, bytes);
}

void m2n__plan_wire_put_instance(
	const struct m2n__plan_wire *wire, void *buffer, size_t p, int64_t instance)
{
	uint8_t *at = (uint8_t *)buffer + wire->instances_at;

	if (wire->flags & M2N__PLAN_WIDE)
		put32(at + 4 * p, instance < 0 ? UINT32_MAX : (uint32_t)instance);
	else
		put16(at + 2 * p, instance < 0 ? UINT16_MAX : (uint32_t)instance);
}

int64_t m2n__plan_wire_get_instance(const struct m2n__plan_wire *wire, const void *buffer, size_t p)
{
	const uint8_t *at = (const uint8_t *)buffer + wire->instances_at;
	uint32_t wide = wire->flags & M2N__PLAN_WIDE;
	uint32_t value = wide ? get32(at + 4 * p) : get16(at + 2 * p);

	return value == (wide ? UINT32_MAX : UINT16_MAX) ? -1 : (int64_t)value;
}

void m2n__plan_wire_put_weight(
	const struct m2n__plan_wire *wire, void *buffer, size_t p, float weight)
{
	uint32_t bits;

	memcpy(&bits, &weight, sizeof(bits));
	put32((uint8_t *)buffer + wire->weights_at + 4 * p, bits);
}

float m2n__plan_wire_get_weight(const struct m2n__plan_wire *wire, const void *buffer, size_t p)
{
	uint32_t bits = get32((const uint8_t *)buffer + wire->weights_at + 4 * p);
	float weight;

	memcpy(&weight, &bits, sizeof(weight));
	return weight;
}
