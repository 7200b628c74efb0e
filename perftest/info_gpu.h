/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPUs of this machine as m2n_info shows them: see info_gpu.c.
 */
#ifndef M2N_PERFTEST_INFO_GPU_H
#define M2N_PERFTEST_INFO_GPU_H

#include <jansson.h>

struct m2n__cuda;

/*
 * Makes the first GPU the thread's own, as a program that computes on it does, so that the context
 * takes it; NULL: there is none.
 */
struct m2n__cuda *info_gpu_enter(void);
void info_gpu_leave(struct m2n__cuda *cuda); /* NULL is allowed */
/* Driver, devices, kernels; what cannot be known is null, and why stands in "error". */
json_t *info_gpus(void);
/* Prints that object. */
void info_print_gpus(const json_t *info);

#endif
