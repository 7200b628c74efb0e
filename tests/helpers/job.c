/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inputs, experts and oracle of a logical job. Everything is made from job_random(), a
 * counter-based generator (splitmix64's finisher over the mixed counters), so that each value can
 * be made alone.
 */
#include "helpers/job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "route/reference.h"

enum stream { IDS, WEIGHTS, ROWS, SCALES, RESIDUAL, HOLES };

uint64_t job_random(uint64_t seed, uint64_t a, uint64_t b, uint64_t c)
{
	uint64_t x = seed;
	const uint64_t in[3] = {a, b, c};

	for (int i = 0; i < 3; i++) {
		x += in[i] + 0x9e3779b97f4a7c15u;
		x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
		x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
		x ^= x >> 31;
	}
	return x;
}

static uint64_t token_random(
	const struct job *job, enum stream stream, uint32_t round, uint32_t token, uint64_t i)
{
	return job_random(job->seed + stream, round, token, i);
}

uint64_t job_digest(const void *data, size_t bytes)
{
	const uint8_t *byte = data;
	uint64_t hash = 14695981039346656037u;

	for (size_t i = 0; i < bytes; i++)
		hash = (hash ^ byte[i]) * 1099511628211u;
	return hash;
}

int job_n_ranks(const struct job *job)
{
	return job->classic ? job->n_sources : job->n_sources + job->n_expert_ranks;
}

int job_source_rank(const struct job *job, int source)
{
	return job->reversed ? job_n_ranks(job) - 1 - source : source;
}

int job_expert_rank(const struct job *job, int expert)
{
	int rank = job->classic ? expert : job->n_sources + expert;

	return job->reversed ? job_n_ranks(job) - 1 - rank : rank;
}

size_t job_value_bytes(const struct job *job)
{
	return job->dtype == M2N_DTYPE_F32 ? 4 : 2;
}

size_t job_given_row_bytes(const struct job *job)
{
	return job->cast == M2N_CAST_BF16_FP8 ? 2 * job->row_bytes : job->row_bytes;
}

uint32_t job_first_token(const struct job *job, int source)
{
	uint32_t n = (uint32_t)job->n_sources;
	uint32_t s = (uint32_t)source;

	if (job->odd_sources_only && n > 1) {
		n /= 2;
		s /= 2; /* an even source and its odd neighbour begin at the same token */
	}
	if (s > n)
		s = n;
	return (uint32_t)((uint64_t)job->n_tokens * s / n);
}

uint32_t job_n_tokens(const struct job *job, int source)
{
	if (job->odd_sources_only && job->n_sources > 1) {
		if (source % 2 == 0)
			return 0;
		return job_first_token(job, source + 2) - job_first_token(job, source);
	}
	return job_first_token(job, source + 1) - job_first_token(job, source);
}

enum job_map job_map_of(const struct job *job, uint32_t round)
{
	return job->switch_round && round >= job->switch_round ? JOB_MAP_REVERSED : job->map;
}

static uint32_t add_owners(
	const struct job *job, enum job_map kind, uint32_t expert, uint32_t *owners)
{
	uint32_t n = (uint32_t)job->n_expert_ranks;
	uint32_t more = job->n_experts % n;
	uint32_t each = job->n_experts / n;

	switch (kind) {
	case JOB_MAP_BLOCKS:
		owners[0] = expert < more * (each + 1) ? expert / (each + 1)
						       : more + (expert - more * (each + 1)) / each;
		return 1;
	case JOB_MAP_UNEVEN:
		owners[0] = expert * expert / (job->n_experts + 1) % n;
		return 1;
	case JOB_MAP_REVERSED:
		owners[0] = n - 1 - expert % n;
		return 1;
	case JOB_MAP_REPLICAS:
		break;
	}
	if (expert == 0) {
		for (uint32_t r = 0; r < n; r++)
			owners[r] = r;
		return n;
	}
	owners[0] = expert % n;
	if (n == 1)
		return 1;
	owners[1] = (expert + 1) % n;
	return 2;
}

void job_owners(const struct job *job, enum job_map kind, struct job_owners *owners)
{
	uint32_t n = 0;

	for (uint32_t e = 0; e < job->n_experts; e++) {
		owners->first[e] = n;
		n += add_owners(job, kind, e, owners->owners + n);
	}
	owners->first[job->n_experts] = n;
}

static int32_t one_id(const struct job *job, uint32_t round, uint32_t token, uint32_t k)
{
	uint64_t random = token_random(job, IDS, round, token, k);

	switch (job->routing) {
	case JOB_ONE:
		return job->n_experts > 1 ? 1 : 0;
	case JOB_NOBODY:
		return -1;
	case JOB_HOLES:
		if (token_random(job, HOLES, round, token, k) % 3 == 0)
			return -1;
		break;
	case JOB_REPEATED:
		random = token_random(job, IDS, round, token, 0);
		break;
	case JOB_SKEWED:
		if (random >> 63)
			return 0;
		break;
	case JOB_UNIFORM:
	case JOB_DISTINCT:
		break;
	}
	return (int32_t)(random % job->n_experts);
}

void job_ids(const struct job *job, uint32_t round, uint32_t token, int32_t *ids)
{
	int32_t pool[JOB_MAX_EXPERTS];

	if (job->routing != JOB_DISTINCT) {
		for (uint32_t k = 0; k < job->top_k; k++)
			ids[k] = one_id(job, round, token, k);
		return;
	}
	for (uint32_t e = 0; e < job->n_experts; e++)
		pool[e] = (int32_t)e;
	for (uint32_t k = 0; k < job->top_k; k++) {
		uint32_t pick = k + (uint32_t)(token_random(job, IDS, round, token, k) %
					       (job->n_experts - k));

		ids[k] = pool[pick];
		pool[pick] = pool[k];
	}
}

void job_weights(const struct job *job, uint32_t round, uint32_t token, float *weights)
{
	for (uint32_t k = 0; k < job->top_k; k++)
		weights[k] = (float)(token_random(job, WEIGHTS, round, token, k) >> 40) * 0x1p-24f;
}

static void fill_random(const struct job *job, enum stream stream, uint32_t round, uint32_t token,
	void *data, size_t bytes)
{
	uint8_t *byte = data;

	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t random = token_random(job, stream, round, token, i);

		memcpy(byte + i, &random, bytes - i < 8 ? bytes - i : 8);
	}
}

/* Values of both signs over some binades; every fifth block of 128 is zero. */
static void fill_values(const struct job *job, enum m2n_dtype dtype, enum stream stream,
	uint32_t round, uint32_t token, void *row, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t random = token_random(job, stream, round, token, i);
		float value = ldexpf((float)(int32_t)(uint32_t)random, -31 + (int)(random >> 61));

		m2n__ref_store(dtype, row, i, (i / 128 + token) % 5 == 4 ? 0.0f : value);
	}
}

void job_row(const struct job *job, uint32_t round, uint32_t token, void *row)
{
	if (job->cast == M2N_CAST_BF16_FP8)
		fill_values(job, M2N_DTYPE_BF16, ROWS, round, token, row, job->row_bytes);
	else if (job->echo)
		fill_values(job, job->dtype, ROWS, round, token, row,
			job->row_bytes / job_value_bytes(job));
	else
		fill_random(job, ROWS, round, token, row, job->row_bytes);
}

void job_scales(const struct job *job, uint32_t round, uint32_t token, void *scales)
{
	fill_random(job, SCALES, round, token, scales, job->scale_bytes);
}

void job_residual(const struct job *job, uint32_t round, uint32_t token, void *row)
{
	fill_values(job, job->dtype, RESIDUAL, round, token, row,
		job->out_row_bytes / job_value_bytes(job));
}

void job_sent(const struct job *job, uint32_t round, uint32_t token, void *row, void *scales)
{
	uint16_t *given;
	float *f32_scales;

	if (job->cast != M2N_CAST_BF16_FP8) {
		job_row(job, round, token, row);
		if (job->scale_bytes)
			job_scales(job, round, token, scales);
		return;
	}
	given = malloc(2 * job->row_bytes);
	f32_scales = malloc(job->scale_bytes);
	if (!given || !f32_scales)
		abort();
	job_row(job, round, token, given);
	job_cast_fp8(given, job->row_bytes, row, f32_scales);
	memcpy(scales, f32_scales, job->scale_bytes);
	free(given);
	free(f32_scales);
}

void job_expert(
	const struct job *job, int32_t expert, const void *row, const void *scales, void *out)
{
	const uint8_t *byte = row;
	uint64_t hash = job_digest(row, job->row_bytes) ^
			(scales ? job_digest(scales, job->scale_bytes) * 3 : 0);
	float mix = (float)(int8_t)(hash ^ (hash >> 32)) / 64.0f;
	float factor = 1.0f + (float)(expert % 7) / 8.0f;
	float offset = (float)(expert % 5) / 4.0f - 0.5f;
	size_t n = job->out_row_bytes / job_value_bytes(job);
	size_t at = (size_t)expert % job->row_bytes;

	if (job->echo) {
		memcpy(out, row, job->out_row_bytes);
		return;
	}
	for (size_t i = 0; i < n; i++) {
		float x = (float)(int8_t)byte[at] / 16.0f + mix;

		m2n__ref_store(job->dtype, out, i, fmaf(factor, x, offset));
		at = at + 1 == job->row_bytes ? 0 : at + 1;
	}
}

uint64_t job_pairs(const struct job *job, uint32_t round, uint32_t token)
{
	int32_t ids[JOB_MAX_TOP_K];
	uint64_t pairs = 0;

	job_ids(job, round, token, ids);
	for (uint32_t k = 0; k < job->top_k; k++)
		pairs |= (uint64_t)(ids[k] >= 0) << k;
	return pairs;
}

void job_pair_ranks(const struct job *job, uint32_t round, int source, uint32_t local_token,
	const uint64_t *live, int *rank_of)
{
	static _Thread_local struct job_owners owners;
	int32_t ids[JOB_MAX_TOP_K];

	job_owners(job, job_map_of(job, round), &owners);
	job_ids(job, round, job_first_token(job, source) + local_token, ids);
	for (uint32_t k = 0; k < job->top_k; k++) {
		int candidates[JOB_MAX_RANKS];
		uint32_t n = 0;

		for (uint32_t i = ids[k] < 0 ? 0 : owners.first[ids[k]];
			ids[k] >= 0 && i < owners.first[ids[k] + 1]; i++) {
			uint32_t r = owners.owners[i];

			if (!live || live[r / 64] >> (r % 64) & 1)
				candidates[n++] = (int)r;
		}
		rank_of[k] = n ? candidates[((uint32_t)source + local_token) % n] : -1;
	}
}

/*
 * Reduction at the expert: replies of one rank are summed there in the order of the rows (expert,
 * k), rounded, and count as one reply of weight 1, in the place of the token's first pair there.
 */
static void sum_by_rank(const struct job *job, const int32_t *ids, const float *weights,
	const int *rank_of, const void **replies, uint8_t *partial)
{
	const void *group[JOB_MAX_TOP_K];
	float group_weights[JOB_MAX_TOP_K];
	size_t n_values = job->out_row_bytes / job_value_bytes(job);

	for (uint32_t k = 0; k < job->top_k; k++) {
		uint8_t *sum = partial + k * job->out_row_bytes;
		uint32_t n = 0;

		if (!replies[k])
			continue;
		for (int32_t expert = 0; expert < (int32_t)job->n_experts; expert++) {
			for (uint32_t i = k; i < job->top_k; i++) {
				if (!replies[i] || rank_of[i] != rank_of[k] || ids[i] != expert)
					continue;
				group[n] = replies[i];
				group_weights[n++] = weights ? weights[i] : 1.0f;
			}
		}
		m2n__ref_combine(job->dtype, 1, n, n_values, group, group_weights, NULL, sum);
		for (uint32_t i = k; i < job->top_k; i++) {
			if (rank_of[i] == rank_of[k])
				replies[i] = NULL;
		}
		replies[k] = sum;
	}
}

void job_expected(const struct job *job, uint32_t round, uint32_t token, uint64_t present,
	const int *rank_of, void *out)
{
	int32_t ids[JOB_MAX_TOP_K];
	float weights[JOB_MAX_TOP_K];
	const void *replies[JOB_MAX_TOP_K];
	uint8_t *rows = malloc(
		(2 * job->top_k + 1) * job->out_row_bytes + job->row_bytes + job->scale_bytes);
	uint8_t *partial = rows + job->top_k * job->out_row_bytes;
	uint8_t *residual = partial + job->top_k * job->out_row_bytes;
	uint8_t *row = residual + job->out_row_bytes;
	uint8_t *scales = row + job->row_bytes;
	const float *used = job->no_weights ? NULL : weights;

	if (!rows)
		abort();
	job_ids(job, round, token, ids);
	job_weights(job, round, token, weights);
	job_residual(job, round, token, residual);
	job_sent(job, round, token, row, scales);
	for (uint32_t k = 0; k < job->top_k; k++) {
		uint8_t *reply = rows + k * job->out_row_bytes;

		replies[k] = present >> k & 1 ? reply : NULL;
		if (replies[k])
			job_expert(job, ids[k], row, job->scale_bytes ? scales : NULL, reply);
	}
	if (job->reduce_at_expert) {
		sum_by_rank(job, ids, used, rank_of, replies, partial);
		used = NULL;
	}
	m2n__ref_combine(job->dtype, 1, job->top_k, job->out_row_bytes / job_value_bytes(job),
		replies, used, job->residual ? residual : NULL, out);
	free(rows);
}

static float fp8_value(unsigned code)
{
	unsigned exponent = code >> 3 & 15;
	float mantissa = (float)(code & 7);
	float value = exponent ? ldexpf(1.0f + mantissa / 8, (int)exponent - 7)
			       : ldexpf(mantissa / 8, -6);

	return code & 0x80 ? -value : value;
}

/* The nearest of the codes 0..0x7e (0x7f is NaN); a tie goes to the even code. */
static uint8_t fp8_nearest(float x)
{
	unsigned best = 0;
	double least = INFINITY;

	for (unsigned code = 0; code < 0x7f; code++) {
		double distance = fabs(fabs((double)x) - fp8_value(code));

		if (distance < least || (distance == least && code % 2 == 0)) {
			least = distance;
			best = code;
		}
	}
	return (uint8_t)(best | (signbit(x) ? 0x80 : 0));
}

void job_cast_fp8(const uint16_t *bf16, size_t n, uint8_t *fp8, float *scales)
{
	for (size_t first = 0; first < n; first += 128) {
		size_t end = first + 128 < n ? first + 128 : n;
		float amax = 0;

		for (size_t i = first; i < end; i++)
			amax = fmaxf(amax, fabsf(m2n__ref_load(M2N_DTYPE_BF16, bf16, i)));
		scales[first / 128] = amax == 0 ? 1.0f : amax / 448.0f;
		for (size_t i = first; i < end; i++)
			fp8[i] = fp8_nearest(m2n__ref_load(M2N_DTYPE_BF16, bf16, i) *
					     (amax == 0 ? 1.0f : 448.0f / amax));
	}
}
