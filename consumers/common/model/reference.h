/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole model in one process: what every disaggregated run has to equal, token for token. Rows
 * are grouped by expert as an expert rank would have them, and added as the combine adds them.
 */
#ifndef MODEL_REFERENCE_H
#define MODEL_REFERENCE_H

#include "model.h"

struct model_reference {
	const struct model *model;
	struct model_scratch *scratch;
	struct model_cache *cache;
	enum model_dtype row_dtype; /* of the rows that would travel, replies and residual */
	size_t max_rows;            /* of one step */
	float *x;                   /* [max_rows, hidden] after the last step's last layer */
	float *rows;                /* [max_rows, hidden] */
	float *sent, *returned;     /* [max_rows * top_k, hidden], by expert */
	float *replies;             /* [max_rows, top_k, hidden] */
	float *weights;             /* [max_rows, top_k] */
	int32_t *ids;               /* [max_rows, top_k] */
};

/* Steps of up to max_rows rows, with n_pages pages of keys and values. 0 or -ENOMEM. */
int model_reference_open(const struct model *model, enum model_dtype row_dtype, size_t max_rows,
	size_t n_pages, struct model_reference **reference);
void model_reference_close(struct model_reference *reference);

/*
 * One step through all layers: ids of all spans' rows, one after another. Sequences are given
 * pages and moved on by their rows. reference->x holds the result, for model_logits(). 0; -EINVAL:
 * an id that is no token, or too many rows or tokens; -ENOSPC: no pages left; -ENOMEM.
 */
int model_reference_step(struct model_reference *reference, const struct model_span *spans,
	size_t n_spans, const uint32_t *ids);

#endif
