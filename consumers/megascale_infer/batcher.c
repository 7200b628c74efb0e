/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Continuous batching. A sequence knows its prompt and the tokens generated so far; the rows that
 * it still has to compute are those behind sequence.n_tokens. Decoding is the case that there is
 * one such row. The span that takes the last of them gives the next token.
 *
 * Nobody starves: a slot has no more sequences than max_rows, those that decode go first, and the
 * oldest prompt gets a row whatever the target says. Nor does that break the target, for a sequence
 * is admitted only where all of the slot's, each in its longest and so dearest decoding step, stay
 * within it. A sequence that is above it by itself runs alone in its slot.
 */
#include "batcher.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

struct slot {
	size_t *running; /* [max_running] records, in the order of admission */
	size_t n_running;
	double load_ns; /* of all that run, each in its longest step */
	struct model_span *spans; /* [max_running], as sample_rows and sample_records */
	uint32_t *ids, *sample_rows; /* ids: [max_rows] */
	size_t *sample_records;
	struct batcher_batch batch;
};

struct batcher {
	struct batcher_params params;
	struct batcher_record *records; /* [n_requests], as sequences */
	struct model_sequence *sequences;
	uint32_t *tokens; /* under all records, as token_ns */
	int64_t *token_ns;
	size_t n_requests, n_seen; /* n_seen: admitted or refused */
	size_t max_running, n_pages;
	struct slot slots[BATCHER_MAX_SLOTS];
	struct batcher_stats stats;
	double sum_squares;
};

/* Expected time of the sequence's row at a position. */
static double row_cost(const struct batcher_params *p, size_t position)
{
	size_t n_keys = position + 1;

	if (p->sliding_window && n_keys > p->sliding_window)
		n_keys = p->sliding_window;
	return p->row_ns + p->key_ns * (double)n_keys;
}

/* Whose keys and values come into pages: all but the last token. */
static size_t max_tokens_of(const struct request *request)
{
	return (size_t)request->n_prompt + request->n_generate - 1;
}

static int open_slot(const struct batcher *batcher, struct slot *slot)
{
	size_t n = batcher->max_running;

	slot->running = calloc(n + 1, sizeof(*slot->running));
	slot->spans = calloc(n + 1, sizeof(*slot->spans));
	slot->sample_rows = calloc(n + 1, sizeof(*slot->sample_rows));
	slot->sample_records = calloc(n + 1, sizeof(*slot->sample_records));
	slot->ids = calloc(batcher->params.max_rows, sizeof(*slot->ids));
	return slot->running && slot->spans && slot->sample_rows && slot->sample_records &&
		slot->ids ? 0 : -ENOMEM;
}

static int open_records(struct batcher *batcher, const struct request *const *requests)
{
	size_t n = batcher->n_requests, n_tokens = 0;

	for (size_t i = 0; i < n; i++)
		n_tokens += requests[i]->n_generate;
	batcher->records = calloc(n + 1, sizeof(*batcher->records));
	batcher->sequences = calloc(n + 1, sizeof(*batcher->sequences));
	batcher->tokens = calloc(n_tokens + 1, sizeof(*batcher->tokens));
	batcher->token_ns = malloc((n_tokens + 1) * sizeof(*batcher->token_ns));
	if (!batcher->records || !batcher->sequences || !batcher->tokens || !batcher->token_ns)
		return -ENOMEM;
	for (size_t i = 0; i < n_tokens; i++)
		batcher->token_ns[i] = -1;
	for (size_t i = 0, at = 0; i < n; at += requests[i++]->n_generate)
		batcher->records[i] = (struct batcher_record){.request = requests[i],
			.admitted_ns = -1, .tokens = batcher->tokens + at,
			.token_ns = batcher->token_ns + at};
	return 0;
}

static int check_params(const struct batcher_params *p)
{
	if (p->n_slots < 1 || p->n_slots > BATCHER_MAX_SLOTS)
		return model_fail(-EINVAL, "%u micro-batches; 1 to %d are possible", p->n_slots,
			BATCHER_MAX_SLOTS);
	if (p->max_rows < 1)
		return model_fail(-EINVAL, "iterations of 0 rows");
	if (!(p->row_ns >= 0 && p->key_ns >= 0 && p->target_ns >= 0))
		return model_fail(-EINVAL, "expected times and target must not be negative");
	return 0;
}

int batcher_open(const struct batcher_params *params, const struct request *const *requests,
	size_t n_requests, struct batcher **batcher)
{
	struct batcher *opened;
	int rc = check_params(params);

	if (rc)
		return rc;
	opened = calloc(1, sizeof(*opened));
	if (!opened)
		return model_fail(-ENOMEM, "no memory");
	opened->params = *params;
	if (params->row_ns + params->key_ns <= 0)
		opened->params.row_ns = 1;
	if (!params->chunk || params->chunk > params->max_rows)
		opened->params.chunk = params->max_rows;
	opened->n_requests = n_requests;
	opened->n_pages = model_cache_free_pages(params->cache);
	opened->max_running = n_requests < params->max_rows ? n_requests : params->max_rows;
	rc = open_records(opened, requests);
	for (uint32_t i = 0; !rc && i < params->n_slots; i++)
		rc = open_slot(opened, &opened->slots[i]);
	if (rc) {
		batcher_close(opened);
		return model_fail(rc, "no memory for %zu requests", n_requests);
	}
	*batcher = opened;
	return 0;
}

void batcher_close(struct batcher *batcher)
{
	if (!batcher)
		return;
	for (size_t i = 0; batcher->records && batcher->sequences && i < batcher->n_requests; i++) {
		model_sequence_release(batcher->params.cache, &batcher->sequences[i]);
		free(batcher->records[i].refused);
	}
	for (int i = 0; i < BATCHER_MAX_SLOTS; i++) {
		free(batcher->slots[i].running);
		free(batcher->slots[i].spans);
		free(batcher->slots[i].ids);
		free(batcher->slots[i].sample_rows);
		free(batcher->slots[i].sample_records);
	}
	free(batcher->records);
	free(batcher->sequences);
	free(batcher->tokens);
	free(batcher->token_ns);
	free(batcher);
}

/* 0, 1: refused, or -ENOMEM. */
static int refuse_if_too_long(struct batcher *batcher, struct batcher_record *record,
	size_t n_tokens, size_t n_pages)
{
	const struct request *request = record->request;
	size_t max_tokens = batcher->params.max_tokens;
	int n;

	if (n_tokens > max_tokens)
		n = asprintf(&record->refused, "prompt of %u tokens and %u to generate: at most "
			"%zu fit the model", request->n_prompt, request->n_generate,
			max_tokens + 1);
	else if (n_pages > batcher->n_pages)
		n = asprintf(&record->refused, "prompt of %u tokens and %u to generate need %zu "
			"pages of the key/value cache, which has %zu", request->n_prompt,
			request->n_generate, n_pages, batcher->n_pages);
	else
		return 0;
	if (n < 0) {
		record->refused = NULL;
		return model_fail(-ENOMEM, "no memory for a refusal");
	}
	batcher->stats.n_refused++;
	return 1;
}

/* The slot with the least load among those that may take a sequence; NULL: none. */
static struct slot *choose_slot(struct batcher *batcher, double cost_ns)
{
	const struct batcher_params *p = &batcher->params;
	struct slot *best = NULL;

	for (uint32_t i = 0; i < p->n_slots; i++) {
		struct slot *slot = &batcher->slots[i];

		if (slot->n_running == batcher->max_running ||
		    (p->target_ns > 0 && slot->n_running > 0 &&
			    slot->load_ns + cost_ns > p->target_ns))
			continue;
		if (!best || slot->load_ns < best->load_ns)
			best = slot;
	}
	return best;
}

/* Admits or refuses the first that waits. 0; 1: it has to wait; -ENOMEM. */
static int admit_one(struct batcher *batcher, int64_t now_ns)
{
	struct batcher_record *record = &batcher->records[batcher->n_seen];
	size_t n_tokens = max_tokens_of(record->request), reserved;
	size_t n_pages = (n_tokens + MODEL_PAGE_TOKENS - 1) / MODEL_PAGE_TOKENS;
	double cost_ns = row_cost(&batcher->params, n_tokens - 1);
	int rc = refuse_if_too_long(batcher, record, n_tokens, n_pages);
	struct slot *slot;

	if (rc) {
		batcher->n_seen += rc > 0;
		return rc < 0 ? rc : 0;
	}
	slot = choose_slot(batcher, cost_ns);
	if (!slot || n_pages > model_cache_free_pages(batcher->params.cache))
		return 1;
	rc = model_sequence_reserve(batcher->params.cache, &batcher->sequences[batcher->n_seen],
		n_tokens);
	if (rc)
		return rc;
	reserved = batcher->n_pages - model_cache_free_pages(batcher->params.cache);
	if (reserved > batcher->stats.max_reserved_pages)
		batcher->stats.max_reserved_pages = reserved;
	record->admitted_ns = now_ns;
	slot->running[slot->n_running++] = batcher->n_seen++;
	slot->load_ns += cost_ns;
	return 0;
}

static int admit(struct batcher *batcher, int64_t now_ns)
{
	int rc = 0;

	while (!rc && batcher->n_seen < batcher->n_requests &&
	       batcher->records[batcher->n_seen].request->arrival_ns <= now_ns)
		rc = admit_one(batcher, now_ns);
	return rc < 0 ? rc : 0;
}

/* Rows of a prompt that still fit the iteration, and what they cost. The oldest goes on always. */
static uint32_t fit_rows(const struct batcher *batcher, const struct slot *slot,
	const struct model_sequence *sequence, size_t n_left, int oldest, double *cost_ns)
{
	const struct batcher_params *p = &batcher->params;
	size_t max_rows = p->max_rows - slot->batch.n_rows;
	uint32_t n = 0;

	max_rows = max_rows < p->chunk ? max_rows : p->chunk;
	max_rows = max_rows < n_left ? max_rows : n_left;
	*cost_ns = 0;
	while (n < max_rows) {
		double more = row_cost(p, sequence->n_tokens + n);

		if (p->target_ns > 0 && !(oldest && n == 0) &&
		    slot->batch.expected_ns + *cost_ns + more > p->target_ns)
			break;
		*cost_ns += more;
		n++;
	}
	return n;
}

static uint32_t token_at(const struct batcher_record *record, size_t position)
{
	size_t n_prompt = record->request->n_prompt;

	return position < n_prompt ? record->request->ids[position] :
		record->tokens[position - n_prompt];
}

/* The next n_rows of a sequence, n_left of which are to be computed. */
static void add_span(struct batcher *batcher, struct slot *slot, size_t idx, uint32_t n_rows,
	size_t n_left)
{
	struct model_sequence *sequence = &batcher->sequences[idx];
	struct batcher_batch *batch = &slot->batch;

	for (uint32_t i = 0; i < n_rows; i++)
		slot->ids[batch->n_rows++] = token_at(&batcher->records[idx],
			sequence->n_tokens + i);
	slot->spans[batch->n_spans++] = (struct model_span){sequence, n_rows};
	if (n_rows == n_left) {
		slot->sample_rows[batch->n_samples] = batch->n_rows - 1;
		slot->sample_records[batch->n_samples++] = idx;
	}
}

static size_t rows_left(const struct batcher *batcher, size_t idx)
{
	const struct batcher_record *record = &batcher->records[idx];

	return record->request->n_prompt + record->n_tokens - batcher->sequences[idx].n_tokens;
}

static int is_decoding(const struct batcher *batcher, size_t idx)
{
	return batcher->sequences[idx].n_tokens >= batcher->records[idx].request->n_prompt;
}

static void add_decoding(struct batcher *batcher, struct slot *slot)
{
	for (size_t i = 0; i < slot->n_running; i++) {
		size_t idx = slot->running[i];

		if (!is_decoding(batcher, idx))
			continue;
		slot->batch.expected_ns += row_cost(&batcher->params,
			batcher->sequences[idx].n_tokens);
		add_span(batcher, slot, idx, 1, 1);
	}
}

static void add_prompts(struct batcher *batcher, struct slot *slot)
{
	int oldest = 1;

	for (size_t i = 0; i < slot->n_running; i++) {
		size_t idx = slot->running[i], n_left = rows_left(batcher, idx);
		double cost_ns;
		uint32_t n_rows;

		if (is_decoding(batcher, idx))
			continue;
		n_rows = fit_rows(batcher, slot, &batcher->sequences[idx], n_left, oldest,
			&cost_ns);
		if (!n_rows)
			return;
		add_span(batcher, slot, idx, n_rows, n_left);
		slot->batch.expected_ns += cost_ns;
		batcher->stats.n_prefill_rows += n_rows;
		oldest = 0;
	}
}

/* Mean and sum of squared differences from it, by Welford. */
static void count(struct batcher *batcher, const struct batcher_batch *batch)
{
	struct batcher_stats *stats = &batcher->stats;
	double off = batch->expected_ns - stats->mean_ns;

	stats->n_iterations++;
	stats->n_rows += batch->n_rows;
	stats->mean_ns += off / (double)stats->n_iterations;
	batcher->sum_squares += off * (batch->expected_ns - stats->mean_ns);
	stats->max_ns = fmax(stats->max_ns, batch->expected_ns);
}

int batcher_next(struct batcher *batcher, uint32_t slot_idx, int64_t now_ns,
	struct batcher_batch *batch)
{
	struct slot *slot = &batcher->slots[slot_idx];
	int rc = admit(batcher, now_ns);

	if (rc)
		return rc;
	slot->batch = (struct batcher_batch){.spans = slot->spans, .ids = slot->ids,
		.sample_rows = slot->sample_rows, .sample_records = slot->sample_records};
	add_decoding(batcher, slot);
	add_prompts(batcher, slot);
	if (slot->batch.n_rows)
		count(batcher, &slot->batch);
	*batch = slot->batch;
	return 0;
}

/* Drops what has ended from the slot and gives its pages back. */
static void end_sequences(struct batcher *batcher, struct slot *slot)
{
	size_t n_kept = 0;

	slot->load_ns = 0; /* anew, so that no rounding error stays */
	for (size_t i = 0; i < slot->n_running; i++) {
		size_t idx = slot->running[i];
		const struct batcher_record *record = &batcher->records[idx];

		if (record->n_tokens == record->request->n_generate) {
			model_sequence_release(batcher->params.cache, &batcher->sequences[idx]);
			batcher->stats.n_ended++;
			continue;
		}
		slot->running[n_kept++] = idx;
		slot->load_ns += row_cost(&batcher->params, max_tokens_of(record->request) - 1);
	}
	slot->n_running = n_kept;
}

void batcher_done(struct batcher *batcher, uint32_t slot_idx, int64_t now_ns,
	const uint32_t *tokens)
{
	struct slot *slot = &batcher->slots[slot_idx];
	const struct batcher_batch *batch = &slot->batch;

	for (uint32_t i = 0; i < batch->n_spans; i++)
		slot->spans[i].sequence->n_tokens += slot->spans[i].n_rows;
	for (uint32_t i = 0; i < batch->n_samples; i++) {
		struct batcher_record *record = &batcher->records[slot->sample_records[i]];

		record->tokens[record->n_tokens] = tokens[i];
		record->token_ns[record->n_tokens++] = now_ns;
	}
	end_sequences(batcher, slot);
	slot->batch = (struct batcher_batch){0};
}

int batcher_is_over(const struct batcher *batcher)
{
	return batcher->stats.n_ended + batcher->stats.n_refused == batcher->n_requests;
}

int64_t batcher_next_arrival(const struct batcher *batcher)
{
	return batcher->n_seen == batcher->n_requests ? -1 :
		batcher->records[batcher->n_seen].request->arrival_ns;
}

const struct batcher_record *batcher_records(const struct batcher *batcher)
{
	return batcher->records;
}

void batcher_stats(const struct batcher *batcher, struct batcher_stats *stats)
{
	*stats = batcher->stats;
	for (uint32_t i = 0; i < batcher->params.n_slots; i++)
		stats->n_running += batcher->slots[i].n_running;
	stats->n_waiting = batcher->n_requests - stats->n_ended - stats->n_refused -
		stats->n_running;
	stats->deviation_ns = stats->n_iterations > 1 ?
		sqrt(batcher->sum_squares / (double)(stats->n_iterations - 1)) : 0;
}
