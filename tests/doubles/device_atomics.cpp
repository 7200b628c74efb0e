/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory order of the emulated GPU. In a file of its own: where a thread sanitizer is used,
 * kernels are compiled without it (their fibers are no threads of its), but these are with it, so
 * that it knows what kernels publish and see.
 */
#include "device_emulation.h"

uint64_t emulated_load_64(const uint64_t *at)
{
	return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

uint32_t emulated_load_32(const uint32_t *at)
{
	return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

void emulated_store_64(uint64_t *at, uint64_t value)
{
	__atomic_store_n(at, value, __ATOMIC_RELEASE);
}

void emulated_store_32(uint32_t *at, uint32_t value)
{
	__atomic_store_n(at, value, __ATOMIC_RELEASE);
}

uint32_t emulated_add(uint32_t *at, uint32_t value)
{
	return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

uint32_t emulated_max(uint32_t *at, uint32_t value)
{
	uint32_t before = __atomic_load_n(at, __ATOMIC_RELAXED);

	while (before < value && !__atomic_compare_exchange_n(at, &before, value, false,
					 __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
	return before;
}

uint32_t emulated_or(uint32_t *at, uint32_t value)
{
	return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}

uint64_t emulated_swap_if(uint64_t *at, uint64_t expected, uint64_t value)
{
	(void)__atomic_compare_exchange_n(
		at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	return expected;
}

void emulated_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}
