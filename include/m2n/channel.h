/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channel: an M:N link with a fixed row shape, from source ranks to expert ranks and back to
 * sink ranks. A rank may have any of the three roles, or all.
 *
 * In the calls, `source`, `expert rank` and `sink` are *indexes* into the channel's lists.
 * Every rank that takes part gives the same shape; a disagreement is M2N_ERR_SHAPE and names
 * both ranks and both values.
 */
#ifndef M2N_CHANNEL_H
#define M2N_CHANNEL_H

#include <m2n/counters.h>
#include <m2n/group.h>
#include <m2n/map.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_channel;

enum m2n_placement {
	/* Each source writes to its own fixed slot at the expert rank: no handshake. */
	M2N_PLACEMENT_SLOT = 0,
	/* Headers first; the expert rank grants offsets; rows land compact and expert-major. */
	M2N_PLACEMENT_EXACT = 1,
};

enum m2n_overflow {
	M2N_OVERFLOW_ERROR = 0, /* refuse the round: M2N_ERR_CAPACITY, nothing queued */
	M2N_OVERFLOW_DROP = 1,  /* leave the last rows out and report them per token */
};

enum m2n_cast {
	M2N_CAST_NONE = 0,
	/* rows given as bf16 [n_values], sent as fp8 e4m3 [row_bytes = n_values] with one f32 scale
	 * per 128 values (scale_bytes = 4 * ceil(n_values / 128)) */
	M2N_CAST_BF16_FP8 = 1,
};

struct m2n_channel_params {
	size_t size;
	const char *name;        /* up to 15 characters; the same on every rank */
	const int *sources;      /* [n_sources] group ranks, distinct */
	size_t n_sources;
	const int *experts;      /* [n_expert_ranks] group ranks, distinct */
	size_t n_expert_ranks;
	const int *sinks;        /* [n_sinks]; NULL: the sinks are the sources */
	size_t n_sinks;
	const struct m2n_map *map; /* NULL: contiguous blocks of n_experts */
	uint32_t n_experts;
	uint32_t top_k;          /* experts per token at most, 1..64 */
	uint32_t max_tokens;     /* tokens per source and round at most */
	size_t row_bytes;        /* of a dispatched row */
	size_t scale_bytes;      /* beside each dispatched row; 0: none */
	size_t out_row_bytes;    /* of an output row; 0: row_bytes */
	enum m2n_dtype dtype;    /* of output rows, residual and out */
	enum m2n_cast cast;
	enum m2n_placement placement;
	int dedup;               /* a token goes once to each expert rank */
	int reduce_at_expert;    /* with dedup: replies of one rank are summed there */
	uint32_t capacity;       /* rows per (source, expert rank) and round; 0: any routing
	                          * fits; exact placement: rows per expert rank, of all sources */
	enum m2n_overflow overflow;
	uint32_t depth;          /* rounds in flight, 1..64; ping-pong wants 3 */
	int64_t timeout_ns;      /* for linking */
	enum m2n_memory memory;  /* where rows lie; the same on every rank. CUDA: <m2n/gpu.h> */
};
#define M2N_CHANNEL_PARAMS_INIT \
	{sizeof(struct m2n_channel_params), NULL, NULL, 0, NULL, 0, NULL, 0, NULL, 0, 0, 0, 0, \
		0, 0, M2N_DTYPE_BF16, M2N_CAST_NONE, M2N_PLACEMENT_SLOT, 0, 0, 0, \
		M2N_OVERFLOW_ERROR, 3, M2N_TIMEOUT_DEFAULT, M2N_MEMORY_HOST}

/*
 * Bytes that m2n_channel_create() takes on group rank `rank`, by kind. The last two come on top,
 * and only where peers are reached by messages (verbs, ucx): the first as the links come up, the
 * second with the first round whose rows cannot leave from where they lie: a cast, weights,
 * reduce_at_expert, row strides, or, on verbs, memory that m2n_mem_register() does not know.
 */
struct m2n_channel_memory {
	size_t dispatch_bytes; /* receive space for rows (expert role) */
	size_t reply_bytes;    /* receive space for replies (sink role) */
	size_t control_bytes;  /* credits, tables */
	size_t total_bytes;    /* of these three, and batch_bytes */
	size_t staging_bytes;  /* heads, counts and credits on their way, if all peers are such */
	size_t made_bytes;     /* rows and replies on their way, if any have to be made */
	size_t batch_bytes;    /* CUDA: rows of batches, expert-major (expert role) */
};
/* 0 or -EINVAL. Pure: needs no group. */
M2N_API int m2n_channel_query_memory(const struct m2n_channel_params *params, int rank,
	struct m2n_channel_memory *memory);

/*
 * Creates a channel and waits until its links are up.
 *
 * Returns 0; -EINVAL (field, value, accepted range in the text); -ENOMEM; M2N_ERR_SHAPE;
 * -ETIMEDOUT (ranks that did not come); M2N_ERR_PEER_LOST; M2N_ERR_BACKEND.
 * All of params is borrowed for the call. `*channel` is owned by the caller. One thread may use
 * the source and sink calls while another uses the expert calls; channels are independent.
 */
M2N_API int m2n_channel_create(struct m2n_group *group, const struct m2n_channel_params *params,
	struct m2n_channel **channel);

/* Destroys a channel; plans made from it must be gone. Peers see its links close. NULL allowed. */
M2N_API void m2n_channel_destroy(struct m2n_channel *channel);

struct m2n_channel_attr {
	int source;                /* this rank's index in each list, -1: not in it */
	int expert;
	int sink;
	uint64_t next_send_round;  /* the next dispatch_send is this round */
	uint64_t next_recv_round;  /* the next dispatch_recv is this round */
	uint32_t n_local_experts;  /* of this rank under the map in force */
	uint64_t staged_bytes;
};
M2N_API int m2n_channel_query(struct m2n_channel *channel, struct m2n_channel_attr *attr);

/*
 * Switches the expert map from round `first_round` on. Every rank of the channel calls it with an
 * equal map before its part in that round; a rank that did not is found by the digest in the
 * header (M2N_ERR_MAP). Maps are set in the order of their rounds; several may be to come.
 * 0; -EINVAL (experts or ranks differ from the channel's, more instances than it has room for,
 * round already begun); -EBUSY (a map for this round or a later one was set already).
 */
M2N_API int m2n_channel_set_map(struct m2n_channel *channel, const struct m2n_map *map,
	uint64_t first_round);

/*
 * Says from which round on a replaced *source* takes part: the new source calls it with its own
 * index, which sets its round counter, and the expert ranks with the same round. (A replaced expert
 * rank needs no call: each source includes it from its next round on, and tells it which.)
 * 0; -EINVAL. Not beside other calls of the same role on the channel.
 */
M2N_API int m2n_channel_admit(struct m2n_channel *channel, int source, uint64_t first_round);

enum m2n_direction {
	M2N_DISPATCH = 0,
	M2N_COMBINE = 1,
};
/*
 * Counters with one group rank in one direction, as seen here. sent or received may be NULL.
 * -EINVAL: no link with that rank. Thread-safe.
 */
M2N_API int m2n_channel_counters(struct m2n_channel *channel, enum m2n_direction direction,
	int rank, struct m2n_counters *sent, struct m2n_counters *received);

#ifdef __cplusplus
}
#endif
#endif
