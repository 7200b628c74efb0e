/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of libm2n compiled for the host, and their table.
 */
#include "kernel/cuda/kernels.cu"

extern "C" {
#include "device_kernels.h"
}
#include "device_run.h"

template <typename ARGS, void (*KERNEL)(ARGS)> static void thread_of(const void *args)
{
	KERNEL(*(const ARGS *)args);
}

template <typename ARGS, void (*KERNEL)(ARGS)>
static void run_grid(const void *args, unsigned n_blocks, unsigned n_threads, size_t shared_bytes)
{
	m2n_double_run_grid(thread_of<ARGS, KERNEL>, args, n_blocks, n_threads, shared_bytes);
}

#define ENTRY(kernel, args)                                                                        \
	{                                                                                          \
		#kernel, sizeof(struct args), run_grid<struct args, kernel>                             \
	}

extern "C" const struct m2n_double_kernel m2n_double_kernels[] = {
	ENTRY(m2n_plan_ranks, m2n__gpu_plan_args),
	ENTRY(m2n_plan, m2n__gpu_plan_args),
	ENTRY(m2n_dispatch, m2n__gpu_dispatch_args),
	ENTRY(m2n_await_rows, m2n__gpu_recv_args),
	ENTRY(m2n_unpack, m2n__gpu_recv_args),
	ENTRY(m2n_reply, m2n__gpu_reply_args),
	ENTRY(m2n_await_replies, m2n__gpu_combine_args),
	ENTRY(m2n_combine, m2n__gpu_combine_args),
	ENTRY(m2n_dot, m2n__gpu_dot_args),
	ENTRY(m2n_dispatch_cast, m2n__gpu_dispatch_args),
	ENTRY(m2n_dispatch_weighted, m2n__gpu_dispatch_args),
	ENTRY(m2n_reduce, m2n__gpu_reply_args),
	{NULL, 0, NULL},
};
