/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The channel of moe and init: ranks 0..M-1 are sources and sinks, M..M+N-1 experts.
 */
#include "moe.h"

void moe_channel_params(const struct perf_args *args, const struct perf_routing *routing,
	struct m2n_channel_params *params)
{
	static _Thread_local int ranks[2048]; /* ranks may be threads */

	for (int i = 0; i < 2048; i++)
		ranks[i] = i;
	*params = (struct m2n_channel_params)M2N_CHANNEL_PARAMS_INIT;
	params->name = "m2n_perf";
	params->sources = ranks;
	params->n_sources = args->n_sources;
	params->experts = args->classic ? ranks : ranks + args->n_sources;
	params->n_expert_ranks = args->n_expert_ranks;
	params->n_experts = routing->n_experts;
	params->top_k = routing->top_k;
	params->max_tokens = routing->max_tokens;
	params->row_bytes = args->row_bytes;
	params->out_row_bytes = perf_out_row_bytes(args);
	params->dtype = args->dtype;
	if (args->cast_fp8) {
		params->cast = M2N_CAST_BF16_FP8;
		params->scale_bytes = sizeof(float) * ((args->row_bytes + 127) / 128);
	}
	params->placement = args->placement;
	params->dedup = args->dedup;
	params->reduce_at_expert = args->reduce_at_expert;
	params->capacity = (uint32_t)args->capacity;
	params->depth = (uint32_t)args->depth;
	params->memory = args->memory;
}
