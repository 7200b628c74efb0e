/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running the kernels of kernel/gpu.h in a test: on the CUDA device when there is one (or the
 * stand-in of the driver), else on the emulation that is linked in. All memory is pinned host
 * memory, which both sides reach by the same address, between guard bytes.
 */
#ifndef M2N_DOUBLES_DEVICE_LAUNCH_H
#define M2N_DOUBLES_DEVICE_LAUNCH_H

#include "kernel/gpu.h"

void device_open(void);
void device_close(void);
const char *device_name(void);

/* Zeroed; ends the test when there is none. free: checks the guards of all that was allocated. */
void *device_alloc(size_t bytes);
void device_free_all(void);

/* Runs a kernel with the geometry of gpu.h, for n tokens or rows, and waits for it. */
void device_run(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	const void *args);
/* With another number of blocks and threads. */
void device_run_grid(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	unsigned n_blocks, unsigned n_threads, const void *args);
/* Begins one without waiting; args are kept until device_finish(). One at a time. */
void device_start(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	const void *args);
void device_finish(void);

#endif
