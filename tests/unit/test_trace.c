/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trace reader: what it reads, what it refuses and how it says so; and whole traces routed
 * layer by layer against the oracle: the made-up one of the tree, and real ones where M2N_DATA
 * (or ../shared/data beside the source tree) has them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../perftest/trace.h"
#include "route/plan.h"
#include "route/reference.h"
#include "util/error.h"

#define HEAD "layer,token,rank_hint,expert0,expert1,weight0,weight1\n"

static int parse(const char *text, struct trace *trace, char *error)
{
	size_t bytes = strlen(text);
	char *exact = malloc(bytes + 1); /* not ended by 0, so that reading on is seen */
	int status;

	memcpy(exact, text, bytes);
	exact[bytes] = '7';
	status = trace_parse("t.csv", exact, bytes, trace, error, 256);
	free(exact);
	return status;
}

static void lines_become_layers(void **state)
{
	static const char text[] = HEAD "2,0,7,3,1,0.75,0.25\n"
					"2,5,8,0,9,1e-1,2.5E+0\r\n"
					"4,0,0,1,2,.5,1.\n";
	struct trace trace;
	char error[256] = "";

	(void)state;
	assert_int_equal(parse(text, &trace, error), 0);
	assert_int_equal(trace.n_layers, 2);
	assert_int_equal(trace.top_k, 2);
	assert_int_equal(trace.n_experts, 10);
	assert_int_equal(trace.max_tokens, 2);
	assert_int_equal(trace.layers[0].layer, 2);
	assert_int_equal(trace.layers[0].n_tokens, 2);
	assert_int_equal(trace.layers[1].layer, 4);
	assert_int_equal(trace.layers[1].n_tokens, 1);
	assert_memory_equal(trace.layers[0].token, ((uint32_t[]){0, 5}), 8);
	assert_memory_equal(trace.layers[0].rank_hint, ((uint32_t[]){7, 8}), 8);
	assert_memory_equal(trace.layers[0].ids, ((int32_t[]){3, 1, 0, 9}), 16);
	assert_memory_equal(trace.layers[0].weights, ((float[]){.75f, .25f, .1f, 2.5f}), 16);
	assert_memory_equal(trace.layers[1].ids, ((int32_t[]){1, 2}), 8);
	assert_memory_equal(trace.layers[1].weights, ((float[]){.5f, 1}), 8);
	assert_ptr_equal(trace_find(&trace, 4), &trace.layers[1]);
	assert_null(trace_find(&trace, 3));
	trace_free(&trace);
	assert_null(trace.layers);
	trace_free(NULL);
	/* The last line end may be missing. */
	assert_int_equal(parse(HEAD "0,0,0,1,2,1,0", &trace, error), 0);
	assert_int_equal(trace.n_layers, 1);
	trace_free(&trace);
}

static void weights_are_read_as_strtof_reads_them(void **state)
{
	static const char *const weights[] = {"0.099801", "0.5195312", "3.4028234e38", "1e-45",
		"1.17549435e-38", "0.1", "16777217", "123456789.125", "0", "1e-400",
		"0.333333333333"};
	char text[256], error[256];
	struct trace trace;

	(void)state;
	for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++) {
		snprintf(text, sizeof(text), HEAD "0,0,0,1,2,%s,0\n", weights[i]);
		assert_int_equal(parse(text, &trace, error), 0);
		assert_true(trace.weights[0] == strtof(weights[i], NULL));
		trace_free(&trace);
	}
}

static void bad_text_is_refused_by_name_and_line(void **state)
{
	static const struct {
		const char *text, *error;
	} cases[] = {
		{"", "t.csv:1: expected the columns layer,token,rank_hint,expert0..,weight0.., "
		     "found nothing"},
		{"layer,token\n", "t.csv:1: expected the columns"},
		{"layer,token,rank_hint,weight0\n",
			"t.csv:1: expected column expert0, found 'weight0'"},
		{"layer,token,rank_hint,expert0,expert1,weight0\n",
			"t.csv:1: expected column weight1 after 2 experts"},
		{"layer,token,rank_hint,expert0,expert2,weight0\n",
			"t.csv:1: expected column weight0 after 1 experts (256 at most), found "
			"'expert2'"},
		{"layer,token,rank_hint,expert0,weight0,extra\n",
			"t.csv:1: expected the end of the line after weight0, found 'extra'"},
		{"layer,token,rank_hint,expert0,weight01\n", "t.csv:1: expected column weight0"},
		{HEAD, "t.csv:2: expected one line of data at least, found nothing"},
		{HEAD "0,0,0,1,2,1\n",
			"t.csv:2: expected a comma, 7 columns a line, found nothing"},
		{HEAD "0,0,0,1,2,1,1,1\n",
			"t.csv:2: expected the end of the line, 7 columns, found '1'"},
		{HEAD "0,0,0,1,2,1,1\n0,0,0,1,2,1,1\n",
			"t.csv:3: expected a token above 0 (lines are sorted by token), found '0'"},
		{HEAD "3,0,0,1,2,1,1\n2,0,0,1,2,1,1\n",
			"t.csv:3: expected layer 3 or more (lines are sorted by layer), found '2'"},
		{HEAD "0,0,0,1,2,1,1\n\n",
			"t.csv:3: expected layer, a whole number in 0..16777215, "
			"found nothing"},
		{HEAD "x,0,0,1,2,1,1\n", "t.csv:2: expected layer, a whole number"},
		{HEAD "0,-1,0,1,2,1,1\n",
			"t.csv:2: expected token, a whole number in 0..16777215, found '-1'"},
		{HEAD "0,0,+1,1,2,1,1\n", "t.csv:2: expected rank_hint, a whole number"},
		{HEAD "0,0,0,-1,2,1,1\n", "t.csv:2: expected expert0, a whole number"},
		{HEAD "0,0,0,1.0,2,1,1\n",
			"expected expert0, a whole number in 0..16777215, found '1.0'"},
		{HEAD "0,0,0,1, 2,1,1\n", "expected expert1"},
		{HEAD "0,0,0,16777216,2,1,1\n",
			"expected expert0, a whole number in 0..16777215, found "
			"'16777216'"},
		{HEAD "0,0,0,18446744073709551617,2,1,1\n", "expected expert0"},
		{HEAD "0,0,0,1,1,1,1\n", "t.csv:2: expected expert1 other than expert0, found '1'"},
		{HEAD "0,0,0,1,2,nan,1\n",
			"t.csv:2: expected weight0, a finite decimal number >= 0, found 'nan'"},
		{HEAD "0,0,0,1,2,1,NaN\n", "expected weight1"},
		{HEAD "0,0,0,1,2,inf,1\n", "expected weight0"},
		{HEAD "0,0,0,1,2,-0.5,1\n",
			"expected weight0, a finite decimal number >= 0, found '-0.5'"},
		{HEAD "0,0,0,1,2,1e39,1\n", "found '1e39'"},
		{HEAD "0,0,0,1,2,1e99999999999,1\n", "found '1e99999999999'"},
		{HEAD "0,0,0,1,2,0x1p3,1\n", "found '0x1p3'"},
		{HEAD "0,0,0,1,2,.,1\n", "found '.'"},
		{HEAD "0,0,0,1,2,1e,1\n", "found '1e'"},
		{HEAD "0,0,0,1,2,,1\n",
			"expected weight0, a finite decimal number >= 0, found nothing"},
		{HEAD "0,0,0,1,2,1,1\r", "t.csv:2: expected the end of the line"},
		{HEAD "0,0,0,1,2,1,\x01\n", "found '?'"},
	};
	char error[256];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct trace trace = {.top_k = 99};

		error[0] = '\0';
		assert_int_equal(parse(cases[i].text, &trace, error), -EINVAL);
		if (!strstr(error, cases[i].error))
			fail_msg("case %zu says: %s", i, error);
		assert_int_equal(trace.top_k, 99);
	}
}

/* Error buffers of any size are respected. */
static void long_errors_are_cut(void **state)
{
	struct trace trace;

	(void)state;
	for (size_t n = 0; n < 80; n++) {
		char *error = malloc(n + 1);

		error[n] = '\x5a';
		assert_int_equal(
			trace_parse("a name of some length", "x", 1, &trace, error, n), -EINVAL);
		assert_int_equal(error[n], '\x5a');
		if (n)
			assert_true(strlen(error) < n);
		free(error);
	}
}

/* No cut of a good file is read as the whole. */
static void a_cut_file_loses_lines_or_is_refused(void **state)
{
	static const char text[] = HEAD "0,10,0,3,1,0.75,0.25\n0,11,0,2,1,0.5,0.5\n";
	struct trace trace;
	char error[256];

	(void)state;
	for (size_t n = 0; n + 1 < sizeof(text); n++) {
		char *cut = malloc(n + 1);

		memcpy(cut, text, n);
		if (trace_parse("cut", cut, n, &trace, error, sizeof(error)) == 0) {
			assert_true(trace.layers[0].n_tokens <= 2);
			trace_free(&trace);
		}
		free(cut);
	}
}

static void files_that_cannot_be_read_are_named(void **state)
{
	struct trace trace;
	char error[256] = "";

	(void)state;
	assert_int_equal(trace_load("/nonexistent/x.csv", &trace, error, sizeof(error)), -ENOENT);
	assert_non_null(strstr(error, "/nonexistent/x.csv: cannot read the trace: No such file"));
	assert_int_equal(trace_load("/", &trace, error, sizeof(error)), -EISDIR);
}

/* Every instance's count and rows of one layer, against the oracle. */
static void check_layer(struct m2n_plan *plan, struct m2n_map *map, const struct trace *trace,
	const struct trace_layer *layer, uint32_t source)
{
	size_t n_pairs = (size_t)layer->n_tokens * trace->top_k;
	uint32_t *token = calloc(n_pairs, sizeof(*token)), *k = calloc(n_pairs, sizeof(*k));
	uint32_t row = 0;

	assert_int_equal(m2n__plan_route(plan, map, source, layer->n_tokens, layer->ids,
				 layer->weights, NULL),
		0);
	assert_int_equal(plan->n_rows, n_pairs);
	for (uint32_t r = 0, i = 0; r < map->n_ranks; r++) {
		for (uint32_t l = 0; l < m2n_map_n_local(map, r); l++, i++) {
			uint32_t e = (uint32_t)m2n_map_expert(map, r, l), owner = 0;
			uint32_t n_owners = map->owner_first[e + 1] - map->owner_first[e];
			size_t n;

			while (map->owner_rank[map->owner_first[e] + owner] != r)
				owner++;
			n = m2n__ref_rows(layer->n_tokens, trace->top_k, layer->ids, (int32_t)e,
				source, owner, n_owners, token, k);
			assert_int_equal(plan->count[i], n);
			assert_memory_equal(plan->row_token + row, token, n * sizeof(*token));
			for (size_t j = 0; j < n; j++)
				assert_int_equal(
					plan->row_pair[row + j], token[j] * trace->top_k + k[j]);
			row += (uint32_t)n;
		}
	}
	assert_memory_equal(plan->weight, layer->weights, n_pairs * sizeof(float));
	free(token);
	free(k);
}

static void check_trace(const struct trace *trace, uint32_t n_ranks)
{
	float *load = calloc(trace->n_experts, sizeof(*load));
	struct m2n_map *maps[2] = {NULL, NULL};

	for (size_t p = 0; p < (size_t)trace->layers[0].n_tokens * trace->top_k; p++)
		load[trace->layers[0].ids[p]]++;
	assert_int_equal(m2n_map_create(trace->n_experts, n_ranks, NULL, NULL, &maps[0]), 0);
	assert_int_equal(m2n_map_balance(trace->n_experts, n_ranks, load,
				 trace->n_experts / n_ranks + 3, &maps[1]),
		0);
	for (int m = 0; m < 2; m++) {
		struct m2n__plan_limits limits = {.max_tokens = trace->max_tokens,
			.top_k = trace->top_k,
			.n_experts = trace->n_experts,
			.n_ranks = n_ranks,
			.max_instances = maps[m]->n_instances};
		struct m2n_plan *plan = NULL;

		assert_int_equal(m2n__plan_create(&limits, &plan), 0);
		for (uint32_t l = 0; l < trace->n_layers; l++)
			check_layer(plan, maps[m], trace, &trace->layers[l], l);
		m2n__plan_destroy(plan);
		m2n_map_destroy(maps[m]);
	}
	free(load);
}

static void the_small_trace_routes(void **state)
{
	struct trace trace;
	char error[512] = "";

	(void)state;
	if (trace_load(
		    M2N_SOURCE_ROOT "/tests/data/routing_small.csv", &trace, error, sizeof(error)))
		fail_msg("%s", error);
	assert_int_equal(trace.n_layers, 2);
	assert_int_equal(trace.layers[0].n_tokens, 64);
	assert_int_equal(trace.layers[1].n_tokens, 64);
	assert_int_equal(trace.top_k, 4);
	assert_int_equal(trace.n_experts, 16);
	assert_int_equal(trace.rank_hint[63], 3);
	check_trace(&trace, 3);
	trace_free(&trace);
}

static void the_learned_trace_routes(void **state)
{
	struct trace trace;
	char error[512] = "";

	(void)state;
	if (trace_load(M2N_SOURCE_ROOT "/tests/data/routing_trained.csv", &trace, error,
		    sizeof(error)))
		fail_msg("%s", error);
	assert_int_equal(trace.n_layers, 4);
	for (size_t i = 0; i < trace.n_layers; i++)
		assert_int_equal(trace.layers[i].n_tokens, 64);
	assert_int_equal(trace.top_k, 2);
	assert_int_equal(trace.n_experts, 8);
	check_trace(&trace, 3);
	trace_free(&trace);
}

static void real_traces_route_on_all_layers(void **state)
{
	static const struct {
		const char *file;
		uint32_t n_layers, n_tokens, top_k, max_experts;
	} real[] = {
		{"routing/gptoss20b_mmlu_e32_top4.csv", 24, 2560, 4, 32},
		{"routing/flame290m_iter5473_e64_top6.csv", 8, 2048, 6, 64},
	};
	const char *folder = getenv("M2N_DATA");
	unsigned n_found = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(real) / sizeof(real[0]); i++) {
		struct trace trace;
		char path[4096], error[4200] = "";

		snprintf(path, sizeof(path), "%s/%s",
			folder ? folder : M2N_SOURCE_ROOT "/../shared/data", real[i].file);
		if (access(path, R_OK))
			continue;
		n_found++;
		if (trace_load(path, &trace, error, sizeof(error)))
			fail_msg("%s", error);
		assert_int_equal(trace.n_layers, real[i].n_layers);
		assert_int_equal(trace.top_k, real[i].top_k);
		assert_true(trace.n_experts <= real[i].max_experts);
		for (uint32_t l = 0; l < trace.n_layers; l++)
			assert_int_equal(trace.layers[l].n_tokens, real[i].n_tokens);
		check_trace(&trace, 8);
		trace_free(&trace);
	}
	if (n_found == 0)
		skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines_become_layers),
		cmocka_unit_test(weights_are_read_as_strtof_reads_them),
		cmocka_unit_test(bad_text_is_refused_by_name_and_line),
		cmocka_unit_test(long_errors_are_cut),
		cmocka_unit_test(a_cut_file_loses_lines_or_is_refused),
		cmocka_unit_test(files_that_cannot_be_read_are_named),
		cmocka_unit_test(the_small_trace_routes),
		cmocka_unit_test(the_learned_trace_routes),
		cmocka_unit_test(real_traces_route_on_all_layers),
	};

	return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
