/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data of a round in CUDA memory: made on the host and copied to the device before it, copied
 * back after it and looked at by the same code as rounds in host memory. Where each row of a
 * batch must lie is computed from the routing alone, so that a round that was launched as a graph
 * can be checked, too. None of these copies is part of a round.
 */
#include <stdlib.h>

#include "moe_gpu.h"

static void need(struct moe_gpu *g, int status, const char *what)
{
	perf_rank_check(g->moe->rank, status, what);
}

static uint32_t n_pairs(const struct moe_check *check, uint32_t source, int32_t expert)
{
	const struct perf_routing *routing = check->moe->routing;
	const int32_t *ids = perf_routing_ids(routing, check->variant, source);
	uint32_t n_tokens = *perf_routing_tokens(routing, check->variant, source);
	uint32_t n = 0;

	for (uint32_t pair = 0; pair < n_tokens * routing->top_k; pair++)
		n += ids[pair] == expert;
	return n;
}

/*
 * Every segment of this rank's batch, in row order: local expert, then source. `rows`: where the
 * batch lies; NULL: only the outputs are made.
 */
static void walk_batch(const struct moe_check *check, const char *rows, const char *scales)
{
	const struct moe *moe = check->moe;
	size_t scale_bytes =
		moe->args->cast_fp8 ? sizeof(float) * ((moe->row_bytes + 127) / 128) : 0;
	struct m2n_segment segment = {0};

	for (uint32_t expert = 0; expert < moe->routing->n_experts; expert++) {
		if (perf_routing_owner(moe->routing, (int32_t)expert) !=
			(uint32_t)moe->rank->expert)
			continue;
		segment.expert = (int32_t)expert;
		for (uint32_t source = 0; source < moe->routing->n_sources; source++) {
			segment.source = source;
			segment.n_rows = n_pairs(check, source, (int32_t)expert);
			segment.rows =
				rows != NULL ? rows + segment.first_row * moe->row_bytes : NULL;
			segment.scales =
				scales != NULL ? scales + segment.first_row * scale_bytes : NULL;
			moe_check_segment(check, &segment);
			segment.first_row += segment.n_rows;
		}
	}
}

static void prepare(struct moe_gpu *g, const struct moe_check *check)
{
	struct moe *moe = g->moe;
	size_t n = moe->routing->max_tokens;

	if (moe->rank->source >= 0) {
		moe_check_rows(check);
		need(g, perf_gpu_upload(&g->gpu, g->rows, moe->rows, n * moe->in_row_bytes),
			"rows");
		need(g, perf_gpu_upload(&g->gpu, g->out, moe->out, n * moe->out_row_bytes), "sums");
	}
	if (moe->rank->expert >= 0) {
		walk_batch(check, NULL, NULL);
		need(g,
			perf_gpu_upload(&g->gpu, g->outputs, moe->outputs,
				moe->max_rows * moe->out_row_bytes),
			"outputs");
	}
	moe_gpu_route(g, check->variant, -1);
}

static void look_at_batch(struct moe_gpu *g, const struct moe_check *check)
{
	struct moe *moe = g->moe;
	uint64_t n = perf_routing_rows(moe->routing, check->variant, -1, moe->rank->expert);
	size_t scale_bytes = sizeof(float) * ((moe->row_bytes + 127) / 128);
	char *rows = malloc(n * moe->row_bytes + 1), *scales = malloc(n * scale_bytes + 1);

	if (rows == NULL || scales == NULL)
		perf_rank_fail(moe->rank, 0, "data check: no memory");
	need(g, perf_gpu_download(&g->gpu, rows, g->batch_rows, n * moe->row_bytes), "batch");
	if (moe->args->cast_fp8)
		need(g, perf_gpu_download(&g->gpu, scales, g->batch_scales, n * scale_bytes),
			"scales");
	walk_batch(check, rows, moe->args->cast_fp8 ? scales : NULL);
	page_rank(moe->rank->page, (uint32_t)moe->rank->rank)->verified += (uint32_t)n;
	free(rows);
	free(scales);
}

void moe_gpu_check(struct moe_gpu *g, unsigned generation)
{
	struct moe *moe = g->moe;
	struct moe_check check;

	moe_check_open(moe, generation, &check);
	for (uint32_t variant = 0; variant < moe->routing->n_variants; variant++) {
		check.variant = variant;
		prepare(g, &check);
		perf_rank_barrier(moe->rank);
		moe_gpu_round(g, true);
		moe_gpu_finish(g);
		if (moe->rank->expert >= 0)
			look_at_batch(g, &check);
		if (moe->rank->source >= 0) {
			need(g,
				perf_gpu_download(&g->gpu, moe->out, g->out,
					moe->routing->max_tokens * moe->out_row_bytes),
				"sums");
			moe_check_sums(&check);
		}
		perf_rank_step(moe->rank);
		/* The next round's rows would come over those that somebody still looks at. */
		perf_rank_barrier(moe->rank);
	}
	moe_check_close(&check);
}
