/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AVX-512 kernels (F, BW, VL, DQ). Casts are integer arithmetic on f32 bits: the bf16
 * instructions flush denormals and would differ from the reference.
 *
 * Sums work on pairs of registers, 32 values. A bf16 row is 32-bit words of two values, so one
 * register of a pair takes the even values (shifted up) and the other the odd ones (masked):
 * no shuffles, and the two halves come together the same way. A row's last values are loaded
 * and stored under a mask.
 */
#include "kernel/tables.h"
#include "kernel/x86.h"

#define PAIR 32 /* values in a pair */
#define STRIP 4 /* pairs that a sum keeps in registers */
#define COPY_MAX 16384 /* above, memcpy() is faster; from 2 KB on it may be `rep movsb` */

struct pair {
	__m512 lo, hi;
};

/* Bits 0 to n-1, n <= 64. */
INLINE uint64_t first_bits(size_t n)
{
	return n ? ~UINT64_C(0) >> (64 - n) : 0;
}

static void copy(void *dst, const void *src, size_t bytes)
{
	char *d = dst;
	const char *s = src;
	size_t i;
	__m512i last;

	if (bytes <= LINE) {
		copy_line(d, s, bytes);
		return;
	}
	if (bytes > COPY_MAX) {
		memcpy(dst, src, bytes);
		return;
	}
	last = _mm512_loadu_si512(s + bytes - LINE);
	for (i = 0; i < bytes - LINE; i += LINE)
		_mm512_storeu_si512(d + i, _mm512_loadu_si512(s + i));
	_mm512_storeu_si512(d + bytes - LINE, last);
}

static void stream(void *dst, const void *src, size_t bytes)
{
	size_t head = head_bytes(dst, bytes);
	char *d = dst;
	const char *s = src;

	if (head) {
		copy_line(d, s, head);
		d += head;
		s += head;
		bytes -= head;
	}
	for (; bytes >= 4 * LINE; bytes -= 4 * LINE, d += 4 * LINE, s += 4 * LINE) {
		__m512i a = _mm512_loadu_si512(s), b = _mm512_loadu_si512(s + LINE);
		__m512i c = _mm512_loadu_si512(s + 2 * LINE), e = _mm512_loadu_si512(s + 3 * LINE);

		_mm512_stream_si512((void *)d, a);
		_mm512_stream_si512((void *)(d + LINE), b);
		_mm512_stream_si512((void *)(d + 2 * LINE), c);
		_mm512_stream_si512((void *)(d + 3 * LINE), e);
	}
	for (; bytes >= LINE; bytes -= LINE, d += LINE, s += LINE)
		_mm512_stream_si512((void *)d, _mm512_loadu_si512(s));
	if (bytes)
		copy_line(d, s, bytes);
}

/* f32 -> bf16 in the upper half of each 32 bits; the lower half is left over. */
INLINE __m512i round_bf16(__m512 value)
{
	__m512i bits = _mm512_castps_si512(value);
	__m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
	__m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
	__mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);

	return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}

INLINE struct pair load_pair(enum m2n_dtype dtype, const void *row, size_t i, __mmask32 mask)
{
	const char *at = (const char *)row + i * value_bytes(dtype);
	struct pair pair;
	__m512i bits;

	if (dtype == M2N_DTYPE_F32) {
		pair.lo = _mm512_maskz_loadu_ps((__mmask16)mask, at);
		pair.hi = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), at + LINE);
		return pair;
	}
	bits = _mm512_maskz_loadu_epi16(mask, at);
	if (dtype == M2N_DTYPE_BF16) {
		pair.lo = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
		pair.hi = _mm512_castsi512_ps(
			_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000)));
	} else {
		pair.lo = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
		pair.hi = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
	}
	return pair;
}

/* A pair of a 16-bit dtype as it lies in the row. */
INLINE __m512i pack_pair(enum m2n_dtype dtype, struct pair pair)
{
	__m256i lo, hi;

	if (dtype == M2N_DTYPE_BF16)
		return _mm512_mask_blend_epi16(0xaaaaaaaa,
			_mm512_srli_epi32(round_bf16(pair.lo), 16), round_bf16(pair.hi));
	lo = _mm512_cvtps_ph(pair.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	hi = _mm512_cvtps_ph(pair.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
}

INLINE void store_pair(
	enum m2n_dtype dtype, void *row, size_t i, __mmask32 mask, int nt, struct pair pair)
{
	char *at = (char *)row + i * value_bytes(dtype);

	if (dtype == M2N_DTYPE_F32) {
		if (nt) {
			_mm512_stream_ps((void *)at, pair.lo);
			_mm512_stream_ps((void *)(at + LINE), pair.hi);
		} else {
			_mm512_mask_storeu_ps(at, (__mmask16)mask, pair.lo);
			_mm512_mask_storeu_ps(at + LINE, (__mmask16)(mask >> 16), pair.hi);
		}
	} else if (nt) {
		_mm512_stream_si512((void *)at, pack_pair(dtype, pair));
	} else {
		_mm512_mask_storeu_epi16(at, mask, pack_pair(dtype, pair));
	}
}

/*
 * `n_pairs` pairs of the sum from value i on; of a single pair, only those under the mask.
 * `ahead`: fetch as many values of the rows, AHEAD bytes farther on.
 */
INLINE void wsum_strip(enum m2n_dtype dtype, const struct wsum *sum, size_t i, unsigned n_pairs,
	__mmask32 mask, int nt, int ahead)
{
	size_t at = i * value_bytes(dtype), strip_bytes = n_pairs * PAIR * value_bytes(dtype);
	struct pair acc[STRIP];

#pragma GCC unroll 4
	for (unsigned p = 0; p < n_pairs; p++) {
		if (sum->residual)
			acc[p] = load_pair(dtype, sum->residual, i + p * PAIR, mask);
		else
			acc[p].lo = acc[p].hi = _mm512_setzero_ps();
	}
	for (unsigned k = 0; k < sum->n; k++) {
		__m512 weight = _mm512_set1_ps(sum->w ? sum->w[k] : 1.0f);

		if (ahead)
			prefetch(sum->x[k], at + AHEAD, at + AHEAD + strip_bytes);
#pragma GCC unroll 4
		for (unsigned p = 0; p < n_pairs; p++) {
			struct pair value = load_pair(dtype, sum->x[k], i + p * PAIR, mask);

			acc[p].lo = _mm512_fmadd_ps(weight, value.lo, acc[p].lo);
			acc[p].hi = _mm512_fmadd_ps(weight, value.hi, acc[p].hi);
		}
	}
#pragma GCC unroll 4
	for (unsigned p = 0; p < n_pairs; p++)
		store_pair(dtype, sum->out, i + p * PAIR, mask, nt, acc[p]);
}

/* The values from i to end, which may be no whole pairs. */
INLINE void wsum_part(enum m2n_dtype dtype, const struct wsum *sum, size_t i, size_t end)
{
	for (; i < end; i += PAIR)
		wsum_strip(dtype, sum, i, 1, (__mmask32)first_bits(min_size(end - i, PAIR)), 0, 0);
}

INLINE void wsum(enum m2n_dtype dtype, const struct wsum *sum, size_t n_values, int nt)
{
	size_t i = nt ? head_values(dtype, sum->out, n_values) : 0;
	size_t n_ahead = AHEAD / value_bytes(dtype);

	prefetch_rows(sum, n_values * value_bytes(dtype));
	wsum_part(dtype, sum, 0, i);
	for (; n_values - i >= STRIP * PAIR + n_ahead; i += STRIP * PAIR)
		wsum_strip(dtype, sum, i, STRIP, ~0u, nt, 1);
	for (; n_values - i >= STRIP * PAIR; i += STRIP * PAIR)
		wsum_strip(dtype, sum, i, STRIP, ~0u, nt, 0);
	wsum_part(dtype, sum, i, n_values);
}

INLINE void scale(enum m2n_dtype dtype, void *out, const void *x, float w, size_t n_values)
{
	__m512 weight = _mm512_set1_ps(w);

	for (size_t i = 0; i < n_values; i += PAIR) {
		__mmask32 mask = (__mmask32)first_bits(min_size(n_values - i, PAIR));
		struct pair pair = load_pair(dtype, x, i, mask);

		pair.lo = _mm512_mul_ps(weight, pair.lo);
		pair.hi = _mm512_mul_ps(weight, pair.hi);
		store_pair(dtype, out, i, mask, 0, pair);
	}
}

INLINE __m512 widen_bf16(__m256i bits)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* 16 values in the row's order. */
INLINE __m512 load_ordered(enum m2n_dtype dtype, const void *row, size_t i, __mmask16 mask)
{
	const char *at = (const char *)row + i * value_bytes(dtype);

	if (dtype == M2N_DTYPE_F32)
		return _mm512_maskz_loadu_ps(mask, at);
	if (dtype == M2N_DTYPE_BF16)
		return widen_bf16(_mm256_maskz_loadu_epi16(mask, at));
	return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at));
}

INLINE float dot(enum m2n_dtype dtype, const void *a, const void *b, size_t n_values)
{
	__m512 part = _mm512_setzero_ps();
	__m256 eight;
	__m128 four;

	for (size_t i = 0; i < n_values; i += 16) {
		__mmask16 mask = (__mmask16)first_bits(min_size(n_values - i, 16));

		/* Masked, because adding 0 turns a -0 into +0. */
		part = _mm512_mask3_fmadd_ps(load_ordered(dtype, a, i, mask),
			load_ordered(dtype, b, i, mask), part, mask);
	}
	eight = _mm256_add_ps(_mm512_castps512_ps256(part), _mm512_extractf32x8_ps(part, 1));
	four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
	four = _mm_add_ps(four, _mm_movehl_ps(four, four));
	return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

KERNELS_OF(M2N_DTYPE_F32, f32)
KERNELS_OF(M2N_DTYPE_BF16, bf16)
KERNELS_OF(M2N_DTYPE_F16, f16)

/* The largest finite magnitude among n <= 128 values. */
INLINE float block_amax(const uint16_t *src, size_t n)
{
	__m512i max = _mm512_setzero_si512(), infinity = _mm512_set1_epi16(0x7f80);
	__m256i half;
	__m128i quarter;

	for (size_t i = 0; i < n; i += 32) {
		__mmask32 mask = (__mmask32)first_bits(min_size(n - i, 32));
		__m512i magnitude = _mm512_and_si512(
			_mm512_maskz_loadu_epi16(mask, src + i), _mm512_set1_epi16(0x7fff));

		max = _mm512_mask_max_epu16(
			max, _mm512_cmplt_epu16_mask(magnitude, infinity), max, magnitude);
	}
	half = _mm256_max_epu16(_mm512_castsi512_si256(max), _mm512_extracti64x4_epi64(max, 1));
	quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
	/* There is a horizontal minimum only: that of the complements. */
	quarter = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)));
	return bf16_to_f32((uint16_t)~_mm_cvtsi128_si32(quarter));
}

/* f32 -> e4m3 in the low byte of each 32 bits; fp8_from_f32() explains the steps. */
INLINE __m512i encode_fp8(__m512 value)
{
	__m512i bits = _mm512_castps_si512(value);
	__m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
	__m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
	__m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
	__m512i normal = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(magnitude, odd),
						   _mm512_set1_epi32(0x7ffff - ((127 - 7) << 23))),
		20);
	__m512i small = _mm512_sub_epi32(
		_mm512_castps_si512(
			_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p14f))),
		_mm512_set1_epi32(0x46800000));
	__mmask16 is_small = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32(0x3c800000));
	__mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
	__m512i code = _mm512_min_epu32(
		_mm512_mask_mov_epi32(normal, is_small, small), _mm512_set1_epi32(0x7e));

	return _mm512_mask_mov_epi32(_mm512_or_si512(code, sign), nan, _mm512_set1_epi32(0x7f));
}

static void cast_fp8(uint8_t *dst, float *scales, const uint16_t *src, size_t n_values)
{
	while (n_values > 0) {
		size_t n = min_size(n_values, M2N__FP8_BLOCK);
		float inverse, block_scale = fp8_scale(block_amax(src, n), &inverse);
		__m512 factor = _mm512_set1_ps(inverse);

		memcpy(scales++, &block_scale, sizeof(block_scale));
		for (size_t i = 0; i < n; i += 16) {
			__mmask16 mask = (__mmask16)first_bits(min_size(n - i, 16));
			__m512 value = load_ordered(M2N_DTYPE_BF16, src, i, mask);

			_mm_mask_storeu_epi8(dst + i, mask,
				_mm512_cvtepi32_epi8(encode_fp8(_mm512_mul_ps(value, factor))));
		}
		dst += n;
		src += n;
		n_values -= n;
	}
}

/*
 * e4m3 -> f32: its exponent and fraction, moved to where fp16 has them, are 2^-8 of the value;
 * denormals come out right too.
 */
INLINE __m512 decode_fp8(__m128i codes)
{
	__m256i wide = _mm256_cvtepu8_epi16(codes);
	__m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
	__m256i sign = _mm256_and_si256(wide, _mm256_set1_epi16(0x80));
	__mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
	__m256i half = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), _mm256_slli_epi16(sign, 8));

	half = _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7e00));
	return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}

static void uncast_fp8(uint16_t *dst, const uint8_t *src, const float *scales, size_t n_values)
{
	for (size_t i = 0; i < n_values; i += 16) {
		__mmask16 mask = (__mmask16)first_bits(min_size(n_values - i, 16));
		__m512 factor =
			_mm512_set1_ps(load_value(M2N_DTYPE_F32, scales, i / M2N__FP8_BLOCK));
		__m512 value = decode_fp8(_mm_maskz_loadu_epi8(mask, src + i));
		__m512i bits = round_bf16(_mm512_mul_ps(value, factor));

		_mm256_mask_storeu_epi16(
			dst + i, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
	}
}

const struct m2n__kernels m2n__kernels_avx512 = {
	.name = "avx512",
	.copy = copy,
	.stream = stream,
	.scatter = scatter,
	.fence = fence,
	.own = own,
	.wsum =
		{
			[M2N_DTYPE_F32] = wsum_f32,
			[M2N_DTYPE_BF16] = wsum_bf16,
			[M2N_DTYPE_F16] = wsum_f16,
		},
	.scale =
		{
			[M2N_DTYPE_F32] = scale_f32,
			[M2N_DTYPE_BF16] = scale_bf16,
			[M2N_DTYPE_F16] = scale_f16,
		},
	.dot =
		{
			[M2N_DTYPE_F32] = dot_f32,
			[M2N_DTYPE_BF16] = dot_bf16,
			[M2N_DTYPE_F16] = dot_f16,
		},
	.cast_fp8 = cast_fp8,
	.uncast_fp8 = uncast_fp8,
};
