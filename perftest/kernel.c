/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Row kernels, one by one: the measuring is kernel_bench's, the printing is here.
 */
#include <jansson.h>
#include <stdlib.h>

#include "kernel_bench.h"
#include "tests.h"

struct list {
	struct kernel_case *cases;
	size_t n, room;
};

static void collect(void *arg, const struct kernel_case *c)
{
	struct list *list = arg;

	if (list->n == list->room) {
		size_t room = list->room > 0 ? 2 * list->room : 64;
		void *cases = realloc(list->cases, room * sizeof(*list->cases));
		if (cases == NULL)
			return;
		list->cases = cases;
		list->room = room;
	}
	list->cases[list->n++] = *c;
}

static void print_rows(FILE *file, const struct list *list, bool csv)
{
	if (csv)
		fprintf(file, "test,kernel,table,row_bytes,n,p50_us,gbps,ratio,ratio_scalar\n");
	else
		fprintf(file, "%-16s %-8s %9s %3s %10s %8s %8s %8s\n", "kernel", "table",
			"row_bytes", "n", "us", "GB/s", "ratio", "x scalar");
	for (size_t i = 0; i < list->n; i++) {
		const struct kernel_case *c = &list->cases[i];
		fprintf(file,
			csv ? "kernel,%s,%s,%zu,%u,%.3f,%.3f,%.3f,%.3f\n"
			    : "%-16s %-8s %9zu %3u %10.3f %8.2f %8.2f %8.2f\n",
			c->kernel, c->table, c->row_bytes, c->n, c->ns / 1000, c->gbps, c->ratio,
			c->ratio_scalar);
	}
}

static bool print_json(FILE *file, const struct perf_args *args, const struct list *list)
{
	json_t *cases = json_array();

	for (size_t i = 0; i < list->n; i++) {
		const struct kernel_case *c = &list->cases[i];
		json_array_append_new(
			cases, json_pack("{s:s, s:s, s:s, s:I, s:i, s:f, s:f, s:f, s:f}", "test",
				       "kernel", "kernel", c->kernel, "table", c->table,
				       "row_bytes", (json_int_t)c->row_bytes, "n", (int)c->n,
				       "p50_us", c->ns / 1000, "gbps", c->gbps, "ratio", c->ratio,
				       "ratio_scalar", c->ratio_scalar));
	}
	return perf_report_json_cases(file, args, cases);
}

int perf_kernel_run(const struct perf_args *args, FILE *file)
{
	struct list list = {NULL, 0, 0};

	if (!args->no_pin)
		perf_pin(0);
	int status = kernel_bench_run(collect, &list, (int)args->n_iters);
	if (status != 0)
		fprintf(stderr, "m2n_perf: kernel: %s\n", m2n_strerror(status));
	else if (args->format != PERF_JSON)
		print_rows(file, &list, args->format == PERF_CSV);
	else if (!print_json(file, args, &list))
		status = -1;
	free(list.cases);
	return status == 0 ? 0 : 1;
}
