/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The moe test: rounds of dispatch and combine over one channel, each phase timed on its own,
 * with rounds before and after in which every row is checked.
 */
#ifndef PERF_MOE_H
#define PERF_MOE_H

#include "rank.h"

enum moe_case {
	MOE_DISPATCH = 0,
	MOE_COMBINE = 1,
	MOE_ROUND_TRIP = 2,
	MOE_ROUTE = 3,
	MOE_N_CASES,
};

struct moe_bounce;

struct moe {
	struct perf_rank *rank;
	const struct perf_args *args;
	const struct perf_routing *routing;
	struct m2n_channel *channel;
	struct m2n_plan *plan;     /* source */
	size_t row_bytes;          /* as sent */
	size_t in_row_bytes;       /* as given to dispatch_send */
	size_t out_row_bytes;
	bool round_trip;           /* time the two phases as one */
	char *rows;                /* source: [max_tokens, in_row_bytes] */
	char *out;                 /* sink: [max_tokens, out_row_bytes] */
	char *outputs;             /* expert: [max_rows, out_row_bytes] */
	uint32_t max_rows;         /* expert: of any variant */
	struct m2n_mem *mem[2];
	struct moe_bounce *bounce; /* memcpy yardstick; NULL without */
};

void moe_body(struct perf_rank *rank);

/* One round over every variant in which sources, experts and sinks check all they get. */
void moe_check(struct moe *moe, unsigned generation);

/* Allocates job->bounce for the memcpy yardstick. False: m2n_error_text(). */
bool moe_bounce_map(struct perf_job *job);
struct moe_bounce *moe_bounce_open(struct moe *moe);
void moe_bounce_close(const struct moe *moe);
/* One step of the yardstick: series of PERF_MEMCPY or PERF_STREAM. */
void moe_bounce_step(struct moe *moe, unsigned series, int64_t iter);

/* This rank's stamp of an iteration; a spare one when it is not measured. */
struct page_stamp *moe_stamp(struct moe *moe, enum moe_case n_case, unsigned series, int64_t iter);
/* The variant that an iteration runs. */
static inline uint32_t moe_variant(const struct moe *moe, int64_t iter)
{
	uint64_t number = (uint64_t)(iter < 0 ? -1 - iter : iter);

	return (uint32_t)(number % moe->routing->n_variants);
}

/* The channel that args and routing describe; lists of ranks are static. */
void moe_channel_params(const struct perf_args *args, const struct perf_routing *routing,
	struct m2n_channel_params *params);

#endif
