/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kernels ask of the machine, on the machine: memory order at system scope, loads and stores
 * that leave the L1 cache alone, warp operations, the clock. Included by device.h alone; the
 * tests' host compilation has the same functions (tests/doubles/device_emulation.h), so kernels
 * use nothing of CUDA but these, the index variables, and a few qualifiers.
 *
 * Source: PTX ISA 8.0, "Memory Consistency Model", "Data Movement and Conversion Instructions".
 */
#ifndef M2N_KERNEL_CUDA_PTX_CUH
#define M2N_KERNEL_CUDA_PTX_CUH

#include <stdint.h>

#define DEVICE static __device__ __forceinline__
#define ALL_LANES 0xffffffffu

/* A variable of the block: SHARED(uint32_t[32], sums); */
template <typename T> struct shared_type {
	typedef T type;
};
#define SHARED(type_, name) __shared__ shared_type<type_>::type name

DEVICE uint64_t global_address(const void *at)
{
	return (uint64_t)__cvta_generic_to_global(at);
}

/* ---- memory order -------------------------------------------------------------------------- */

DEVICE uint64_t acquire_load_sys(const uint64_t *at)
{
	uint64_t value;

	asm volatile("ld.acquire.sys.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
	return value;
}

DEVICE uint32_t acquire_load_sys(const uint32_t *at)
{
	uint32_t value;

	asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
	return value;
}

DEVICE void release_store_sys(uint64_t *at, uint64_t value)
{
	asm volatile("st.release.sys.u64 [%0], %1;" : : "l"(at), "l"(value) : "memory");
}

DEVICE void release_store_sys(uint32_t *at, uint32_t value)
{
	asm volatile("st.release.sys.u32 [%0], %1;" : : "l"(at), "r"(value) : "memory");
}

/* Another processor may change it meanwhile; orders nothing. */
DEVICE uint64_t relaxed_load_sys(const uint64_t *at)
{
	uint64_t value;

	asm volatile("ld.relaxed.sys.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
	return value;
}

DEVICE uint32_t relaxed_load_sys(const uint32_t *at)
{
	uint32_t value;

	asm volatile("ld.relaxed.sys.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
	return value;
}

DEVICE void fence_sys(void)
{
	__threadfence_system();
}

/* One more; what was there before. Orders nothing: see ticket.cuh. */
DEVICE uint32_t atomic_add(uint32_t *at, uint32_t value)
{
	return atomicAdd(at, value);
}

DEVICE uint32_t atomic_max(uint32_t *at, uint32_t value)
{
	return atomicMax(at, value);
}

DEVICE uint32_t atomic_or(uint32_t *at, uint32_t value)
{
	return atomicOr(at, value);
}

/* What was there before. */
DEVICE uint64_t atomic_swap_if(uint64_t *at, uint64_t expected, uint64_t value)
{
	return atomicCAS((unsigned long long *)at, expected, value);
}

/* ---- rows ---------------------------------------------------------------------------------- */

/* 16 aligned bytes that this kernel does not write, read once. */
DEVICE uint4 load_stream(const void *at)
{
	uint4 v;

	asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
		     : "l"(global_address(at)));
	return v;
}

/* The same through the L1 cache: neighbours read part of it again. */
DEVICE uint4 load_near(const void *at)
{
	uint4 v;

	asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
		     : "l"(global_address(at)));
	return v;
}

/* 16 bytes to an aligned address, perhaps a peer's, that nobody here reads soon. */
DEVICE void store_stream(void *at, uint4 v)
{
	asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};"
		     :
		     : "l"(global_address(at)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
		     : "memory");
}

/* The 32 bits that start `bits` (0..31) above the lowest of hi:lo. */
DEVICE uint32_t funnel_right(uint32_t lo, uint32_t hi, uint32_t bits)
{
	return __funnelshift_r(lo, hi, bits);
}

/* ---- warps and blocks ---------------------------------------------------------------------- */

/* All lanes of a warp call these together. */
DEVICE uint32_t vote(int predicate)
{
	return __ballot_sync(ALL_LANES, predicate);
}

DEVICE uint32_t shuffle(uint32_t value, uint32_t from)
{
	return __shfl_sync(ALL_LANES, value, (int)from);
}

DEVICE uint64_t shuffle(uint64_t value, uint32_t from)
{
	return __shfl_sync(ALL_LANES, (unsigned long long)value, (int)from);
}

/* Of the lane whose number differs by these bits. */
DEVICE uint32_t shuffle_xor(uint32_t value, uint32_t bits)
{
	return __shfl_xor_sync(ALL_LANES, value, (int)bits);
}

DEVICE uint32_t warp_sum(uint32_t value)
{
	return __reduce_add_sync(ALL_LANES, value);
}

DEVICE void warp_sync(void)
{
	__syncwarp();
}

DEVICE void block_sync(void)
{
	__syncthreads();
}

DEVICE uint32_t count_bits(uint32_t bits)
{
	return (uint32_t)__popc(bits);
}

/* Number of the lowest bit set; bits is not 0. */
DEVICE uint32_t lowest_bit(uint32_t bits)
{
	return (uint32_t)__ffs((int)bits) - 1;
}

/* Dynamic shared memory of the launch. */
DEVICE void *shared_room(void)
{
	extern __shared__ uint4 room[];

	return room;
}

/* ---- time ---------------------------------------------------------------------------------- */

DEVICE uint64_t now_ns(void)
{
	uint64_t ns;

	asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
	return ns;
}

/* A short sleep between two looks. */
DEVICE void nap(void)
{
	__nanosleep(40);
}

/* ---- numbers ------------------------------------------------------------------------------- */

/* One rounding each, never fused with a neighbour. */
DEVICE float multiply(float a, float b)
{
	return __fmul_rn(a, b);
}

DEVICE float divide(float a, float b)
{
	return __fdiv_rn(a, b);
}

DEVICE float fused(float a, float b, float c)
{
	return __fmaf_rn(a, b, c);
}

DEVICE float add(float a, float b)
{
	return __fadd_rn(a, b);
}

DEVICE float half_to_float(uint16_t bits)
{
	float value;

	asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
	return value;
}

/* To nearest even. */
DEVICE uint16_t half_from_float(float value)
{
	uint16_t bits;

	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
	return bits;
}

DEVICE uint32_t bits_of(float value)
{
	return __float_as_uint(value);
}

DEVICE float float_of(uint32_t bits)
{
	return __uint_as_float(bits);
}

#endif
