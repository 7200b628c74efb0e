/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels compiled for the host, as the stand-in of libcuda.so.1 finds them: what
 * cuModuleGetFunction() and cuLaunchKernel() need of each. Every kernel of libm2n takes one struct
 * by value; run() gets a copy of it that lives until it returns, and runs the whole grid. It is
 * called on the thread of a stream: several at once, of one process and of many.
 */
#ifndef M2N_DOUBLES_DEVICE_KERNELS_H
#define M2N_DOUBLES_DEVICE_KERNELS_H

#include <stddef.h>

struct m2n_double_kernel {
	const char *name;  /* as __global__ has it, extern "C" */
	size_t args_bytes; /* of the struct */
	void (*run)(const void *args, unsigned n_blocks, unsigned n_threads, size_t shared_bytes);
};

/* Ended by name NULL. Linked into the stand-in, which also works without it. */
extern const struct m2n_double_kernel m2n_double_kernels[];

#endif
