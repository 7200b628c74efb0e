/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that backends can reach: allocated here (best: huge pages where the system has them) or
 * the caller's own, registered. It is registered with the backends in use: with a network from
 * its first connection on, so that nothing is pinned for a network that is not used.
 *
 * Rows of rounds may lie in any memory. On verbs rows in memory known here are sent without a copy;
 * others are copied once into staging of the library, which the counter staged_bytes shows. All
 * rows of a call must lie in one such memory. The look-up takes a step for each of them: register
 * few and large ones. Outputs of m2n_combine_recv() need none.
 */
#ifndef M2N_MEMORY_H
#define M2N_MEMORY_H

#include <m2n/context.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_mem;

/*
 * Allocates zeroed host memory, page-aligned, and registers it with the backends in use.
 * 0; -ENOMEM (the text gives size and limit, that of locked memory too); -EINVAL for 0 bytes.
 * `*mem` is owned by the caller until m2n_mem_free(); `*base` lives as long.
 */
M2N_API int m2n_mem_alloc(struct m2n_ctx *ctx, size_t bytes, struct m2n_mem **mem, void **base);

/*
 * The same where `memory` says. M2N_MEMORY_CUDA: zeroed device memory of the context's device
 * that peers can map; `*base` is a device address. M2N_ERR_BACKEND: the context has no device.
 */
M2N_API int m2n_mem_alloc_on(struct m2n_ctx *ctx, enum m2n_memory memory, size_t bytes,
	struct m2n_mem **mem, void **base);

/*
 * Registers memory of the caller, which must stay valid until m2n_mem_deregister(), and that until
 * rounds which send from it are over. Device memory is told by its address; rows of CUDA channels
 * need no registration.
 * 0; -EINVAL (NULL, 0 bytes, not mapped, another device's); -ENOMEM, -EFAULT, M2N_ERR_BACKEND
 * with the backend's reason. A backend that starts later may refuse it, too: connecting then fails
 * with its reason.
 */
M2N_API int m2n_mem_register(struct m2n_ctx *ctx, void *base, size_t bytes, struct m2n_mem **mem);

M2N_API void m2n_mem_free(struct m2n_mem *mem);       /* of m2n_mem_alloc(); NULL is allowed */
M2N_API void m2n_mem_deregister(struct m2n_mem *mem); /* of m2n_mem_register(); NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
