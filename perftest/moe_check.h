/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pieces of moe's check of the data, for rounds in host memory (moe_check.c) and, by way of
 * copies on the host, for those in CUDA memory (moe_gpu_check.c).
 */
#ifndef PERF_MOE_CHECK_H
#define PERF_MOE_CHECK_H

#include "moe.h"

struct moe_check {
	struct moe *moe;
	unsigned generation; /* rows differ from generation to generation */
	uint32_t variant;    /* of the routing, in this round */
	char *scratch;       /* one row */
	float *sum;          /* [n_values] of an output row */
	float *bound;        /* [n_values] sum of absolute values */
};

void moe_check_open(struct moe *moe, unsigned generation, struct moe_check *check);
void moe_check_close(struct moe_check *check);
/* Source: fills moe->rows, and moe->out with what is no sum. */
void moe_check_rows(const struct moe_check *check);
/*
 * Expert: walks the routing for the tokens of a segment; checks each row (unless segment->rows is
 * NULL) and makes its output in moe->outputs.
 */
void moe_check_segment(const struct moe_check *check, const struct m2n_segment *segment);
/* Sink: checks moe->out. */
void moe_check_sums(const struct moe_check *check);

#endif
