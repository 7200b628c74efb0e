/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results: what a run's stamps become, and what the reports print.
 */
#ifndef PERF_CASES_H
#define PERF_CASES_H

#include <stdio.h>

#include "rank.h"
#include "stats.h"

struct perf_compare {
	const char *name;    /* as --compare has it */
	const char *how;     /* of the two loops of memcpy: which was faster; a tool's test */
	const char *command; /* of a tool, as it was run; else NULL */
	struct perf_stats us; /* of a tool only p50, and p99 unless it is 0 */
	double gbps;
	double ratio;        /* yardstick / ours in time, median over the alternations */
	double ratio_min, ratio_max;
};

struct perf_case {
	const char *phase;   /* moe: dispatch, combine, round_trip; NULL */
	uint64_t tokens;     /* per source */
	uint64_t row_bytes;  /* of a row or message */
	uint64_t top_k;
	uint64_t bytes;      /* payload of one sample; moe's device: read and written at least */
	uint64_t bytes_unpacked; /* the same with batches made expert-major; 0: not told */
	double n_messages;   /* in one sample of bw and lat; 0: no message rate */
	struct perf_stats us;
	double gbps;
	double puts_per_round;   /* transfers posted per message and peer; 0 for mapped peers */
	double staged_per_round; /* bytes */
	double route_us;     /* moe: median of m2n_plan_route(); < 0: none */
	double *samples;     /* [n_samples] us in the order taken */
	size_t n_samples;
	unsigned n_compare;
	struct perf_compare compare[PERF_MAX_SERIES];
};

struct perf_report {
	const struct perf_args *args;
	const struct perf_job *job;
	struct perf_case *cases;
	size_t n_cases;
	uint64_t n_verified;   /* rows or messages that were checked */
	uint64_t staged_bytes;
	const char *backend;
	int tool_status;       /* for main(): a tool that was asked for did not run */
};

/*
 * Fills samples, us, gbps (from c->bytes) and compare from the stamps of a case; a pair of stamps
 * spans `scale` samples. False: no memory.
 */
bool perf_case_reduce(
	const struct perf_job *job, uint32_t n_case, double scale, struct perf_case *c);

/* Sums what the ranks noted about data, staging and backend. */
void perf_report_gather(struct perf_report *report);
void perf_report_table(FILE *file, const struct perf_report *report);
void perf_report_csv(FILE *file, const struct perf_report *report);
/* False: no memory, or the file cannot be written. */
bool perf_report_json(FILE *file, const struct perf_report *report);
/* The same around cases made elsewhere, which it takes. */
struct json_t;
bool perf_report_json_cases(FILE *file, const struct perf_args *args, struct json_t *cases);
void perf_report_matrix(FILE *file, const struct perf_report *report);
/* Memory per rank, of init. */
void perf_report_memory(FILE *file, const struct perf_report *report);

/* The machine: texts are static. */
struct perf_env {
	char cpu[128];
	unsigned cores;
	char kernel[128];
	char compiler[128];
	const char *version, *commit;
	char date[32];
};
void perf_env_get(struct perf_env *env);

#endif
