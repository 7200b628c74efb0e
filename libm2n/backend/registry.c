/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backends of this build. A backend that needs a vendor's library is in the list when Meson
 * found the library; whether it can be used here is for its probe() to say.
 */
#include "backend/registry.h"

const struct m2n__backend_ops *const m2n__backends[] = {
	&m2n__backend_self,
	&m2n__backend_shm,
	&m2n__backend_cuda_ipc,
	&m2n__backend_verbs,
	&m2n__backend_ucx,
	&m2n__backend_nccl,
	NULL,
};
