/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processors without kernels of their own: the scalar reference alone.
 */
#include "kernel/tables.h"

const struct m2n__kernel_candidate m2n__kernel_candidates[] = {
	{&m2n__kernels_scalar, NULL},
};
const unsigned m2n__n_kernel_candidates = 1;
