/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types that several calls share: data types, timeouts, gather lists.
 */
#ifndef M2N_TYPES_H
#define M2N_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Element types that combine and the casts know. Dispatch moves opaque bytes. */
enum m2n_dtype {
	M2N_DTYPE_F32 = 0,
	M2N_DTYPE_BF16 = 1,
	M2N_DTYPE_F16 = 2,
};

/* Where the rows of a channel lie, and with them its slots, plans and batches. */
enum m2n_memory {
	M2N_MEMORY_HOST = 0,
	M2N_MEMORY_CUDA = 1, /* of the context's device; the calls of a round take a CUDA stream */
};

/* Timeouts are in nanoseconds. 0: try once and return -EAGAIN instead of waiting. */
#define M2N_TIMEOUT_DEFAULT ((int64_t)-1) /* what option TIMEOUT says */
#define M2N_TIMEOUT_NONE INT64_MAX        /* wait without a deadline */

/* One piece of a gather list. */
struct m2n_iov {
	const void *base;
	size_t bytes;
};

#ifdef __cplusplus
}
#endif
#endif
