/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A build without nvcc has no kernels; who wants them is told so (m2n__cuda_load()).
 */
#include "kernel/gpu.h"

const void *const m2n__gpu_image;
