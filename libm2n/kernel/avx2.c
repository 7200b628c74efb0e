/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AVX2 kernels, with FMA and F16C. The same ideas as avx512.c at half the width: pairs are 16
 * values, and since there are no masks, a row's first and last values go one at a time.
 */
#include "kernel/tables.h"
#include "kernel/x86.h"

#define PAIR 16 /* values in a pair */
#define STRIP 4 /* pairs that a sum keeps in registers: two or four cache lines */
#define COPY_MAX 512 /* above, memcpy() is as fast */

struct pair {
	__m256 lo, hi;
};

INLINE __m256i load(const void *at)
{
	return _mm256_loadu_si256((const __m256i *)at);
}

INLINE void store(void *at, __m256i bits)
{
	_mm256_storeu_si256((__m256i *)at, bits);
}

INLINE void store_nt(void *at, __m256i bits)
{
	_mm256_stream_si256((__m256i *)at, bits);
}

static void copy(void *dst, const void *src, size_t bytes)
{
	char *d = dst;
	const char *s = src;
	__m256i last;

	if (bytes <= LINE) {
		copy_line(d, s, bytes);
		return;
	}
	if (bytes > COPY_MAX) {
		memcpy(dst, src, bytes);
		return;
	}
	last = load(s + bytes - 32);
	for (size_t i = 0; i < bytes - 32; i += 32)
		store(d + i, load(s + i));
	store(d + bytes - 32, last);
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
	for (; bytes >= 2 * LINE; bytes -= 2 * LINE, d += 2 * LINE, s += 2 * LINE) {
		__m256i a = load(s), b = load(s + 32), c = load(s + 64), e = load(s + 96);

		store_nt(d, a);
		store_nt(d + 32, b);
		store_nt(d + 64, c);
		store_nt(d + 96, e);
	}
	if (bytes >= LINE) {
		store_nt(d, load(s));
		store_nt(d + 32, load(s + 32));
		bytes -= LINE;
		d += LINE;
		s += LINE;
	}
	if (bytes)
		copy_line(d, s, bytes);
}

/* f32 -> bf16 in the upper half of each 32 bits; the lower half is left over. */
INLINE __m256i round_bf16(__m256 value)
{
	__m256i bits = _mm256_castps_si256(value);
	__m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
	__m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
	__m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
	__m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);

	return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
}

INLINE struct pair load_pair(enum m2n_dtype dtype, const void *row, size_t i)
{
	const char *at = (const char *)row + i * value_bytes(dtype);
	struct pair pair;
	__m256i bits = load(at);

	if (dtype == M2N_DTYPE_F32) {
		pair.lo = _mm256_castsi256_ps(bits);
		pair.hi = _mm256_castsi256_ps(load(at + 32));
	} else if (dtype == M2N_DTYPE_BF16) {
		pair.lo = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
		pair.hi = _mm256_castsi256_ps(
			_mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000)));
	} else {
		pair.lo = _mm256_cvtph_ps(_mm256_castsi256_si128(bits));
		pair.hi = _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1));
	}
	return pair;
}

/* A pair of a 16-bit dtype as it lies in the row. */
INLINE __m256i pack_pair(enum m2n_dtype dtype, struct pair pair)
{
	__m128i lo, hi;

	if (dtype == M2N_DTYPE_BF16)
		return _mm256_blend_epi16(
			_mm256_srli_epi32(round_bf16(pair.lo), 16), round_bf16(pair.hi), 0xaa);
	lo = _mm256_cvtps_ph(pair.lo, _MM_FROUND_TO_NEAREST_INT);
	hi = _mm256_cvtps_ph(pair.hi, _MM_FROUND_TO_NEAREST_INT);
	return _mm256_inserti128_si256(_mm256_castsi128_si256(lo), hi, 1);
}

INLINE void store_pair(enum m2n_dtype dtype, void *row, size_t i, int nt, struct pair pair)
{
	char *at = (char *)row + i * value_bytes(dtype);

	if (dtype == M2N_DTYPE_F32) {
		if (nt) {
			store_nt(at, _mm256_castps_si256(pair.lo));
			store_nt(at + 32, _mm256_castps_si256(pair.hi));
		} else {
			store(at, _mm256_castps_si256(pair.lo));
			store(at + 32, _mm256_castps_si256(pair.hi));
		}
	} else if (nt) {
		store_nt(at, pack_pair(dtype, pair));
	} else {
		store(at, pack_pair(dtype, pair));
	}
}

/* `n_pairs` pairs of the sum from value i on; `ahead` as in avx512.c. */
INLINE void wsum_strip(
	enum m2n_dtype dtype, const struct wsum *sum, size_t i, unsigned n_pairs, int nt, int ahead)
{
	size_t at = i * value_bytes(dtype), strip_bytes = n_pairs * PAIR * value_bytes(dtype);
	struct pair acc[STRIP];

#pragma GCC unroll 4
	for (unsigned p = 0; p < n_pairs; p++) {
		if (sum->residual)
			acc[p] = load_pair(dtype, sum->residual, i + p * PAIR);
		else
			acc[p].lo = acc[p].hi = _mm256_setzero_ps();
	}
	for (unsigned k = 0; k < sum->n; k++) {
		__m256 weight = _mm256_set1_ps(sum->w ? sum->w[k] : 1.0f);

		if (ahead)
			prefetch(sum->x[k], at + AHEAD, at + AHEAD + strip_bytes);
#pragma GCC unroll 4
		for (unsigned p = 0; p < n_pairs; p++) {
			struct pair value = load_pair(dtype, sum->x[k], i + p * PAIR);

			acc[p].lo = _mm256_fmadd_ps(weight, value.lo, acc[p].lo);
			acc[p].hi = _mm256_fmadd_ps(weight, value.hi, acc[p].hi);
		}
	}
#pragma GCC unroll 4
	for (unsigned p = 0; p < n_pairs; p++)
		store_pair(dtype, sum->out, i + p * PAIR, nt, acc[p]);
}

INLINE void wsum_values(enum m2n_dtype dtype, const struct wsum *sum, size_t i, size_t end)
{
	for (; i < end; i++) {
		float acc = sum->residual ? load_value(dtype, sum->residual, i) : 0.0f;

		for (unsigned k = 0; k < sum->n; k++)
			acc = fmaf(sum->w ? sum->w[k] : 1.0f, load_value(dtype, sum->x[k], i), acc);
		store_value(dtype, sum->out, i, acc);
	}
}

INLINE void wsum(enum m2n_dtype dtype, const struct wsum *sum, size_t n_values, int nt)
{
	size_t i = nt ? head_values(dtype, sum->out, n_values) : 0;
	size_t n_ahead = AHEAD / value_bytes(dtype);

	prefetch_rows(sum, n_values * value_bytes(dtype));
	wsum_values(dtype, sum, 0, i);
	for (; n_values - i >= STRIP * PAIR + n_ahead; i += STRIP * PAIR)
		wsum_strip(dtype, sum, i, STRIP, nt, 1);
	for (; n_values - i >= STRIP * PAIR; i += STRIP * PAIR)
		wsum_strip(dtype, sum, i, STRIP, nt, 0);
	for (; n_values - i >= PAIR; i += PAIR)
		wsum_strip(dtype, sum, i, 1, 0, 0);
	wsum_values(dtype, sum, i, n_values);
}

INLINE void scale(enum m2n_dtype dtype, void *out, const void *x, float w, size_t n_values)
{
	__m256 weight = _mm256_set1_ps(w);
	size_t i = 0;

	for (; n_values - i >= PAIR; i += PAIR) {
		struct pair pair = load_pair(dtype, x, i);

		pair.lo = _mm256_mul_ps(weight, pair.lo);
		pair.hi = _mm256_mul_ps(weight, pair.hi);
		store_pair(dtype, out, i, 0, pair);
	}
	for (; i < n_values; i++)
		store_value(dtype, out, i, w * load_value(dtype, x, i));
}

INLINE __m256 widen_bf16(__m128i bits)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/* 8 values in the row's order. */
INLINE __m256 load_ordered(enum m2n_dtype dtype, const void *row, size_t i)
{
	const char *at = (const char *)row + i * value_bytes(dtype);

	if (dtype == M2N_DTYPE_F32)
		return _mm256_castsi256_ps(load(at));
	if (dtype == M2N_DTYPE_BF16)
		return widen_bf16(_mm_loadu_si128((const __m128i *)at));
	return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
}

INLINE float dot(enum m2n_dtype dtype, const void *a, const void *b, size_t n_values)
{
	__m256 lo = _mm256_setzero_ps(), hi = _mm256_setzero_ps();
	float part[16];
	size_t i = 0;

	for (; n_values - i >= 16; i += 16) {
		lo = _mm256_fmadd_ps(load_ordered(dtype, a, i), load_ordered(dtype, b, i), lo);
		hi = _mm256_fmadd_ps(
			load_ordered(dtype, a, i + 8), load_ordered(dtype, b, i + 8), hi);
	}
	_mm256_storeu_ps(part, lo);
	_mm256_storeu_ps(part + 8, hi);
	for (; i < n_values; i++)
		part[i % 16] = fmaf(load_value(dtype, a, i), load_value(dtype, b, i), part[i % 16]);
	for (unsigned half = 8; half > 0; half /= 2)
		for (unsigned j = 0; j < half; j++)
			part[j] += part[j + half];
	return part[0];
}

KERNELS_OF(M2N_DTYPE_F32, f32)
KERNELS_OF(M2N_DTYPE_BF16, bf16)
KERNELS_OF(M2N_DTYPE_F16, f16)

/* Magnitudes of 16 bf16 values, 0 for those that are not finite. */
INLINE __m256i finite_magnitudes(const uint16_t *src)
{
	__m256i magnitude = _mm256_and_si256(load(src), _mm256_set1_epi16(0x7fff));
	__m256i finite = _mm256_cmpgt_epi16(_mm256_set1_epi16(0x7f80), magnitude);

	return _mm256_and_si256(magnitude, finite);
}

/* The largest finite magnitude among n values. */
INLINE float block_amax(const uint16_t *src, size_t n)
{
	__m256i max = _mm256_setzero_si256();
	__m128i half;
	uint16_t amax;
	size_t i = 0;

	for (; n - i >= 16; i += 16)
		max = _mm256_max_epu16(max, finite_magnitudes(src + i));
	half = _mm_max_epu16(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
	/* There is a horizontal minimum only: that of the complements. */
	half = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
	amax = (uint16_t)~_mm_cvtsi128_si32(half);
	for (; i < n; i++) {
		uint16_t magnitude;

		memcpy(&magnitude, src + i, sizeof(magnitude));
		magnitude &= 0x7fff;
		if (magnitude < 0x7f80 && magnitude > amax)
			amax = magnitude;
	}
	return bf16_to_f32(amax);
}

/* f32 -> e4m3 in the low byte of each 32 bits; fp8_from_f32() explains the steps. */
INLINE __m256i encode_fp8(__m256 value)
{
	__m256i bits = _mm256_castps_si256(value);
	__m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
	__m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
	__m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
	__m256i normal = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(magnitude, odd),
						   _mm256_set1_epi32(0x7ffff - ((127 - 7) << 23))),
		20);
	__m256i small = _mm256_sub_epi32(
		_mm256_castps_si256(
			_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f))),
		_mm256_set1_epi32(0x46800000));
	__m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude);
	__m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
	__m256i code = _mm256_min_epu32(
		_mm256_blendv_epi8(normal, small, is_small), _mm256_set1_epi32(0x7e));

	return _mm256_blendv_epi8(
		_mm256_or_si256(code, sign), _mm256_set1_epi32(0x7f), _mm256_castps_si256(nan));
}

/* 8 codes, one in each 32 bits, to 8 bytes. */
INLINE void store_codes(uint8_t *dst, __m256i codes)
{
	__m128i words =
		_mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));

	_mm_storel_epi64((__m128i *)dst, _mm_packus_epi16(words, words));
}

static void cast_fp8(uint8_t *dst, float *scales, const uint16_t *src, size_t n_values)
{
	while (n_values > 0) {
		size_t n = min_size(n_values, M2N__FP8_BLOCK), i = 0;
		float inverse, block_scale = fp8_scale(block_amax(src, n), &inverse);
		__m256 factor = _mm256_set1_ps(inverse);

		memcpy(scales++, &block_scale, sizeof(block_scale));
		for (; n - i >= 8; i += 8) {
			__m256 value = load_ordered(M2N_DTYPE_BF16, src, i);

			store_codes(dst + i, encode_fp8(_mm256_mul_ps(value, factor)));
		}
		for (; i < n; i++)
			dst[i] = fp8_from_f32(load_value(M2N_DTYPE_BF16, src, i) * inverse);
		dst += n;
		src += n;
		n_values -= n;
	}
}

/* 8 codes -> f32, by way of fp16 as in avx512.c. */
INLINE __m256 decode_fp8(const uint8_t *src)
{
	__m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)src));
	__m128i magnitude = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
	__m128i sign = _mm_and_si128(wide, _mm_set1_epi16(0x80));
	__m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
	__m128i half = _mm_or_si128(_mm_slli_epi16(magnitude, 7), _mm_slli_epi16(sign, 8));

	half = _mm_blendv_epi8(half, _mm_set1_epi16(0x7e00), nan);
	return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

static void uncast_fp8(uint16_t *dst, const uint8_t *src, const float *scales, size_t n_values)
{
	size_t i = 0;

	for (; n_values - i >= 8; i += 8) {
		__m256 factor =
			_mm256_set1_ps(load_value(M2N_DTYPE_F32, scales, i / M2N__FP8_BLOCK));
		__m256i bits = round_bf16(_mm256_mul_ps(decode_fp8(src + i), factor));

		bits = _mm256_srli_epi32(bits, 16);
		_mm_storeu_si128(
			(__m128i *)(dst + i), _mm_packus_epi32(_mm256_castsi256_si128(bits),
						      _mm256_extracti128_si256(bits, 1)));
	}
	for (; i < n_values; i++)
		store_value(M2N_DTYPE_BF16, dst, i,
			fp8_to_f32(src[i]) * load_value(M2N_DTYPE_F32, scales, i / M2N__FP8_BLOCK));
}

const struct m2n__kernels m2n__kernels_avx2 = {
	.name = "avx2",
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
