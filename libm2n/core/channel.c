/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channels: creation and destruction, expert maps by round, admission of replaced sources,
 * counters. The rounds themselves are in dispatch_*.c and combine_*.c.
 */
#include "core/channel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

/* Allocates n zeroed elements, or only counts them while sizes are asked for. */
struct counter {
	size_t bytes;
	int counting;
	int failed;
};

static void *take(struct counter *c, size_t n, size_t each)
{
	void *p;

	c->bytes += n * each;
	if (c->counting)
		return NULL;
	p = calloc(n ? n : 1, each);
	if (!p)
		c->failed = 1;
	return p;
}

static void alloc_source(struct m2n_channel *ch, struct counter *c)
{
	const struct m2n_channel_params *p = &ch->p;
	size_t words = ch->n_words_experts;

	ch->open = take(c, p->depth, sizeof(*ch->open));
	for (uint32_t i = 0; i < p->depth && (ch->open || c->counting); i++) {
		uint64_t *bits = take(c, 4 * words, sizeof(*bits));

		if (!bits)
			continue;
		ch->open[i].part = bits;
		ch->open[i].answered = bits + words;
		ch->open[i].refused = bits + 2 * words;
		ch->open[i].ungranted = bits + 3 * words;
	}
	ch->row_base = take(c, p->n_expert_ranks, sizeof(*ch->row_base));
	ch->scale_base = take(c, p->n_expert_ranks, sizeof(*ch->scale_base));
	ch->scratch = take(c, p->row_bytes + 64, 1);
	ch->scratch_scales = take(c, p->scale_bytes + 64, 1);
	ch->pieces = take(c, 2 * (size_t)p->max_tokens * p->top_k + 8, sizeof(*ch->pieces));
}

static void alloc_expert(struct m2n_channel *ch, struct counter *c)
{
	const struct m2n_channel_params *p = &ch->p;
	size_t cells = (size_t)ch->max_local * p->n_sources;
	size_t pairs = (size_t)p->max_tokens * p->top_k;

	ch->batches = take(c, p->depth, sizeof(*ch->batches));
	for (uint32_t i = 0; i < p->depth && (ch->batches || c->counting); i++) {
		struct m2n__batch none, *b = ch->batches ? &ch->batches[i] : &none;

		b->shares = take(c, p->n_sources, sizeof(*b->shares));
		b->counts = take(c, cells, sizeof(*b->counts));
		b->first = take(c, cells, sizeof(*b->first));
		b->expert_rows = take(c, ch->max_local, sizeof(*b->expert_rows));
		b->segments = take(c, cells, sizeof(*b->segments));
		b->next_segment = take(c, cells, sizeof(*b->next_segment));
		b->missing = take(c, ch->n_words_sources, sizeof(*b->missing));
	}
	if (p->reduce_at_expert) {
		ch->reduce_first = take(c, pairs + 2, sizeof(*ch->reduce_first));
		ch->reduce_row = take(c, pairs + 1, sizeof(*ch->reduce_row));
	}
	ch->reply_pieces = take(c, ch->max_local + 8, sizeof(*ch->reply_pieces));
}

int m2n__channel_alloc(struct m2n_channel *ch, size_t *bytes)
{
	const struct m2n_channel_params *p = &ch->p;
	struct counter c = {sizeof(*ch), bytes != NULL, 0};

	if (ch->self_source >= 0)
		alloc_source(ch, &c);
	if (ch->self_expert >= 0)
		alloc_expert(ch, &c);
	if (ch->self_sink >= 0 && !ch->own_sinks) {
		ch->sink_round = take(&c, p->n_sources, sizeof(*ch->sink_round));
		ch->sink_answered = take(&c, p->n_sources * p->depth * ch->n_words_experts,
			sizeof(*ch->sink_answered));
		ch->sink_owed = take(&c, p->n_sources * p->depth, sizeof(*ch->sink_owed));
	}
	if (bytes)
		*bytes = c.bytes;
	return c.failed ? m2n__error(-ENOMEM, "%s: no memory for the state of rounds", ch->title)
			: 0;
}

void m2n__channel_free(struct m2n_channel *ch)
{
	for (uint32_t i = 0; ch->open && i < ch->p.depth; i++)
		free(ch->open[i].part);
	for (uint32_t i = 0; ch->batches && i < ch->p.depth; i++) {
		struct m2n__batch *b = &ch->batches[i];

		free(b->shares);
		free(b->counts);
		free(b->first);
		free(b->expert_rows);
		free(b->segments);
		free(b->next_segment);
		free(b->missing);
	}
	free(ch->open);
	free(ch->batches);
	free(ch->row_base);
	free(ch->scale_base);
	free(ch->scratch);
	free(ch->scratch_scales);
	free(ch->pieces);
	free(ch->reply_pieces);
	free(ch->reduce_first);
	free(ch->reduce_row);
	free(ch->sink_round);
	free(ch->sink_answered);
	free(ch->sink_owed);
}

static int open_one(struct m2n_channel *ch, struct m2n__exchange_spec *spec, const char *suffix,
	struct m2n_exchange **x)
{
	char name[M2N__EXCHANGE_NAME];

	snprintf(name, sizeof(name), "c/%s/%s", ch->name, suffix);
	spec->name = name;
	return m2n__exchange_open(ch->group, spec, x);
}

static int open_exchanges(struct m2n_channel *ch, int64_t timeout_ns)
{
	struct m2n__exchange_spec dispatch, reply, grant;
	int rc;

	m2n__channel_specs(ch, &dispatch, &reply, &grant);
	if (dispatch.memory == M2N__MEM_CUDA) {
		rc = m2n__gpu_check(ch);
		if (rc)
			return rc;
	}
	rc = open_one(ch, &dispatch, "dispatch", &ch->dispatch);
	if (!rc)
		rc = open_one(ch, &reply, "reply", &ch->reply);
	if (!rc && ch->p.placement == M2N_PLACEMENT_EXACT)
		rc = open_one(ch, &grant, "grant", &ch->grant);
	if (!rc && dispatch.memory == M2N__MEM_CUDA)
		rc = m2n__gpu_open(ch);
	if (!rc)
		rc = m2n__exchange_connect(ch->dispatch, timeout_ns);
	if (!rc)
		rc = m2n__exchange_connect(ch->reply, timeout_ns);
	if (!rc && ch->grant)
		rc = m2n__exchange_connect(ch->grant, timeout_ns);
	return rc;
}

/* A rank that replaces an expert rank starts where the sources are. */
static void find_start(struct m2n_channel *ch)
{
	uint64_t first = UINT64_MAX;

	for (size_t i = 0; i < ch->dispatch->n_rx; i++) {
		uint64_t round = atomic_load(&ch->dispatch->rx[i].first_round);

		first = round < first ? round : first;
	}
	atomic_store(&ch->next_recv, first == UINT64_MAX ? 0 : first);
}

int m2n_channel_create(struct m2n_group *group, const struct m2n_channel_params *params,
	struct m2n_channel **channel)
{
	static const struct m2n_channel_params init = M2N_CHANNEL_PARAMS_INIT;
	struct m2n_channel_params p;
	struct m2n_channel *ch;
	int rc = m2n__params_read(&p, sizeof(p), &init, params, "m2n_channel_params");

	if (!rc && (!group || !channel || !params))
		rc = m2n__error(-EINVAL, "m2n_channel_create: group, params or channel is NULL");
	if (rc)
		return rc;
	ch = aligned_alloc(64, sizeof(*ch));
	if (!ch)
		return m2n__error(-ENOMEM, "no memory for a channel");
	memset(ch, 0, sizeof(*ch));
	atomic_flag_clear(&ch->granting);
	ch->group = group;
	ch->ctx = group->ctx;
	ch->send_ring.round = ch->combine_ring.round = ch->recv_ring.round = UINT64_MAX - 1;
	ch->self_source = m2n_group_rank(group);
	rc = m2n__channel_derive(&p, ch);
	if (!rc && ch->self_source < 0 && ch->self_expert < 0 && ch->self_sink < 0)
		rc = m2n__error(-EINVAL, "%s: rank %d is neither source, expert rank nor sink",
			ch->title, m2n_group_rank(group));
	if (!rc)
		rc = m2n__channel_alloc(ch, NULL);
	if (!rc)
		rc = open_exchanges(ch, p.timeout_ns);
	if (rc) {
		m2n_channel_destroy(ch);
		return rc;
	}
	find_start(ch);
	if (ch->gpu)
		rc = m2n__gpu_start(ch->gpu);
	if (rc) {
		m2n_channel_destroy(ch);
		return rc;
	}
	if (ch->grant) {
		m2n__ctx_lock(ch->ctx);
		ch->next_exact = ch->ctx->exact;
		ch->ctx->exact = ch;
		m2n__ctx_unlock(ch->ctx);
	}
	*channel = ch;
	return 0;
}

void m2n_channel_destroy(struct m2n_channel *ch)
{
	if (!ch)
		return;
	m2n__ctx_lock(ch->ctx);
	for (struct m2n_channel **at = &ch->ctx->exact; *at; at = &(*at)->next_exact) {
		if (*at == ch) {
			*at = ch->next_exact;
			break;
		}
	}
	for (uint32_t i = 0; ch->open && i < ch->p.depth; i++)
		m2n__forget_grants(ch, &ch->open[i]);
	if (ch->dispatch)
		m2n__exchange_keep(ch->dispatch, &ch->made_rows);
	if (ch->reply)
		m2n__exchange_keep(ch->reply, &ch->made_replies);
	m2n__ctx_unlock(ch->ctx);
	m2n__gpu_stop(ch);
	m2n__exchange_close(ch->grant);
	m2n__exchange_close(ch->reply);
	m2n__exchange_close(ch->dispatch);
	m2n__gpu_close(ch);
	m2n__channel_free(ch);
	m2n__channel_release_lists(ch);
	free(ch);
}

static uint64_t newest_first_round(struct m2n_channel *ch)
{
	return atomic_load_explicit(&ch->maps, memory_order_relaxed)->first_round;
}

int m2n_channel_set_map(struct m2n_channel *ch, const struct m2n_map *map, uint64_t first_round)
{
	uint64_t sent, received, begun;
	int rc = 0;

	if (!ch || !map)
		return m2n__error(-EINVAL, "m2n_channel_set_map: channel or map is NULL");
	if (map->n_experts != ch->p.n_experts || map->n_ranks != ch->p.n_expert_ranks)
		return m2n__error(-EINVAL,
			"%s: the map has %u experts on %u ranks, accepted: %u on %zu", ch->title,
			map->n_experts, map->n_ranks, ch->p.n_experts, ch->p.n_expert_ranks);
	if (map->n_instances > ch->max_instances || map->max_local > ch->max_local)
		return m2n__error(-EINVAL,
			"%s: the map has %u instances, %u on one rank, accepted: "
			"up to %u and %u",
			ch->title, map->n_instances, map->max_local, ch->max_instances,
			ch->max_local);
	sent = atomic_load_explicit(&ch->next_send, memory_order_relaxed);
	received = atomic_load_explicit(&ch->next_recv, memory_order_relaxed);
	begun = ch->self_source >= 0 && sent > (ch->self_expert >= 0 ? received : 0) ? sent
										     : received;
	if (first_round < begun)
		return m2n__error(-EINVAL,
			"%s: round %lu has begun, the map can be switched from %lu on", ch->title,
			(unsigned long)first_round, (unsigned long)begun);
	m2n__ctx_lock(ch->ctx);
	if (first_round <= newest_first_round(ch) && newest_first_round(ch))
		rc = m2n__error(-EBUSY, "%s: a map for round %lu was set already", ch->title,
			(unsigned long)newest_first_round(ch));
	else if (ch->gpu)
		rc = m2n__gpu_map_add(ch->gpu, (struct m2n_map *)(uintptr_t)map);
	if (!rc)
		rc = m2n__channel_use_map(
			ch, m2n__map_ref((struct m2n_map *)(uintptr_t)map), first_round);
	m2n__ctx_unlock(ch->ctx);
	return rc;
}

uint8_t *m2n__replies_staging(struct m2n_channel *ch, uint32_t round_slot, uint32_t source)
{
	size_t each = ch->reply_rows * ch->p.out_row_bytes;
	size_t all = ch->p.depth * ch->p.n_sources * each;
	int rc = 0;

	if (!ch->made_replies.mem)
		rc = m2n__staging_alloc(ch->ctx, all, &ch->made_replies);
	return rc ? NULL
		  : (uint8_t *)ch->made_replies.mem->base +
			    (round_slot * ch->p.n_sources + source) * each;
}

void m2n__channel_live(struct m2n_channel *ch, uint64_t round, uint64_t *bitmap)
{
	memset(bitmap, 0, ch->n_words_experts * sizeof(*bitmap));
	for (uint32_t j = 0; j < ch->dispatch->n_tx; j++) {
		const struct m2n__tx *tx = &ch->dispatch->tx[j];

		if (m2n__tx_gets(tx, round))
			m2n__bit_set(bitmap, j);
	}
}

/* Whether its link is up already or comes later. */
static void admit(struct m2n__rx *rx, uint64_t first_round)
{
	atomic_store(&rx->admitted, first_round);
	atomic_store(&rx->first_round, first_round);
}

int m2n_channel_admit(struct m2n_channel *ch, int source, uint64_t first_round)
{
	if (!ch || source < 0 || (size_t)source >= ch->p.n_sources)
		return m2n__error(-EINVAL, "m2n_channel_admit: source %d, accepted: 0..%zu", source,
			ch ? ch->p.n_sources - 1 : 0);
	if (source == ch->self_source)
		atomic_store(&ch->next_send, first_round);
	if (source == ch->self_source)
		ch->next_combine = first_round;
	/* the device's count is the host's only while nothing is queued: here nothing was */
	if (source == ch->self_source && ch->gpu && m2n__gpu_start(ch->gpu))
		return m2n__error_at(M2N_ERR_BACKEND, "%s: admit", ch->title);
	if (ch->self_expert >= 0)
		admit(&ch->dispatch->rx[source], first_round);
	if (ch->gpu) {
		m2n__ctx_lock(ch->ctx);
		m2n__exchange_changed(ch->dispatch);
		m2n__ctx_unlock(ch->ctx);
	}
	if (ch->sink_round)
		ch->sink_round[source] = first_round;
	return 0;
}

int m2n_channel_query(struct m2n_channel *ch, struct m2n_channel_attr *attr)
{
	struct m2n_map *map;

	if (!ch || !attr)
		return m2n__error(-EINVAL, "m2n_channel_query: channel or attr is NULL");
	memset(attr, 0, sizeof(*attr));
	attr->source = ch->self_source;
	attr->expert = ch->self_expert;
	attr->sink = ch->self_sink;
	attr->next_send_round = atomic_load_explicit(&ch->next_send, memory_order_relaxed);
	attr->next_recv_round = atomic_load_explicit(&ch->next_recv, memory_order_relaxed);
	map = m2n__channel_map(ch, attr->next_recv_round);
	if (ch->self_expert >= 0)
		attr->n_local_experts = m2n_map_n_local(map, (uint32_t)ch->self_expert);
	for (size_t i = 0; i < ch->dispatch->n_tx; i++)
		attr->staged_bytes += atomic_load_explicit(
			&ch->dispatch->tx[i].tally.staged_bytes, memory_order_relaxed);
	for (size_t i = 0; i < ch->reply->n_tx; i++)
		attr->staged_bytes += atomic_load_explicit(
			&ch->reply->tx[i].tally.staged_bytes, memory_order_relaxed);
	return 0;
}

int m2n_channel_counters(struct m2n_channel *ch, enum m2n_direction direction, int rank,
	struct m2n_counters *sent, struct m2n_counters *received)
{
	struct m2n_exchange *x;
	int found = 0, rc = 0;

	if (!ch || (unsigned)direction > M2N_COMBINE)
		return m2n__error(-EINVAL, "m2n_channel_counters: channel is NULL or direction %d",
			(int)direction);
	x = direction == M2N_DISPATCH ? ch->dispatch : ch->reply;
	if (sent)
		memset(sent, 0, sizeof(*sent));
	if (received)
		memset(received, 0, sizeof(*received));
	for (size_t i = 0; i < x->n_tx; i++) {
		if (x->tx[i].peer->rank != rank || !++found || !sent)
			continue;
		m2n__tally_read(&x->tx[i].tally, sent);
		rc = x->gpu ? m2n__gpu_count(x->gpu, 1, i, sent) : 0;
	}
	for (size_t i = 0; i < x->n_rx && !rc; i++) {
		if (x->rx[i].peer->rank != rank || !++found || !received)
			continue;
		m2n__tally_read(&x->rx[i].tally, received);
		rc = x->gpu ? m2n__gpu_count(x->gpu, 0, i, received) : 0;
	}
	if (rc)
		return rc;
	return found ? 0 : m2n__error(-EINVAL, "%s: no link with rank %d", ch->title, rank);
}

int m2n__region_quarantined(struct m2n_exchange *x, uint32_t place)
{
	int held = 0;

	if (!x->quarantine[place])
		return 0;
	m2n__ctx_lock(x->ctx);
	held = m2n__conn_lingers(x->group, x->quarantine[place]);
	m2n__ctx_unlock(x->ctx);
	if (!held)
		x->quarantine[place] = 0;
	return held;
}

void m2n__region_quarantine(struct m2n_exchange *x, uint32_t place)
{
	m2n__ctx_lock(x->ctx);
	if (m2n__conn_lingers(x->group, x->group->next_conn_id))
		x->quarantine[place] = x->group->next_conn_id;
	m2n__ctx_unlock(x->ctx);
}

int m2n__region_pick_free(struct m2n_exchange *x, uint32_t prefer, uint32_t *place)
{
	uint32_t n = x->spec.n_region_slots, spare = x->spec.n_spare_slots;
	int rc;

	if (!m2n__region_quarantined(x, prefer)) {
		*place = prefer;
		return 0;
	}
	/* the spare of this slot: only ever used while the slot itself is in quarantine */
	if (spare && !m2n__region_quarantined(x, n + prefer)) {
		*place = n + prefer;
		m2n__ctx_lock(x->ctx);
		rc = m2n__mem_commit(
			x->region.mem, *place * x->spec.region_bytes, x->spec.region_bytes);
		m2n__ctx_unlock(x->ctx);
		return rc;
	}
	return m2n__error(-ENOBUFS, "%s: lost ranks that are still alive may write to slot %u",
		x->title, prefer);
}
