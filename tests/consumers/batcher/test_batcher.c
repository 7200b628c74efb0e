/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The batcher with a model that is a hash: the next token depends on every token of the sequence
 * and its place. What a request is owed is computed by running it alone; the rows of each iteration
 * are checked as a cache would see them. Micro-batches begin and end in random order.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "megascale_infer/batcher.h"
#include "model/error.h"

#define VOCAB 1000
#define MAX_REQUESTS 128
#define MAX_TOKENS 400
#define MAX_ROWS 256
#define PAGES 100

static uint32_t random_below(uint64_t *state, uint32_t n)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((*state >> 33) % n);
}

/* One sequence as the rows built it. */
struct seen {
	const struct model_sequence *sequence;
	uint32_t ids[MAX_TOKENS];
	size_t n;
};

struct serving {
	struct batcher_params params;
	struct model_cache *cache;
	struct batcher *batcher;
	struct request requests[MAX_REQUESTS];
	const struct request *order[MAX_REQUESTS];
	size_t n_requests;
	struct seen seen[MAX_REQUESTS];
	struct batcher_batch batches[BATCHER_MAX_SLOTS]; /* in flight where n_rows is not 0 */
	int64_t now_ns;
	uint64_t random;
};

static uint32_t next_token(const uint32_t *ids, size_t n)
{
	uint64_t hash = 14695981039346656037u;

	for (size_t i = 0; i < n; i++)
		hash = (hash ^ (ids[i] + 31 * i)) * 1099511628211u;
	return (uint32_t)((hash >> 20) % VOCAB);
}

static void add_request(struct serving *s, int64_t arrival_ns, uint32_t n_prompt,
	uint32_t n_generate)
{
	struct request *request = &s->requests[s->n_requests];

	*request = (struct request){.number = s->n_requests, .arrival_ns = arrival_ns,
		.n_prompt = n_prompt, .n_generate = n_generate,
		.ids = calloc(n_prompt, sizeof(uint32_t))};
	assert_non_null(request->ids);
	for (uint32_t i = 0; i < n_prompt; i++)
		request->ids[i] = random_below(&s->random, VOCAB);
	s->order[s->n_requests++] = request;
}

static struct serving *begin(uint64_t seed, uint32_t n_slots, uint32_t max_rows, size_t n_pages)
{
	struct serving *s = calloc(1, sizeof(*s));
	struct model_config config;

	assert_non_null(s);
	model_config_default(&config);
	config.n_layers = config.n_heads = config.n_kv_heads = 1;
	config.head_dim = 2;
	assert_int_equal(model_cache_open(&config, n_pages, &s->cache), 0);
	s->random = seed;
	s->params = (struct batcher_params){.cache = s->cache, .max_tokens = MAX_TOKENS,
		.n_slots = n_slots, .max_rows = max_rows};
	return s;
}

static void open_batcher(struct serving *s)
{
	assert_int_equal(batcher_open(&s->params, s->order, s->n_requests, &s->batcher), 0);
}

static void end(struct serving *s)
{
	size_t n_pages = s->params.cache == s->cache ? model_cache_free_pages(s->cache) : 0;

	batcher_close(s->batcher);
	assert_true(model_cache_free_pages(s->cache) >= n_pages);
	model_cache_close(s->cache);
	for (size_t i = 0; i < s->n_requests; i++)
		free(s->requests[i].ids);
	free(s);
}

static struct seen *seen_of(struct serving *s, const struct model_sequence *sequence)
{
	for (size_t i = 0; i < MAX_REQUESTS; i++)
		if (s->seen[i].sequence == sequence || !s->seen[i].sequence) {
			s->seen[i].sequence = sequence;
			return &s->seen[i];
		}
	fail_msg("more sequences than requests");
	return NULL;
}

/* Pages of different sequences are different ones, those of all slots in flight looked at. */
static void check_pages(const struct serving *s)
{
	unsigned char taken[PAGES * 8] = {0};

	for (size_t i = 0; i < MAX_REQUESTS && s->seen[i].sequence; i++) {
		const struct model_sequence *sequence = s->seen[i].sequence;

		for (size_t j = 0; j < sequence->n_pages; j++)
			assert_int_equal(taken[sequence->pages[j]]++, 0);
	}
}

/* The rows against what each sequence has seen; returns their cost by the definition. */
static double check_batch(struct serving *s, const struct batcher_batch *batch)
{
	const struct batcher_params *p = &s->params;
	uint32_t row = 0, chunk = p->chunk ? p->chunk : p->max_rows;
	double cost = 0;

	assert_true(batch->n_rows <= p->max_rows);
	for (uint32_t i = 0; i < batch->n_spans; i++) {
		const struct model_span *span = &batch->spans[i];
		struct seen *seen = seen_of(s, span->sequence);

		assert_true(span->n_rows > 0 && span->n_rows <= chunk);
		assert_int_equal(span->sequence->n_tokens, seen->n);
		assert_true(seen->n + span->n_rows <=
			span->sequence->n_pages * MODEL_PAGE_TOKENS);
		for (size_t j = 0; j < span->n_rows; j++) {
			size_t n_keys = seen->n + 1;

			if (p->sliding_window && n_keys > p->sliding_window)
				n_keys = p->sliding_window;
			cost += p->row_ns + p->key_ns * (double)n_keys;
			assert_true(seen->n < MAX_TOKENS);
			seen->ids[seen->n++] = batch->ids[row++];
		}
	}
	assert_int_equal(row, batch->n_rows);
	check_pages(s);
	return cost;
}

static void finish(struct serving *s, uint32_t slot)
{
	struct batcher_batch *batch = &s->batches[slot];
	uint32_t tokens[MAX_ROWS];

	for (uint32_t i = 0, row = 0, span = 0; i < batch->n_samples; i++) {
		/* The span that ends with the sampled row. */
		while (row + batch->spans[span].n_rows <= batch->sample_rows[i])
			row += (uint32_t)batch->spans[span++].n_rows;
		const struct seen *seen = seen_of(s, batch->spans[span].sequence);

		assert_int_equal(row + batch->spans[span].n_rows - 1, batch->sample_rows[i]);
		tokens[i] = next_token(seen->ids, seen->n);
	}
	batcher_done(s->batcher, slot, s->now_ns, tokens);
	batch->n_rows = 0;
}

static void start(struct serving *s, uint32_t slot)
{
	struct batcher_batch *batch = &s->batches[slot];
	const struct batcher_params *p = &s->params;
	double cost;

	assert_int_equal(batcher_next(s->batcher, slot, s->now_ns, batch), 0);
	cost = check_batch(s, batch);
	if (p->row_ns + p->key_ns > 0)
		assert_true(fabs(cost - batch->expected_ns) <= 1e-9 * cost);
	if (p->target_ns > 0 && cost > p->target_ns * (1 + 1e-9))
		assert_int_equal(batch->n_rows, 1); /* a single row is more already */
}

/* Until all is over; slots begin and end by chance. */
static void serve(struct serving *s)
{
	size_t n_steps = 0;

	open_batcher(s);
	while (!batcher_is_over(s->batcher)) {
		uint32_t slot = random_below(&s->random, s->params.n_slots);

		assert_true(n_steps++ < 1000000);
		s->now_ns += random_below(&s->random, 100);
		if (s->batches[slot].n_rows)
			finish(s, slot);
		else
			start(s, slot);
	}
	assert_int_equal(batcher_next_arrival(s->batcher), -1);
}

/* Tokens as the request alone gives them, and times in order. */
static void check_record(const struct batcher_record *record)
{
	const struct request *request = record->request;
	uint32_t ids[MAX_TOKENS + 1];
	int64_t before = record->admitted_ns;

	assert_null(record->refused);
	assert_int_equal(record->n_tokens, request->n_generate);
	assert_true(before >= request->arrival_ns);
	memcpy(ids, request->ids, request->n_prompt * sizeof(*ids));
	for (uint32_t i = 0; i < request->n_generate; i++) {
		size_t n = request->n_prompt + i;

		ids[n] = next_token(ids, n);
		assert_int_equal(record->tokens[i], ids[n]);
		assert_true(record->token_ns[i] >= before);
		before = record->token_ns[i];
	}
}

static void every_request_gets_its_tokens(void **state)
{
	static const uint32_t chunks[] = {0, 1, 3, 16, 64};
	static const double targets[] = {0, 0, 60, 300, 2000};

	(void)state;
	for (uint64_t seed = 1; seed <= 200; seed++) {
		struct serving *s = begin(seed, 1 + seed % 4, 1 + (uint32_t)(seed * 7 % 90), PAGES);
		struct batcher_stats stats;

		s->params.chunk = chunks[seed % 5];
		s->params.target_ns = targets[seed / 5 % 5];
		s->params.row_ns = (double)(seed % 3);
		s->params.key_ns = seed % 2 ? 0.25 : 1;
		s->params.sliding_window = seed % 7 ? 0 : 20;
		for (int64_t i = 0, at = 0; i < 40; i++) {
			add_request(s, at, 1 + random_below(&s->random, seed % 4 ? 60 : 300),
				1 + random_below(&s->random, 40));
			at += random_below(&s->random, 2) * random_below(&s->random, 500);
		}
		serve(s);
		for (size_t i = 0; i < s->n_requests; i++)
			check_record(&batcher_records(s->batcher)[i]);
		batcher_stats(s->batcher, &stats);
		assert_int_equal(stats.n_ended, 40);
		assert_int_equal(stats.n_running + stats.n_waiting + stats.n_refused, 0);
		assert_true(stats.max_reserved_pages <= PAGES && stats.max_reserved_pages > 0);
		assert_int_equal(model_cache_free_pages(s->cache), PAGES);
		end(s);
	}
}

/* What is closed in mid-flight gives its pages back too. */
static void closing_frees_pages(void **state)
{
	struct serving *s = begin(1, 2, 8, PAGES);

	(void)state;
	for (int i = 0; i < 10; i++)
		add_request(s, 0, 30, 30);
	open_batcher(s);
	start(s, 0);
	start(s, 1);
	finish(s, 0);
	assert_true(model_cache_free_pages(s->cache) < PAGES);
	batcher_close(s->batcher);
	s->batcher = NULL;
	assert_int_equal(model_cache_free_pages(s->cache), PAGES);
	end(s);
}

static void too_long_requests_are_refused(void **state)
{
	struct serving *s = begin(1, 2, 16, 20); /* 320 tokens of pages, 400 of the model */
	const struct batcher_record *records;
	struct batcher_stats stats;

	(void)state;
	add_request(s, 0, 300, 102); /* 401 keys and values */
	add_request(s, 0, 300, 101); /* 400: the model's, but not the pages' */
	add_request(s, 0, 300, 21);  /* 320: just right */
	add_request(s, 0, 300, 22);
	add_request(s, 5, 3, 4);
	serve(s);
	records = batcher_records(s->batcher);
	assert_string_equal(records[0].refused, "prompt of 300 tokens and 102 to generate: at most "
		"401 fit the model");
	assert_string_equal(records[1].refused, "prompt of 300 tokens and 101 to generate need 25 "
		"pages of the key/value cache, which has 20");
	assert_non_null(records[3].refused);
	assert_int_equal(records[3].admitted_ns, -1);
	assert_int_equal(records[3].token_ns[0], -1);
	check_record(&records[2]);
	check_record(&records[4]);
	batcher_stats(s->batcher, &stats);
	assert_int_equal(stats.n_refused, 3);
	assert_int_equal(stats.max_reserved_pages, 20);
	end(s);
}

/* A short request that would fit does not overtake a long one that waits for pages. */
static void admission_is_in_order(void **state)
{
	struct serving *s = begin(1, 1, 64, 10);
	const struct batcher_record *records;

	(void)state;
	add_request(s, 0, 90, 10);
	add_request(s, 0, 90, 10);
	add_request(s, 0, 5, 2);
	open_batcher(s);
	start(s, 0);
	records = batcher_records(s->batcher);
	assert_int_equal(records[0].admitted_ns, 0);
	assert_int_equal(records[1].admitted_ns, -1);
	assert_int_equal(records[2].admitted_ns, -1);
	assert_int_equal(batcher_next_arrival(s->batcher), 0);
	end(s);
}

/* Requests wait for their time; an idle slot has no rows. */
static void arrivals_are_waited_for(void **state)
{
	struct serving *s = begin(1, 2, 64, PAGES);

	(void)state;
	add_request(s, 100, 5, 2);
	open_batcher(s);
	s->now_ns = 99;
	start(s, 0);
	assert_int_equal(s->batches[0].n_rows, 0);
	assert_int_equal(batcher_next_arrival(s->batcher), 100);
	s->now_ns = 100;
	start(s, 0);
	assert_int_equal(s->batches[0].n_rows, 5);
	assert_int_equal(s->batches[0].n_samples, 1);
	start(s, 1);
	assert_int_equal(s->batches[1].n_rows, 0);
	end(s);
}

/* One long sequence in a slot: the short ones that weigh as much go to the other. */
static void the_cheapest_slot_is_joined(void **state)
{
	struct serving *s = begin(1, 2, 64, PAGES);

	(void)state;
	s->params.key_ns = 1;
	add_request(s, 0, 200, 1);
	for (int i = 0; i < 5; i++)
		add_request(s, 0, 40, 1);
	add_request(s, 0, 30, 1);
	open_batcher(s);
	start(s, 0);
	start(s, 1);
	assert_int_equal(s->batches[0].n_rows, 64);
	assert_int_equal(s->batches[0].n_spans, 1);
	assert_int_equal(s->batches[0].n_samples, 0);
	assert_int_equal(s->batches[1].n_spans, 2); /* 40, and 24 of the next */
	for (int i = 0; i < 3; i++) { /* 200 rows in all: the last request joined slot 0 */
		assert_int_equal(s->batches[1].n_rows, 64);
		finish(s, 1);
		start(s, 1);
	}
	assert_int_equal(s->batches[1].n_rows, 8);
	end(s);
}

/* Mean, deviation and most of the expected times, when prompts of 10 to 300 tokens keep coming. */
static struct batcher_stats spread(double target_ns)
{
	struct serving *s = begin(5, 3, 128, PAGES * 8);
	struct batcher_stats stats;

	s->params.row_ns = 10;
	s->params.key_ns = 0.5;
	s->params.target_ns = target_ns;
	for (int i = 0; i < MAX_REQUESTS; i++)
		add_request(s, i * 400, 10 + random_below(&s->random, 2) *
			random_below(&s->random, 290), 20 + random_below(&s->random, 60));
	serve(s);
	for (size_t i = 0; i < s->n_requests; i++)
		check_record(&batcher_records(s->batcher)[i]);
	batcher_stats(s->batcher, &stats);
	end(s);
	return stats;
}

static void a_target_evens_out_the_times(void **state)
{
	struct batcher_stats filled = spread(0), even = spread(1500);

	(void)state;
	print_message("deviation / mean %.2f without a target, %.2f with; longest / mean %.1f, "
		"%.1f; iterations %lu, %lu\n", filled.deviation_ns / filled.mean_ns,
		even.deviation_ns / even.mean_ns, filled.max_ns / filled.mean_ns,
		even.max_ns / even.mean_ns, (unsigned long)filled.n_iterations,
		(unsigned long)even.n_iterations);
	assert_int_equal(filled.n_prefill_rows, even.n_prefill_rows);
	assert_int_equal(filled.n_rows, even.n_rows);
	assert_true(even.max_ns <= 1500 * (1 + 1e-9));
	assert_true(filled.max_ns > 3000);
	assert_true(even.deviation_ns / even.mean_ns < 0.6 * filled.deviation_ns / filled.mean_ns);
}

static void bad_parameters_are_refused(void **state)
{
	struct serving *s = begin(1, 5, 64, PAGES);

	(void)state;
	assert_int_equal(batcher_open(&s->params, s->order, 0, &s->batcher), -EINVAL);
	s->params.n_slots = 1;
	s->params.max_rows = 0;
	assert_int_equal(batcher_open(&s->params, s->order, 0, &s->batcher), -EINVAL);
	s->params.max_rows = 1;
	s->params.target_ns = NAN;
	assert_int_equal(batcher_open(&s->params, s->order, 0, &s->batcher), -EINVAL);
	s->params.target_ns = 0;
	open_batcher(s); /* without a request it is over at once */
	assert_true(batcher_is_over(s->batcher));
	end(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_request_gets_its_tokens),
		cmocka_unit_test(closing_frees_pages),
		cmocka_unit_test(too_long_requests_are_refused),
		cmocka_unit_test(admission_is_in_order),
		cmocka_unit_test(arrivals_are_waited_for),
		cmocka_unit_test(the_cheapest_slot_is_joined),
		cmocka_unit_test(a_target_evens_out_the_times),
		cmocka_unit_test(bad_parameters_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
