/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that backends can reach: allocated here (best: huge pages where the system has them,
 * registered everywhere) or the caller's own, registered. Rows and outputs of rounds may lie in
 * any memory; on network backends memory known here is sent without a copy.
 */
#ifndef M2N_MEMORY_H
#define M2N_MEMORY_H

#include <m2n/context.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_mem;

/*
 * Allocates zeroed host memory, page-aligned, and registers it with every opened backend.
 * 0; -ENOMEM (the text gives size and limit); -EINVAL for 0 bytes.
 * `*mem` is owned by the caller until m2n_mem_free(); `*base` lives as long.
 */
M2N_API int m2n_mem_alloc(struct m2n_ctx *ctx, size_t bytes, struct m2n_mem **mem, void **base);

/*
 * Registers memory of the caller, which must stay valid until m2n_mem_deregister().
 * 0; -EINVAL (NULL, 0 bytes, not mapped); -ENOMEM; M2N_ERR_BACKEND with the backend's reason.
 */
M2N_API int m2n_mem_register(struct m2n_ctx *ctx, void *base, size_t bytes, struct m2n_mem **mem);

M2N_API void m2n_mem_free(struct m2n_mem *mem);       /* of m2n_mem_alloc(); NULL is allowed */
M2N_API void m2n_mem_deregister(struct m2n_mem *mem); /* of m2n_mem_register(); NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
