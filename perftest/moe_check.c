/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks of the data. A row's content is a function of (seed, generation, variant, source,
 * token, place); experts walk the routing themselves, so that every received row is compared
 * with what its source must have sent, and answer with a function of (row, expert); sinks sum
 * those functions in plain loops, independently of the library, and compare bit for bit. Only
 * where the library rounds once more by design (reduction at the expert) or loses bits (fp8) is
 * there a tolerance.
 */
#include "moe_check.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NO_RESOLVERS /* they run before the sanitizer can */
#endif
#elif defined(__SANITIZE_THREAD__)
#define NO_RESOLVERS
#endif

#if defined(__x86_64__) && !defined(NO_RESOLVERS)
#define VECTORIZED __attribute__((target_clones("arch=haswell", "default")))
#else
#define VECTORIZED
#endif

static uint32_t key_of(
	const struct moe_check *check, uint32_t source, uint32_t token, uint32_t salt)
{
	uint64_t key = perf_mix(check->moe->args->seed + check->generation);

	key = perf_mix(key ^ check->variant);
	key = perf_mix(key ^ ((uint64_t)source << 32 | token));
	return (uint32_t)perf_mix(key ^ salt);
}

static inline uint32_t word_of(uint32_t key, uint32_t i)
{
	uint32_t x = key + i * 0x9e3779b1u;

	x = (x ^ (x >> 16)) * 0x85ebca6bu;
	return x ^ (x >> 13);
}

/* A value that every dtype holds exactly: -2 .. 2 in steps of 1/64. */
static inline float value_of(uint32_t key, uint32_t i)
{
	return (float)((int)(word_of(key, i) >> 24) - 128) * (1.0f / 64);
}

VECTORIZED static void make_bytes(char *row, size_t bytes, uint32_t key)
{
	size_t n = bytes / 4;

	for (size_t i = 0; i < n; i++) {
		uint32_t word = word_of(key, (uint32_t)i);
		memcpy(row + 4 * i, &word, 4);
	}
	uint32_t tail = word_of(key, (uint32_t)n);
	memcpy(row + 4 * n, &tail, bytes % 4);
}

static inline uint16_t to_bf16(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, 4);
	return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float from_bf16(uint16_t value)
{
	uint32_t bits = (uint32_t)value << 16;
	float result;

	memcpy(&result, &bits, 4);
	return result;
}

/* binary16 by arithmetic: the scale is a power of two, so that only the last step rounds. */
static uint16_t to_f16(float value)
{
	float magnitude = fabsf(value);
	uint16_t sign = signbit(value) ? 0x8000 : 0;
	int exponent;

	if (magnitude >= 65520.0f)
		return sign | 0x7c00;
	if (magnitude < 0x1p-14f)
		return sign | (uint16_t)rintf(magnitude * 0x1p24f);
	frexpf(magnitude, &exponent);
	/* 1024 .. 2048 after rounding; a carry runs into the exponent, as it must. */
	return sign |
	       (uint16_t)(((exponent + 13) << 10) + (int)rintf(ldexpf(magnitude, 11 - exponent)));
}

static float from_f16(uint16_t value)
{
	int exponent = (value >> 10) & 31;
	float fraction = value & 1023;
	float magnitude =
		exponent == 0 ? fraction * 0x1p-24f : ldexpf(1024 + fraction, exponent - 25);

	if (exponent == 31)
		magnitude = (value & 1023) != 0 ? NAN : INFINITY;
	return value & 0x8000 ? -magnitude : magnitude;
}

VECTORIZED static void make_values(char *row, size_t n, enum m2n_dtype dtype, uint32_t key)
{
	for (size_t i = 0; dtype == M2N_DTYPE_BF16 && i < n; i++) {
		uint16_t bits = to_bf16(value_of(key, (uint32_t)i));
		memcpy(row + 2 * i, &bits, 2);
	}
	for (size_t i = 0; dtype == M2N_DTYPE_F16 && i < n; i++) {
		uint16_t bits = to_f16(value_of(key, (uint32_t)i));
		memcpy(row + 2 * i, &bits, 2);
	}
	for (size_t i = 0; dtype == M2N_DTYPE_F32 && i < n; i++) {
		float value = value_of(key, (uint32_t)i);
		memcpy(row + 4 * i, &value, 4);
	}
}

VECTORIZED static void add_values(float *sum, float *bound, size_t n, uint32_t key, float weight)
{
	for (size_t i = 0; i < n; i++) {
		float value = value_of(key, (uint32_t)i);
		sum[i] = __builtin_fmaf(weight, value, sum[i]);
		bound[i] += fabsf(weight * value);
	}
}

/* What a source sends for a token: bytes, or bf16 values that a cast will read. */
static void make_row(const struct moe_check *check, uint32_t source, uint32_t token, char *row)
{
	uint32_t key = key_of(check, source, token, 1);

	if (check->moe->args->cast_fp8)
		make_values(row, check->moe->row_bytes, M2N_DTYPE_BF16, key);
	else
		make_bytes(row, check->moe->row_bytes, key);
}

static uint32_t output_key(
	const struct moe_check *check, uint32_t source, uint32_t token, int32_t expert)
{
	return key_of(check, source, token, 16 + (uint32_t)expert);
}

static float from_e4m3(uint8_t value)
{
	int exponent = (value >> 3) & 15;
	float fraction = value & 7;
	float magnitude = exponent == 0 ? fraction * 0x1p-9f : ldexpf(8 + fraction, exponent - 10);

	return value & 0x80 ? -magnitude : magnitude;
}

/* Three bits of mantissa: within 1/16 of the value, or of the smallest step. */
static bool cast_is_close(
	const struct moe_check *check, const uint8_t *row, const float *scales, const char *want)
{
	for (size_t i = 0; i < check->moe->row_bytes; i++) {
		uint16_t bits;
		memcpy(&bits, want + 2 * i, 2);
		float value = from_bf16(bits);
		float scale;
		memcpy(&scale, scales + i / 128, sizeof(scale));
		if (!(fabsf(from_e4m3(row[i]) * scale - value) <=
			    fabsf(value) * 0.0626f + scale * 0x1p-9f))
			return false;
	}
	return true;
}

static void __attribute__((noreturn)) fail_row(const struct moe_check *check, const char *what,
	uint32_t source, uint32_t token, int32_t expert)
{
	char text[160];

	snprintf(text, sizeof(text),
		"data check: wrong %s (source %u, token %u, expert %d, variant %u, generation %u)",
		what, source, token, expert, check->variant, check->generation);
	perf_rank_fail(check->moe->rank, 0, text);
}

static bool row_is_right(
	const struct moe_check *check, const struct m2n_segment *segment, uint32_t i)
{
	const struct moe *moe = check->moe;
	size_t at = segment->index != NULL ? segment->index[i] : i;
	const char *row = (const char *)segment->rows + at * moe->row_bytes;

	if (!moe->args->cast_fp8)
		return memcmp(row, check->scratch, moe->row_bytes) == 0;
	size_t n_scales = (moe->row_bytes + 127) / 128;
	return cast_is_close(check, (const uint8_t *)row,
		(const float *)segment->scales + at * n_scales, check->scratch);
}

void moe_check_segment(const struct moe_check *check, const struct m2n_segment *segment)
{
	struct moe *moe = check->moe;
	uint32_t top_k = moe->routing->top_k;
	const int32_t *ids = perf_routing_ids(moe->routing, check->variant, segment->source);
	uint32_t n_tokens = *perf_routing_tokens(moe->routing, check->variant, segment->source);
	size_t value_bytes = perf_dtype_bytes(moe->args->dtype);
	uint32_t n = 0;

	for (uint32_t pair = 0; pair < n_tokens * top_k; pair++) {
		uint32_t token = pair / top_k;
		if (ids[pair] != segment->expert)
			continue;
		if (n == segment->n_rows)
			fail_row(check, "number of rows, too few", segment->source, token,
				segment->expert);
		if (segment->rows != NULL) {
			make_row(check, segment->source, token, check->scratch);
			if (!row_is_right(check, segment, n))
				fail_row(check, "row", segment->source, token, segment->expert);
		}
		make_values(moe->outputs + (segment->first_row + n) * moe->out_row_bytes,
			moe->out_row_bytes / value_bytes, moe->args->dtype,
			output_key(check, segment->source, token, segment->expert));
		n++;
	}
	if (n != segment->n_rows)
		fail_row(check, "number of rows, too many", segment->source, n, segment->expert);
}

static void expert_check(const struct moe_check *check)
{
	struct moe *moe = check->moe;
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_combine_send_params send = M2N_COMBINE_SEND_PARAMS_INIT;
	const struct m2n_batch *batch = NULL;
	uint64_t want = perf_routing_rows(moe->routing, check->variant, -1, moe->rank->expert);

	perf_rank_check(
		moe->rank, m2n_dispatch_recv(moe->channel, &recv, &batch), "m2n_dispatch_recv");
	if (batch->n_rows != want)
		fail_row(check, "number of rows in a batch", 0, batch->n_rows, -1);
	for (uint32_t i = 0; i < batch->n_segments; i++)
		moe_check_segment(check, &batch->segments[i]);
	page_rank(moe->rank->page, (uint32_t)moe->rank->rank)->verified += batch->n_rows;
	send.batch = batch;
	send.rows = moe->outputs;
	perf_rank_check(moe->rank, m2n_combine_send(moe->channel, &send), "m2n_combine_send");
	perf_rank_check(
		moe->rank, m2n_reply_wait(moe->channel, M2N_TIMEOUT_DEFAULT), "m2n_reply_wait");
}

/* The sum as stored: exactly the bits of `sum`, or close where the library rounds once more. */
static bool sum_is_right(const struct moe_check *check, const char *out, size_t n)
{
	enum m2n_dtype dtype = check->moe->args->dtype;
	bool exact = !check->moe->args->reduce_at_expert;
	float step = dtype == M2N_DTYPE_BF16  ? 0x1p-7f
		     : dtype == M2N_DTYPE_F16 ? 0x1p-10f
					      : 0x1p-20f;

	for (size_t i = 0; i < n; i++) {
		uint16_t half = 0, want_half = 0;
		float got, want = check->sum[i];
		memcpy(dtype == M2N_DTYPE_F32 ? (void *)&got : (void *)&half,
			out + i * perf_dtype_bytes(dtype), perf_dtype_bytes(dtype));
		if (dtype != M2N_DTYPE_F32) {
			got = dtype == M2N_DTYPE_BF16 ? from_bf16(half) : from_f16(half);
			want_half = dtype == M2N_DTYPE_BF16 ? to_bf16(want) : to_f16(want);
		}
		if (exact &&
			(dtype == M2N_DTYPE_F32 ? memcmp(&got, &want, 4) != 0 : half != want_half))
			return false;
		if (!(fabsf(got - want) <= check->bound[i] * step))
			return false;
	}
	return true;
}

void moe_check_sums(const struct moe_check *check)
{
	struct moe *moe = check->moe;
	uint32_t source = (uint32_t)moe->rank->source;
	uint32_t top_k = moe->routing->top_k;
	const int32_t *ids = perf_routing_ids(moe->routing, check->variant, source);
	const float *weights = perf_routing_weights(moe->routing, check->variant, source);
	uint32_t n_tokens = *perf_routing_tokens(moe->routing, check->variant, source);
	size_t n = moe->out_row_bytes / perf_dtype_bytes(moe->args->dtype);

	for (uint32_t token = 0; token < n_tokens; token++) {
		memset(check->sum, 0, n * sizeof(float));
		memset(check->bound, 0, n * sizeof(float));
		for (uint32_t k = 0; k < top_k; k++) {
			size_t pair = (size_t)token * top_k + k;
			if (ids[pair] >= 0)
				add_values(check->sum, check->bound, n,
					output_key(check, source, token, ids[pair]), weights[pair]);
		}
		if (!sum_is_right(check, moe->out + token * moe->out_row_bytes, n))
			fail_row(check, "sum", source, token, -1);
	}
	page_rank(moe->rank->page, (uint32_t)moe->rank->rank)->verified += n_tokens;
}

void moe_check_rows(const struct moe_check *check)
{
	struct moe *moe = check->moe;
	uint32_t source = (uint32_t)moe->rank->source;
	uint32_t n_tokens = *perf_routing_tokens(moe->routing, check->variant, source);

	for (uint32_t token = 0; token < n_tokens; token++)
		make_row(check, source, token, moe->rows + token * moe->in_row_bytes);
	/* So that a sum that was not written is no leftover of the last round. */
	memset(moe->out, 0xff, n_tokens * moe->out_row_bytes);
}

static void source_check(const struct moe_check *check)
{
	struct moe *moe = check->moe;
	uint32_t source = (uint32_t)moe->rank->source;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params recv = M2N_COMBINE_RECV_PARAMS_INIT;

	route.n_tokens = *perf_routing_tokens(moe->routing, check->variant, source);
	route.expert_ids = perf_routing_ids(moe->routing, check->variant, source);
	route.weights = perf_routing_weights(moe->routing, check->variant, source);
	moe_check_rows(check);
	perf_rank_check(
		moe->rank, m2n_plan_route(moe->channel, moe->plan, &route), "m2n_plan_route");
	send.plan = recv.plan = moe->plan;
	send.rows = moe->rows;
	recv.out = moe->out;
	perf_rank_check(moe->rank, m2n_dispatch_send(moe->channel, &send), "m2n_dispatch_send");
	perf_rank_check(moe->rank, m2n_combine_recv(moe->channel, &recv), "m2n_combine_recv");
	moe_check_sums(check);
}

void moe_check_open(struct moe *moe, unsigned generation, struct moe_check *check)
{
	size_t n_values = moe->out_row_bytes / perf_dtype_bytes(moe->args->dtype);

	*check = (struct moe_check){.moe = moe, .generation = generation};
	check->scratch = malloc(moe->in_row_bytes + 4);
	check->sum = calloc(n_values, sizeof(float));
	check->bound = calloc(n_values, sizeof(float));
	if (check->scratch == NULL || check->sum == NULL || check->bound == NULL)
		perf_rank_fail(moe->rank, 0, "data check: no memory");
}

void moe_check_close(struct moe_check *check)
{
	free(check->scratch);
	free(check->sum);
	free(check->bound);
}

void moe_check(struct moe *moe, unsigned generation)
{
	struct moe_check check;

	moe_check_open(moe, generation, &check);
	for (uint32_t variant = 0; variant < moe->routing->n_variants; variant++) {
		check.variant = variant;
		perf_rank_barrier(moe->rank);
		if (moe->rank->source >= 0)
			source_check(&check);
		else
			expert_check(&check);
		perf_rank_step(moe->rank);
	}
	moe_check_close(&check);
}
