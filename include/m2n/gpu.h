/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channels in CUDA memory (m2n_channel_params.memory). The calls are those of <m2n/plan.h> and
 * <m2n/round.h> with a stream; pointers to rows, ids, weights and outputs are device addresses.
 *
 * Each call queues its work on the stream and returns; none waits for the device, and no byte of
 * a row passes through host memory. A call is ordered after what the stream held, and what the
 * caller queues next is ordered after it: rows may be overwritten and out may be read there.
 * Calls of one side of a channel may use several streams; they take effect in the order of the
 * calls. timeout_ns is counted on the device, from where the stream reaches the wait.
 *
 * Between a send and a receive nothing of libm2n runs on the device: rows arrive by themselves,
 * and the receive call is the hook that puts the wait where the caller wants it.
 *
 * The number of rows is the device's secret until somebody asks: kernels read it behind the
 * batch's device addresses; m2n_plan_wait() and m2n_batch_wait() bring it to the host.
 *
 * What goes wrong on the device cannot be the result of a call that has returned. The round goes
 * on without the rank concerned, as with M2N_PARTIAL, and m2n_channel_check() tells.
 *
 * All four calls may be captured in a CUDA graph, in balance: as many sends as combines. The
 * device counts the rounds, so that the graph can be launched again and again while the contents
 * of ids, weights and rows change; after m2n_channel_set_map() it has to be captured anew. A
 * context's rounds are either launched by graphs or called while both are in flight: not mixed.
 *
 * Not in CUDA memory yet, each an -ENOTSUP that says so: sinks that are not the sources, packed
 * plans, exact placement, the public exchange.
 */
#ifndef M2N_GPU_H
#define M2N_GPU_H

#include <m2n/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_batch;

/*
 * Waits until the device has routed the plan's last m2n_plan_route(); then m2n_plan_query(),
 * m2n_plan_rank_rows() and m2n_plan_dropped() (on the host, too) tell of it. Results are those
 * of m2n_plan_route() on the host: 0; M2N_PARTIAL; -EINVAL (token, k, value); M2N_ERR_CAPACITY;
 * -EAGAIN, -ETIMEDOUT. A plan that failed has no rows: a round with it sends none. After the
 * launch of a graph: of whichever launch came last when the stream is idle.
 * Blocks the host only. Not on a host channel's plan: 0 at once.
 */
M2N_API int m2n_plan_wait(struct m2n_plan *plan, int64_t timeout_ns);

/*
 * Waits until the device has received the batch, and fills n_rows, segments, expert_rows and
 * missing of it. The results of m2n_dispatch_recv() on the host: 0; M2N_PARTIAL; -ETIMEDOUT
 * (a source did not send in time, or the batch itself did not come); -EAGAIN. The numbers are on
 * the host then; the rows themselves are there in stream order, as ever. Blocks the host only;
 * needed only where the host must know. On a host channel: 0 at once.
 */
M2N_API int m2n_batch_wait(struct m2n_channel *channel, const struct m2n_batch *batch,
	int64_t timeout_ns);

/*
 * What has gone wrong on the device since the last check: 0; M2N_PARTIAL, -ETIMEDOUT,
 * M2N_ERR_PROTOCOL or M2N_ERR_MAP with round, ranks and rows in the text, the worst one first;
 * M2N_ERR_BACKEND (the device failed: the driver's words). Reads pinned memory, never blocks.
 * Thread-safe.
 */
M2N_API int m2n_channel_check(struct m2n_channel *channel);

#ifdef __cplusplus
}
#endif
#endif
