/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86-64: the tables and what each needs of the processor and the operating system
 * (__builtin_cpu_supports() looks at XGETBV too). F16C is asked of CPUID because not every
 * compiler knows its name.
 */
#include "kernel/tables.h"

#include <cpuid.h>

static int has_f16c(void)
{
	unsigned eax, ebx, ecx, edx;

	return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

static int has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static int has_avx512(void)
{
	return has_avx2() && __builtin_cpu_supports("avx512f") &&
	       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
	       __builtin_cpu_supports("avx512dq");
}

const struct m2n__kernel_candidate m2n__kernel_candidates[] = {
	{&m2n__kernels_scalar, NULL},
	{&m2n__kernels_avx2, has_avx2},
	{&m2n__kernels_avx512, has_avx512},
};
const unsigned m2n__n_kernel_candidates =
	sizeof(m2n__kernel_candidates) / sizeof(m2n__kernel_candidates[0]);
