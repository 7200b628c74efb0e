/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results for people: a table, the matrix of who waited for whom, memory per rank; and CSV.
 */
#include "cases.h"

#include <inttypes.h>

static const char *verified_text(const struct perf_report *report)
{
	return report->n_verified > 0 ? "yes" : "no";
}

/* Transfers are counted where peers are not mapped; then every case has the two columns. */
static bool has_puts(const struct perf_report *report)
{
	for (size_t i = 0; i < report->n_cases; i++)
		if (report->cases[i].puts_per_round > 0 || report->cases[i].staged_per_round > 0)
			return true;
	return false;
}

static void print_head(FILE *file, const struct perf_report *report)
{
	struct perf_env env;

	perf_env_get(&env);
	fprintf(file, "# m2n_perf %s %s (%s), %s, %u cores, %s\n",
		perf_test_name(report->args->test), env.version, env.commit, env.cpu, env.cores,
		env.kernel);
	fprintf(file, "%-4s %-10s %-8s %7s %7s %9s %5s %10s %9s %9s %9s %9s %9s %8s %8s", "test",
		"phase", "backend", "MxN", "tokens", "row_bytes", "top_k", "bytes", "p50_us",
		"p90_us", "p99_us", "p999_us", "max_us", "GB/s", "verified");
	if (has_puts(report))
		fprintf(file, " %9s %11s", "puts/peer", "staged/peer");
	fputc('\n', file);
}

static void print_compare(FILE *file, const struct perf_compare *compare)
{
	fprintf(file, "     vs %s%s%s: p50 %.2f us, ", compare->name,
		compare->how != NULL ? " " : "", compare->how != NULL ? compare->how : "",
		compare->us.p50);
	if (compare->us.p99 > 0)
		fprintf(file, "p99 %.2f us, ", compare->us.p99);
	fprintf(file, "%.2f GB/s; ratio %.2f (%.2f .. %.2f), above 1 is ahead\n", compare->gbps,
		compare->ratio, compare->ratio_min, compare->ratio_max);
}

/* The command lines of programs, of the last case. */
static void print_commands(FILE *file, const struct perf_report *report)
{
	const struct perf_case *c = &report->cases[report->n_cases - 1];

	for (unsigned i = 0; report->n_cases > 0 && i < c->n_compare; i++)
		if (c->compare[i].command != NULL)
			fprintf(file, "# beside it, and its server at the peer: %s\n",
				c->compare[i].command);
}

static void print_case(FILE *file, const struct perf_report *report, const struct perf_case *c)
{
	char shape[48];

	snprintf(shape, sizeof(shape), "%" PRIu64 "x%" PRIu64, report->args->n_sources,
		report->args->n_expert_ranks);
	fprintf(file,
		"%-4s %-10s %-8s %7s %7" PRIu64 " %9" PRIu64 " %5" PRIu64 " %10" PRIu64
		" %9.2f %9.2f %9.2f %9.2f %9.2f %8.2f %8s",
		perf_test_name(report->args->test), c->phase != NULL ? c->phase : "-",
		report->backend, shape, c->tokens, c->row_bytes, c->top_k, c->bytes, c->us.p50,
		c->us.p90, c->us.p99, c->us.p999, c->us.max, c->gbps, verified_text(report));
	if (has_puts(report))
		fprintf(file, " %9.2f %11.0f", c->puts_per_round, c->staged_per_round);
	fputc('\n', file);
	for (unsigned i = 0; i < c->n_compare; i++)
		print_compare(file, &c->compare[i]);
}

void perf_report_table(FILE *file, const struct perf_report *report)
{
	print_head(file, report);
	for (size_t i = 0; i < report->n_cases; i++)
		print_case(file, report, &report->cases[i]);
	print_commands(file, report);
	if (report->n_cases > 0 && report->cases[0].route_us >= 0)
		fprintf(file,
			"# routing: %.2f us per round and source (p50), not part of the above\n",
			report->cases[0].route_us);
	if (report->n_verified > 0)
		fprintf(file,
			"# data: %" PRIu64 " rows checked, all right; %" PRIu64 " bytes staged\n",
			report->n_verified, report->staged_bytes);
}

void perf_report_csv(FILE *file, const struct perf_report *report)
{
	fprintf(file,
		"test,phase,name,backend,M,N,tokens,row_bytes,top_k,bytes,p50_us,p90_us,p99_us,"
		"p999_us,max_us,gbps,verified,staged_bytes,ratio,puts_per_round,"
		"staged_per_round\n");
	for (size_t i = 0; i < report->n_cases; i++) {
		const struct perf_case *c = &report->cases[i];
		for (unsigned j = 0; j <= c->n_compare; j++) {
			const struct perf_compare *compare = j > 0 ? &c->compare[j - 1] : NULL;
			const struct perf_stats *us = compare != NULL ? &compare->us : &c->us;
			fprintf(file,
				"%s,%s,%s,%s,%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64
				",%" PRIu64 ",%" PRIu64 ",%.3f,%.3f,%.3f,%.3f,%.3f,%.3f,%d,%" PRIu64
				",%.4f,%.3f,%.1f\n",
				perf_test_name(report->args->test),
				c->phase != NULL ? c->phase : "",
				compare != NULL ? compare->name : "m2n", report->backend,
				report->args->n_sources, report->args->n_expert_ranks, c->tokens,
				c->row_bytes, c->top_k, c->bytes, us->p50, us->p90, us->p99,
				us->p999, us->max, compare != NULL ? compare->gbps : c->gbps,
				report->n_verified > 0, report->staged_bytes,
				compare != NULL ? compare->ratio : 1.0,
				compare != NULL ? 0 : c->puts_per_round,
				compare != NULL ? 0 : c->staged_per_round);
		}
	}
}

void perf_report_matrix(FILE *file, const struct perf_report *report)
{
	static const char *const flows[] = {
		"dispatch sent to", "dispatch from", "combine sent to", "combine from"};
	uint32_t n = report->job->dims.n_ranks;

	fprintf(file, "# who waited for whom\n%4s %-16s %4s %10s %12s %16s %12s\n", "rank", "flow",
		"peer", "rounds", "rows", "bytes", "waited_us");
	for (uint32_t rank = 0; rank < n; rank++) {
		for (uint32_t peer = 0; peer < n; peer++) {
			for (int flow = 0; flow < PAGE_N_FLOWS; flow++) {
				const struct page_peer *p = page_peer(
					report->job->page, rank, peer, (enum page_flow)flow);
				if (p->n_rounds == 0)
					continue;
				fprintf(file,
					"%4u %-16s %4u %10" PRIu64 " %12" PRIu64 " %16" PRIu64
					" %12.1f\n",
					rank, flows[flow], peer, p->n_rounds, p->n_rows, p->bytes,
					(double)p->wait_ns / 1000);
			}
		}
	}
}

void perf_report_memory(FILE *file, const struct perf_report *report)
{
	uint64_t predicted = 0, share = 0;

	fprintf(file,
		"# memory: what the library says, and shares of what is there (their sum is all)\n"
		"%4s %-7s %14s %14s %14s\n",
		"rank", "role", "predicted", "share", "mapped");
	for (uint32_t i = 0; i < report->job->dims.n_ranks; i++) {
		const struct page_rank *rank = page_rank(report->job->page, i);
		fprintf(file, "%4u %-7s %14" PRIu64 " %14" PRIu64 " %14" PRIu64 "\n", i,
			i < report->args->n_sources ? "source" : "expert", rank->memory_predicted,
			rank->memory_share, rank->memory_mapped);
		predicted += rank->memory_predicted;
		share += rank->memory_share;
	}
	fprintf(file, " all         %14" PRIu64 " %14" PRIu64 "\n", predicted, share);
}
