/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A warp's piece of a row: N times 16 bytes for each lane, neighbouring lanes side by side, so
 * that N independent loads are under way before the first store. Rows have any size and
 * alignment; the aligned kind is the one to be fast.
 */
#ifndef M2N_KERNEL_CUDA_ROWS_CUH
#define M2N_KERNEL_CUDA_ROWS_CUH

#include "kernel/cuda/value.cuh"

/* A lane's part of a piece of a row: every (32 * 16)th byte from its first on. */
struct span {
	uint64_t from;
	uint64_t bytes; /* of the whole row */
};

template <uint32_t N> struct vectors {
	uint4 v[N];
};

/* Pieces of a row, of N vectors a lane. */
template <uint32_t N> DEVICE uint32_t n_pieces(uint64_t row_bytes)
{
	return (uint32_t)((row_bytes + N * WARP * 16 - 1) / (N * WARP * 16));
}

template <uint32_t N> DEVICE struct span span_of(uint32_t piece, uint64_t row_bytes)
{
	struct span span = {piece * (uint64_t)(N * WARP * 16) + lane() * 16, row_bytes};

	return span;
}

template <int ALIGNED, uint32_t N>
DEVICE void row_load(struct vectors<N> *l, uint64_t row, const struct span *s)
{
#pragma unroll
	for (uint32_t i = 0; i < N; i++) {
		uint64_t from = s->from + i * WARP * 16;

		if (from < s->bytes)
			l->v[i] = load_part<ALIGNED>(at<uint8_t>(row) + from, s->bytes - from);
	}
}

template <int ALIGNED, uint32_t N>
DEVICE void row_store(const struct vectors<N> *l, uint64_t row, const struct span *s)
{
#pragma unroll
	for (uint32_t i = 0; i < N; i++) {
		uint64_t from = s->from + i * WARP * 16;

		if (from < s->bytes)
			store_part<ALIGNED>(at<uint8_t>(row) + from, l->v[i], s->bytes - from);
	}
}

template <uint32_t N> DEVICE void row_clear(struct vectors<N> *l)
{
#pragma unroll
	for (uint32_t i = 0; i < N; i++)
		l->v[i] = make_uint4(0, 0, 0, 0);
}

#define MOVE_VECTORS 4u /* where rows are moved as they are */

/* Moves a piece of a row. */
template <int ALIGNED> DEVICE void row_move(uint64_t to, uint64_t from, const struct span *span)
{
	struct vectors<MOVE_VECTORS> l;

	row_load<ALIGNED>(&l, from, span);
	row_store<ALIGNED>(&l, to, span);
}

/* The same for rows that are not aligned, out of the way of those that are. */
static __device__ __noinline__ void row_move_any(uint64_t to, uint64_t from, uint32_t piece,
	uint64_t row_bytes)
{
	struct span span = span_of<MOVE_VECTORS>(piece, row_bytes);

	row_move<0>(to, from, &span);
}

/* Copies a few bytes by one warp, whatever the alignment. */
static __device__ __noinline__ void copy_small(uint64_t to, uint64_t from, uint64_t bytes)
{
	for (struct span s = span_of<1>(0, bytes); s.from < bytes; s.from += WARP * 16) {
		struct vectors<1> l;

		row_load<0>(&l, from, &s);
		row_store<0>(&l, to, &s);
	}
}

#endif
