/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Declarations of every backend's table, and of the interposer that wraps one of them.
 */
#ifndef M2N_BACKEND_REGISTRY_H
#define M2N_BACKEND_REGISTRY_H

#include "backend/backend.h"

extern const struct m2n__backend_ops m2n__backend_self;
extern const struct m2n__backend_ops m2n__backend_shm;
extern const struct m2n__backend_ops m2n__backend_cuda_ipc;
extern const struct m2n__backend_ops m2n__backend_verbs;
extern const struct m2n__backend_ops m2n__backend_ucx;
extern const struct m2n__backend_ops m2n__backend_nccl;

/*
 * The fault interposer. m2n__fault_wrap() says which resolved table it drives, before the context
 * opens it; one inner table per process.
 */
extern const struct m2n__backend_ops m2n__backend_fault;
void m2n__fault_wrap(const struct m2n__backend_ops *inner);

#endif
