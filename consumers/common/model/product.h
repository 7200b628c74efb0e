/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of rows with a weight matrix whose bits do not depend on company: a row gives the same
 * result alone, in a batch of any size, at any place in it, and in any process on the same kind of
 * processor. Serving relies on it: tokens must equal the one-process reference exactly, however
 * rows are grouped.
 *
 * OpenBLAS alone does not give that: its kernels sum in another order for other numbers of rows
 * and, on some processors, for other positions. So every call has one of a few fixed shapes
 * (8 rows x 64 outputs x 256 inputs), short tiles are filled up with zeros, and the shapes in use
 * are tried out once per process: docs/consumers.md, "Products".
 */
#ifndef MODEL_PRODUCT_H
#define MODEL_PRODUCT_H

#include <stddef.h>

#include "dtype.h"

/* A matrix [n_out, n_in] row-major, as Hugging Face's linear layers store it. Borrowed. */
struct model_matrix {
	const void *data;
	enum model_dtype dtype; /* MODEL_F32 or MODEL_BF16 */
	size_t n_out, n_in;
};

/* Scratch of one thread. */
struct model_work;

/* For matrices of up to max_in inputs; sets OpenBLAS to one thread. NULL: no memory. */
struct model_work *model_work_open(size_t max_in);
void model_work_close(struct model_work *work);

/*
 * y[r] = x[r] * matrix^T in fp32. x: [n_rows] rows of n_in, x_stride values apart; y: [n_rows] rows
 * of n_out, y_stride values apart. Not blocking; no allocation.
 */
void model_product(struct model_work *work, const struct model_matrix *matrix, const float *x,
	size_t n_rows, size_t x_stride, float *y, size_t y_stride);

/*
 * Which row counts a call of n_out x n_in may have here, as a sum of powers of two (13 = 8, 4, 1);
 * all of them give a row the same bits at every position. The highest is the size of a full tile.
 */
unsigned model_product_tiles(struct model_work *work, size_t n_out, size_t n_in);
/* OpenBLAS's version and the kernels that it picked. */
const char *model_product_engine(void);

#endif
