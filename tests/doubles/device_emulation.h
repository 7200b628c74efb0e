/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPU of libm2n's kernels, on the host: what libm2n/kernel/cuda/ptx.cuh has, so that g++
 * compiles libm2n/kernel/cuda/kernels.cu unchanged. The threads of a block are fibers of the
 * calling thread; blocks run one after the other. Warp operations wait until all lanes that are
 * left came to the same one, and end the process when they came to different ones, or when all
 * threads wait for each other: mistakes that hang on a GPU.
 *
 * Nothing here belongs to the process: several threads run kernels at once, each with shared memory
 * of its own. It holds nonsense when a block starts.
 */
#ifndef M2N_DOUBLES_DEVICE_EMULATION_H
#define M2N_DOUBLES_DEVICE_EMULATION_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <math.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define DEVICE static inline __attribute__((unused))
#define ALL_LANES 0xffffffffu

struct alignas(16) uint4 {
	uint32_t x, y, z, w;
};

static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
	return uint4{x, y, z, w};
}

struct emulated_index {
	unsigned x;
};

/* The thread that runs now; changed by the switch to another fiber. */
struct emulated_thread {
	emulated_index thread, block, n_threads, n_blocks;
};
extern __thread struct emulated_thread emulated_now;

#define threadIdx (emulated_now.thread)
#define blockIdx (emulated_now.block)
#define blockDim (emulated_now.n_threads)
#define gridDim (emulated_now.n_blocks)

/* device_emulation.cpp */
enum emulated_kind { EMULATED_VOTE = 1, EMULATED_SHUFFLE, EMULATED_SUM, EMULATED_SYNC };
/* Gives a value to the warp; the values of all lanes (0 of those that ended) until the next. */
const uint64_t *emulated_exchange(enum emulated_kind kind, uint64_t value);
void emulated_block_sync(void);
void emulated_nap(void);
void *emulated_shared(void);
void *emulated_variable(size_t bytes); /* of the blocks that this thread runs; kept */
uint64_t emulated_clock(void);

/* A variable of the block: SHARED(uint32_t[32], sums); a pointer is all that is thread-local. */
template <typename T, typename TAG> static inline T &emulated_shared_variable(void)
{
	static __thread void *at;

	if (!at)
		at = emulated_variable(sizeof(T));
	return *(T *)at;
}
#define SHARED(type_, name)                                                                        \
	struct tag_of_##name {                                                                     \
	};                                                                                         \
	auto &name = emulated_shared_variable<type_, tag_of_##name>()

/* device_atomics.cpp: apart, so that a thread sanitizer sees them and no fibers. */
uint64_t emulated_load_64(const uint64_t *at);
uint32_t emulated_load_32(const uint32_t *at);
void emulated_store_64(uint64_t *at, uint64_t value);
void emulated_store_32(uint32_t *at, uint32_t value);
uint32_t emulated_add(uint32_t *at, uint32_t value);
uint32_t emulated_max(uint32_t *at, uint32_t value);
uint32_t emulated_or(uint32_t *at, uint32_t value);
uint64_t emulated_swap_if(uint64_t *at, uint64_t expected, uint64_t value);
void emulated_fence(void);

/* ---- memory order -------------------------------------------------------------------------- */

DEVICE uint64_t acquire_load_sys(const uint64_t *at)
{
	return emulated_load_64(at);
}

DEVICE uint32_t acquire_load_sys(const uint32_t *at)
{
	return emulated_load_32(at);
}

DEVICE void release_store_sys(uint64_t *at, uint64_t value)
{
	emulated_store_64(at, value);
}

DEVICE void release_store_sys(uint32_t *at, uint32_t value)
{
	emulated_store_32(at, value);
}

DEVICE uint64_t relaxed_load_sys(const uint64_t *at)
{
	return emulated_load_64(at);
}

DEVICE uint32_t relaxed_load_sys(const uint32_t *at)
{
	return emulated_load_32(at);
}

DEVICE void fence_sys(void)
{
	emulated_fence();
}

DEVICE uint32_t atomic_add(uint32_t *at, uint32_t value)
{
	return emulated_add(at, value);
}

DEVICE uint32_t atomic_max(uint32_t *at, uint32_t value)
{
	return emulated_max(at, value);
}

DEVICE uint32_t atomic_or(uint32_t *at, uint32_t value)
{
	return emulated_or(at, value);
}

DEVICE uint64_t atomic_swap_if(uint64_t *at, uint64_t expected, uint64_t value)
{
	return emulated_swap_if(at, expected, value);
}

/* ---- rows: an address that is not aligned ends the process, as it does on a GPU ------------ */

DEVICE void emulated_check_aligned(const void *at)
{
	if ((uintptr_t)at % 16)
		__builtin_trap();
}

DEVICE uint4 load_stream(const void *at)
{
	uint4 v;

	emulated_check_aligned(at);
	memcpy(&v, at, sizeof(v));
	return v;
}

DEVICE uint4 load_near(const void *at)
{
	return load_stream(at);
}

DEVICE void store_stream(void *at, uint4 v)
{
	emulated_check_aligned(at);
	memcpy(at, &v, sizeof(v));
}

DEVICE uint32_t funnel_right(uint32_t lo, uint32_t hi, uint32_t bits)
{
	return (uint32_t)((lo | (uint64_t)hi << 32) >> (bits & 31));
}

/* ---- warps and blocks ---------------------------------------------------------------------- */

DEVICE uint32_t vote(int predicate)
{
	const uint64_t *all = emulated_exchange(EMULATED_VOTE, predicate != 0);
	uint32_t bits = 0;

	for (uint32_t i = 0; i < 32; i++)
		bits |= (uint32_t)all[i] << i;
	return bits;
}

DEVICE uint32_t shuffle(uint32_t value, uint32_t from)
{
	return (uint32_t)emulated_exchange(EMULATED_SHUFFLE, value)[from % 32];
}

DEVICE uint64_t shuffle(uint64_t value, uint32_t from)
{
	return emulated_exchange(EMULATED_SHUFFLE, value)[from % 32];
}

DEVICE uint32_t shuffle_xor(uint32_t value, uint32_t bits)
{
	return shuffle(value, (threadIdx.x % 32) ^ bits);
}

DEVICE uint32_t warp_sum(uint32_t value)
{
	const uint64_t *all = emulated_exchange(EMULATED_SUM, value);
	uint32_t sum = 0;

	for (uint32_t i = 0; i < 32; i++)
		sum += (uint32_t)all[i];
	return sum;
}

DEVICE void warp_sync(void)
{
	(void)emulated_exchange(EMULATED_SYNC, 0);
}

DEVICE void block_sync(void)
{
	emulated_block_sync();
}

DEVICE uint32_t count_bits(uint32_t bits)
{
	return (uint32_t)__builtin_popcount(bits);
}

DEVICE uint32_t lowest_bit(uint32_t bits)
{
	return (uint32_t)__builtin_ctz(bits);
}

DEVICE void *shared_room(void)
{
	return emulated_shared();
}

/* ---- time ---------------------------------------------------------------------------------- */

DEVICE uint64_t now_ns(void)
{
	return emulated_clock();
}

DEVICE void nap(void)
{
	emulated_nap();
}

/* ---- numbers ------------------------------------------------------------------------------- */

DEVICE float multiply(float a, float b)
{
	return a * b;
}

DEVICE float divide(float a, float b)
{
	return a / b;
}

DEVICE float fused(float a, float b, float c)
{
	return fmaf(a, b, c);
}

DEVICE float add(float a, float b)
{
	return a + b;
}

DEVICE uint32_t bits_of(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

DEVICE float float_of(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* By arithmetic, where the host's kernels shift bits. */
DEVICE float half_to_float(uint16_t bits)
{
	uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
	float value;

	if (exponent == 31)
		value = mantissa ? NAN : INFINITY;
	else if (exponent)
		value = ldexpf((float)(mantissa | 1024), (int)exponent - 25);
	else
		value = ldexpf((float)mantissa, -24);
	return bits & 0x8000 ? -value : value;
}

DEVICE uint16_t half_from_float(float value)
{
	uint32_t sign = bits_of(value) >> 16 & 0x8000;
	float magnitude = fabsf(value), step;
	int exponent;

	if (value != value)
		return (uint16_t)(sign | 0x7e00);
	if (magnitude >= 65520)
		return (uint16_t)(sign | 0x7c00);
	exponent = magnitude < 0x1p-14f ? -14 : ilogbf(magnitude);
	step = ldexpf(1, exponent - 10);
	/* the default rounding is to nearest even; a carry runs into the exponent by itself */
	exponent = (exponent + 14) * 1024 + (int)nearbyintf(magnitude / step);
	return (uint16_t)(sign | (uint32_t)exponent);
}

#endif
