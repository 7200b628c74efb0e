/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The common ground of the kernels: the machine (ptx.cuh, or its stand-in on the host), addresses,
 * sums over warps and blocks, the walk over pieces of rows, and the ticket that tells a grid's
 * last block.
 *
 * Kernels are written in a plain C++: functions on structs, templates for data types. All lanes
 * of a warp stay together wherever warp operations are used.
 */
#ifndef M2N_KERNEL_CUDA_DEVICE_H
#define M2N_KERNEL_CUDA_DEVICE_H

#ifdef __CUDACC__
#include "kernel/cuda/ptx.cuh"
#else
#include "device_emulation.h"
#endif

#include "kernel/gpu.h"

#define WARP 32u
#define MAX_WARPS 32u /* of a block */

/* Device addresses are numbers in arguments. */
template <typename T> DEVICE T *at(uint64_t address, uint64_t index = 0)
{
	return (T *)(uintptr_t)address + index;
}

DEVICE uint32_t lane(void)
{
	return threadIdx.x % WARP;
}

DEVICE uint32_t warp(void)
{
	return threadIdx.x / WARP;
}

/* Over the whole grid. */
DEVICE uint32_t grid_thread(void)
{
	return blockIdx.x * blockDim.x + threadIdx.x;
}

DEVICE uint32_t grid_threads(void)
{
	return gridDim.x * blockDim.x;
}

DEVICE int bit_of(const uint64_t *bitmap, uint32_t i)
{
	return (int)(bitmap[i / 64] >> (i % 64) & 1);
}

/* Several threads may set bits of a bitmap in shared memory. */
DEVICE void set_bit(uint64_t *bitmap, uint32_t i)
{
	atomic_or((uint32_t *)bitmap + i / 32, 1u << i % 32);
}

DEVICE uint64_t lines(uint64_t bytes)
{
	return (bytes + 63) & ~(uint64_t)63;
}

/* Sum of the lanes below this one. */
DEVICE uint32_t warp_scan(uint32_t value)
{
	uint32_t sum = value;

	for (uint32_t step = 1; step < WARP; step *= 2) {
		uint32_t below = shuffle(sum, lane() >= step ? lane() - step : lane());

		sum += lane() >= step ? below : 0;
	}
	return sum - value;
}

/* Sum of the threads below this one; *total: of all. All threads of the block call it. */
static __device__ uint32_t block_scan(uint32_t value, uint32_t *total)
{
	SHARED(uint32_t[MAX_WARPS], sums);
	uint32_t n_warps = blockDim.x / WARP, before = warp_scan(value), of_warp, base;

	if (lane() == WARP - 1)
		sums[warp()] = before + value;
	block_sync();
	of_warp = lane() < n_warps ? sums[lane()] : 0;
	base = warp_sum(lane() < warp() ? of_warp : 0);
	*total = warp_sum(of_warp);
	block_sync(); /* sums may be used again */
	return base + before;
}

/*
 * Pieces of n_rows rows of n_chunks each, dealt out to the grid's warps in order. One division
 * at the start, none on the way.
 */
struct walk {
	uint32_t row, chunk;
	uint32_t n_rows, n_chunks;
	uint32_t row_step, chunk_step;
};

DEVICE struct walk walk_start(uint32_t n_rows, uint32_t n_chunks)
{
	uint32_t n_warps = grid_threads() / WARP, first = grid_thread() / WARP;
	struct walk w;

	w.n_rows = n_rows;
	w.n_chunks = n_chunks;
	w.row = first / n_chunks;
	w.chunk = first - w.row * n_chunks;
	w.row_step = n_warps / n_chunks;
	w.chunk_step = n_warps - w.row_step * n_chunks;
	return w;
}

DEVICE int walk_goes(const struct walk *w)
{
	return w->row < w->n_rows;
}

DEVICE void walk_on(struct walk *w)
{
	w->row += w->row_step;
	w->chunk += w->chunk_step;
	if (w->chunk >= w->n_chunks) {
		w->chunk -= w->n_chunks;
		w->row++;
	}
}

/*
 * Is this the last block of the grid? Every block calls it once, with all threads, when all its
 * stores are done. In the last one the stores of all blocks are seen, and its own release stores
 * publish them: fence, ticket, fence, and barriers between a block's threads carry them over.
 */
static __device__ int is_last_block(uint32_t *ticket)
{
	SHARED(uint32_t, is_last);

	block_sync();
	if (threadIdx.x == 0) {
		fence_sys(); /* T1: stores of this block before its ticket, pairs with T2 */
		is_last = atomic_add(ticket, 1) == gridDim.x - 1;
		if (is_last) {
			*ticket = 0;
			fence_sys(); /* T2: tickets before what the others stored, pairs with T1 */
		}
	}
	block_sync();
	return (int)is_last;
}

/* The slot of a round. */
DEVICE uint32_t slot_of(const struct m2n__gpu_shape *shape, uint64_t round)
{
	return (uint32_t)(round % shape->depth);
}

/* Offsets behind a head: struct m2n__layout of core/channel.h. */
struct layout {
	uint64_t index, weights, scales, rows, end;
};

DEVICE struct layout lay_out(
	const struct m2n__gpu_shape *shape, uint32_t n_local, uint32_t n_rows, uint32_t n_sent)
{
	struct layout l;

	l.index = l.weights = l.scales = lines(n_local * (uint64_t)sizeof(uint32_t));
	if (shape->dedup)
		l.weights = l.scales = l.index + lines(n_rows * (uint64_t)sizeof(uint32_t));
	if (shape->reduce_at_expert)
		l.scales = l.weights + lines(n_rows * (uint64_t)sizeof(float));
	l.rows = l.scales + lines(n_sent * shape->scale_bytes);
	l.end = l.rows + n_sent * shape->row_bytes;
	return l;
}

/* One thread: a round with a peer has passed. `counts` 0: nobody counts. */
DEVICE void count_round(uint64_t counts, uint32_t peer, uint64_t n_rows, uint64_t bytes)
{
	struct m2n__gpu_count *count = at<struct m2n__gpu_count>(counts, peer);

	if (!counts)
		return;
	count->n_rounds++;
	count->n_rows += n_rows;
	count->bytes += bytes;
}

/* Says what went wrong; one thread. `peers`: MASK_WORDS words. */
DEVICE void tell(uint64_t report, uint64_t round, int32_t code, uint32_t n_rows,
	const uint64_t *peers)
{
	struct m2n__gpu_report *r = at<struct m2n__gpu_report>(report);

	if (!report)
		return;
	release_store_sys(&r->seq, r->seq + 1); /* odd: being written */
	fence_sys();
	r->round = round;
	r->code = code;
	r->n_rows = n_rows;
	for (uint32_t w = 0; w < M2N__GPU_MASK_WORDS; w++)
		r->peers[w] = peers[w];
	/* T3: the words before seq, pairs with the host's reads of seq before and after them. */
	release_store_sys(&r->seq, r->seq + 1);
}

#endif
