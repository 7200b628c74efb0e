/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job of M sources and N expert ranks in the memory of one test. Sizes and layouts come from the
 * host's own code (m2n__layout(), host plans), not from the kernels.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/channel.h"
#include "doubles/device_launch.h"
#include "gpu_world.h"
#include "kernel/value.h"

static uint64_t random_state;

void world_seed(uint64_t seed)
{
	random_state = seed;
}

uint32_t world_random(void)
{
	random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(random_state >> 32);
}

void world_fill(enum m2n_dtype dtype, void *at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		store_value(dtype, at, i,
			((int32_t)world_random() / 65536) / 4096.0f *
				(world_random() % 16 ? 1 : 0x1p-9f));
}

static uint64_t address(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

/* ---- sizes --------------------------------------------------------------------------------- */

static void defaults(struct config *c)
{
	c->n_sources = c->n_sources ? c->n_sources : 2;
	c->n_ranks = c->n_ranks ? c->n_ranks : 2;
	c->n_experts = c->n_experts ? c->n_experts : 8;
	c->top_k = c->top_k ? c->top_k : 2;
	c->max_tokens = c->max_tokens ? c->max_tokens : 16;
	c->depth = c->depth ? c->depth : 2;
	c->row_bytes = c->row_bytes ? c->row_bytes : 256;
	if (c->cast)
		c->scale_bytes = (c->row_bytes + M2N__FP8_BLOCK - 1) / M2N__FP8_BLOCK * 4;
	c->out_row_bytes = c->out_row_bytes ? c->out_row_bytes : c->row_bytes;
	c->tokens = c->tokens == UINT32_MAX ? 0 : c->tokens ? c->tokens : c->max_tokens;
}

uint32_t world_n_tokens(const struct world *w)
{
	return w->c.tokens;
}

/* As core/channel_shape.c derives them. */
static void fill_shape(struct world *w)
{
	const struct config *c = &w->c;
	struct m2n__gpu_shape *s = &w->shape;
	uint32_t pairs = c->max_tokens * c->top_k, any = c->dedup ? c->max_tokens : pairs;
	static struct m2n_channel ch;
	struct m2n__layout l;

	s->n_sources = c->n_sources;
	s->n_ranks = c->n_ranks;
	s->n_experts = c->n_experts;
	s->top_k = c->top_k;
	s->max_tokens = c->max_tokens;
	s->depth = c->depth;
	s->self_source = s->self_rank = M2N__GPU_NONE;
	s->slot_rows = c->capacity && c->capacity < any ? c->capacity : any;
	s->rank_capacity = c->capacity;
	s->max_local = w->host_map->max_local;
	s->reply_rows = pairs;
	s->n_region_slots = 2 * c->depth;
	s->dtype = c->dtype;
	s->cast = c->cast;
	s->dedup = (uint8_t)c->dedup;
	s->reduce_at_expert = (uint8_t)c->reduce_at_expert;
	s->drop_overflow = (uint8_t)c->drop_overflow;
	s->row_bytes = c->row_bytes;
	s->scale_bytes = c->scale_bytes;
	s->out_row_bytes = c->out_row_bytes;
	s->n_values = c->out_row_bytes / m2n__dtype_bytes(c->dtype);
	ch.p.dedup = c->dedup;
	ch.p.reduce_at_expert = c->reduce_at_expert;
	ch.p.row_bytes = c->row_bytes;
	ch.p.scale_bytes = c->scale_bytes;
	m2n__layout(&ch, s->max_local, c->dedup ? pairs : s->slot_rows, s->slot_rows, &l);
	s->slot_stride = 64 + m2n__lines(l.end);
	s->reply_slot_stride = 64;
	s->reply_region_bytes = m2n__lines(s->reply_rows * c->out_row_bytes);
}

struct m2n__gpu_shape world_shape_of(const struct world *w, int source, int rank)
{
	struct m2n__gpu_shape shape = w->shape;

	shape.self_source = (uint32_t)source;
	shape.self_rank = (uint32_t)rank;
	return shape;
}

static uint64_t copy_u32(const uint32_t *from, size_t n)
{
	uint32_t *to = device_alloc(n * sizeof(*to));

	memcpy(to, from, n * sizeof(*to));
	return address(to);
}

static void make_map(struct world *w)
{
	uint32_t n = w->c.n_experts, each = w->c.replicas ? (uint32_t)w->c.replicas : 1;
	uint32_t *first = calloc(n + 1, sizeof(*first));
	uint32_t *owners = calloc(n * each, sizeof(*owners));
	uint32_t *ranks;

	for (uint32_t e = 0; e < n; e++) { /* some have fewer, on ranks out of order */
		uint32_t some = each > 1 && e % 3 == 0 ? each - 1 : each;

		for (uint32_t i = 0; i < some; i++)
			owners[first[e] + i] = (e * 3 + i * (w->c.n_ranks - 1)) % w->c.n_ranks;
		first[e + 1] = first[e] + some;
	}
	assert_int_equal(m2n_map_create(n, w->c.n_ranks, each > 1 ? first : NULL,
				 each > 1 ? owners : NULL, &w->host_map), 0);
	free(first);
	free(owners);
	ranks = calloc(w->host_map->n_instances, sizeof(*ranks));
	for (uint32_t i = 0; i < w->host_map->n_instances; i++)
		ranks[i] = w->host_map->rank_of[i];
	w->map.digest = w->host_map->digest;
	w->map.n_instances = w->host_map->n_instances;
	w->map.owner_first = copy_u32(w->host_map->owner_first, n + 1);
	w->map.owner_instance = copy_u32(w->host_map->owner_instance, w->map.n_instances);
	w->map.rank_first = copy_u32(w->host_map->rank_first, w->c.n_ranks + 1);
	w->map.rank_of = copy_u32(ranks, w->map.n_instances);
	w->map.expert_of = copy_u32(w->host_map->expert_of, w->map.n_instances);
	free(ranks);
}

/* ---- memory -------------------------------------------------------------------------------- */

static uint64_t room(size_t n, size_t each)
{
	return address(device_alloc(n && each ? n * each : 1));
}

static void make_plan(struct world *w, struct source *s)
{
	const struct config *c = &w->c;
	size_t pairs = (size_t)c->max_tokens * c->top_k;
	struct m2n__plan_limits limits = {.max_tokens = c->max_tokens, .top_k = c->top_k,
		.n_experts = c->n_experts, .n_ranks = c->n_ranks,
		.max_instances = w->map.n_instances, .rank_capacity = c->capacity,
		.dedup = c->dedup, .reduce_at_expert = c->reduce_at_expert,
		.drop_overflow = c->drop_overflow};

	assert_int_equal(m2n__plan_create(&limits, &s->host), 0);
	s->plan.pair_instance = room(pairs, 4);
	s->plan.pair_position = room(pairs, 4);
	s->plan.pair_unique = c->dedup || c->capacity ? room(pairs, 4) : 0;
	s->plan.weight = room(pairs, 4);
	s->plan.dropped = room(c->max_tokens, 1);
	s->plan.count = room(w->map.n_instances, 4);
	s->plan.first = room(w->map.n_instances + 1, 4);
	s->plan.rank_first = room(c->n_ranks + 1, 4);
	s->plan.unique_first = c->dedup ? room(c->n_ranks + 1, 4) : s->plan.rank_first;
	s->plan.work = room(1, M2N__GPU_WORK_BYTES(c->n_ranks));
	s->plan.n_tokens = room(1, 4);
	s->summary = device_alloc(sizeof(*s->summary) + 4 * c->n_ranks);
	s->plan.summary = address(s->summary);
}

static void make_source(struct world *w, struct source *s)
{
	const struct config *c = &w->c;
	size_t n = c->max_tokens, pairs = n * c->top_k;
	size_t given = c->row_bytes * (c->cast ? 2 : 1);

	make_plan(w, s);
	s->ids = device_alloc(pairs * 4);
	s->weights = device_alloc(pairs * 4);
	s->row_weights = device_alloc(pairs * 4);
	s->row_stride = given + c->pad;
	s->scale_stride = c->scale_bytes + c->pad;
	s->out_stride = c->out_row_bytes + c->pad;
	s->rows = (uint8_t *)device_alloc(n * s->row_stride + c->pad) + c->pad;
	s->scales = (uint8_t *)device_alloc(n * s->scale_stride + c->pad + 1) + c->pad;
	s->residual = (uint8_t *)device_alloc(n * s->out_stride + c->pad) + c->pad;
	s->out = (uint8_t *)device_alloc(n * s->out_stride + c->pad) + c->pad;
	s->replies = device_alloc(pairs * c->out_row_bytes);
	s->missing = device_alloc(n);
	s->tx = device_alloc(c->n_ranks * sizeof(*s->tx));
	s->rx = device_alloc(c->n_ranks * sizeof(*s->rx));
	s->posts = device_alloc(c->n_ranks * c->depth * sizeof(*s->posts));
	s->staging = device_alloc(c->n_ranks * c->depth * w->shape.slot_stride);
	s->reply_slots = device_alloc(c->n_ranks * c->depth * (size_t)64);
	s->region = device_alloc(w->shape.n_region_slots * w->shape.reply_region_bytes);
	s->alive = device_alloc(c->n_ranks * 4);
	s->places = device_alloc(c->depth * 4);
	s->held = device_alloc(2 * c->depth * 4);
	s->part = device_alloc(c->depth * 8 * M2N__GPU_MASK_WORDS);
	s->answered = device_alloc(c->depth * 8 * M2N__GPU_MASK_WORDS);
	s->rounds = device_alloc(sizeof(*s->rounds));
	s->send_report = device_alloc(sizeof(*s->send_report));
	s->combine_report = device_alloc(sizeof(*s->combine_report));
	s->sent = device_alloc(c->n_ranks * sizeof(*s->sent));
	s->received = device_alloc(c->n_ranks * sizeof(*s->received));
	s->out_row = calloc(pairs, sizeof(*s->out_row));
	for (uint32_t i = 0; i < c->depth; i++)
		s->places[i] = i;
}

static void make_batch(struct world *w, struct rank *r)
{
	const struct config *c = &w->c;
	size_t n = c->n_sources, cells = w->shape.max_local * n;
	size_t rows = n * (c->dedup ? c->max_tokens * c->top_k : w->shape.slot_rows);

	r->batch.round = room(1, 8);
	r->batch.cell_rows = room(cells, 4);
	r->batch.cell_first = room(cells + 1, 4);
	r->batch.cell_source = room(cells, 4);
	r->batch.expert_rows = room(w->shape.max_local, 4);
	r->batch.expert_first = room(w->shape.max_local + 1, 4);
	r->batch.source_rows = room(n, 4);
	r->batch.source_sent = room(n, 4);
	r->batch.place = room(n, 8);
	r->batch.present = room(M2N__GPU_MASK_WORDS, 8);
	r->batch.rows = room(rows, c->row_bytes);
	r->batch.scales = room(rows, c->scale_bytes);
	r->mirror = device_alloc(sizeof(*r->mirror) + 4 * cells);
	r->batch.mirror = address(r->mirror);
	r->out_stride = c->out_row_bytes + c->pad;
	r->out_rows = (uint8_t *)device_alloc(rows * r->out_stride + c->pad) + c->pad;
}

static void make_rank(struct world *w, uint32_t j)
{
	const struct config *c = &w->c;
	struct rank *r = &w->rank[j];
	size_t n = c->n_sources;

	make_batch(w, r);
	r->n_local = m2n_map_n_local(w->host_map, j);
	r->slots = device_alloc(n * c->depth * w->shape.slot_stride);
	r->rx = device_alloc(n * sizeof(*r->rx));
	r->tx = device_alloc(n * sizeof(*r->tx));
	r->posts = device_alloc(n * c->depth * sizeof(*r->posts));
	r->reply_heads = device_alloc(n * c->depth * (size_t)64);
	r->reply_staging =
		device_alloc(n * w->shape.n_region_slots * w->shape.reply_region_bytes);
	r->alive = device_alloc(n * 4);
	r->rounds = device_alloc(sizeof(*r->rounds));
	r->received = device_alloc(n * sizeof(*r->received));
	r->sent = device_alloc(n * sizeof(*r->sent));
	r->recv_report = device_alloc(sizeof(*r->recv_report));
	r->reply_report = device_alloc(sizeof(*r->reply_report));
}

struct m2n__gpu_head *world_slot(struct world *w, uint32_t s, uint32_t j, uint64_t round)
{
	size_t slot = s * w->c.depth + round % w->c.depth;

	return (struct m2n__gpu_head *)(void *)(w->rank[j].slots + slot * w->shape.slot_stride);
}

struct m2n__gpu_head *world_reply_head(struct world *w, uint32_t s, uint32_t j, uint64_t round)
{
	size_t slot = j * w->c.depth + round % w->c.depth;

	return (struct m2n__gpu_head *)(void *)(w->source[s].reply_slots + slot * 64);
}

/* The four ends of source s and rank j. */
static void link(struct world *w, uint32_t s, uint32_t j)
{
	struct source *source = &w->source[s];
	struct rank *rank = &w->rank[j];
	uint32_t depth = w->c.depth;
	uint64_t regions = w->shape.n_region_slots * w->shape.reply_region_bytes;

	source->alive[j] = rank->alive[s] = 1;
	source->tx[j] = (struct m2n__gpu_tx){.slots = address(world_slot(w, s, j, 0)), .live = 1};
	rank->rx[s] = (struct m2n__gpu_rx){.slots = address(world_slot(w, s, j, 0))};
	rank->tx[s] = (struct m2n__gpu_tx){.slots = address(world_reply_head(w, s, j, 0)),
		.region = address(source->region), .live = 1};
	source->rx[j] = (struct m2n__gpu_rx){.slots = address(world_reply_head(w, s, j, 0))};
	if (!w->c.is_messaging)
		return;
	source->tx[j].slots = address(source->staging + j * depth * w->shape.slot_stride);
	source->tx[j].post = address(source->posts + j * depth);
	rank->rx[s].arrived = room(2 * depth, 8);
	rank->rx[s].seen = room(2 * depth, 8);
	rank->tx[s].slots = address(rank->reply_heads + s * depth * (size_t)64);
	rank->tx[s].region = address(rank->reply_staging + s * regions);
	rank->tx[s].post = address(rank->posts + s * depth);
	source->rx[j].arrived = room(2 * depth, 8);
	source->rx[j].seen = room(2 * depth, 8);
}

void world_open(struct world *w, const struct config *c)
{
	memset(w, 0, sizeof(*w));
	w->c = *c;
	defaults(&w->c);
	make_map(w);
	fill_shape(w);
	for (uint32_t s = 0; s < w->c.n_sources; s++)
		make_source(w, &w->source[s]);
	for (uint32_t j = 0; j < w->c.n_ranks; j++)
		make_rank(w, j);
	for (uint32_t s = 0; s < w->c.n_sources; s++)
		for (uint32_t j = 0; j < w->c.n_ranks; j++)
			link(w, s, j);
}

void world_close(struct world *w)
{
	for (uint32_t s = 0; s < w->c.n_sources; s++) {
		m2n__plan_destroy(w->source[s].host);
		free(w->source[s].out_row);
	}
	m2n_map_destroy(w->host_map);
	device_free_all();
}

/* ---- inputs -------------------------------------------------------------------------------- */

static int32_t next_id(const struct config *c, uint32_t s, uint32_t k, int32_t before)
{
	uint32_t expert = world_random() % c->n_experts;

	switch (c->routing) {
	case ROUTE_ALL_TO_ONE:
		return (int32_t)(c->n_experts - 1 - s % 2);
	case ROUTE_NONE:
		return -1;
	case ROUTE_HOLES:
		return world_random() % 3 ? (int32_t)expert : -1;
	case ROUTE_REPEATED:
		return k % 2 ? before : (int32_t)expert;
	default:
		return c->top_k == c->n_experts ? (int32_t)k : (int32_t)expert;
	}
}

/* Values that break casts: infinities, NaN, the smallest, the largest; and blocks of zeros. */
static void spoil(uint8_t *row, size_t n_values)
{
	static const uint16_t bits[] = {0x7f80, 0xff80, 0x7fc1, 0x0001, 0x8000, 0x7f7f, 0x0080};

	for (size_t i = 0; i < n_values; i++)
		if (world_random() % 23 == 0)
			memcpy(row + 2 * i, &bits[world_random() % 7], 2);
	if (n_values > 200 && world_random() % 2)
		memset(row + 256, world_random() % 2, 2 * (n_values - 128));
}

void world_route(struct world *w, uint32_t s)
{
	const struct config *c = &w->c;
	struct source *source = &w->source[s];
	size_t n = world_n_tokens(w), given = c->row_bytes * (c->cast ? 2 : 1);
	int has_values = c->cast || c->with_row_weights;
	enum m2n_dtype dtype = c->cast ? M2N_DTYPE_BF16 : c->dtype;
	int32_t before = -1;

	for (size_t p = 0; p < n * c->top_k; p++) {
		before = source->ids[p] = next_id(c, s, (uint32_t)(p % c->top_k), before);
		world_fill(M2N_DTYPE_F32, &source->weights[p], 1);
		world_fill(M2N_DTYPE_F32, &source->row_weights[p], 1);
	}
	for (size_t t = 0; t < n; t++) {
		uint8_t *row = source->rows + t * source->row_stride;

		for (size_t i = 0; i < given; i++)
			row[i] = (uint8_t)world_random();
		if (has_values)
			world_fill(dtype, row, given / m2n__dtype_bytes(dtype));
		if (c->cast && t % 2)
			spoil(row, c->row_bytes);
		for (size_t i = 0; i < c->scale_bytes; i++)
			source->scales[t * source->scale_stride + i] = (uint8_t)world_random();
		world_fill(c->dtype, source->residual + t * source->out_stride, w->shape.n_values);
	}
}

/* ---- arguments ----------------------------------------------------------------------------- */

struct m2n__gpu_plan_args world_plan_args(struct world *w, uint32_t s)
{
	struct source *source = &w->source[s];

	return (struct m2n__gpu_plan_args){.shape = world_shape_of(w, (int)s, -1), .map = w->map,
		.plan = source->plan, .ids = address(source->ids),
		.weights = w->c.without_weights ? 0 : address(source->weights),
		.tx = address(source->tx), .ticket = ++w->ticket, .n_tokens = world_n_tokens(w)};
}

struct m2n__gpu_dispatch_args world_dispatch_args(struct world *w, uint32_t s)
{
	struct source *source = &w->source[s];
	int given_scales = w->c.scale_bytes && !w->c.cast;

	return (struct m2n__gpu_dispatch_args){.shape = world_shape_of(w, (int)s, -1),
		.map = w->map, .plan = source->plan, .rows = address(source->rows),
		.row_stride = source->row_stride,
		.scales = given_scales ? address(source->scales) : 0,
		.scale_stride = source->scale_stride,
		.row_weights = w->c.with_row_weights ? address(source->row_weights) : 0,
		.tx = address(source->tx), .rounds = address(source->rounds),
		.places = address(source->places), .part = address(source->part),
		.counts = address(source->sent), .report = address(source->send_report)};
}

struct m2n__gpu_recv_args world_recv_args(struct world *w, uint32_t j)
{
	struct rank *rank = &w->rank[j];

	return (struct m2n__gpu_recv_args){.shape = world_shape_of(w, -1, (int)j), .map = w->map,
		.batch = rank->batch, .rx = address(rank->rx), .alive = address(rank->alive),
		.counts = address(rank->received), .rounds = address(rank->rounds),
		.report = address(rank->recv_report),
		.ticket = ++w->ticket, .timeout_ns = INT64_C(10000000000),
		.n_local = rank->n_local};
}

struct m2n__gpu_reply_args world_reply_args(struct world *w, uint32_t j)
{
	struct rank *rank = &w->rank[j];

	return (struct m2n__gpu_reply_args){.shape = world_shape_of(w, -1, (int)j), .map = w->map,
		.batch = rank->batch, .rows = address(rank->out_rows),
		.row_stride = rank->out_stride, .rx = address(rank->rx),
		.tx = address(rank->tx), .counts = address(rank->sent),
		.rounds = address(rank->rounds), .report = address(rank->reply_report),
		.n_local = rank->n_local};
}

struct m2n__gpu_combine_args world_combine_args(struct world *w, uint32_t s)
{
	struct source *source = &w->source[s];

	return (struct m2n__gpu_combine_args){.shape = world_shape_of(w, (int)s, -1),
		.map = w->map, .plan = source->plan, .rx = address(source->rx),
		.alive = address(source->alive), .counts = address(source->received),
		.region = address(source->region),
		.places = address(source->places), .held = address(source->held),
		.part = address(source->part), .answered = address(source->answered),
		.rounds = address(source->rounds), .report = address(source->combine_report),
		.unit_weights = (uint32_t)w->c.with_unit_weights,
		.residual = w->c.with_residual ? address(source->residual) : 0,
		.residual_stride = source->out_stride, .out = address(source->out),
		.out_stride = source->out_stride,
		.replies = w->c.with_replies ? address(source->replies) : 0,
		.missing = address(source->missing), .timeout_ns = INT64_C(10000000000)};
}

/* ---- steps --------------------------------------------------------------------------------- */

void world_plan(struct world *w)
{
	for (uint32_t s = 0; s < w->c.n_sources; s++) {
		struct m2n__gpu_plan_args args = world_plan_args(w, s);

		if (w->c.dedup || w->c.capacity)
			device_run(M2N__GPU_PLAN_RANKS, &args.shape, args.n_tokens, &args);
		device_run(M2N__GPU_PLAN, &args.shape, args.n_tokens, &args);
		assert_true(w->source[s].summary->ticket == args.ticket);
	}
}

static uint8_t *bytes_at(uint64_t at)
{
	return (uint8_t *)(uintptr_t)at;
}

/* What the progress thread does with a post: body first, then the head, then the counts. */
static void carry(const struct m2n__gpu_post *post, const struct m2n__gpu_tx *tx,
	const struct m2n__gpu_rx *rx, uint64_t stride, uint8_t *region, uint32_t slot)
{
	uint64_t *arrived = (uint64_t *)(uintptr_t)rx->arrived + 2 * slot;
	const struct m2n__gpu_head *head =
		(const struct m2n__gpu_head *)(const void *)(bytes_at(tx->slots) + slot * stride);

	assert_int_equal(head->n_body_puts, post->body_bytes > 0);
	if (post->body_bytes) {
		memcpy(region + post->body_at, bytes_at(tx->region) + post->body_at,
			post->body_bytes);
		__atomic_fetch_add(&arrived[1], 1, __ATOMIC_RELEASE);
	}
	memcpy(bytes_at(rx->slots) + slot * stride, bytes_at(tx->slots) + slot * stride,
		post->head_bytes);
	__atomic_fetch_add(&arrived[0], 1, __ATOMIC_RELEASE);
}

void world_dispatch(struct world *w)
{
	for (uint32_t s = 0; s < w->c.n_sources; s++) {
		struct m2n__gpu_dispatch_args args = world_dispatch_args(w, s);
		struct source *source = &w->source[s];
		uint64_t round = source->rounds->send;
		uint32_t slot = (uint32_t)(round % w->c.depth);

		device_run(m2n__gpu_dispatch_kernel(&args), &args.shape, w->c.max_tokens, &args);
		assert_true(source->rounds->send == round + 1);
		for (uint32_t j = 0; w->c.is_messaging && j < w->c.n_ranks; j++) {
			const struct m2n__gpu_post *post = &source->posts[j * w->c.depth + slot];

			if (post->seq == round + 1)
				carry(post, &source->tx[j], &w->rank[j].rx[s],
					w->shape.slot_stride, NULL, slot);
		}
	}
}

void world_receive(struct world *w)
{
	for (uint32_t j = 0; j < w->c.n_ranks; j++) {
		struct m2n__gpu_recv_args args = world_recv_args(w, j);

		device_run(M2N__GPU_AWAIT_ROWS, &args.shape, w->c.n_sources, &args);
		assert_true(w->rank[j].mirror->ticket == args.ticket);
		device_run(M2N__GPU_UNPACK, &args.shape, w->c.max_tokens, &args);
	}
}

void world_reply(struct world *w)
{
	for (uint32_t j = 0; j < w->c.n_ranks; j++) {
		struct m2n__gpu_reply_args args = world_reply_args(w, j);
		struct rank *rank = &w->rank[j];
		uint64_t round = *(uint64_t *)(uintptr_t)rank->batch.round;
		uint32_t slot = (uint32_t)(round % w->c.depth);

		device_run(m2n__gpu_reply_kernel(&args), &args.shape, w->c.max_tokens, &args);
		for (uint32_t s = 0; w->c.is_messaging && s < w->c.n_sources; s++) {
			const struct m2n__gpu_post *post = &rank->posts[s * w->c.depth + slot];

			if (post->seq == round + 1)
				carry(post, &rank->tx[s], &w->source[s].rx[j], 64,
					w->source[s].region, slot);
		}
	}
}

void world_combine(struct world *w)
{
	for (uint32_t s = 0; s < w->c.n_sources; s++) {
		struct m2n__gpu_combine_args args = world_combine_args(w, s);
		struct source *source = &w->source[s];
		uint64_t round = source->rounds->combine;

		device_run(M2N__GPU_AWAIT_REPLIES, &args.shape, w->c.n_ranks, &args);
		device_run(M2N__GPU_COMBINE, &args.shape, w->c.max_tokens, &args);
		assert_true(source->rounds->combine == round + 1);
	}
}
