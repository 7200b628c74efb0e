/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Public plans: route/ with a channel's limits, its map for the round, and the ranks that are up.
 */
#include <errno.h>

#include <m2n/plan.h>

#include "core/gpu.h"
#include "util/error.h"

#define MAX_MASK_WORDS 1024

int m2n_plan_create(struct m2n_channel *ch, struct m2n_plan **plan)
{
	struct m2n__plan_limits limits;
	int rc;

	if (!ch || !plan)
		return m2n__error(-EINVAL, "m2n_plan_create: channel or plan is NULL");
	limits = (struct m2n__plan_limits){
		.max_tokens = ch->p.max_tokens,
		.top_k = ch->p.top_k,
		.n_experts = ch->p.n_experts,
		.n_ranks = (uint32_t)ch->p.n_expert_ranks,
		.max_instances = ch->max_instances,
		.rank_capacity = ch->slot_rows,
		.dedup = !!ch->p.dedup,
		.reduce_at_expert = !!ch->p.reduce_at_expert,
		.drop_overflow = ch->p.overflow == M2N_OVERFLOW_DROP,
	};
	rc = m2n__plan_create(&limits, plan);
	if (rc || !ch->gpu)
		return rc;
	rc = m2n__gpu_plan_create(ch->gpu, *plan);
	if (rc) {
		m2n__plan_destroy(*plan);
		*plan = NULL;
	}
	return rc;
}

void m2n_plan_destroy(struct m2n_plan *plan)
{
	if (plan)
		m2n__gpu_plan_destroy(plan->device);
	m2n__plan_destroy(plan);
}

int m2n_plan_route(
	struct m2n_channel *ch, struct m2n_plan *plan, const struct m2n_route_params *params)
{
	static const struct m2n_route_params init = M2N_ROUTE_PARAMS_INIT;
	uint64_t live[MAX_MASK_WORDS], round;
	struct m2n_route_params p;
	int rc = m2n__params_read(&p, sizeof(p), &init, params, "m2n_route_params");

	if (!rc && (!ch || !plan || (p.n_tokens && !p.expert_ids)))
		rc = m2n__error(-EINVAL, "m2n_plan_route: channel, plan or expert_ids is NULL");
	if (!rc && ch->self_source < 0)
		rc = m2n__error(-EINVAL, "%s: rank %d is not a source", ch->title, ch->group->rank);
	if (rc)
		return rc;
	if (ch->gpu)
		return m2n__gpu_plan_route(ch->gpu, plan, &p);
	if (p.stream)
		return m2n__error(-EINVAL, "%s: stream: the channel's memory is HOST", ch->title);
	rc = m2n__check_host(ch, "expert_ids", p.expert_ids);
	if (!rc)
		rc = m2n__check_host(ch, "weights", p.weights);
	if (rc)
		return rc;
	round = p.round == M2N_ROUND_NEXT
			? atomic_load_explicit(&ch->next_send, memory_order_relaxed)
			: p.round;
	m2n__channel_live(ch, round, live);
	for (uint32_t w = 0; p.mask && w < ch->n_words_experts; w++)
		live[w] &= p.mask[w];
	rc = m2n__plan_route(plan, m2n__channel_map(ch, round), (uint32_t)ch->self_source,
		p.n_tokens, p.expert_ids, p.weights, live);
	return rc < 0 ? m2n__error_at(rc, "%s", ch->title) : rc;
}

void m2n_plan_query(const struct m2n_plan *plan, struct m2n_plan_attr *attr)
{
	attr->n_tokens = plan->n_tokens;
	attr->n_rows = plan->n_rows;
	attr->n_sent = plan->n_unique;
	attr->n_dropped = plan->n_dropped;
	attr->n_dropped_lost = plan->n_dropped_lost;
}

const uint8_t *m2n_plan_dropped(const struct m2n_plan *plan)
{
	return plan->dropped;
}

uint32_t m2n_plan_rank_rows(const struct m2n_plan *plan, uint32_t expert_rank)
{
	return expert_rank < plan->limits.n_ranks
		       ? plan->rank_first[expert_rank + 1] - plan->rank_first[expert_rank]
		       : 0;
}

size_t m2n_plan_packed_bytes(const struct m2n_plan *plan)
{
	return m2n__plan_packed_bytes(plan);
}

int m2n_plan_pack(const struct m2n_plan *plan, void *buffer, size_t bytes, size_t *used)
{
	if (!plan || !buffer || !used)
		return m2n__error(-EINVAL, "m2n_plan_pack: plan, buffer or used is NULL");
	if (plan->device)
		return m2n__error(-ENOTSUP,
			"m2n_plan_pack: plans of channels in CUDA memory cannot be packed yet");
	return m2n__plan_pack(plan, buffer, bytes, used);
}

int m2n_plan_unpack(struct m2n_channel *ch, struct m2n_plan *plan, const void *buffer, size_t bytes,
	uint64_t round)
{
	if (!ch || !plan || !buffer)
		return m2n__error(-EINVAL, "m2n_plan_unpack: channel, plan or buffer is NULL");
	if (plan->device)
		return m2n__error(-ENOTSUP,
			"m2n_plan_unpack: plans of channels in CUDA memory cannot be packed yet");
	return m2n__plan_unpack(plan, m2n__channel_map(ch, round), buffer, bytes);
}
