/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sources of requests: what becomes of good lines, and of those that make no request. Expected
 * numbers are written out by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "megascale_infer/requests.h"
#include "model/error.h"

#define HEADER "TIMESTAMP,ContextTokens,GeneratedTokens\n"

static const struct requests_params defaults = {.vocab_size = 300, .n_generate = 7, .seed = 1,
	.speed = 1};

static char path[64];

/* A file of that text at `path`, until the next one. */
static void write_file(const char *text, size_t n_bytes)
{
	int fd;

	if (path[0])
		unlink(path);
	snprintf(path, sizeof(path), "/tmp/m2n_requests_XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, n_bytes), n_bytes);
	close(fd);
}

static int remove_file(void **state)
{
	(void)state;
	if (path[0])
		unlink(path);
	return 0;
}

static int read_trace(const char *text, const struct requests_params *params,
	struct request_list *list)
{
	write_file(text, strlen(text));
	return requests_read_trace(path, params, list);
}

static void a_trace_is_read(void **state)
{
	struct request_list list = {0};
	struct requests_params params = defaults;

	(void)state;
	params.divisor = 10;
	params.speed = 2;
	assert_int_equal(read_trace(HEADER "2023-11-16 23:59:59.6805900,374,44\r\n"
		"2023-11-17 00:00:01.1805901,9,2000\n2023-11-17 00:00:01,55,19", &params, &list),
		0);
	assert_int_equal(list.n_requests, 3);
	assert_int_equal(list.n_refusals, 0);
	assert_int_equal(list.requests[0].arrival_ns, 0);
	assert_int_equal(list.requests[0].n_prompt, 37);
	assert_int_equal(list.requests[0].n_generate, 4);
	/* The third line comes before the second. */
	assert_int_equal(list.requests[1].line, 4);
	assert_int_equal(list.requests[1].number, 2);
	assert_int_equal(list.requests[1].arrival_ns, 659705000);
	assert_int_equal(list.requests[1].n_prompt, 5);
	assert_int_equal(list.requests[1].n_generate, 1);
	assert_int_equal(list.requests[2].arrival_ns, 750000050);
	assert_int_equal(list.requests[2].n_prompt, 1);
	assert_int_equal(list.requests[2].n_generate, 200);
	for (uint32_t i = 0; i < 37; i++)
		assert_true(list.requests[0].ids[i] < 300);
	requests_free(&list);
}

/* Ids depend on seed and number: not on the limit, nor on what other lines hold. */
static void prompts_of_a_trace_are_their_own(void **state)
{
	struct request_list whole = {0}, part = {0}, other = {0};
	struct requests_params params = defaults;

	(void)state;
	assert_int_equal(read_trace(HEADER "2023-11-16 18:15:46.68,100,4\n"
		"2023-11-16 18:15:47.68,100,4\n2023-11-16 18:15:48.68,100,4\n", &params, &whole),
		0);
	params.limit = 2;
	params.speed = 0;
	assert_int_equal(read_trace(HEADER "x\n2023-11-16 18:15:47.68,100,9\n"
		"2023-11-16 18:15:48.68,100,4\n", &params, &part), 0);
	assert_int_equal(part.n_requests, 1);
	assert_int_equal(part.requests[0].arrival_ns, 0);
	assert_memory_equal(part.requests[0].ids, whole.requests[1].ids, 400);
	assert_memory_not_equal(whole.requests[0].ids, whole.requests[1].ids, 400);
	params.seed = 2;
	assert_int_equal(requests_read_trace(path, &params, &other), 0);
	assert_memory_not_equal(part.requests[0].ids, other.requests[0].ids, 400);
	requests_free(&whole);
	requests_free(&part);
	requests_free(&other);
}

static void bad_lines_of_a_trace_are_refused(void **state)
{
	static const struct {
		const char *line, *reason;
	} cases[] = {
		{"2023-11-16 18:15:46.68", "TIMESTAMP"}, {"2023-13-16 18:15:46,1,1", "TIMESTAMP"},
		{"2023-11-16 18:61:46,1,1", "TIMESTAMP"}, {"yesterday,1,1", "TIMESTAMP"},
		{"2023-11-16 18:15:46,,1", "ContextTokens"},
		{"2023-11-16 18:15:46,-3,1", "ContextTokens"},
		{"2023-11-16 18:15:46,0,1", "ContextTokens"},
		{"2023-11-16 18:15:46,99999999999999999999,1", "ContextTokens"},
		{"2023-11-16 18:15:46,5", "ContextTokens"},
		{"2023-11-16 18:15:46,5,", "GeneratedTokens"},
		{"2023-11-16 18:15:46,5,0", "GeneratedTokens"},
		{"2023-11-16 18:15:46,5,1e3", "more than"},
		{"2023-11-16 18:15:46,5,1,2", "more than"},
	};
	enum { N = sizeof(cases) / sizeof(cases[0]) };
	struct request_list list = {0};
	char text[4096] = HEADER;

	(void)state;
	for (size_t i = 0; i < N; i++) {
		strcat(text, cases[i].line);
		strcat(text, "\n2023-11-16 18:15:46.68,3,4\n");
	}
	assert_int_equal(read_trace(text, &defaults, &list), 0);
	assert_int_equal(list.n_requests, N);
	assert_int_equal(list.n_refusals, N);
	for (size_t i = 0; i < N; i++) {
		char place[96];

		snprintf(place, sizeof(place), "%s:%zu: ", path, 2 + 2 * i);
		assert_int_equal(list.refusals[i].line, 2 + 2 * i);
		assert_non_null(strstr(list.refusals[i].text, cases[i].reason));
		assert_int_equal(strncmp(list.refusals[i].text, place, strlen(place)), 0);
		assert_int_equal(list.requests[i].line, 3 + 2 * i);
	}
	requests_free(&list);
}

static void what_is_no_trace_is_an_error(void **state)
{
	struct request_list list = {0};

	(void)state;
	assert_int_equal(read_trace("a,b\n1,2\n", &defaults, &list), -EINVAL);
	assert_non_null(strstr(model_error(), ":1: "));
	assert_int_equal(read_trace("", &defaults, &list), -EINVAL);
	assert_int_equal(requests_read_trace("/nowhere/trace.csv", &defaults, &list), -ENOENT);
	assert_non_null(strstr(model_error(), "/nowhere/trace.csv"));
	assert_int_equal(list.n_requests + list.n_refusals, 0);
	requests_free(&list);
}

static void prompts_of_ids(void **state)
{
	static const char text[] = "1,2 3\n\n12\t299, 0\n1,300\n1,x\n0\t1\n12\t\n4294967296\n"
		"5\0006\n7";
	static const char *const reasons[] = {"token 1 is 300", "token 1 is no number",
		"number of tokens", "no prompt", "token 0 is no number", "token 0 is no number"};
	struct request_list list = {0};

	(void)state;
	write_file(text, sizeof(text) - 1);
	assert_int_equal(requests_read_prompts(path, &defaults, &list), 0);
	assert_int_equal(list.n_requests, 3);
	assert_int_equal(list.requests[0].n_prompt, 3);
	assert_memory_equal(list.requests[0].ids, ((uint32_t[]){1, 2, 3}), 12);
	assert_int_equal(list.requests[0].n_generate, 7);
	assert_int_equal(list.requests[1].n_prompt, 2);
	assert_memory_equal(list.requests[1].ids, ((uint32_t[]){299, 0}), 8);
	assert_int_equal(list.requests[1].n_generate, 12);
	assert_int_equal(list.requests[2].n_prompt, 1);
	assert_int_equal(list.requests[2].number, 8);
	assert_int_equal(list.n_refusals, 6);
	for (size_t i = 0; i < 6; i++)
		assert_non_null(strstr(list.refusals[i].text, reasons[i]));
	requests_free(&list);
}

static void prompts_of_bytes(void **state)
{
	struct requests_params params = defaults;
	struct request_list list = {0};

	(void)state;
	params.bytes = 1;
	write_file("once upon\r\n3\ta \xff\n5 a", 20);
	assert_int_equal(requests_read_prompts(path, &params, &list), 0);
	assert_int_equal(list.n_requests, 3);
	assert_int_equal(list.requests[0].n_prompt, 9);
	assert_int_equal(list.requests[0].ids[0], 'o');
	assert_int_equal(list.requests[1].n_prompt, 3);
	assert_int_equal(list.requests[1].ids[2], 255);
	assert_int_equal(list.requests[1].n_generate, 3);
	assert_int_equal(list.requests[2].n_prompt, 3);
	params.vocab_size = 100;
	assert_int_equal(requests_add_prompt("cat", &params, &list), 0);
	assert_int_equal(requests_add_prompt("abc", &params, &list), 0);
	assert_int_equal(list.n_requests, 4);
	assert_int_equal(list.n_refusals, 1);
	assert_string_equal(list.refusals[0].text, "prompt: byte 2 is 116; the vocabulary has 100");
	requests_free(&list);
}

/* 200 requests of many sizes; the tokens of the largest. */
static uint32_t add_many(struct request_list *list)
{
	struct requests_params params = defaults;
	uint32_t largest = 0;

	params.bytes = 1;
	for (uint32_t i = 0, x = 1; i < 200; i++) {
		char text[100] = {0};

		x = x * 1664525u + 1013904223u;
		memset(text, 'a', 1 + (x >> 16) % 90);
		params.n_generate = 1 + (x >> 8) % 200;
		assert_int_equal(requests_add_prompt(text, &params, list), 0);
		if (largest < strlen(text) + params.n_generate)
			largest = (uint32_t)strlen(text) + params.n_generate;
	}
	return largest;
}

/* Every request is in one share, and no rank has more than one request more than another. */
static void shares_are_even(void **state)
{
	struct request_list list = {0};
	uint32_t largest = add_many(&list);

	(void)state;
	for (uint32_t n_ranks = 1; n_ranks <= 7; n_ranks += 2) {
		uint64_t least = UINT64_MAX, most = 0;
		size_t seen[200] = {0};

		for (uint32_t rank = 0; rank < n_ranks; rank++) {
			const struct request **share;
			uint64_t work = 0;
			size_t n;

			assert_int_equal(requests_divide(&list, n_ranks, rank, &share, &n), 0);
			for (size_t i = 0; i < n; i++) {
				work += share[i]->n_prompt + share[i]->n_generate;
				seen[share[i]->number]++;
				assert_true(i == 0 || share[i] > share[i - 1]);
			}
			least = work < least ? work : least;
			most = work > most ? work : most;
			free(share);
		}
		for (size_t i = 0; i < 200; i++)
			assert_int_equal(seen[i], 1);
		assert_true(most - least <= largest);
	}
	requests_free(&list);
}

/* The conversation trace as published, where it is there. */
static void the_conversation_trace(void **state)
{
	const char *data = getenv("M2N_DATA");
	struct requests_params params = defaults;
	struct request_list list = {0};
	uint64_t n_prompt = 0, n_generate = 0;
	char trace[4096];

	(void)state;
	snprintf(trace, sizeof(trace), "%s/serving/azure_2023_conv_first3000.csv",
		data ? data : M2N_SOURCE_ROOT "/../shared/data");
	if (access(trace, R_OK))
		skip();
	assert_int_equal(requests_read_trace(trace, &params, &list), 0);
	assert_int_equal(list.n_requests, 3000);
	assert_int_equal(list.n_refusals, 0);
	for (size_t i = 0; i < 3000; i++) {
		assert_true(i == 0 || list.requests[i].arrival_ns >=
			list.requests[i - 1].arrival_ns);
		n_prompt += list.requests[i].n_prompt;
		n_generate += list.requests[i].n_generate;
	}
	assert_int_equal(list.requests[1].arrival_ns, 4314579000); /* 50.9951690 - 46.6805900 */
	assert_int_equal(n_prompt, 3450308);
	assert_int_equal(n_generate, 778247);
	requests_free(&list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_trace_is_read),
		cmocka_unit_test(prompts_of_a_trace_are_their_own),
		cmocka_unit_test(bad_lines_of_a_trace_are_refused),
		cmocka_unit_test(what_is_no_trace_is_an_error),
		cmocka_unit_test(prompts_of_ids),
		cmocka_unit_test(prompts_of_bytes),
		cmocka_unit_test(shares_are_even),
		cmocka_unit_test(the_conversation_trace),
	};

	return cmocka_run_group_tests(tests, NULL, remove_file);
}
