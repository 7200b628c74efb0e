/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all that a process has open of one device share. Ranks may be threads of one process: while
 * one of them frees memory or closes, a kernel of another may wait for a peer, and the driver
 * frees memory and unloads code only when all kernels of the device have ended. So modules
 * stay until the last one closes, and as long as others have kernels loaded, memory that is given
 * back is kept for the next one who wants as much.
 */
#ifndef M2N_MEM_CUDA_SHARED_H
#define M2N_MEM_CUDA_SHARED_H

#include "mem/cuda.h"

enum m2n__cuda_block_kind {
	M2N__BLOCK_DEVICE = 0,
	M2N__BLOCK_PINNED = 1,
};

/* Joins what is shared of cuda->ordinal. 0 or -ENOMEM. */
int m2n__cuda_share(struct m2n__cuda *cuda);
/* Inside enter/leave. The last one who has kernels gives what was kept back to the driver. */
void m2n__cuda_unshare(struct m2n__cuda *cuda);

/* Nothing when cuda->module is there. As somebody has loaded it before; else load() is called, and
 * what it leaves there is shared. 0 or what load() returned. */
int m2n__cuda_shared_load(struct m2n__cuda *cuda, const void *image, const char *const *names,
	int (*load)(struct m2n__cuda *cuda, const void *image, const char *const *names));

/*
 * Memory of exactly this size, from what was given back or from the driver, not zeroed. Inside
 * enter/leave. A result of the driver's.
 */
m2n__cu_result m2n__cuda_block_get(struct m2n__cuda *cuda, enum m2n__cuda_block_kind kind,
	size_t bytes, void **at);
/* Gives what is kept back to the driver, which waits for the device. Inside enter/leave. */
void m2n__cuda_blocks_free(struct m2n__cuda *cuda);
/* Takes memory of m2n__cuda_block_get() back. Waits for the device only if nobody has kernels on
 * it. Inside enter/leave. */
void m2n__cuda_block_put(struct m2n__cuda *cuda, enum m2n__cuda_block_kind kind, void *at);

#endif
