/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weighted sums of rows, a span at a time: each lane holds SUM_VECTORS times 16 bytes of values
 * in fp32, adds terms in the order it is given them by fused multiply-add, and rounds once at the
 * end: kernel.h's wsum, bit for bit.
 */
#ifndef M2N_KERNEL_CUDA_SUM_CUH
#define M2N_KERNEL_CUDA_SUM_CUH

#include "kernel/cuda/rows.cuh"

#define SUM_VECTORS 2u

typedef struct vectors<SUM_VECTORS> loaded;

template <int DTYPE> struct sum {
	float value[SUM_VECTORS][values<DTYPE>::n];
};

struct term {
	uint64_t row; /* address */
	float weight;
};

template <int DTYPE> DEVICE void sum_clear(struct sum<DTYPE> *sum)
{
#pragma unroll
	for (uint32_t i = 0; i < SUM_VECTORS; i++)
#pragma unroll
		for (uint32_t j = 0; j < values<DTYPE>::n; j++)
			sum->value[i][j] = 0;
}

/* The residual, which is the sum's start. */
template <int DTYPE> DEVICE void sum_start(struct sum<DTYPE> *sum, const loaded *l)
{
#pragma unroll
	for (uint32_t i = 0; i < SUM_VECTORS; i++)
		unpack<DTYPE>(l->v[i], sum->value[i]);
}

template <int DTYPE>
DEVICE void sum_add_loaded(struct sum<DTYPE> *sum, const loaded *l, float weight)
{
#pragma unroll
	for (uint32_t i = 0; i < SUM_VECTORS; i++) {
		float f[values<DTYPE>::n];

		unpack<DTYPE>(l->v[i], f);
#pragma unroll
		for (uint32_t j = 0; j < values<DTYPE>::n; j++)
			sum->value[i][j] = fused(weight, f[j], sum->value[i][j]);
	}
}

template <int DTYPE, int ALIGNED>
DEVICE void sum_add(struct sum<DTYPE> *sum, const struct term *term, const struct span *span)
{
	loaded l;

	row_clear(&l);
	row_load<ALIGNED>(&l, term->row, span);
	sum_add_loaded<DTYPE>(sum, &l, term->weight);
}

template <int DTYPE, int ALIGNED>
DEVICE void sum_store(const struct sum<DTYPE> *sum, uint64_t row, const struct span *span)
{
	loaded l;

#pragma unroll
	for (uint32_t i = 0; i < SUM_VECTORS; i++)
		l.v[i] = pack<DTYPE>(sum->value[i]);
	row_store<ALIGNED>(&l, row, span);
}

#endif
