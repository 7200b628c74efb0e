/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans on the device: ids and weights are read there, and the routing stays there. The host's
 * plan keeps limits and map; its numbers are filled when somebody asks (gpu_wait.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

#define ALIGN ((size_t)256)

static uint64_t take(const struct m2n__mem *mem, size_t *at, size_t n, size_t each)
{
	uint64_t address = mem ? m2n__gpu_address(mem->base) + *at : 0;

	*at += (n * each + ALIGN - 1) / ALIGN * ALIGN;
	return address;
}

/* The arrays of a plan in `mem`; NULL: only counted. Returns the bytes. */
static size_t place(const struct m2n__gpu *gpu, const struct m2n_plan *plan,
	const struct m2n__mem *mem, struct m2n__gpu_plan *dev)
{
	const struct m2n__plan_limits *l = &plan->limits;
	size_t pairs = (size_t)l->max_tokens * l->top_k, at = 0;
	int by_rank = gpu->shape.dedup || gpu->shape.rank_capacity;

	dev->pair_instance = take(mem, &at, pairs, sizeof(uint32_t));
	dev->pair_position = take(mem, &at, pairs, sizeof(uint32_t));
	dev->pair_unique = take(mem, &at, by_rank ? pairs : 0, sizeof(uint32_t));
	dev->weight = take(mem, &at, pairs, sizeof(float));
	dev->dropped = take(mem, &at, l->max_tokens, 1);
	dev->count = take(mem, &at, l->max_instances, sizeof(uint32_t));
	dev->first = take(mem, &at, l->max_instances + 1, sizeof(uint32_t));
	dev->rank_first = take(mem, &at, l->n_ranks + 1, sizeof(uint32_t));
	dev->unique_first = dev->rank_first;
	if (gpu->shape.dedup)
		dev->unique_first = take(mem, &at, l->n_ranks + 1, sizeof(uint32_t));
	dev->work = take(mem, &at, M2N__GPU_WORK_BYTES(l->n_ranks), 1);
	dev->n_tokens = take(mem, &at, 1, sizeof(uint32_t));
	return at;
}

static int alloc_part(struct m2n__gpu *gpu, struct m2n_plan *plan, struct m2n__gpu_plan_part *part)
{
	size_t summary = sizeof(*part->summary) + plan->limits.n_ranks * sizeof(uint32_t);
	void *pinned = NULL;
	int rc = m2n__mem_alloc_cuda(gpu->cuda, place(gpu, plan, NULL, &part->dev), &part->mem);

	if (rc)
		return rc;
	rc = m2n__cuda_pinned_alloc(gpu->cuda, summary, &pinned);
	if (rc) {
		m2n__mem_free(part->mem);
		return rc;
	}
	part->gpu = gpu;
	part->cuda = gpu->cuda;
	part->summary = pinned;
	place(gpu, plan, part->mem, &part->dev);
	part->dev.summary = m2n__gpu_address(pinned);
	part->is_read = 1;
	return 0;
}

int m2n__gpu_plan_create(struct m2n__gpu *gpu, struct m2n_plan *plan)
{
	struct m2n__gpu_plan_part *part = calloc(1, sizeof(*part));
	int rc;

	if (!part)
		return m2n__error(-ENOMEM, "%s: no memory for a plan", gpu->ch->title);
	rc = alloc_part(gpu, plan, part);
	if (rc) {
		free(part);
		return m2n__error_at(rc, "%s: plan", gpu->ch->title);
	}
	plan->device = part;
	return 0;
}

void m2n__gpu_plan_destroy(struct m2n__gpu_plan_part *part)
{
	if (!part)
		return;
	m2n__cuda_pinned_free(part->cuda, part->summary);
	m2n__mem_free(part->mem);
	free(part);
}

static int check(
	struct m2n__gpu *gpu, const struct m2n_plan *plan, const struct m2n_route_params *p)
{
	const struct m2n_channel *ch = gpu->ch;
	int rc = 0;

	if (!plan->device || plan->device->gpu != gpu)
		return m2n__error(-EINVAL, "%s: the plan was made for another channel", ch->title);
	if (p->n_tokens > ch->p.max_tokens)
		return m2n__error(-EINVAL, "%s: n_tokens is %u, accepted: 0..%u", ch->title,
			p->n_tokens, ch->p.max_tokens);
	if (p->n_tokens)
		rc = m2n__gpu_check_pointer(gpu, "expert_ids", p->expert_ids);
	if (!rc && p->n_tokens && p->weights)
		rc = m2n__gpu_check_pointer(gpu, "weights", p->weights);
	return rc;
}

static void fill_args(struct m2n__gpu *gpu, struct m2n__gpu_plan_part *part,
	const struct m2n__gpu_map *map, const struct m2n_route_params *p,
	struct m2n__gpu_plan_args *args)
{
	*args = (struct m2n__gpu_plan_args){
		.shape = gpu->shape,
		.map = *map,
		.plan = part->dev,
		.ids = m2n__gpu_address(p->expert_ids),
		.weights = m2n__gpu_address(p->weights),
		.tx = m2n__gpu_address(gpu->dispatch.tx_table),
		.ticket = part->ticket,
		.n_tokens = p->n_tokens,
		.has_mask = p->mask != NULL,
	};
	if (p->mask)
		memcpy(args->mask, p->mask, gpu->ch->n_words_experts * sizeof(*p->mask));
}

static int launch(struct m2n__gpu *gpu, const struct m2n_route_params *p,
	const struct m2n__gpu_plan_args *args)
{
	int rc = m2n__gpu_begin(gpu, &gpu->source, p->stream);

	if (rc)
		return rc;
	if (gpu->shape.dedup || gpu->shape.rank_capacity)
		rc = m2n__gpu_launch(gpu, M2N__GPU_PLAN_RANKS, p->n_tokens, p->stream, args);
	if (!rc)
		rc = m2n__gpu_launch(gpu, M2N__GPU_PLAN, p->n_tokens, p->stream, args);
	m2n__gpu_end(gpu, &gpu->source, p->stream);
	return rc;
}

int m2n__gpu_plan_route(
	struct m2n__gpu *gpu, struct m2n_plan *plan, const struct m2n_route_params *p)
{
	struct m2n_channel *ch = gpu->ch;
	struct m2n__gpu_plan_part *part = plan->device;
	struct m2n__gpu_plan_args args;
	struct m2n_map *map;
	int rc = check(gpu, plan, p);

	if (rc)
		return rc;
	map = m2n__channel_map(ch, p->round == M2N_ROUND_NEXT ? atomic_load_explicit(&ch->next_send,
									memory_order_relaxed)
							      : p->round);
	part->ticket = atomic_fetch_add_explicit(&gpu->ticket, 1, memory_order_relaxed) + 1;
	part->n_tokens = p->n_tokens;
	part->is_read = 0;
	fill_args(gpu, part, m2n__gpu_map(gpu, map), p, &args);
	rc = launch(gpu, p, &args);
	if (rc)
		return m2n__error_at(rc, "%s: route", ch->title);
	if (plan->map != map) {
		m2n__map_unref(plan->map);
		plan->map = m2n__map_ref(map);
	}
	plan->source = (uint32_t)ch->self_source;
	return 0;
}
