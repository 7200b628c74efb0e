/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All kernels of kernel/gpu.h in one translation unit: what nvcc makes the fatbin of. The tests
 * compile the same file for the host.
 */
#include "kernel/cuda/plan.cuh"
#include "kernel/cuda/dispatch.cuh"
#include "kernel/cuda/recv.cuh"
#include "kernel/cuda/reply.cuh"
#include "kernel/cuda/combine.cuh"
