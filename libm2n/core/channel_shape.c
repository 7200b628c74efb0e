/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shape of a channel: checks of params, what follows from them (capacities, layouts, sizes),
 * the exchanges it needs, and the memory it takes. Pure: no group is touched.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/gpu.h"
#include "util/error.h"
#include "util/fnv.h"

#define KEPT_MAPS (M2N__MAX_DEPTH + 2) /* rounds in flight use the newest of these */

/* Takes over the caller's reference, also on failure. */
int m2n__channel_use_map(struct m2n_channel *ch, struct m2n_map *map, uint64_t first_round)
{
	struct m2n__map_use *use = calloc(1, sizeof(*use)), *last;
	int n = 1;

	if (!use) {
		m2n__map_unref(map);
		return m2n__error(-ENOMEM, "%s: no memory for an expert map", ch->title);
	}
	use->map = map;
	use->first_round = first_round;
	use->older = atomic_load_explicit(&ch->maps, memory_order_relaxed);
	/* R5: the node before its address, pairs with A5 in m2n__channel_map(). */
	atomic_store_explicit(&ch->maps, use, memory_order_release);
	for (last = use; last->older && n < KEPT_MAPS; last = last->older)
		n++;
	/* who links from now on must have this map */
	for (int i = 0; i < 3; i++) {
		struct m2n_exchange *x = i == 0 ? ch->dispatch : i == 1 ? ch->reply : ch->grant;

		if (x)
			x->spec.shape.value[ch->shape_map] = map->digest;
	}
	if (last->older) {
		m2n__map_unref(last->older->map);
		free(last->older);
		last->older = NULL;
	}
	return 0;
}

static int bad(
	const struct m2n_channel_params *p, const char *field, uint64_t value, const char *range)
{
	return m2n__error(-EINVAL, "channel '%s': %s is %lu, accepted: %s", p->name ? p->name : "?",
		field, (unsigned long)value, range);
}

static int check_numbers(const struct m2n_channel_params *p)
{
	size_t values = p->out_row_bytes ? p->out_row_bytes : p->row_bytes;

	if (!p->name || !p->name[0] || strlen(p->name) > 15)
		return m2n__error(-EINVAL, "channel name '%s': 1..15 characters",
			p->name ? p->name : "(NULL)");
	if (p->depth < 1 || p->depth > M2N__MAX_DEPTH)
		return bad(p, "depth", p->depth, "1..64");
	if (p->top_k < 1 || p->top_k > M2N__MAX_TOP_K)
		return bad(p, "top_k", p->top_k, "1..64");
	if (p->max_tokens < 1 || p->max_tokens > 1u << 24)
		return bad(p, "max_tokens", p->max_tokens, "1..16777216");
	if ((uint64_t)p->max_tokens * p->top_k > INT32_MAX)
		return bad(
			p, "max_tokens * top_k", (uint64_t)p->max_tokens * p->top_k, "below 2^31");
	if (p->row_bytes < 1 || p->row_bytes > 1u << 30)
		return bad(p, "row_bytes", p->row_bytes, "1..2^30");
	if (p->scale_bytes > 1u << 24)
		return bad(p, "scale_bytes", p->scale_bytes, "0..2^24");
	if (p->out_row_bytes > 1u << 30)
		return bad(p, "out_row_bytes", p->out_row_bytes, "0..2^30");
	if ((unsigned)p->dtype > M2N_DTYPE_F16)
		return bad(p, "dtype", (uint64_t)p->dtype, "F32, BF16, F16");
	if (values % m2n__dtype_bytes(p->dtype))
		return bad(p, "out_row_bytes", values, "a multiple of the dtype's size");
	if ((unsigned)p->placement > M2N_PLACEMENT_EXACT)
		return bad(p, "placement", (uint64_t)p->placement, "SLOT, EXACT");
	if ((unsigned)p->overflow > M2N_OVERFLOW_DROP)
		return bad(p, "overflow", (uint64_t)p->overflow, "ERROR, DROP");
	if ((unsigned)p->memory > M2N_MEMORY_CUDA)
		return bad(p, "memory", (uint64_t)p->memory, "HOST, CUDA");
	if ((unsigned)p->cast > M2N_CAST_BF16_FP8)
		return bad(p, "cast", (uint64_t)p->cast, "NONE, BF16_FP8");
	if (p->cast && p->scale_bytes !=
			       (p->row_bytes + M2N__FP8_BLOCK - 1) / M2N__FP8_BLOCK * sizeof(float))
		return bad(p, "scale_bytes", p->scale_bytes,
			"4 * ceil(row_bytes / 128) with cast BF16_FP8");
	if (p->cast && !p->out_row_bytes)
		return bad(p, "out_row_bytes", 0, "given explicitly with a cast");
	if (p->reduce_at_expert && !p->dedup)
		return bad(p, "reduce_at_expert", 1, "only together with dedup");
	return 0;
}

static int check_list(const struct m2n_channel_params *p, const char *what, const char *n_what,
	const int *ranks, size_t n)
{
	if (!ranks)
		return m2n__error(-EINVAL, "channel '%s': %s is NULL", p->name, what);
	if (n < 1 || n > 65535)
		return bad(p, n_what, n, "1..65535");
	for (size_t i = 0; i < n; i++) {
		if (ranks[i] < 0 || ranks[i] >= M2N__MAX_RANKS)
			return m2n__error(-EINVAL, "channel '%s': %s[%zu] is %d, accepted: 0..%d",
				p->name, what, i, ranks[i], M2N__MAX_RANKS - 1);
		for (size_t k = 0; k < i; k++)
			if (ranks[k] == ranks[i])
				return m2n__error(-EINVAL, "channel '%s': rank %d is in %s twice",
					p->name, ranks[i], what);
	}
	return 0;
}

static int check_map(const struct m2n_channel_params *p)
{
	if (!p->map && (p->n_experts < 1 || p->n_experts > 1u << 20))
		return bad(p, "n_experts", p->n_experts, "1..1048576, or a map");
	if (p->map && p->n_experts && p->n_experts != p->map->n_experts)
		return m2n__error(-EINVAL, "channel '%s': n_experts is %u, the map has %u", p->name,
			p->n_experts, p->map->n_experts);
	if (p->map && p->map->n_ranks != p->n_expert_ranks)
		return m2n__error(-EINVAL, "channel '%s': %zu expert ranks, the map is for %u",
			p->name, p->n_expert_ranks, p->map->n_ranks);
	return 0;
}

static int copy_lists(struct m2n_channel *ch)
{
	struct m2n_channel_params *p = &ch->p;
	int *at;

	ch->ranks = malloc((p->n_sources + p->n_expert_ranks + p->n_sinks) * sizeof(int));
	if (!ch->ranks)
		return m2n__error(-ENOMEM, "%s: no memory for lists of ranks", ch->title);
	at = ch->ranks;
	memcpy(at, p->sources, p->n_sources * sizeof(int));
	p->sources = at;
	at += p->n_sources;
	memcpy(at, p->experts, p->n_expert_ranks * sizeof(int));
	p->experts = at;
	at += p->n_expert_ranks;
	memcpy(at, ch->own_sinks ? p->sources : p->sinks, p->n_sinks * sizeof(int));
	p->sinks = at;
	return 0;
}

void m2n__channel_release_lists(struct m2n_channel *ch)
{
	struct m2n__map_use *use = atomic_load_explicit(&ch->maps, memory_order_relaxed);

	free(ch->ranks);
	ch->ranks = NULL;
	while (use) {
		struct m2n__map_use *older = use->older;

		m2n__map_unref(use->map);
		free(use);
		use = older;
	}
	atomic_store_explicit(&ch->maps, NULL, memory_order_relaxed);
}

static uint32_t max_u32(uint64_t a, uint64_t b)
{
	uint64_t m = a > b ? a : b;

	return m > UINT32_MAX ? UINT32_MAX : (uint32_t)m;
}

static void derive_sizes(struct m2n_channel *ch, const struct m2n_map *map)
{
	struct m2n_channel_params *p = &ch->p;
	uint64_t pairs = (uint64_t)p->max_tokens * p->top_k;
	uint64_t any = p->dedup ? p->max_tokens : pairs;

	ch->n_words_experts = (uint32_t)(p->n_expert_ranks + 63) / 64;
	ch->n_words_sources = (uint32_t)(p->n_sources + 63) / 64;
	/* room for the map in force and for one that adds replicas later */
	ch->max_local = max_u32(map->max_local,
		2 * ((p->n_experts + p->n_expert_ranks - 1) / p->n_expert_ranks) + 2);
	ch->max_local = ch->max_local < p->n_experts ? ch->max_local : p->n_experts;
	ch->max_instances = max_u32(map->n_instances, 2ull * p->n_experts + p->n_expert_ranks);
	ch->slot_rows = p->placement == M2N_PLACEMENT_SLOT
				? (uint32_t)(p->capacity && p->capacity < any ? p->capacity : any)
				: 0;
	if (p->placement == M2N_PLACEMENT_EXACT) {
		uint64_t all = any * p->n_sources;

		ch->region_rows = p->capacity && p->capacity < all ? p->capacity : max_u32(all, 1);
	}
	ch->reply_rows = (uint32_t)(p->reduce_at_expert && p->n_expert_ranks < p->top_k
					    ? (uint64_t)p->max_tokens * p->n_expert_ranks
					    : pairs);
	ch->n_values = p->out_row_bytes / m2n__dtype_bytes(p->dtype);
}

static int index_in(const int *ranks, size_t n, int rank)
{
	for (size_t i = 0; i < n; i++)
		if (ranks[i] == rank)
			return (int)i;
	return -1;
}

int m2n__channel_derive(const struct m2n_channel_params *params, struct m2n_channel *ch)
{
	struct m2n_channel_params *p = &ch->p;
	int rank = ch->self_source; /* the caller's group rank, on entry */
	struct m2n_map *map = NULL;
	int rc;

	ch->p = *params;
	rc = check_numbers(p);
	if (!rc)
		rc = check_list(
			p, "sources", "n_sources (length of sources)", p->sources, p->n_sources);
	if (!rc)
		rc = check_list(p, "experts", "n_expert_ranks (length of experts)", p->experts,
			p->n_expert_ranks);
	if (!rc && p->sinks)
		rc = check_list(p, "sinks", "n_sinks (length of sinks)", p->sinks, p->n_sinks);
	if (!rc)
		rc = check_map(p);
	if (rc)
		return rc;
	snprintf(ch->name, sizeof(ch->name), "%s", p->name);
	snprintf(ch->title, sizeof(ch->title), "channel '%s'", p->name);
	p->name = ch->name;
	ch->own_sinks = !p->sinks;
	if (ch->own_sinks)
		p->n_sinks = p->n_sources;
	if (!p->out_row_bytes)
		p->out_row_bytes = p->row_bytes;
	rc = copy_lists(ch);
	if (rc)
		return rc;
	if (p->map) /* shared with the caller's handle, which is const to us */
		map = m2n__map_ref((struct m2n_map *)(uintptr_t)p->map);
	else
		rc = m2n_map_create(p->n_experts, (uint32_t)p->n_expert_ranks, NULL, NULL, &map);
	if (!rc)
		rc = m2n__channel_use_map(ch, map, 0);
	if (rc) {
		m2n__channel_release_lists(ch);
		return rc;
	}
	p->map = NULL;
	p->n_experts = map->n_experts;
	derive_sizes(ch, map);
	ch->self_source = index_in(p->sources, p->n_sources, rank);
	ch->self_expert = index_in(p->experts, p->n_expert_ranks, rank);
	ch->self_sink = index_in(p->sinks, p->n_sinks, rank);
	return 0;
}

static uint32_t digest_list(const int *ranks, size_t n)
{
	return m2n__fnv_bytes(M2N__FNV_START, ranks, n * sizeof(*ranks));
}

static void fill_shape(struct m2n_channel *ch, struct m2n__shape *s)
{
	const struct m2n_channel_params *p = &ch->p;

	s->n = 0;
	m2n__shape_add(s, "n_sources", p->n_sources);
	m2n__shape_add(s, "n_expert_ranks", p->n_expert_ranks);
	m2n__shape_add(s, "n_sinks", p->n_sinks);
	m2n__shape_add(s, "sinks given", !ch->own_sinks);
	m2n__shape_add(s, "digest of sources", digest_list(p->sources, p->n_sources));
	m2n__shape_add(s, "digest of experts", digest_list(p->experts, p->n_expert_ranks));
	m2n__shape_add(s, "digest of sinks", digest_list(p->sinks, p->n_sinks));
	m2n__shape_add(s, "n_experts", p->n_experts);
	m2n__shape_add(s, "top_k", p->top_k);
	m2n__shape_add(s, "max_tokens", p->max_tokens);
	m2n__shape_add(s, "row_bytes", p->row_bytes);
	m2n__shape_add(s, "scale_bytes", p->scale_bytes);
	m2n__shape_add(s, "out_row_bytes", p->out_row_bytes);
	m2n__shape_add(s, "dtype", (uint64_t)p->dtype);
	m2n__shape_add(s, "cast", (uint64_t)p->cast);
	m2n__shape_add(s, "placement", (uint64_t)p->placement);
	m2n__shape_add(s, "dedup", !!p->dedup);
	m2n__shape_add(s, "reduce_at_expert", !!p->reduce_at_expert);
	m2n__shape_add(s, "capacity", p->capacity);
	m2n__shape_add(s, "overflow", (uint64_t)p->overflow);
	m2n__shape_add(s, "depth", p->depth);
	m2n__shape_add(s, "memory", (uint64_t)p->memory);
	ch->shape_map = s->n;
	m2n__shape_add(s, "digest of the expert map", m2n__channel_map(ch, UINT64_MAX)->digest);
}

void m2n__channel_specs(struct m2n_channel *ch, struct m2n__exchange_spec *dispatch,
	struct m2n__exchange_spec *reply, struct m2n__exchange_spec *grant)
{
	const struct m2n_channel_params *p = &ch->p;
	uint64_t pairs = (uint64_t)p->max_tokens * p->top_k;
	uint32_t n_rows = (uint32_t)(p->dedup || !ch->slot_rows ? pairs : ch->slot_rows);
	struct m2n__layout l;

	memset(dispatch, 0, sizeof(*dispatch));
	dispatch->title = ch->title;
	fill_shape(ch, &dispatch->shape);
	dispatch->n_slots = p->depth;
	dispatch->memory = p->memory == M2N_MEMORY_CUDA ? M2N__MEM_CUDA : M2N__MEM_HOST;
	*reply = *grant = *dispatch;

	m2n__layout(ch, ch->max_local, n_rows, ch->slot_rows, &l);
	dispatch->slot_bytes = l.end;
	dispatch->stage_bytes = l.scales + M2N__CACHE_LINE; /* zeros at the end: padding */
	if (p->placement == M2N_PLACEMENT_EXACT)
		dispatch->region_bytes = m2n__lines(ch->region_rows * p->scale_bytes) +
					 ch->region_rows * p->row_bytes;
	dispatch->n_region_slots = dispatch->region_bytes ? p->depth : 0;
	dispatch->n_spare_slots = dispatch->n_region_slots;
	dispatch->explicit_credits = !ch->own_sinks;
	dispatch->tx_round = &ch->next_send;
	dispatch->send_to = p->experts;
	dispatch->n_send = ch->self_source >= 0 ? p->n_expert_ranks : 0;
	dispatch->recv_from = p->sources;
	dispatch->n_recv = ch->self_expert >= 0 ? p->n_sources : 0;

	reply->n_slots = p->depth * (uint32_t)(ch->own_sinks ? 1 : p->n_sources);
	reply->region_bytes = m2n__lines(ch->reply_rows * p->out_row_bytes);
	reply->n_region_slots = reply->n_slots;
	reply->n_spare_slots = ch->own_sinks ? p->depth : 0;
	reply->explicit_credits = !ch->own_sinks;
	reply->send_to = p->sinks;
	reply->n_send = ch->self_expert >= 0 ? p->n_sinks : 0;
	reply->recv_from = p->experts;
	reply->n_recv = ch->self_sink >= 0 ? p->n_expert_ranks : 0;

	grant->slot_bytes = grant->stage_bytes = ch->max_local * sizeof(uint32_t);
	grant->send_to = p->sources;
	grant->n_send = ch->self_expert >= 0 ? p->n_sources : 0;
	grant->recv_from = p->experts;
	grant->n_recv = ch->self_source >= 0 ? p->n_expert_ranks : 0;
}

static size_t pages(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (bytes + page - 1) / page * page;
}

/* What one exchange stages when all its peers are messaging ones: prepare_tx(), prepare_rx(). */
static size_t staging_bytes(const struct m2n__exchange_spec *spec)
{
	size_t credits = spec->explicit_credits ? pages(spec->n_slots * sizeof(uint64_t)) : 0;

	return spec->n_send * pages(spec->n_slots * m2n__stage_stride(spec)) +
	       spec->n_recv * credits;
}

/* Room for rows that are made before they leave: m2n__rows_prepare(), m2n__replies_staging(). */
static size_t made_bytes(const struct m2n_channel *ch)
{
	const struct m2n_channel_params *p = &ch->p;
	size_t pairs = (size_t)p->max_tokens * p->top_k, bytes = 0;

	if (ch->self_source >= 0)
		bytes += pages(p->depth * m2n__lines(pairs * (p->row_bytes + p->scale_bytes)));
	if (ch->self_expert >= 0)
		bytes += pages(p->depth * p->n_sources * ch->reply_rows * p->out_row_bytes);
	return bytes;
}

int m2n_channel_query_memory(
	const struct m2n_channel_params *params, int rank, struct m2n_channel_memory *memory)
{
	static const struct m2n_channel_params init = M2N_CHANNEL_PARAMS_INIT;
	struct m2n__exchange_spec spec[3];
	struct m2n_channel_params p;
	struct m2n_channel *ch;
	size_t area[3] = {0}, region[3] = {0}, words[3] = {0};
	size_t staging = 0, made = 0, batch = 0, state;
	int rc = m2n__params_read(&p, sizeof(p), &init, params, "m2n_channel_params");

	if (!rc && (!memory || !params))
		rc = m2n__error(-EINVAL, "m2n_channel_query_memory: params or memory is NULL");
	if (rc)
		return rc;
	ch = aligned_alloc(64, sizeof(*ch));
	if (!ch)
		return m2n__error(-ENOMEM, "no memory for a channel");
	memset(ch, 0, sizeof(*ch));
	ch->self_source = rank;
	rc = m2n__channel_derive(&p, ch);
	if (!rc) {
		m2n__channel_specs(ch, &spec[0], &spec[1], &spec[2]);
		for (int i = 0; i < (p.placement == M2N_PLACEMENT_EXACT ? 3 : 2); i++) {
			m2n__exchange_sizes(&spec[i], &area[i], &region[i], &words[i]);
			staging += staging_bytes(&spec[i]);
		}
		made = made_bytes(ch);
		batch = m2n__gpu_batch_bytes(ch);
		rc = m2n__channel_alloc(ch, &state);
		m2n__channel_free(ch);
		m2n__channel_release_lists(ch);
	}
	free(ch);
	if (rc)
		return rc;
	memory->dispatch_bytes = area[0] + region[0];
	memory->reply_bytes = area[1] + region[1];
	memory->control_bytes = area[2] + words[0] + words[1] + words[2] + state;
	memory->batch_bytes = batch;
	memory->total_bytes = memory->dispatch_bytes + memory->reply_bytes + memory->control_bytes +
			      memory->batch_bytes;
	memory->staging_bytes = staging;
	memory->made_bytes = made;
	return 0;
}
