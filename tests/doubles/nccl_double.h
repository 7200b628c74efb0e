/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests may tell the stand-in of libnccl.so.2, beside NCCL's own functions, and the
 * environment that it reads when it is loaded:
 *
 *   M2N_DOUBLE_NCCL_VERSION      what ncclGetVersion() says (22809)
 *   NCCL_MULTI_RANK_GPU_ENABLE   1, from version 2.30 on: ranks may share a GPU
 *   NCCL_HOSTID                  ranks that differ in it may, too
 *
 * It is stricter than NCCL where NCCL would hang, corrupt, or be lucky: see nccl_state.h.
 */
#ifndef M2N_DOUBLES_NCCL_DOUBLE_H
#define M2N_DOUBLES_NCCL_DOUBLE_H

#include <dlfcn.h>

/* The functions; types for m2n_double_nccl_symbol(). */
/* The n-th transfer of this process from now on (1: the next) fails with a result; 0: none. */
void m2n_double_nccl_fail(unsigned n, int result);
/* Groups that were put on streams, sends and receives in them, communicators that are alive. */
struct m2n_double_nccl_counters {
	unsigned n_groups, n_sends, n_recvs, n_comms;
};
void m2n_double_nccl_read(struct m2n_double_nccl_counters *counters);

static inline void *m2n_double_nccl_symbol(const char *name)
{
	void *handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
	void *symbol = handle ? dlsym(handle, name) : NULL;

	if (handle)
		dlclose(handle);
	return symbol;
}

#endif
