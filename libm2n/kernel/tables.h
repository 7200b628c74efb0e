/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables of kernels that this build has, slowest first. Which ones is a choice of files:
 * candidates_x86.c or candidates_other.c defines the list, select.c reads it.
 */
#ifndef M2N_KERNEL_TABLES_H
#define M2N_KERNEL_TABLES_H

#include "kernel/kernel.h"

struct m2n__kernel_candidate {
	const struct m2n__kernels *table;
	int (*usable)(void); /* NULL: always */
};

extern const struct m2n__kernel_candidate m2n__kernel_candidates[];
extern const unsigned m2n__n_kernel_candidates;

extern const struct m2n__kernels m2n__kernels_scalar;
extern const struct m2n__kernels m2n__kernels_avx2;
extern const struct m2n__kernels m2n__kernels_avx512;

#endif
