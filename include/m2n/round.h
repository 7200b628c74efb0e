/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds: one micro-batch in flight on a channel. Four calls carry it:
 *
 *     source  m2n_dispatch_send   rows named by a plan -> expert ranks
 *     expert  m2n_dispatch_recv   -> batch
 *     expert  m2n_combine_send    one output row per received row -> sink ranks
 *     sink    m2n_combine_recv    -> out[t] = residual[t] + sum_k weight[t,k] * reply(t,k)
 *
 * Rounds are numbered from 0; each side takes them in order. Every call has a deadline:
 * timeout_ns 0 tries once (-EAGAIN), otherwise -ETIMEDOUT with the peers it waited for in the
 * text; a call that timed out may be made again. A lost peer never hangs a call: the rest is
 * done, and the call returns M2N_PARTIAL.
 */
#ifndef M2N_ROUND_H
#define M2N_ROUND_H

#include <m2n/gpu.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_dispatch_send_params {
	size_t size;
	const struct m2n_plan *plan; /* kept until the round's combine_recv is done */
	const void *rows;            /* [n_tokens, row_bytes]; with a cast bf16 values */
	size_t row_stride;           /* bytes from row to row; 0: dense */
	const void *scales;          /* [n_tokens, scale_bytes]; NULL with a cast */
	size_t scale_stride;         /* 0: dense */
	const float *row_weights;    /* [n_tokens, top_k]: multiply each row (backward of combine);
	                              * NULL: rows as they are. Not with a cast or dedup */
	int sink;                    /* index of the sink that gets the replies; -1: this source */
	const uint64_t *mask;        /* bitmap over expert rank indexes in it; NULL: all live */
	void *stream;                /* CUDA channel: stream, NULL is the default one; else NULL */
	int64_t timeout_ns;          /* to wait for free slots */
	uint64_t *round;             /* out, may be NULL: the number of this round */
};
#define M2N_DISPATCH_SEND_PARAMS_INIT \
	{sizeof(struct m2n_dispatch_send_params), NULL, NULL, 0, NULL, 0, NULL, -1, NULL, NULL, \
		M2N_TIMEOUT_DEFAULT, NULL}

/*
 * Starts the next round of this source. Rows may be reused after m2n_send_wait() for the round
 * (at once when it returns 0 without waiting, as for mapped peers in slot placement), or when
 * the round's replies are there.
 *
 * Returns 0; M2N_PARTIAL (an expert rank of the plan is lost: its rows will be missing; the text
 * names it); -EAGAIN (refused, nothing queued: this rank's own combine_recv of the round that has
 * the slot is missing; waiting would not help); -ETIMEDOUT (refused, nothing queued: a slot's
 * credit did not come); -EINVAL; M2N_ERR_MAP (the plan was made with another map).
 */
M2N_API int m2n_dispatch_send(struct m2n_channel *channel,
	const struct m2n_dispatch_send_params *params);

/* Waits until rows of rounds up to `round` may be reused. 0, -EAGAIN, -ETIMEDOUT, M2N_PARTIAL. */
M2N_API int m2n_send_wait(struct m2n_channel *channel, uint64_t round, int64_t timeout_ns);

/* Rows of one expert from one source. Batch row numbers are first_row .. first_row + n_rows - 1. */
struct m2n_segment {
	int32_t expert;        /* expert id */
	uint32_t local_expert; /* 0.. on this rank */
	uint32_t source;       /* source index */
	uint32_t first_row;    /* in the batch's row order */
	uint32_t n_rows;
	const void *rows;      /* dense [.., row_bytes] */
	const void *scales;    /* dense [.., scale_bytes]; NULL without scales */
	const uint32_t *index; /* dedup: row i of the segment is rows[index[i]]; NULL: rows[i] */
};

/*
 * What an expert rank received in a round. Row order: local expert, source, (token, k).
 * Owned by the channel; valid until combine_send of the round.
 */
struct m2n_batch {
	uint64_t round;
	uint32_t n_rows;     /* output rows that combine_send wants */
	uint32_t n_segments;
	const struct m2n_segment *segments; /* [n_segments] in row order, empty ones left out */
	const void *rows;    /* exact without dedup: [n_rows, row_bytes], compact; else NULL */
	const void *scales;  /* likewise */
	const uint32_t *expert_rows;  /* [n_local_experts] rows of each local expert */
	uint32_t n_local_experts;
	const uint64_t *missing;      /* bitmap over source indexes that sent no rows */
	/* CUDA channel: device addresses, written in stream order; see m2n_batch_wait(). */
	uint32_t max_rows;                   /* n_rows at most: room behind `rows` */
	const uint32_t *device_expert_rows;  /* [n_local_experts] */
	const uint32_t *device_expert_first; /* [n_local_experts + 1] first row; the last: n_rows */
};

struct m2n_dispatch_recv_params {
	size_t size;
	const uint64_t *mask; /* bitmap over source indexes that take part; NULL: all live */
	void *stream;
	int64_t timeout_ns;
};
#define M2N_DISPATCH_RECV_PARAMS_INIT \
	{sizeof(struct m2n_dispatch_recv_params), NULL, NULL, M2N_TIMEOUT_DEFAULT}

/*
 * Receives the next round: waits for every source of the mask. Up to `depth` batches may be held.
 * Returns 0; M2N_PARTIAL (a source was lost, sent what makes no sense and was dropped, or, with
 * exact placement, had more rows than there is room for: batch->missing, the text names it);
 * -EAGAIN; -ETIMEDOUT (sources, round, in the text); M2N_ERR_MAP; -EBUSY (depth batches held).
 * `*batch` untouched on failure.
 */
M2N_API int m2n_dispatch_recv(struct m2n_channel *channel,
	const struct m2n_dispatch_recv_params *params, const struct m2n_batch **batch);

struct m2n_combine_send_params {
	size_t size;
	const struct m2n_batch *batch; /* ended by this call */
	const void *rows;              /* [batch->n_rows, out_row_bytes] in batch row order */
	size_t row_stride;             /* 0: dense */
	void *stream;
	int64_t timeout_ns;            /* to wait for credits of sinks that are not the sources */
	const uint64_t *in_place;      /* bitmap over source indexes whose output rows lie where
	                                * m2n_reply_place() said; NULL: none. `rows` is not read for
	                                * them, and may be NULL when they are all that have rows */
};
#define M2N_COMBINE_SEND_PARAMS_INIT \
	{sizeof(struct m2n_combine_send_params), NULL, NULL, 0, NULL, M2N_TIMEOUT_DEFAULT, NULL}

/*
 * Sends the outputs back. Batches may be answered in any order. Rows may be reused after
 * m2n_reply_wait(), for mapped peers at once.
 * Returns 0; M2N_PARTIAL (a sink is lost); -EAGAIN, -ETIMEDOUT (refused, nothing queued); -EINVAL.
 */
M2N_API int m2n_combine_send(struct m2n_channel *channel,
	const struct m2n_combine_send_params *params);
/*
 * Where the output rows of one source can be made without a copy: in the sink's own memory, dense,
 * [its rows of the batch, out_row_bytes] in batch row order. What lies there is not defined. To be
 * written before combine_send of the batch, which is then told by `in_place`; or left unused.
 * NULL: the rows have to be given to combine_send, because the sink is reached by messages, is
 * lost, or is not the source, replies are summed here, or rows lie in CUDA memory. Until
 * combine_send the connections of lost peers stay open, so it should follow. Does not block; for
 * the thread of the expert calls.
 */
M2N_API void *m2n_reply_place(struct m2n_channel *channel, const struct m2n_batch *batch,
	uint32_t source);
/* Waits until output rows of all combine_sends may be reused. 0, -EAGAIN, -ETIMEDOUT, PARTIAL. */
M2N_API int m2n_reply_wait(struct m2n_channel *channel, int64_t timeout_ns);

struct m2n_combine_recv_params {
	size_t size;
	uint64_t round;              /* M2N_ROUND_NEXT: the oldest not yet received */
	int source;                  /* whose round; -1: this rank's own */
	const struct m2n_plan *plan; /* the round's plan (or its unpacked copy) */
	const float *weights;        /* [n_tokens, top_k]; NULL: the plan's */
	int unit_weights;            /* 1: all weights 1 (backward of dispatch) */
	const void *residual;        /* [n_tokens, n_values] of the dtype; NULL: none */
	size_t residual_stride;      /* 0: dense */
	void *out;                   /* [n_tokens, n_values] of the dtype */
	size_t out_stride;           /* 0: dense */
	void *replies;               /* [n_tokens, top_k, out_row_bytes]: copies for the weights'
	                              * gradient, zero where there was none; NULL: not wanted */
	uint8_t *missing;            /* [n_tokens] replies that did not come; may be NULL */
	void *stream;
	int64_t timeout_ns;
};
#define M2N_COMBINE_RECV_PARAMS_INIT \
	{sizeof(struct m2n_combine_recv_params), M2N_ROUND_NEXT, -1, NULL, NULL, 0, NULL, 0, NULL, \
		0, NULL, NULL, NULL, M2N_TIMEOUT_DEFAULT}

/*
 * Receives the replies of a round and sums them in (token, k) order: out is bit-identical across
 * backends, ranks and depths. Ends the round: its slot may be used again.
 * Returns 0; M2N_PARTIAL (rows are missing because an expert rank was lost: `missing` says whose,
 * the text names the rank; out holds the sum of what came; also with exact placement, overflow
 * DROP and an expert rank without room); M2N_ERR_CAPACITY (the same with overflow ERROR; the
 * round is ended, out is not written); -EAGAIN; -ETIMEDOUT; -EINVAL.
 */
M2N_API int m2n_combine_recv(struct m2n_channel *channel,
	const struct m2n_combine_recv_params *params);

/*
 * dispatch_send and combine_recv in one call, for ranks that are source and sink while other
 * ranks are the experts. Params as for the two calls; combine->plan may be NULL (dispatch's).
 */
M2N_API int m2n_round_trip(struct m2n_channel *channel,
	const struct m2n_dispatch_send_params *dispatch, struct m2n_combine_recv_params *combine);

/*
 * Backward of combine, source side: sends weight[t,k] * dy[t] to the experts, and with
 * `grad_weights` (not NULL, [n_tokens, top_k]) gives <dy[t], reply(t,k)> from the copies that
 * combine_recv made. Results as m2n_dispatch_send(). The experts use dispatch_recv as ever; the
 * gradient of dispatch is combine_recv with unit_weights.
 */
M2N_API int m2n_combine_backward(struct m2n_channel *channel,
	const struct m2n_dispatch_send_params *dispatch, const void *replies, float *grad_weights);

#ifdef __cplusplus
}
#endif
#endif
