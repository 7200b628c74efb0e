/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of a NIC's writes for kernels. A completion says that the NIC's writes to device
 * memory have left it, not that the GPU's processors see them: they may still be on their way
 * inside the GPU. Between completion and the flag that a stream waits for belongs a flush:
 *
 *   none     the device orders them by itself
 *   driver   cuFlushGPUDirectRDMAWrites()
 *   GDRCopy  a read of device memory by the processor, which cannot overtake the writes
 *
 * Where there is none of them a NIC may read a word of the device's memory over a loopback
 * connection; that belongs to the backend that has one.
 *
 * The other direction: a NIC that reads device memory does not wait for the host's copies to it.
 */
#ifndef M2N_BACKEND_GPU_FLUSH_H
#define M2N_BACKEND_GPU_FLUSH_H

#include "mem/cuda.h"

struct m2n__gpu_flush;

/* -ENOTSUP: this device needs a flush, and there is none here; the text has the remedies. */
int m2n__gpu_flush_open(struct m2n__cuda *cuda, struct m2n__gpu_flush **flush);
void m2n__gpu_flush_close(struct m2n__gpu_flush *flush); /* NULL is allowed */
/* Writes that completed before are seen by kernels that start after. Any thread. */
int m2n__gpu_flush(struct m2n__gpu_flush *flush);
/* "none", "driver" or "GDRCopy", for the log. */
const char *m2n__gpu_flush_name(const struct m2n__gpu_flush *flush);

/*
 * From now on copies by the host to and from this device memory are complete when they return.
 * Memory of cuMemCreate() knows no such thing: nothing is done for it.
 */
void m2n__gpu_order_copies(const struct m2n__cuda *cuda, const struct m2n__mem *mem);

#endif
