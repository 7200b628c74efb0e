/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host side of a channel in CUDA memory (core/gpu*.c) and its kernels (kernel/cuda/)
 * share: tables of links, the state of rounds, plans and batches on the device, and one struct of
 * arguments for each kernel. Plain C that C++ reads too; device addresses are uint64_t.
 *
 * The protocol is the one of host channels (core/channel.h, wire/slot_wire.h): heads, mirror
 * addressing, replies as credits. Here kernels speak it, and the device, not the host, counts
 * the rounds: a captured CUDA graph sends round after round with the same arguments. slot =
 * round % depth. A wait is a kernel of one block, so that ranks which share a GPU never keep each
 * other from running; the work kernels never wait, also not for each other's blocks.
 *
 * Where memory lies: `device` of this GPU; `pinned` host memory that both sides read and write;
 * `peer` another rank's device memory, or for messaging peers staging of our own that the
 * progress thread sends on.
 */
#ifndef M2N_KERNEL_GPU_H
#define M2N_KERNEL_GPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define M2N__GPU_NONE 0xffffffffu
#define M2N__GPU_MASK_WORDS 16 /* of bitmaps over sources or expert ranks: 1,024 of them */
#define M2N__GPU_MAX_PEERS (64 * M2N__GPU_MASK_WORDS)
#define M2N__GPU_MAX_TOP_K 64
/* Of a plan's scratch: who is usable, ticket and sums, travelling rows by rank. */
#define M2N__GPU_WORK_BYTES(n_ranks) (8 * 32 + 4 * (4 + (size_t)(n_ranks)))

/* wire/slot_wire.h, as kernels see it. */
struct m2n__gpu_head {
	uint64_t signal, body, bytes, place;
	uint32_t n_rows, n_sent, map_digest, sink, n_body_puts, flags, reserved[2];
};

/* Numbers of the kernels: m2n__gpu_kernel_names[] is in this order. */
enum m2n__gpu_kernel {
	M2N__GPU_PLAN_RANKS = 0, /* struct m2n__gpu_plan_args */
	M2N__GPU_PLAN,           /* struct m2n__gpu_plan_args */
	M2N__GPU_DISPATCH,       /* struct m2n__gpu_dispatch_args */
	M2N__GPU_AWAIT_ROWS,     /* struct m2n__gpu_recv_args; one block */
	M2N__GPU_UNPACK,         /* struct m2n__gpu_recv_args */
	M2N__GPU_REPLY,          /* struct m2n__gpu_reply_args */
	M2N__GPU_AWAIT_REPLIES,  /* struct m2n__gpu_combine_args; one block */
	M2N__GPU_COMBINE,        /* struct m2n__gpu_combine_args */
	M2N__GPU_DOT,            /* struct m2n__gpu_dot_args */
	/* In place of DISPATCH with a cast, or with row_weights; of REPLY with reduce_at_expert. */
	M2N__GPU_DISPATCH_CAST,
	M2N__GPU_DISPATCH_WEIGHTED,
	M2N__GPU_REDUCE,
	M2N__GPU_N_KERNELS
};
extern const char *const m2n__gpu_kernel_names[]; /* ended by NULL */
/* The fatbin; NULL in a build without nvcc. */
extern const void *const m2n__gpu_image;

struct m2n__gpu_shape;
struct m2n__gpu_dispatch_args;
struct m2n__gpu_reply_args;
/* Which of the kernels for a job these arguments are for. */
enum m2n__gpu_kernel m2n__gpu_dispatch_kernel(const struct m2n__gpu_dispatch_args *args);
enum m2n__gpu_kernel m2n__gpu_reply_kernel(const struct m2n__gpu_reply_args *args);
/*
 * A grid for a kernel with n tokens (PLAN_RANKS, PLAN, DISPATCH, COMBINE, DOT) or rows (UNPACK,
 * REPLY) at most: blocks, threads of each, bytes of dynamic shared memory. Any other grid of whole
 * warps is right as well, but for PLAN_RANKS (a block for each rank), AWAIT_* (one block), and at
 * most 256 threads for the kernels that move rows.
 */
void m2n__gpu_geometry(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	int n_multiprocessors, unsigned *n_blocks, unsigned *n_threads, size_t *shared);

/* What never changes in a channel. */
struct m2n__gpu_shape {
	uint32_t n_sources, n_ranks; /* expert ranks */
	uint32_t n_experts, top_k, max_tokens, depth;
	uint32_t self_source, self_rank; /* own indexes; M2N__GPU_NONE: not in the list */
	uint32_t slot_rows;              /* travelling rows that a dispatch slot holds */
	uint32_t rank_capacity;          /* most travelling rows to an expert rank; 0: no limit */
	uint32_t max_local;              /* local experts of a rank at most, of any map */
	uint32_t reply_rows;             /* reply rows that a region slot holds */
	uint32_t n_region_slots;         /* of a sink: places lie within them */
	uint32_t dtype;                  /* enum m2n_dtype */
	uint32_t cast;                   /* enum m2n_cast */
	uint8_t dedup, reduce_at_expert, drop_overflow, reserved;
	uint64_t row_bytes, scale_bytes; /* as they travel */
	uint64_t out_row_bytes;
	uint64_t n_values;              /* of an output row */
	uint64_t slot_stride;           /* of dispatch slots: head, payload */
	uint64_t reply_slot_stride;     /* of reply slots: heads only */
	uint64_t reply_region_bytes;    /* of one region slot */
};

/*
 * An expert map; arrays in device memory. Instance: an expert on a rank, numbered by rank, then
 * in the rank's order.
 */
struct m2n__gpu_map {
	uint32_t digest, n_instances;
	uint64_t owner_first;    /* u32 [n_experts + 1] into the next */
	uint64_t owner_instance; /* u32 [n_instances] by expert */
	uint64_t rank_first;     /* u32 [n_ranks + 1] first instance of each rank */
	uint64_t rank_of;        /* u32 [n_instances] by instance: its rank's index */
	uint64_t expert_of;      /* u32 [n_instances] by instance: the expert */
};

/* A link out; a device table, changed by the host only while live is 0. */
struct m2n__gpu_tx {
	uint64_t slots;       /* peer: [depth] slots */
	uint64_t region;      /* peer: region for rows (replies), [depth] region slots; 0: none */
	uint64_t first_round; /* rounds from here on go to it */
	uint64_t post;        /* messaging: pinned struct m2n__gpu_post [depth]; 0: mapped */
	uint32_t live;        /* the link is up */
	uint32_t reserved;
};

/*
 * Messaging: what a kernel asks the progress thread to send, a cache line. The kernel fills it and
 * then stores seq = round + 1 (release, system scope). head: bytes [0, head_bytes) of the slot;
 * body: region bytes [at, at + body_bytes), which go first.
 */
struct m2n__gpu_post {
	uint64_t seq;
	uint64_t head_bytes;
	uint64_t body_at, body_bytes;
	uint64_t reserved[4];
};

/* A link in; a device table. */
struct m2n__gpu_rx {
	uint64_t slots;       /* device, own: [depth] slots */
	uint64_t first_round; /* rounds from here on come from it */
	uint64_t arrived;     /* messaging: pinned u64 [2 * depth], heads and bodies that arrived in
			       * each slot so far; 0: mapped */
	uint64_t seen;        /* messaging: device u64 [2 * depth], those that kernels took */
};

/* Rounds so far. Device; each word has one writer kernel, in stream order. */
struct m2n__gpu_rounds {
	uint64_t send, recv, combine;
	uint32_t place; /* region slot of the round that is combined; NONE: it was not sent */
	uint32_t ticket[M2N__GPU_N_KERNELS]; /* blocks that are done; 0 between launches */
};

/* How a kernel says what went wrong. Pinned; the host reads `seq` first and last. */
struct m2n__gpu_report {
	uint64_t seq; /* two more with each report; odd while it is written */
	uint64_t round;
	int32_t code; /* M2N_PARTIAL, -ETIMEDOUT, M2N_ERR_PROTOCOL, M2N_ERR_MAP */
	uint32_t n_rows; /* rows that went nowhere (send) */
	uint64_t peers[M2N__GPU_MASK_WORDS]; /* whom it is about */
};

/* What passed over a link. Device [peers]; one writer kernel, in stream order. */
struct m2n__gpu_count {
	uint64_t n_rounds, n_rows, bytes;
};

/* ---- plan ---------------------------------------------------------------------------------- */

/* A plan; arrays in device memory. Row order: rank, local expert, token, k. */
struct m2n__gpu_plan {
	uint64_t pair_instance; /* u32 [max_tokens, top_k]; NONE: no row */
	uint64_t pair_position; /* u32 [max_tokens, top_k] among the instance's rows */
	uint64_t pair_unique;   /* dedup or rank_capacity: u32 [max_tokens, top_k] travelling row
				 * within the rank, bit 31: this pair is the token's first on that
				 * rank; NONE: no room */
	uint64_t weight;        /* f32 [max_tokens, top_k]; 1 when none were given */
	uint64_t dropped;       /* u8 [max_tokens], 255 at most */
	uint64_t count;         /* u32 [max_instances] rows */
	uint64_t first;         /* u32 [max_instances + 1] first row, global */
	uint64_t rank_first;    /* u32 [n_ranks + 1] first row of each rank */
	uint64_t unique_first;  /* u32 [n_ranks + 1] travelling rows; rank_first without dedup */
	uint64_t work;          /* scratch: M2N__GPU_WORK_BYTES(n_ranks), zero at first */
	uint64_t n_tokens;      /* u32: of the routing in force */
	uint64_t summary;       /* pinned struct m2n__gpu_summary */
};

/* What the host may know of a routing. Pinned; rank_rows [n_ranks] follows. */
struct m2n__gpu_summary {
	uint64_t ticket; /* of the call; stored last (release, system scope) */
	uint32_t n_tokens, n_rows, n_sent, n_dropped, n_dropped_lost;
	int32_t code;     /* 0, M2N_PARTIAL, M2N_ERR_CAPACITY, -EINVAL: the plan is empty then */
	uint32_t bad_token, bad_k;
	int32_t bad_id;
	uint32_t rank_rows[];
};

/*
 * Routes: PLAN_RANKS (only with dedup or rank_capacity; a block for each rank) finds each token's
 * travelling rows, in token order, and drops pairs beyond the capacity (pairs last in (token, k)
 * order go first; with dedup a pair whose token is already at the rank needs no room). PLAN (each
 * block some instances) counts and places; its last block makes the prefix sums and the summary.
 * No sort. A replica is picked by (source + token) modulo the live owners, in owner order, as
 * route/plan.h has it. Who is usable is decided once for both kernels, by the block that comes
 * first: links may go meanwhile. An id out of [-1, n_experts) empties the plan: -EINVAL, the first
 * in (token, k) order is told. Overflow without drop_overflow empties it: M2N_ERR_CAPACITY.
 * Ranks whose link is not live, or not in the mask, are not usable (self needs a link, too).
 */
struct m2n__gpu_plan_args {
	struct m2n__gpu_shape shape;
	struct m2n__gpu_map map;
	struct m2n__gpu_plan plan;
	uint64_t ids;     /* device i32 [n_tokens, top_k], -1: none */
	uint64_t weights; /* device f32 [n_tokens, top_k]; 0: all 1 */
	uint64_t tx;      /* device struct m2n__gpu_tx [n_ranks] */
	uint64_t ticket;
	uint32_t n_tokens;
	uint32_t has_mask;
	uint64_t mask[M2N__GPU_MASK_WORDS]; /* usable ranks, with has_mask */
};

/* ---- source -------------------------------------------------------------------------------- */

/*
 * Sends round rounds->send: for each live rank of the mask whose first_round it has reached the
 * meta (counts, dedup index, weights: struct m2n__layout of core/channel.h), rows and scales
 * into its slot, the head, and last the signal (release, system scope) by the last block, which
 * counts the round up. A token's row is read once for all its copies. Also ranks without rows get
 * a head. Rows for ranks that are not live are reported (M2N_PARTIAL). The head's place is
 * reply_first[rank] * out_row_bytes + places[slot] * reply_region_bytes; `part` gets the ranks
 * that got a head. Messaging: the same into staging, then the post.
 */
struct m2n__gpu_dispatch_args {
	struct m2n__gpu_shape shape;
	struct m2n__gpu_map map;
	struct m2n__gpu_plan plan;
	uint64_t rows;         /* device [n_tokens, ...]; with a cast bf16 values */
	uint64_t row_stride;
	uint64_t scales;       /* device; 0 with a cast, or without scales */
	uint64_t scale_stride;
	uint64_t row_weights;  /* device f32 [n_tokens, top_k]; 0: rows as they are */
	uint64_t tx;           /* device struct m2n__gpu_tx [n_ranks] */
	uint64_t rounds;       /* device struct m2n__gpu_rounds */
	uint64_t places;       /* device u32 [depth]: region slot of the replies of each slot; NONE:
				* nothing can be sent (-ENOBUFS is reported) */
	uint64_t part;         /* device u64 [depth, MASK_WORDS]: out */
	uint64_t counts;       /* device struct m2n__gpu_count [n_ranks] */
	uint64_t report;       /* pinned struct m2n__gpu_report */
	uint32_t has_mask;
	uint32_t reserved;
	uint64_t mask[M2N__GPU_MASK_WORDS];
};

/* ---- expert rank --------------------------------------------------------------------------- */

/* A batch; arrays in device memory. Cell: (local expert, source), number e * n_sources + s. */
struct m2n__gpu_batch {
	uint64_t round;       /* u64 */
	uint64_t cell_rows;   /* u32 [max_local * n_sources] */
	uint64_t cell_first;  /* u32 [max_local * n_sources + 1] first batch row */
	uint64_t cell_source; /* u32 [max_local * n_sources] first row in the source's own order */
	uint64_t expert_rows; /* u32 [max_local] */
	uint64_t expert_first; /* u32 [max_local + 1] first batch row */
	uint64_t source_rows; /* u32 [n_sources] rows; 0 when it is missing */
	uint64_t source_sent; /* u32 [n_sources] travelling rows */
	uint64_t place;       /* u64 [n_sources] of the replies */
	uint64_t present;     /* u64 [MASK_WORDS] sources whose head came */
	uint64_t rows;        /* [max_rows, row_bytes] expert-major, dense: for the caller */
	uint64_t scales;      /* [max_rows, scale_bytes] */
	uint64_t mirror;      /* pinned struct m2n__gpu_mirror */
};

/* What the host may know of a batch. Pinned; cells u32 [n_local * n_sources] follow. */
struct m2n__gpu_mirror {
	uint64_t ticket; /* of the call; stored last (release, system scope) */
	uint64_t round;
	uint32_t n_rows;
	int32_t code; /* 0, M2N_PARTIAL, -ETIMEDOUT, ... */
	uint64_t missing[M2N__GPU_MASK_WORDS];
	uint32_t cell_rows[];
};

/*
 * AWAIT_ROWS (one block) waits for the heads of round rounds->recv from every source of the mask
 * that is alive and whose first_round it has reached, until the deadline; checks them (rows <=
 * slot_rows, counts add up, index < n_sent, the place fits n_region_slots and is aligned as rows
 * are, map digest: a source that fails is missing and reported); lays out the batch; counts
 * the round up. A source that is not alive is looked at once more before it is given up. UNPACK
 * copies rows and scales into the batch's buffers, expert-major; with dedup through the index.
 */
struct m2n__gpu_recv_args {
	struct m2n__gpu_shape shape;
	struct m2n__gpu_map map;
	struct m2n__gpu_batch batch;
	uint64_t rx;       /* device struct m2n__gpu_rx [n_sources] */
	uint64_t alive;    /* pinned u32 [n_sources]: 0: down; read while waiting */
	uint64_t counts;   /* device struct m2n__gpu_count [n_sources] */
	uint64_t rounds;
	uint64_t report;
	uint64_t ticket;
	int64_t timeout_ns;
	uint32_t n_local;
	uint32_t has_mask;
	uint64_t mask[M2N__GPU_MASK_WORDS];
};

/*
 * Replies to batch->round: each source's output rows, in the source's row order, to its region at
 * `place`; with reduce_at_expert one weighted sum for each travelling row (weights and index from
 * the slot, rows ascending, the sum of kernel.h's wsum). Then head and signal, also for sources
 * without rows; only sources that are present and whose link is live.
 */
struct m2n__gpu_reply_args {
	struct m2n__gpu_shape shape;
	struct m2n__gpu_map map;
	struct m2n__gpu_batch batch;
	uint64_t rows; /* device [batch rows, ...] in batch row order */
	uint64_t row_stride;
	uint64_t rx;     /* for the slot's index and weights */
	uint64_t tx;     /* device struct m2n__gpu_tx [n_sources] of the reply exchange */
	uint64_t counts; /* device struct m2n__gpu_count [n_sources] */
	uint64_t rounds; /* ticket only */
	uint64_t report;
	uint32_t n_local;
	uint32_t reserved;
};

/* ---- sink ---------------------------------------------------------------------------------- */

/*
 * AWAIT_REPLIES (one block) waits for the reply heads of round rounds->combine from the ranks of
 * part[slot], until the deadline; answered[slot] gets those with the expected number of rows; a
 * missing one with rows is reported, its region slot is held, and the slot's next round gets the
 * other one (slot or slot + depth), or NONE while that is held, too. COMBINE sums as kernel.h's
 * wsum: out = residual + sum_k weight * reply, k ascending; fills missing and replies where
 * wanted; its last block counts the round up. out may be 0.
 */
struct m2n__gpu_combine_args {
	struct m2n__gpu_shape shape;
	struct m2n__gpu_map map;
	struct m2n__gpu_plan plan;
	uint64_t rx;       /* device struct m2n__gpu_rx [n_ranks] of the reply exchange */
	uint64_t alive;    /* pinned u32 [n_ranks] */
	uint64_t counts;   /* device struct m2n__gpu_count [n_ranks] */
	uint64_t region;   /* device, own: [n_region_slots] */
	uint64_t places;   /* device u32 [depth] */
	uint64_t held;     /* pinned u32 [2 * depth]: 1: ranks that were given up may still write to
			    * this region slot; stored by kernels, taken back by the host */
	uint64_t part;     /* device u64 [depth, MASK_WORDS] */
	uint64_t answered; /* device u64 [depth, MASK_WORDS] */
	uint64_t rounds;
	uint64_t report;
	uint64_t weights;  /* device f32; 0: the plan's */
	uint32_t unit_weights;
	uint32_t reserved;
	uint64_t residual, residual_stride; /* device; 0: none */
	uint64_t out, out_stride;
	uint64_t replies;  /* device [n_tokens, top_k, out_row_bytes]; 0: not wanted */
	uint64_t missing;  /* device u8 [n_tokens]; 0: not wanted */
	int64_t timeout_ns;
};

/* grad[t,k] = <dy[t], replies[t,k]> as kernel.h's dot. */
struct m2n__gpu_dot_args {
	struct m2n__gpu_shape shape;
	uint64_t dy, dy_stride;
	uint64_t replies; /* device [n_tokens, top_k, out_row_bytes] */
	uint64_t grad;    /* device f32 [n_tokens, top_k] */
	uint32_t n_tokens;
	uint32_t reserved;
};

#ifdef __cplusplus
}
#endif
#endif
