/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `megascale_infer serve`: options, and the files that its ranks report in.
 */
#ifndef MEGASCALE_SERVE_H
#define MEGASCALE_SERVE_H

#include <jansson.h>

#include "batcher.h"
#include "model/model.h"
#include "requests.h"
#include "transport.h"

struct serve {
	const char *model_dir, *trace_path, *prompts_path, *prompt;
	const char *json_path, *tokens_path, *timeline_dir, *cost_path, *transport;
	int n_attention, n_expert_ranks;
	uint32_t n_micro_batches, max_rows, chunk, n_replicas, balance_rounds;
	enum model_dtype row_dtype;
	size_t cache_tokens;
	double row_us, key_us, target_us; /* attention balance */
	float temperature, top_p;
	uint64_t seed;
	struct requests_params requests;
	int launched, quiet, no_pin, kill_rank, max_restart;
	double kill_s; /* test: when rank kill_rank is killed */

	const struct transport_ops *ops;
	struct model_config config;
	struct request_list list;
	char work_dir[256]; /* where ranks leave what they report */
	int rank;           /* with a launcher: of this process; 0 is the one that reports */
};

/* Ends the process on --help and options that do not fit. */
void serve_parse(int argc, char **argv, struct serve *serve);

/* A rank's files in the work directory. */
void serve_path(const struct serve *serve, const char *what, int rank, char path[512]);

/* Merges what the ranks wrote, prints the table, writes the files that were asked for. 0 or 1. */
int serve_report(const struct serve *serve);

#endif
