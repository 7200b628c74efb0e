/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks of batches and outputs against the logical job. A batch is walked in the order that
 * round.h promises (local expert, source, token, k), so that a row out of place is found where it
 * is. With lost peers (`tolerant`) an output row must be the exact sum of what came: pairs of
 * lost ranks may be absent, as many as were reported.
 */
#include "helpers/job_check.h"

#include <stdlib.h>
#include <string.h>

#include "route/reference.h"

#define PAD_BYTE 0xdb /* what guard_alloc() fills with */

void job_batch_row(const struct job *job, const struct m2n_segment *segment, uint32_t i,
	const uint8_t **row, const uint8_t **scales)
{
	size_t at = segment->index ? segment->index[i] : i;

	*row = (const uint8_t *)segment->rows + at * job->row_bytes;
	*scales =
		job->scale_bytes ? (const uint8_t *)segment->scales + at * job->scale_bytes : NULL;
}

/* This rank's number among the owners of an expert, and how many there are; -1: not an owner. */
static int owner_position(
	const struct job_owners *owners, uint32_t expert, int rank, uint32_t *n_owners)
{
	uint32_t first = owners->first[expert];

	*n_owners = owners->first[expert + 1] - first;
	for (uint32_t i = 0; i < *n_owners; i++) {
		if (owners->owners[first + i] == (uint32_t)rank)
			return (int)i;
	}
	return -1;
}

struct walk {
	struct job_rank *jr;
	const struct m2n_batch *batch;
	uint32_t segment; /* the next one */
	uint32_t row; /* the next batch row */
	uint8_t *sent; /* room for a row and its scales */
};

static void check_segment_rows(struct walk *walk, const struct m2n_segment *segment, int source,
	const uint32_t *tokens, size_t n)
{
	const struct job *job = walk->jr->job;
	uint32_t round = (uint32_t)walk->batch->round;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t token = job_first_token(job, source) + tokens[i];
		const uint8_t *row, *scales;

		job_batch_row(job, segment, i, &row, &scales);
		job_sent(job, round, token, walk->sent, walk->sent + job->row_bytes);
		if (memcmp(row, walk->sent, job->row_bytes))
			rank_fail(__FILE__, __LINE__,
				"round %u, expert %d, source %d, row %u "
				"(token %u): wrong bytes",
				round, segment->expert, source, i, token);
		if (scales && memcmp(scales, walk->sent + job->row_bytes, job->scale_bytes))
			rank_fail(__FILE__, __LINE__,
				"round %u, expert %d, source %d, row %u "
				"(token %u): wrong scales",
				round, segment->expert, source, i, token);
	}
}

/*
 * Tokens of a source whose rows for an expert this owner of it gets, in the order of the rows.
 * Room for tokens and k: [2][pairs of the source]. Their number.
 */
static uint32_t cell_tokens(const struct job *job, uint32_t round, uint32_t expert, int source,
	uint32_t owner, uint32_t n_owners, uint32_t *tokens)
{
	uint32_t n_tokens = job_n_tokens(job, source);
	size_t n_pairs = (size_t)n_tokens * job->top_k, n;
	int32_t *ids = malloc(n_pairs * sizeof(*ids) + 1);

	if (!ids)
		abort();
	for (uint32_t t = 0; t < n_tokens; t++)
		job_ids(job, round, job_first_token(job, source) + t, ids + (size_t)t * job->top_k);
	n = m2n__ref_rows(n_tokens, job->top_k, ids, (int32_t)expert, (uint32_t)source, owner,
		n_owners, tokens, tokens + n_pairs);
	free(ids);
	return (uint32_t)n;
}

static uint32_t *alloc_tokens(const struct job *job)
{
	uint32_t *tokens = malloc(2 * (size_t)job->n_tokens * job->top_k * sizeof(*tokens) + 1);

	if (!tokens)
		abort();
	return tokens;
}

/* The rows of one expert from one source: a segment, or none when there are none. */
static void check_segment(struct walk *walk, uint32_t expert, uint32_t local, int source,
	uint32_t owner, uint32_t n_owners)
{
	const struct job *job = walk->jr->job;
	uint32_t *tokens = alloc_tokens(job);
	const struct m2n_segment *segment;
	uint32_t n = cell_tokens(job, (uint32_t)walk->batch->round, expert, source, owner,
		n_owners, tokens);

	if (n) {
		expect(walk->segment < walk->batch->n_segments);
		segment = &walk->batch->segments[walk->segment++];
		expect_equal(segment->expert, expert);
		expect_equal(segment->local_expert, local);
		expect_equal(segment->source, source);
		expect_equal(segment->first_row, walk->row);
		expect_equal(segment->n_rows, n);
		expect((segment->scales != NULL) == (job->scale_bytes != 0));
		check_segment_rows(walk, segment, source, tokens, n);
		walk->row += n;
	}
	free(tokens);
}

static void check_compact(const struct job_rank *jr, const struct m2n_batch *batch)
{
	const struct job *job = jr->job;
	const uint8_t *rows = batch->rows;

	if (jr->memory == M2N_MEMORY_HOST &&
		(job->placement != M2N_PLACEMENT_EXACT || job->dedup)) {
		expect(!batch->rows);
		return;
	}
	for (uint32_t i = 0; i < batch->n_segments; i++) {
		expect((const uint8_t *)batch->segments[i].rows ==
			rows + batch->segments[i].first_row * job->row_bytes);
		expect(jr->memory == M2N_MEMORY_HOST || !batch->segments[i].index);
	}
}

uint32_t job_predict_segments(struct job_rank *jr, uint64_t round, struct m2n_segment *segments)
{
	static _Thread_local struct job_owners owners;
	const struct job *job = jr->job;
	uint32_t *tokens = alloc_tokens(job);
	uint32_t local = 0, row = 0, n_segments = 0;

	job_owners(job, job_map_of(job, (uint32_t)round), &owners);
	for (uint32_t expert = 0; expert < job->n_experts; expert++) {
		uint32_t n_owners, n;
		int owner = owner_position(&owners, expert, jr->expert, &n_owners);

		for (int source = 0; owner >= 0 && source < job->n_sources; source++) {
			n = cell_tokens(job, (uint32_t)round, expert, source, (uint32_t)owner,
				n_owners, tokens);
			if (n)
				segments[n_segments++] = (struct m2n_segment){
					.expert = (int32_t)expert, .local_expert = local,
					.source = (uint32_t)source, .first_row = row, .n_rows = n};
			row += n;
		}
		local += owner >= 0;
	}
	free(tokens);
	return n_segments;
}

void job_check_batch(struct job_rank *jr, const struct m2n_batch *batch)
{
	static _Thread_local struct job_owners owners;
	const struct job *job = jr->job;
	struct walk walk = {jr, batch, 0, 0, malloc(job->row_bytes + job->scale_bytes)};
	uint32_t local = 0;

	job_owners(job, job_map_of(job, (uint32_t)batch->round), &owners);
	for (uint32_t expert = 0; expert < job->n_experts; expert++) {
		uint32_t before = walk.row;
		uint32_t n_owners;
		int owner = owner_position(&owners, expert, jr->expert, &n_owners);

		if (owner < 0)
			continue;
		for (int source = 0; source < job->n_sources; source++)
			check_segment(&walk, expert, local, source, (uint32_t)owner, n_owners);
		expect(local < batch->n_local_experts);
		expect_equal(batch->expert_rows[local], walk.row - before);
		local++;
	}
	expect_equal(batch->n_local_experts, local);
	expect_equal(batch->n_segments, walk.segment);
	expect_equal(batch->n_rows, walk.row);
	for (int source = 0; source < job->n_sources; source++)
		expect(!(batch->missing[source / 64] >> (source % 64) & 1));
	check_compact(jr, batch);
	free(walk.sent);
}

static int out_equals(struct job_rank *jr, struct job_flight *flight, uint32_t t, uint64_t present,
	const int *rank_of)
{
	const struct job *job = jr->job;
	const uint8_t *out = flight->out + t * (job->out_row_bytes + job->pad);
	uint8_t *want = malloc(job->out_row_bytes + 1);
	int equal;

	if (!want)
		abort();
	job_expected(
		job, flight->round, job_first_token(job, jr->source) + t, present, rank_of, want);
	equal = !memcmp(out, want, job->out_row_bytes);
	free(want);
	return equal;
}

/* Some choice of `n` of the pairs that may be absent explains the row. */
static int explained(struct job_rank *jr, struct job_flight *flight, uint32_t t, uint64_t pairs,
	const int *rank_of, int n)
{
	uint64_t maybe = 0;

	if (n == 0)
		return out_equals(jr, flight, t, pairs, rank_of);
	for (uint32_t k = 0; k < jr->job->top_k; k++) {
		if ((pairs >> k & 1) &&
			(jr->job->map == JOB_MAP_REPLICAS || (jr->dead >> rank_of[k] & 1)))
			maybe |= (uint64_t)1 << k;
	}
	/* All subsets of `maybe`, the empty one last. */
	for (uint64_t absent = maybe;; absent = (absent - 1) & maybe) {
		if (__builtin_popcountll(absent) == n &&
			out_equals(jr, flight, t, pairs & ~absent, rank_of))
			return 1;
		if (!absent)
			return 0;
	}
}

static void check_token(struct job_rank *jr, struct job_flight *flight, uint32_t t)
{
	const struct job *job = jr->job;
	const uint8_t *dropped = m2n_plan_dropped(flight->plan);
	uint32_t token = job_first_token(job, jr->source) + t;
	const uint8_t *out = flight->out + t * (job->out_row_bytes + job->pad);
	int rank_of[JOB_MAX_TOP_K];
	int n_absent = flight->missing[t] + dropped[t];
	int good;

	job_pair_ranks(job, flight->round, jr->source, t, NULL, rank_of);
	if (!jr->tolerant && n_absent)
		rank_fail(__FILE__, __LINE__, "round %u, token %u: %d replies missing, %d dropped",
			flight->round, token, flight->missing[t], dropped[t]);
	good = explained(jr, flight, t, job_pairs(job, flight->round, token), rank_of, n_absent);
	if (!good)
		rank_fail(__FILE__, __LINE__,
			"round %u, token %u: wrong output (%d replies missing, "
			"%d dropped)",
			flight->round, token, flight->missing[t], dropped[t]);
	for (size_t i = 0; i < job->pad; i++) {
		if (out[job->out_row_bytes + i] != PAD_BYTE)
			rank_fail(__FILE__, __LINE__, "round %u, token %u: pad written",
				flight->round, token);
	}
	jr->n_missing += flight->missing[t];
	jr->n_dropped += dropped[t];
}

void job_check_out(struct job_rank *jr, struct job_flight *flight)
{
	for (uint32_t t = 0; t < jr->n_tokens; t++)
		check_token(jr, flight, t);
}
