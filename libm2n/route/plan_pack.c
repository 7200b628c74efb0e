/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans to bytes and back. What travels is the decision for each pair, its instance; everything
 * else is rebuilt by the code that routing itself uses, so a packed plan cannot say things that
 * contradict each other. The bytes come from a peer: every count and every instance is checked
 * before it is used, and a plan that fails a check is left empty.
 */
#include "route/plan.h"

#include <errno.h>
#include <string.h>

#include "route/plan_build.h"
#include "util/error.h"
#include "wire/plan_wire.h"

static uint16_t make_flags(const struct m2n__plan_limits *limits, uint32_t n_instances)
{
	return (uint16_t)((limits->dedup ? M2N__PLAN_DEDUP : 0) |
			  (limits->reduce_at_expert ? M2N__PLAN_REDUCE : 0) |
			  (n_instances > UINT16_MAX ? M2N__PLAN_WIDE : 0));
}

static void describe(const struct m2n_plan *plan, struct m2n__plan_wire *wire)
{
	uint32_t n_instances = plan->map ? plan->map->n_instances : 0;

	*wire = (struct m2n__plan_wire){
		.flags = make_flags(&plan->limits, n_instances),
		.digest = plan->map ? plan->map->digest : 0,
		.source = plan->source,
		.n_tokens = plan->n_tokens,
		.top_k = plan->limits.top_k,
		.n_instances = n_instances,
		.n_rows = plan->n_rows,
		.n_dropped = plan->n_dropped,
		.n_dropped_lost = plan->n_dropped_lost,
	};
	if (plan->has_weights)
		wire->flags |= M2N__PLAN_WEIGHTS;
	if (plan->n_dropped)
		wire->flags |= M2N__PLAN_DROPPED;
	m2n__plan_wire_layout(wire);
}

size_t m2n__plan_packed_bytes(const struct m2n_plan *plan)
{
	struct m2n__plan_wire wire;

	describe(plan, &wire);
	return wire.bytes;
}

size_t m2n__plan_max_packed_bytes(const struct m2n__plan_limits *limits)
{
	struct m2n__plan_wire wire = {
		.flags = make_flags(limits, limits->max_instances) | M2N__PLAN_WEIGHTS |
			 M2N__PLAN_DROPPED,
		.n_tokens = limits->max_tokens,
		.top_k = limits->top_k,
	};

	m2n__plan_wire_layout(&wire);
	return wire.bytes;
}

static void pack_instances(
	const struct m2n_plan *plan, const struct m2n__plan_wire *wire, void *buffer)
{
	size_t n_pairs = (size_t)plan->n_tokens * plan->limits.top_k;
	uint32_t row = 0;

	for (size_t p = 0; p < n_pairs; p++)
		m2n__plan_wire_put_instance(wire, buffer, p, -1);
	for (uint32_t i = 0; i < wire->n_instances; i++) {
		for (uint32_t n = plan->count[i]; n > 0; n--, row++)
			m2n__plan_wire_put_instance(wire, buffer, plan->row_pair[row], i);
	}
}

int m2n__plan_pack(const struct m2n_plan *plan, void *buffer, size_t bytes, size_t *used)
{
	size_t n_pairs = (size_t)plan->n_tokens * plan->limits.top_k;
	struct m2n__plan_wire wire;

	if (!plan->map)
		return m2n__error(-EINVAL, "plan: nothing was routed, there is nothing to pack");
	if (!buffer || !used)
		return m2n__error(-EINVAL, "plan: %s is NULL", buffer ? "used" : "buffer");
	describe(plan, &wire);
	if (bytes < wire.bytes)
		return m2n__error(-ENOSPC, "plan: the buffer has %zu bytes, packing needs %llu",
			bytes, (unsigned long long)wire.bytes);
	m2n__plan_wire_encode(&wire, buffer);
	pack_instances(plan, &wire, buffer);
	for (size_t p = 0; plan->has_weights && p < n_pairs; p++)
		m2n__plan_wire_put_weight(&wire, buffer, p, plan->weight[p]);
	if (plan->n_dropped)
		memcpy((char *)buffer + wire.dropped_at, plan->dropped, plan->n_tokens);
	*used = wire.bytes;
	return 0;
}

/* Whether the plan and the map at hand are those that the header speaks of. */
static int check_header(
	const struct m2n_plan *plan, const struct m2n_map *map, const struct m2n__plan_wire *wire)
{
	const struct m2n__plan_limits *limits = &plan->limits;
	uint16_t modes = wire->flags & (M2N__PLAN_DEDUP | M2N__PLAN_REDUCE);
	uint16_t own_modes = make_flags(limits, 0);

	if (wire->digest != map->digest || wire->n_instances != map->n_instances)
		return m2n__error(M2N_ERR_MAP,
			"packed plan: routed with map 0x%08x (%u instances), this round's is "
			"0x%08x (%u)",
			wire->digest, wire->n_instances, map->digest, map->n_instances);
	if (wire->top_k != limits->top_k)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 28: top_k is %u, expected %u", wire->top_k,
			limits->top_k);
	if (wire->n_tokens > limits->max_tokens)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 24: n_tokens is %u, accepted: 0..%u", wire->n_tokens,
			limits->max_tokens);
	if (wire->source > INT32_MAX)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 20: the source index is %u, accepted: 0..%d",
			wire->source, INT32_MAX);
	if (modes != own_modes)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 6: routed with dedup %d and reduce_at_expert %d, here "
			"%d and %d",
			!!(modes & M2N__PLAN_DEDUP), !!(modes & M2N__PLAN_REDUCE), !!limits->dedup,
			!!limits->reduce_at_expert);
	return 0;
}

static int unpack_instances(
	struct m2n_plan *plan, const struct m2n__plan_wire *wire, const void *buffer)
{
	size_t n_pairs = (size_t)wire->n_tokens * wire->top_k;
	uint32_t n_rows = 0;

	for (size_t p = 0; p < n_pairs; p++) {
		int64_t instance = m2n__plan_wire_get_instance(wire, buffer, p);

		if (instance >= (int64_t)wire->n_instances)
			return m2n__error(M2N_ERR_PROTOCOL,
				"packed plan: token %zu, k %zu: instance %lld is out of range, "
				"accepted: 0..%u or none",
				p / wire->top_k, p % wire->top_k, (long long)instance,
				wire->n_instances - 1);
		plan->pair_row[p] = (int32_t)instance;
		if (instance >= 0) {
			plan->count[instance]++;
			n_rows++;
		}
	}
	if (n_rows != wire->n_rows)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 36: n_rows is %u, but %u pairs have an instance",
			wire->n_rows, n_rows);
	return 0;
}

/* A token cannot have dropped more pairs than have no row, nor all tokens more than all pairs. */
static int unpack_dropped(
	struct m2n_plan *plan, const struct m2n__plan_wire *wire, const void *buffer)
{
	const uint8_t *dropped = (const uint8_t *)buffer + wire->dropped_at;
	uint32_t least = 0, most = 0;

	if (!(wire->flags & M2N__PLAN_DROPPED) != !wire->n_dropped)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 40: n_dropped is %u, but the flags are 0x%x",
			wire->n_dropped, wire->flags);
	for (uint32_t t = 0; wire->n_dropped && t < wire->n_tokens; t++) {
		uint32_t n_none = 0;

		for (uint32_t k = 0; k < wire->top_k; k++)
			n_none += plan->pair_row[(size_t)t * wire->top_k + k] < 0;
		if (dropped[t] > n_none)
			return m2n__error(M2N_ERR_PROTOCOL,
				"packed plan: token %u dropped %u pairs, accepted: 0..%u", t,
				dropped[t], n_none);
		least += dropped[t];
		most += dropped[t] == UINT8_MAX ? n_none : dropped[t];
	}
	if (wire->n_dropped < least || wire->n_dropped > most ||
		wire->n_dropped_lost > wire->n_dropped)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan, offset 40: n_dropped is %u (%u lost), the tokens say %u..%u",
			wire->n_dropped, wire->n_dropped_lost, least, most);
	plan->n_dropped = wire->n_dropped;
	plan->n_dropped_lost = wire->n_dropped_lost;
	if (wire->n_dropped)
		memcpy(plan->dropped, dropped, wire->n_tokens);
	else
		memset(plan->dropped, 0, wire->n_tokens);
	return 0;
}

static void unpack_weights(
	struct m2n_plan *plan, const struct m2n__plan_wire *wire, const void *buffer)
{
	size_t n_pairs = (size_t)wire->n_tokens * wire->top_k;

	plan->has_weights = (wire->flags & M2N__PLAN_WEIGHTS) != 0;
	for (size_t p = 0; p < n_pairs; p++)
		plan->weight[p] =
			plan->has_weights ? m2n__plan_wire_get_weight(wire, buffer, p) : 1.0f;
}

/* Rows beyond the capacity are an error here even where routing may drop. */
static int rebuild(struct m2n_plan *plan, struct m2n_map *map, const struct m2n__plan_wire *wire)
{
	int status;

	plan->source = wire->source;
	plan->n_tokens = wire->n_tokens;
	status = m2n__plan_build(plan, map);
	if (status)
		return m2n__error_at(M2N_ERR_PROTOCOL, "packed plan");
	if (plan->n_rows != wire->n_rows)
		return m2n__error(M2N_ERR_PROTOCOL,
			"packed plan: %u of its %u rows are beyond the capacity of %u rows per "
			"expert rank",
			wire->n_rows - plan->n_rows, wire->n_rows, plan->limits.rank_capacity);
	return 0;
}

int m2n__plan_unpack(struct m2n_plan *plan, struct m2n_map *map, const void *buffer, size_t bytes)
{
	struct m2n__plan_wire wire;
	int status;

	m2n__plan_clear(plan);
	status = m2n__plan_check_map(plan, map);
	if (!status)
		status = m2n__plan_wire_decode(buffer, bytes, &wire);
	if (!status)
		status = check_header(plan, map, &wire);
	if (!status)
		status = unpack_instances(plan, &wire, buffer);
	if (!status)
		status = unpack_dropped(plan, &wire, buffer);
	if (!status)
		status = rebuild(plan, map, &wire);
	if (status) {
		m2n__plan_clear(plan);
		return status;
	}
	unpack_weights(plan, &wire, buffer);
	return 0;
}
