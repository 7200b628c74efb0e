/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's side of the CUDA kernels: their names, and how large a grid each wants. Kernels take
 * any grid of whole warps; these are the ones that fill a device without more blocks than can be
 * resident, and small ones for little work.
 */
#include "kernel/gpu.h"

#define WARP 32u
#define PIECE_BYTES 2048u /* of a row that a warp moves at once */
#define SPAN_BYTES 1024u  /* of a row that a warp sums at once */
#define BLOCK_THREADS 256u
#define PAIRS_A_THREAD 32u /* PLAN */
#define GROUP 2u           /* instances of a block, PLAN */
#define OUTLET_BYTES 32u   /* DISPATCH: of a rank, in shared memory */
#define RETURN_BYTES 12u   /* REPLY: of a source, in shared memory */

const char *const m2n__gpu_kernel_names[] = {
	[M2N__GPU_PLAN_RANKS] = "m2n_plan_ranks",
	[M2N__GPU_PLAN] = "m2n_plan",
	[M2N__GPU_DISPATCH] = "m2n_dispatch",
	[M2N__GPU_AWAIT_ROWS] = "m2n_await_rows",
	[M2N__GPU_UNPACK] = "m2n_unpack",
	[M2N__GPU_REPLY] = "m2n_reply",
	[M2N__GPU_AWAIT_REPLIES] = "m2n_await_replies",
	[M2N__GPU_COMBINE] = "m2n_combine",
	[M2N__GPU_DOT] = "m2n_dot",
	[M2N__GPU_DISPATCH_CAST] = "m2n_dispatch_cast",
	[M2N__GPU_DISPATCH_WEIGHTED] = "m2n_dispatch_weighted",
	[M2N__GPU_REDUCE] = "m2n_reduce",
	[M2N__GPU_N_KERNELS] = NULL,
};

static unsigned clamp(uint64_t value, unsigned low, unsigned high)
{
	return value < low ? low : value > high ? high : (unsigned)value;
}

/* Whole warps for n threads' worth of work. */
static unsigned threads_for(uint64_t n, unsigned most)
{
	return clamp((n + WARP - 1) / WARP * WARP, WARP, most);
}

/* Blocks that a multiprocessor has registers for at once. */
static unsigned resident(enum m2n__gpu_kernel kernel)
{
	switch (kernel) {
	case M2N__GPU_COMBINE:
		return 2;
	case M2N__GPU_DISPATCH_CAST:
		return 4;
	case M2N__GPU_DOT:
		return 8;
	default:
		return 3;
	}
}

/* Blocks for pieces that a warp each takes. */
static unsigned blocks_for(enum m2n__gpu_kernel kernel, uint64_t n_pieces, int n_multiprocessors)
{
	uint64_t blocks = (n_pieces + BLOCK_THREADS / WARP - 1) / (BLOCK_THREADS / WARP);

	return clamp(blocks, 1,
		n_multiprocessors > 0 ? (unsigned)n_multiprocessors * resident(kernel) : 1);
}

static uint64_t pieces(uint64_t bytes, uint64_t piece)
{
	return bytes ? (bytes + piece - 1) / piece : 1;
}

static void row_geometry(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape,
	uint64_t n, int n_multiprocessors, unsigned *n_blocks)
{
	uint64_t each;

	switch (kernel) {
	case M2N__GPU_DISPATCH_CAST:
		each = pieces(2 * shape->row_bytes, PIECE_BYTES);
		break;
	case M2N__GPU_DISPATCH:
	case M2N__GPU_DISPATCH_WEIGHTED:
	case M2N__GPU_UNPACK:
		each = pieces(shape->row_bytes, PIECE_BYTES);
		break;
	case M2N__GPU_REPLY:
		each = pieces(shape->out_row_bytes, PIECE_BYTES);
		break;
	case M2N__GPU_DOT:
		each = (shape->top_k + 1) / 2; /* two pairs a warp */
		break;
	default:
		each = pieces(shape->out_row_bytes, SPAN_BYTES);
		break;
	}
	*n_blocks = blocks_for(kernel, n * each, n_multiprocessors);
}

enum m2n__gpu_kernel m2n__gpu_dispatch_kernel(const struct m2n__gpu_dispatch_args *args)
{
	if (args->shape.cast)
		return M2N__GPU_DISPATCH_CAST;
	return args->row_weights ? M2N__GPU_DISPATCH_WEIGHTED : M2N__GPU_DISPATCH;
}

enum m2n__gpu_kernel m2n__gpu_reply_kernel(const struct m2n__gpu_reply_args *args)
{
	return args->shape.reduce_at_expert ? M2N__GPU_REDUCE : M2N__GPU_REPLY;
}

void m2n__gpu_geometry(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	int n_multiprocessors, unsigned *n_blocks, unsigned *n_threads, size_t *shared)
{
	uint64_t pairs = (uint64_t)n * shape->top_k;
	uint64_t cells = (uint64_t)shape->max_local * shape->n_sources;

	*n_blocks = 1;
	*n_threads = BLOCK_THREADS;
	*shared = 0;
	switch (kernel) {
	case M2N__GPU_PLAN_RANKS:
		*n_blocks = shape->n_ranks;
		*n_threads = threads_for(n, 1024);
		break;
	case M2N__GPU_PLAN:
		*n_threads = threads_for((pairs + PAIRS_A_THREAD - 1) / PAIRS_A_THREAD, 1024);
		*n_blocks = clamp((shape->n_experts + GROUP - 1) / GROUP, 1,
			n_multiprocessors > 0 ? (unsigned)n_multiprocessors : 1);
		break;
	case M2N__GPU_AWAIT_ROWS:
		*n_threads = threads_for(shape->dedup ? 1024 : cells, 1024);
		if (*n_threads < shape->n_sources)
			*n_threads = threads_for(shape->n_sources, 1024);
		break;
	case M2N__GPU_AWAIT_REPLIES:
		*n_threads = threads_for(shape->n_ranks, 1024);
		break;
	default:
		row_geometry(kernel, shape, n, n_multiprocessors, n_blocks);
		if (kernel == M2N__GPU_DISPATCH || kernel == M2N__GPU_DISPATCH_CAST ||
			kernel == M2N__GPU_DISPATCH_WEIGHTED)
			*shared = (size_t)shape->n_ranks * OUTLET_BYTES;
		if (kernel == M2N__GPU_REPLY || kernel == M2N__GPU_REDUCE)
			*shared = (size_t)shape->n_sources * RETURN_BYTES + 16;
		break;
	}
}
