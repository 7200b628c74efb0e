/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tiles of fixed shapes over OpenBLAS.
 *
 * Weights are walked in blocks of 64 outputs x 256 inputs that stay in the second-level cache while
 * all tiles of rows go over them; bf16 blocks are widened there first, so that a bf16 matrix gives
 * the bits of the same values in fp32. Sums over inputs go block by block, ascending. A tile has 8
 * rows, or fewer where the trial showed that the kernel for fewer sums in the same order; the trial
 * compares bits for random rows at every position, which is enough because the order of a sum
 * does not depend on the values. Where even 8 rows disagree with each other every row goes alone.
 */
#include "product.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#define TILE_ROWS 8
#define BLOCK_OUT 64
#define BLOCK_IN 256
#define CACHE_LINE 64

/* Not in every cblas.h. */
extern void openblas_set_num_threads(int n_threads);
extern char *openblas_get_config(void);

struct model_work {
	float block[BLOCK_OUT * BLOCK_IN]; /* a widened block of weights */
	float y[TILE_ROWS * BLOCK_OUT];    /* results of a tile that is filled up */
	/* Trial data: rows rotated through a tile, and what the reference gave. */
	float trial_x[TILE_ROWS * BLOCK_IN], trial_ref[TILE_ROWS * BLOCK_OUT];
	uint8_t tiles[BLOCK_OUT + 1][BLOCK_IN + 1]; /* model_product_tiles(); 0: not tried yet */
	float *x; /* [blocks, TILE_ROWS, BLOCK_IN] the last rows, filled up with zeros */
};

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

struct model_work *model_work_open(size_t max_in)
{
	struct model_work *work = calloc(1, sizeof(*work));
	size_t n_blocks = max_in / BLOCK_IN + 1;

	if (!work || !(work->x = calloc(n_blocks * TILE_ROWS * BLOCK_IN, sizeof(float)))) {
		free(work);
		return NULL;
	}
	openblas_set_num_threads(1);
	return work;
}

void model_work_close(struct model_work *work)
{
	if (work)
		free(work->x);
	free(work);
}

const char *model_product_engine(void)
{
	return openblas_get_config();
}

/* y[rows, n_out] (+)= x[rows, n_in] * w[n_out, n_in]^T */
static void multiply(const float *x, size_t x_stride, const float *w, size_t w_stride, size_t rows,
	size_t n_out, size_t n_in, int add, float *y, size_t y_stride)
{
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)rows, (blasint)n_out,
		(blasint)n_in, 1.0f, x, (blasint)x_stride, w, (blasint)w_stride,
		add ? 1.0f : 0.0f, y, (blasint)y_stride);
}

static void fill_random(float *values, size_t n_values, uint32_t seed)
{
	for (size_t i = 0; i < n_values; i++) {
		seed = seed * 1664525u + 1013904223u;
		values[i] = (float)(int32_t)seed * 0x1p-31f;
	}
}

/*
 * Whether tiles of `rows` rows give row 0..7 of the trial the bits in trial_ref at every position.
 * With `define`, the results at position 0 become the reference first.
 */
static int tile_agrees(struct model_work *work, size_t rows, size_t n_out, size_t n_in, int define)
{
	size_t bytes = n_out * sizeof(float);

	for (size_t at = 0; at < rows; at++) {
		for (size_t row = 0; row < TILE_ROWS; row++) {
			float *ref = work->trial_ref + row * BLOCK_OUT;
			float *got = work->y + at * n_out;

			for (size_t i = 0; i < rows; i++)
				memcpy(work->trial_x + i * BLOCK_IN,
					work->x + (row + TILE_ROWS + i - at) % TILE_ROWS * n_in,
					n_in * sizeof(float));
			multiply(work->trial_x, BLOCK_IN, work->block, BLOCK_IN, rows, n_out, n_in,
				0, work->y, n_out);
			if (define && at == 0)
				memcpy(ref, got, bytes);
			else if (memcmp(ref, got, bytes) != 0)
				return 0;
		}
	}
	return 1;
}

unsigned model_product_tiles(struct model_work *work, size_t n_out, size_t n_in)
{
	uint8_t *tiles = &work->tiles[n_out][n_in];
	size_t full = TILE_ROWS;

	if (*tiles)
		return *tiles;
	fill_random(work->block, BLOCK_OUT * BLOCK_IN, 1);
	fill_random(work->x, TILE_ROWS * n_in, 2);
	while (full > 1 && !tile_agrees(work, full, n_out, n_in, 1))
		full /= 2;
	*tiles = (uint8_t)full;
	for (size_t rows = full / 2; rows > 0; rows /= 2)
		if (tile_agrees(work, rows, n_out, n_in, 0))
			*tiles |= (uint8_t)rows;
	return *tiles;
}

/* One block of weights, one tile of rows that may be short. */
static void multiply_tile(struct model_work *work, const float *x, size_t x_stride, const float *w,
	size_t w_stride, size_t rows, size_t n_out, size_t n_in, int add, float *y, size_t y_stride)
{
	unsigned tiles = work->tiles[n_out][n_in];
	size_t call = 1;

	while (call < rows || !(tiles & call))
		call *= 2;
	if (call == rows) {
		multiply(x, x_stride, w, w_stride, rows, n_out, n_in, add, y, y_stride);
		return;
	}
	for (size_t r = 0; add && r < rows; r++)
		memcpy(work->y + r * n_out, y + r * y_stride, n_out * sizeof(float));
	multiply(x, x_stride, w, w_stride, call, n_out, n_in, add, work->y, n_out);
	for (size_t r = 0; r < rows; r++)
		memcpy(y + r * y_stride, work->y + r * n_out, n_out * sizeof(float));
}

struct rows {
	const float *x; /* [n, ...] stride values apart */
	size_t n, stride;
	float *y;
	size_t y_stride;
};

/* All rows over one block: weights w[n_out, n_in], inputs from in0, outputs at out0. */
static void multiply_block(struct model_work *work, const struct rows *rows, size_t out0,
	size_t in0, const float *w, size_t w_stride, size_t n_out, size_t n_in)
{
	unsigned tiles = work->tiles[n_out][n_in];
	size_t full = TILE_ROWS, row = 0;

	while (!(tiles & full))
		full /= 2;
	for (; row + TILE_ROWS <= rows->n; row += TILE_ROWS)
		for (size_t part = row; part < row + TILE_ROWS; part += full)
			multiply(rows->x + part * rows->stride + in0, rows->stride, w, w_stride,
				full, n_out, n_in, in0 > 0, rows->y + part * rows->y_stride + out0,
				rows->y_stride);
	for (size_t part = row; part < rows->n; part += full) {
		size_t n = least(rows->n - part, full);

		/* Full of zeros beyond the last row, unlike what lies after the caller's. */
		multiply_tile(work, work->x + (part - row) * BLOCK_IN + in0 * TILE_ROWS, BLOCK_IN,
			w, w_stride, n, n_out, n_in, in0 > 0,
			rows->y + part * rows->y_stride + out0, rows->y_stride);
	}
}

/* The rows of the last, short tile into work->x, block of inputs by block of inputs. */
static void copy_last(struct model_work *work, const struct rows *rows, size_t n_in)
{
	size_t first = rows->n / TILE_ROWS * TILE_ROWS;

	for (size_t in0 = 0; first < rows->n && in0 < n_in; in0 += BLOCK_IN) {
		size_t n = least(n_in - in0, BLOCK_IN);

		for (size_t r = 0; r < TILE_ROWS; r++) {
			float *dst = work->x + in0 * TILE_ROWS + r * BLOCK_IN;

			if (first + r < rows->n)
				memcpy(dst, rows->x + (first + r) * rows->stride + in0,
					n * sizeof(float));
			else
				memset(dst, 0, n * sizeof(float));
		}
	}
}

/*
 * Asks for the block that follows the one at out0, in0. Widening reads a few lines from each of 64
 * rows, too few for the processor to see the stream coming.
 */
static void prefetch_next(const struct model_matrix *matrix, size_t out0, size_t in0)
{
	size_t bytes = model_dtype_bytes(matrix->dtype), row_bytes = matrix->n_in * bytes;
	size_t n_out, length;
	const char *at;

	in0 += BLOCK_IN;
	if (in0 >= matrix->n_in) {
		in0 = 0;
		out0 += BLOCK_OUT;
	}
	if (out0 >= matrix->n_out)
		return;
	n_out = least(matrix->n_out - out0, BLOCK_OUT);
	length = least(matrix->n_in - in0, BLOCK_IN) * bytes;
	at = (const char *)matrix->data + out0 * row_bytes + in0 * bytes;
	for (size_t o = 0; o < n_out; o++, at += row_bytes)
		for (size_t i = 0; i < length; i += CACHE_LINE)
			__builtin_prefetch(at + i, 0, 2);
}

/* One block of another type than fp32 into work->block. */
static void widen_block(struct model_work *work, const struct model_matrix *matrix, size_t out0,
	size_t in0, size_t n_out, size_t n_in)
{
	size_t bytes = model_dtype_bytes(matrix->dtype);
	const char *w = (const char *)matrix->data + (out0 * matrix->n_in + in0) * bytes;

	prefetch_next(matrix, out0, in0);
	for (size_t o = 0; o < n_out; o++)
		model_to_f32(matrix->dtype, w + o * matrix->n_in * bytes, n_in,
			work->block + o * BLOCK_IN);
}

void model_product(struct model_work *work, const struct model_matrix *matrix, const float *x,
	size_t n_rows, size_t x_stride, float *y, size_t y_stride)
{
	struct rows rows = {x, n_rows, x_stride, y, y_stride};
	size_t n_in = matrix->n_in, n_out = matrix->n_out;
	const float *weights = matrix->data;

	/* Trials use the scratch, so they come first. */
	for (size_t out0 = 0; out0 < n_out; out0 += BLOCK_OUT)
		for (size_t in0 = 0; in0 < n_in; in0 += BLOCK_IN)
			model_product_tiles(work, least(n_out - out0, BLOCK_OUT),
				least(n_in - in0, BLOCK_IN));
	copy_last(work, &rows, n_in);
	for (size_t out0 = 0; out0 < n_out; out0 += BLOCK_OUT) {
		size_t outs = least(n_out - out0, BLOCK_OUT);

		for (size_t in0 = 0; in0 < n_in; in0 += BLOCK_IN) {
			size_t ins = least(n_in - in0, BLOCK_IN);

			if (matrix->dtype == MODEL_F32) {
				multiply_block(work, &rows, out0, in0,
					weights + out0 * n_in + in0, n_in, outs, ins);
				continue;
			}
			widen_block(work, matrix, out0, in0, outs, ins);
			multiply_block(work, &rows, out0, in0, work->block, BLOCK_IN, outs, ins);
		}
	}
}
