/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libm2n: many-to-many token dispatch and combine between M attention ranks and N expert ranks.
 *
 * A process opens a context, joins a group, and creates channels. For every MoE layer and
 * micro-batch a round runs over a channel: each source sends each token's row to the ranks that
 * own the token's experts, and the experts' outputs come back to be summed with the router's
 * weights. A source rank, in short (errors left out; docs/ has the whole program):
 *
 *     struct m2n_ctx *ctx;
 *     struct m2n_group *group;
 *     struct m2n_channel *ch;
 *     struct m2n_plan *plan;
 *     m2n_ctx_open(NULL, &ctx);
 *     m2n_group_join(ctx, NULL, &group);           // rank and store from the launcher
 *     m2n_channel_create(group, &shape, &ch);
 *     m2n_plan_create(ch, &plan);
 *     for (;;) {
 *             route.expert_ids = ids;              // [n_tokens, top_k]
 *             route.weights = weights;
 *             m2n_plan_route(ch, plan, &route);
 *             send.plan = recv.plan = plan;
 *             send.rows = x;                       // [n_tokens, row_bytes]
 *             recv.residual = x;
 *             recv.out = y;
 *             m2n_dispatch_send(ch, &send);
 *             m2n_combine_recv(ch, &recv);
 *     }
 *
 * and an expert rank:
 *
 *     for (;;) {
 *             m2n_dispatch_recv(ch, &recv, &batch);
 *             run_experts(batch, out);             // one output row per received row
 *             send.batch = batch;
 *             send.rows = out;
 *             m2n_combine_send(ch, &send);
 *     }
 */
#ifndef M2N_H
#define M2N_H

#include <m2n/channel.h>
#include <m2n/context.h>
#include <m2n/counters.h>
#include <m2n/exchange.h>
#include <m2n/export.h>
#include <m2n/gpu.h>
#include <m2n/group.h>
#include <m2n/log.h>
#include <m2n/map.h>
#include <m2n/memory.h>
#include <m2n/plan.h>
#include <m2n/round.h>
#include <m2n/status.h>
#include <m2n/store.h>
#include <m2n/types.h>

#endif
