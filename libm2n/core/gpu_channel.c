/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channels in CUDA memory: what they hold on the device and in pinned memory, expert maps on the
 * device, creation and destruction. All memory is taken at creation: rounds allocate nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

#define ALIGN ((size_t)256)

/* Parts of one allocation, taken in order; without a base only counted. */
struct span {
	uint8_t *base;
	size_t at;
};

static void *take(struct span *s, size_t n, size_t each)
{
	void *p = s->base ? s->base + s->at : NULL;

	s->at += (n * each + ALIGN - 1) / ALIGN * ALIGN;
	return p;
}

static uint64_t take_address(struct span *s, size_t n, size_t each)
{
	return m2n__gpu_address(take(s, n, each));
}

int m2n__gpu_device(struct m2n_ctx *ctx, struct m2n__cuda **cuda)
{
	int rc = 0;

	if (!ctx->cuda)
		return m2n__error(M2N_ERR_BACKEND, "%s", ctx->cuda_reason);
	m2n__ctx_lock(ctx);
	if (!ctx->cuda->module)
		rc = m2n__cuda_load(ctx->cuda, m2n__gpu_image, m2n__gpu_kernel_names);
	m2n__ctx_unlock(ctx);
	*cuda = ctx->cuda;
	return rc;
}

int m2n__gpu_check(struct m2n_channel *ch)
{
	struct m2n__cuda *cuda;
	int rc = m2n__gpu_device(ch->ctx, &cuda);

	if (rc)
		return m2n__error_at(rc, "%s: memory CUDA", ch->title);
	if (!ch->own_sinks)
		return m2n__error(-ENOTSUP,
			"%s: memory CUDA: sinks that are not the sources are not supported yet; "
			"give no sinks",
			ch->title);
	if (ch->p.placement != M2N_PLACEMENT_SLOT)
		return m2n__error(-ENOTSUP,
			"%s: memory CUDA: placement EXACT is not supported yet; use SLOT",
			ch->title);
	if (ch->p.n_sources > M2N__GPU_MAX_PEERS || ch->p.n_expert_ranks > M2N__GPU_MAX_PEERS)
		return m2n__error(-ENOTSUP,
			"%s: memory CUDA: %zu sources and %zu expert ranks, supported: %d of each",
			ch->title, ch->p.n_sources, ch->p.n_expert_ranks, M2N__GPU_MAX_PEERS);
	return 0;
}

/* Rows of a batch that one source can have: routed pairs. */
static uint32_t source_rows(const struct m2n_channel *ch)
{
	uint64_t pairs = (uint64_t)ch->p.max_tokens * ch->p.top_k;
	uint64_t most = (uint64_t)ch->slot_rows * (ch->p.dedup ? ch->p.top_k : 1);

	return (uint32_t)(most < pairs ? most : pairs);
}

static size_t batch_row_bytes(const struct m2n_channel *ch)
{
	size_t rows = ch->p.n_sources * (size_t)source_rows(ch);

	return m2n__lines(rows * ch->p.scale_bytes) + m2n__lines(rows * ch->p.row_bytes);
}

size_t m2n__gpu_batch_bytes(const struct m2n_channel *ch)
{
	return ch->p.memory == M2N_MEMORY_CUDA && ch->self_expert >= 0
		       ? ch->p.depth * batch_row_bytes(ch)
		       : 0;
}

static void fill_shape(const struct m2n_channel *ch, struct m2n__gpu_shape *s)
{
	const struct m2n_channel_params *p = &ch->p;
	uint64_t any = p->dedup ? p->max_tokens : (uint64_t)p->max_tokens * p->top_k;

	memset(s, 0, sizeof(*s));
	s->n_sources = (uint32_t)p->n_sources;
	s->n_ranks = (uint32_t)p->n_expert_ranks;
	s->n_experts = p->n_experts;
	s->top_k = p->top_k;
	s->max_tokens = p->max_tokens;
	s->depth = p->depth;
	s->self_source = ch->self_source < 0 ? M2N__GPU_NONE : (uint32_t)ch->self_source;
	s->self_rank = ch->self_expert < 0 ? M2N__GPU_NONE : (uint32_t)ch->self_expert;
	s->slot_rows = ch->slot_rows;
	s->rank_capacity = ch->slot_rows < any ? ch->slot_rows : 0;
	s->max_local = ch->max_local;
	s->reply_rows = ch->reply_rows;
	s->n_region_slots = ch->reply->spec.n_region_slots + ch->reply->spec.n_spare_slots;
	s->dtype = (uint32_t)p->dtype;
	s->cast = (uint32_t)p->cast;
	s->dedup = p->dedup != 0;
	s->reduce_at_expert = p->reduce_at_expert != 0;
	s->drop_overflow = p->overflow == M2N_OVERFLOW_DROP;
	s->row_bytes = p->row_bytes;
	s->scale_bytes = p->scale_bytes;
	s->out_row_bytes = p->out_row_bytes;
	s->n_values = ch->n_values;
	s->slot_stride = ch->dispatch->stride;
	s->reply_slot_stride = ch->reply->stride;
	s->reply_region_bytes = ch->reply->spec.region_bytes;
}

static void place_links(struct m2n__gpu_links *links, struct span *device)
{
	const struct m2n_exchange *x = links->x;

	links->tx_table = take(device, x->n_tx, sizeof(*links->tx_table));
	links->rx_table = take(device, x->n_rx, sizeof(*links->rx_table));
	links->tx_counts = take(device, x->n_tx, sizeof(*links->tx_counts));
	links->rx_counts = take(device, x->n_rx, sizeof(*links->rx_counts));
	links->seen = take(device, x->n_rx * 2 * x->spec.n_slots, sizeof(*links->seen));
}

static void place_links_pinned(struct m2n__gpu_links *links, struct span *pinned)
{
	const struct m2n_exchange *x = links->x;

	links->alive = take(pinned, x->n_rx, sizeof(*links->alive));
	links->posts = take(pinned, x->n_tx * x->spec.n_slots, sizeof(*links->posts));
	links->arrived = take(pinned, x->n_rx * 2 * x->spec.n_slots, sizeof(*links->arrived));
}

static void place_batch(struct m2n__gpu *gpu, struct m2n__gpu_batch *b, struct span *device)
{
	size_t n = gpu->shape.n_sources, local = gpu->shape.max_local, cells = n * local;

	b->round = take_address(device, 1, sizeof(uint64_t));
	b->cell_rows = take_address(device, cells, sizeof(uint32_t));
	b->cell_first = take_address(device, cells + 1, sizeof(uint32_t));
	b->cell_source = take_address(device, cells, sizeof(uint32_t));
	b->expert_rows = take_address(device, local, sizeof(uint32_t));
	b->expert_first = take_address(device, local + 1, sizeof(uint32_t));
	b->source_rows = take_address(device, n, sizeof(uint32_t));
	b->source_sent = take_address(device, n, sizeof(uint32_t));
	b->place = take_address(device, n, sizeof(uint64_t));
	b->present = take_address(device, M2N__GPU_MASK_WORDS, sizeof(uint64_t));
}

/* Everything on the device; the second time with a base. */
static void place_device(struct m2n__gpu *gpu, struct span *device)
{
	uint32_t depth = gpu->shape.depth;

	gpu->rounds = take(device, 1, sizeof(*gpu->rounds));
	gpu->places = take(device, depth, sizeof(*gpu->places));
	gpu->part = take(device, depth * M2N__GPU_MASK_WORDS, sizeof(*gpu->part));
	gpu->answered = take(device, depth * M2N__GPU_MASK_WORDS, sizeof(*gpu->answered));
	place_links(&gpu->dispatch, device);
	place_links(&gpu->reply, device);
	for (uint32_t i = 0; i < depth && gpu->ch->self_expert >= 0; i++)
		place_batch(gpu, &gpu->batches[i], device);
}

static void place_pinned(struct m2n__gpu *gpu, struct span *pinned)
{
	size_t cells = (size_t)gpu->shape.n_sources * gpu->shape.max_local;

	gpu->held = take(pinned, 2 * (size_t)gpu->shape.depth, sizeof(*gpu->held));
	gpu->reports = take(pinned, M2N__GPU_N_REPORTS, sizeof(*gpu->reports));
	place_links_pinned(&gpu->dispatch, pinned);
	place_links_pinned(&gpu->reply, pinned);
	for (uint32_t i = 0; i < gpu->shape.depth && gpu->ch->self_expert >= 0; i++)
		gpu->batches[i].mirror = take_address(
			pinned, 1, sizeof(struct m2n__gpu_mirror) + cells * sizeof(uint32_t));
}

static int alloc_rows(struct m2n__gpu *gpu)
{
	const struct m2n_channel *ch = gpu->ch;
	size_t each = batch_row_bytes(ch);
	int rc;

	if (ch->self_expert < 0)
		return 0;
	gpu->max_batch_rows = (uint32_t)ch->p.n_sources * source_rows(ch);
	rc = m2n__mem_alloc_cuda(gpu->cuda, ch->p.depth * each + 1, &gpu->rows);
	for (uint32_t i = 0; i < ch->p.depth && !rc; i++) {
		uint64_t base = m2n__gpu_address(gpu->rows->base) + i * each;

		gpu->batches[i].scales = base;
		gpu->batches[i].rows =
			base + m2n__lines((size_t)gpu->max_batch_rows * ch->p.scale_bytes);
	}
	return rc;
}

static int alloc_memory(struct m2n__gpu *gpu)
{
	struct span device = {0}, pinned = {0};
	uint32_t *places;
	int rc;

	place_device(gpu, &device);
	place_pinned(gpu, &pinned);
	rc = m2n__mem_alloc_cuda(gpu->cuda, device.at, &gpu->device);
	if (!rc)
		rc = m2n__cuda_pinned_alloc(gpu->cuda, pinned.at, &gpu->pinned);
	if (rc)
		return rc;
	device = (struct span){gpu->device->base, 0};
	pinned = (struct span){gpu->pinned, 0};
	place_device(gpu, &device);
	place_pinned(gpu, &pinned);
	places = calloc(gpu->shape.depth, sizeof(*places));
	if (!places)
		return -ENOMEM;
	for (uint32_t i = 0; i < gpu->shape.depth; i++)
		places[i] = i;
	rc = m2n__cuda_write(gpu->cuda, gpu->places, places, gpu->shape.depth * sizeof(*places));
	free(places);
	return rc ? rc : alloc_rows(gpu);
}

static int alloc_links(struct m2n__gpu *gpu, struct m2n__gpu_links *links, struct m2n_exchange *x)
{
	links->x = x;
	links->gpu = gpu;
	links->tx = calloc(x->n_tx + 1, sizeof(*links->tx));
	links->rx = calloc(x->n_rx + 1, sizeof(*links->rx));
	links->posted = calloc(x->n_tx * x->spec.n_slots + 1, sizeof(*links->posted));
	links->zeros = calloc(2 * (size_t)x->spec.n_slots, sizeof(*links->zeros));
	return links->tx && links->rx && links->posted && links->zeros ? 0 : -ENOMEM;
}

static void free_links(struct m2n__gpu_links *links)
{
	free(links->tx);
	free(links->rx);
	free(links->posted);
	free(links->zeros);
}

static int create_events(struct m2n__gpu *gpu)
{
	const struct m2n__cuda_driver *driver = gpu->cuda->driver;
	int rc = m2n__cuda_enter(gpu->cuda), cu;

	if (rc)
		return rc;
	cu = driver->event_create(&gpu->source.event, M2N__CU_EVENT_DISABLE_TIMING);
	if (!cu)
		cu = driver->event_create(&gpu->expert.event, M2N__CU_EVENT_DISABLE_TIMING);
	m2n__cuda_leave(gpu->cuda);
	return cu ? m2n__cuda_error(gpu->cuda, cu, "%s: events", gpu->ch->title) : 0;
}

/* From here on links that come and go are told to the device. */
static int attach(struct m2n__gpu *gpu)
{
	int rc;

	m2n__ctx_lock(gpu->ch->ctx);
	gpu->ch->dispatch->gpu = &gpu->dispatch;
	gpu->ch->reply->gpu = &gpu->reply;
	rc = m2n__gpu_links_changed(&gpu->dispatch);
	if (!rc)
		rc = m2n__gpu_links_changed(&gpu->reply);
	if (!rc)
		rc = m2n__gpu_map_add(gpu, m2n__channel_map(gpu->ch, 0));
	m2n__ctx_unlock(gpu->ch->ctx);
	return rc;
}

int m2n__gpu_open(struct m2n_channel *ch)
{
	struct m2n__gpu *gpu = calloc(1, sizeof(*gpu));
	int rc;

	if (!gpu)
		return m2n__error(-ENOMEM, "%s: no memory", ch->title);
	gpu->ch = ch;
	gpu->cuda = ch->ctx->cuda;
	ch->gpu = gpu;
	fill_shape(ch, &gpu->shape);
	rc = alloc_links(gpu, &gpu->dispatch, ch->dispatch);
	if (!rc)
		rc = alloc_links(gpu, &gpu->reply, ch->reply);
	gpu->batches = calloc(ch->p.depth, sizeof(*gpu->batches));
	gpu->batch_ticket = calloc(ch->p.depth, sizeof(*gpu->batch_ticket));
	if (rc || !gpu->batches || !gpu->batch_ticket)
		return m2n__error(-ENOMEM, "%s: no memory", ch->title);
	rc = alloc_memory(gpu);
	if (!rc)
		rc = create_events(gpu);
	if (!rc)
		rc = attach(gpu);
	if (!rc)
		rc = m2n__gpu_progress_add(gpu);
	return rc;
}

int m2n__gpu_start(struct m2n__gpu *gpu)
{
	uint64_t first[3] = {atomic_load(&gpu->ch->next_send), atomic_load(&gpu->ch->next_recv),
		gpu->ch->next_combine};

	return m2n__cuda_write(gpu->cuda, gpu->rounds, first, sizeof(first));
}

/* Waits for what was queued; who waits for peers then is let go when the time is over. */
static void drain(struct m2n__gpu *gpu)
{
	struct m2n__wait w;

	m2n__wait_begin(&w, gpu->ch->ctx, -1);
	while (m2n__gpu_is_busy(gpu) && !m2n__wait_step(&w))
		;
	m2n__wait_end(&w);
	for (size_t i = 0; gpu->pinned && i < gpu->dispatch.x->n_rx; i++)
		atomic_store_explicit(&gpu->dispatch.alive[i], 0, memory_order_relaxed);
	for (size_t i = 0; gpu->pinned && i < gpu->reply.x->n_rx; i++)
		atomic_store_explicit(&gpu->reply.alive[i], 0, memory_order_relaxed);
	if (m2n__cuda_enter(gpu->cuda))
		return;
	if (atomic_load_explicit(&gpu->source.has_work, memory_order_relaxed))
		(void)gpu->cuda->driver->event_synchronize(gpu->source.event);
	if (atomic_load_explicit(&gpu->expert.has_work, memory_order_relaxed))
		(void)gpu->cuda->driver->event_synchronize(gpu->expert.event);
	m2n__cuda_leave(gpu->cuda);
}

/* One exchange closes before the other: the device is not told of its links any more. */
static void detach(struct m2n__gpu *gpu)
{
	m2n__ctx_lock(gpu->ch->ctx);
	gpu->dispatch.x->gpu = NULL;
	gpu->reply.x->gpu = NULL;
	m2n__ctx_unlock(gpu->ch->ctx);
}

void m2n__gpu_stop(struct m2n_channel *ch)
{
	if (!ch->gpu)
		return;
	if (ch->gpu->dispatch.x && ch->gpu->reply.x)
		drain(ch->gpu);
	m2n__gpu_progress_remove(ch->gpu);
	if (ch->gpu->dispatch.x && ch->gpu->reply.x)
		detach(ch->gpu);
}

static void free_maps(struct m2n__gpu *gpu)
{
	struct m2n__gpu_map_use *use = atomic_load_explicit(&gpu->maps, memory_order_relaxed);

	while (use) {
		struct m2n__gpu_map_use *next = use->next;

		m2n__mem_free(use->mem);
		m2n__map_unref(use->map);
		free(use);
		use = next;
	}
}

void m2n__gpu_close(struct m2n_channel *ch)
{
	struct m2n__gpu *gpu = ch->gpu;

	if (!gpu)
		return;
	ch->gpu = NULL;
	free_maps(gpu);
	if (!m2n__cuda_enter(gpu->cuda)) {
		if (gpu->source.event)
			(void)gpu->cuda->driver->event_destroy(gpu->source.event);
		if (gpu->expert.event)
			(void)gpu->cuda->driver->event_destroy(gpu->expert.event);
		m2n__cuda_leave(gpu->cuda);
	}
	m2n__mem_free(gpu->rows);
	m2n__mem_free(gpu->device);
	m2n__cuda_pinned_free(gpu->cuda, gpu->pinned);
	free_links(&gpu->dispatch);
	free_links(&gpu->reply);
	free(gpu->batches);
	free(gpu->batch_ticket);
	free(gpu);
}

/* The arrays of a map, one after the other, as the device has them. */
static size_t place_map(const struct m2n_map *map, struct m2n__gpu_map *dev, struct span *s)
{
	dev->digest = map->digest;
	dev->n_instances = map->n_instances;
	dev->owner_first = take_address(s, map->n_experts + 1, sizeof(uint32_t));
	dev->owner_instance = take_address(s, map->n_instances, sizeof(uint32_t));
	dev->rank_first = take_address(s, map->n_ranks + 1, sizeof(uint32_t));
	dev->rank_of = take_address(s, map->n_instances, sizeof(uint32_t));
	dev->expert_of = take_address(s, map->n_instances, sizeof(uint32_t));
	return s->at;
}

static void fill_map(const struct m2n_map *map, const struct m2n__gpu_map *at)
{
	uint32_t *rank_of = (uint32_t *)(uintptr_t)at->rank_of;

	memcpy((void *)(uintptr_t)at->owner_first, map->owner_first,
		(map->n_experts + 1) * sizeof(uint32_t));
	memcpy((void *)(uintptr_t)at->owner_instance, map->owner_instance,
		map->n_instances * sizeof(uint32_t));
	memcpy((void *)(uintptr_t)at->rank_first, map->rank_first,
		(map->n_ranks + 1) * sizeof(uint32_t));
	memcpy((void *)(uintptr_t)at->expert_of, map->expert_of,
		map->n_instances * sizeof(uint32_t));
	for (uint32_t i = 0; i < map->n_instances; i++)
		rank_of[i] = map->rank_of[i];
}

int m2n__gpu_map_add(struct m2n__gpu *gpu, struct m2n_map *map)
{
	struct m2n__gpu_map_use *use;
	struct m2n__gpu_map staged;
	struct span s = {0};
	size_t bytes;
	int rc;

	if (m2n__gpu_map(gpu, map))
		return 0;
	bytes = place_map(map, &staged, &s);
	use = calloc(1, sizeof(*use));
	s = (struct span){malloc(bytes), 0};
	if (!use || !s.base) {
		free(use);
		free(s.base);
		return m2n__error(-ENOMEM, "%s: no memory for an expert map", gpu->ch->title);
	}
	place_map(map, &staged, &s);
	fill_map(map, &staged);
	rc = m2n__mem_alloc_cuda(gpu->cuda, bytes, &use->mem);
	if (!rc)
		rc = m2n__cuda_write(gpu->cuda, use->mem->base, s.base, bytes);
	free(s.base);
	if (rc) {
		m2n__mem_free(use->mem);
		free(use);
		return rc;
	}
	s = (struct span){use->mem->base, 0};
	place_map(map, &use->dev, &s);
	use->map = m2n__map_ref(map);
	use->next = atomic_load_explicit(&gpu->maps, memory_order_relaxed);
	/* R13: the arrays before the node, pairs with A13 in m2n__gpu_map(). */
	atomic_store_explicit(&gpu->maps, use, memory_order_release);
	return 0;
}

const struct m2n__gpu_map *m2n__gpu_map(const struct m2n__gpu *gpu, const struct m2n_map *map)
{
	/* A13: pairs with R13 in m2n__gpu_map_add(). */
	const struct m2n__gpu_map_use *use = atomic_load_explicit(&gpu->maps, memory_order_acquire);

	while (use && use->map != map)
		use = use->next;
	return use ? &use->dev : NULL;
}
