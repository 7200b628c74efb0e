/* SPDX-License-Identifier: Apache-2.0 */
/* What transports share: checks of the numbers, and the clock of stalls. */
#include "transport.h"

#include <errno.h>

#include "model/error.h"
#include "report/timeline.h"

int transport_check(const struct transport_params *p)
{
	if (p->n_attention + p->n_expert_ranks != p->env->n_ranks)
		return model_fail(-EINVAL, "%d attention and %d expert ranks, but the group has %d",
			p->n_attention, p->n_expert_ranks, p->env->n_ranks);
	if (p->n_expert_ranks > 64)
		return model_fail(-EINVAL, "%d expert ranks, accepted: 1 to 64", p->n_expert_ranks);
	if (p->n_replicas < 1 || p->n_replicas > (uint32_t)p->n_expert_ranks)
		return model_fail(-EINVAL, "%u replicas, accepted: 1 to the %d expert ranks",
			p->n_replicas, p->n_expert_ranks);
	if (p->n_micro_batches < 1 || p->n_micro_batches > TRANSPORT_MAX_FLIGHTS)
		return model_fail(-EINVAL, "%u micro-batches, accepted: 1 to %d",
			p->n_micro_batches, TRANSPORT_MAX_FLIGHTS);
	if (p->balance_rounds && p->balance_rounds < TRANSPORT_MIN_BALANCE)
		return model_fail(-EINVAL, "balance every %u rounds, accepted: 0, or %d and more",
			p->balance_rounds, TRANSPORT_MIN_BALANCE);
	return 0;
}

int transport_is_any(const uint8_t *flags, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (flags[i])
			return 1;
	return 0;
}

void transport_whole(struct transport_stall *s, int64_t *longest_ns)
{
	int64_t now = timeline_now(), stall = now - s->whole_ns;

	if (s->is_stalled && stall > *longest_ns)
		*longest_ns = stall;
	s->is_stalled = 0;
	s->whole_ns = now;
}
