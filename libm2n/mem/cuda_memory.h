/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What m2n__mem_free() needs of memory of a CUDA device.
 */
#ifndef M2N_MEM_CUDA_MEMORY_H
#define M2N_MEM_CUDA_MEMORY_H

struct m2n__mem;

/* Gives memory of kind M2N__MEM_CUDA back to the driver when it is ours; waits for the device. */
void m2n__mem_release_cuda(struct m2n__mem *mem);

#endif
