/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CUDA device for tests: guarded buffers, streams, graphs, by the driver's functions as the
 * library finds them: on a GPU, or on the stand-in of tests/doubles. A process opens one device,
 * after fork, and keeps it to its end, as a program does that uses a framework. What fails here
 * fails the rank with the driver's words.
 *
 * A *space* is where the arrays of a call lie: host memory as they are, or device memory in which
 * copies stand for them. Cases that make the calls themselves are written once with space_in() and
 * space_out().
 */
#ifndef TESTS_DEVICE_H
#define TESTS_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "helpers/ranks.h"
#include "mem/cuda.h"

/* Opens device 0 for the process. 0, or a code of the library's with its text. */
int device_open(void);
/* Makes the device's context current for the calling thread, once. */
void device_use(void);
const struct m2n__cuda *device_cuda(void);
const struct m2n__cuda_driver *device_driver(void);
#define device_expect(call) device_check(__FILE__, __LINE__, #call, device_driver()->call)
void device_check(const char *file, int line, const char *call, m2n__cu_result result);

/* Memory with guard bytes on both sides, filled with 0xdb; the end is exact. */
void *device_alloc(size_t bytes);
void device_free(void *base); /* fails when a guard byte changed; NULL is allowed */

void *device_stream(void); /* not ordered with the default stream */
void device_stream_end(void *stream);
void device_sync(void *stream);
/* In the order of the stream; only download waits: what is uploaded stays as it is until then. */
void device_upload(void *to, const void *from, size_t bytes, void *stream);
void device_fill(void *to, int value, size_t bytes, void *stream);
void device_copy(void *to, const void *from, size_t bytes, void *stream);
void device_download(void *to, const void *from, size_t bytes, void *stream);
/* The second stream's next work comes after what the first one has now. */
void device_order(void *first, void *second);

/* Records what is queued on the stream; mode: M2N__CU_CAPTURE_MODE_x. */
void device_capture(void *stream, int mode);
void *device_capture_end(void *stream); /* ready to be launched */
void device_launch(void *graph, void *stream);
void device_graph_end(void *graph);

/*
 * Bytes that somebody else than these functions copied between host and device so far: 0 where
 * the driver does not tell (a GPU).
 */
uint64_t device_foreign_bytes(void);

/* ---- space --------------------------------------------------------------------------------- */

/* What stands for an array in the memory of the rank's channels, with its bytes as they are. */
const void *space_in(struct rank *rank, const void *array, size_t bytes);
/* Where a call may write what space_fetch() brings into the array. NULL for NULL. */
void *space_out(struct rank *rank, void *array, size_t bytes);
/* Waits for the default stream and brings all that space_out() gave. */
void space_fetch(struct rank *rank);
/* Ends all copies, with their guards checked. */
void space_end(struct rank *rank);

#endif
