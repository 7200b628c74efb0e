/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds for the tests of the steady state: all buffers are made before, so that what a round
 * costs is the library's. A source and an expert rank (or one rank that is both) go through
 * the four calls; routing is a call apart.
 */
#ifndef TESTS_STEADY_ROUNDS_H
#define TESTS_STEADY_ROUNDS_H

#include "helpers/ranks.h"

#define STEADY_MAX_TOKENS 64
#define STEADY_MAX_TOP_K 4
#define STEADY_MAX_ROW 256

struct steady {
	uint32_t n_tokens;
	uint32_t top_k;
	size_t row_bytes;
	uint32_t first_expert; /* of the first token's first row, 0..7 */
	enum m2n_placement placement;
	int dedup;
	/* of this rank */
	int is_source, is_expert;
	struct m2n_channel *channel;
	struct m2n_plan *plan;
	/* filled once, as an application would */
	struct m2n_dispatch_send_params send;
	struct m2n_dispatch_recv_params recv;
	struct m2n_combine_send_params answer;
	struct m2n_combine_recv_params combine;
};

/* Rank 0 is the source, the last rank is the expert rank. */
void steady_open(struct steady *steady, struct rank *rank);
void steady_close(struct steady *steady);
void steady_route(struct steady *steady);
void steady_round(struct steady *steady);

#endif
