/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and values of the tokens that sequences have seen, in pages of 16 tokens that hold all
 * layers. A sequence owns a list of pages in any order; what it computes does not depend on which
 * pages it got. The page size is part of the order of sums, so it is one number for everybody.
 */
#ifndef MODEL_CACHE_H
#define MODEL_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "config.h"

#define MODEL_PAGE_TOKENS 16

struct model_cache;

struct model_sequence {
	uint32_t *pages;
	size_t n_pages;
	size_t n_tokens; /* whose keys and values are complete in all layers */
};

/* -ENOMEM: no memory for the pages; the text says how many bytes they need. */
int model_cache_open(const struct model_config *config, size_t n_pages,
	struct model_cache **cache);
void model_cache_close(struct model_cache *cache);
/* Bytes of one page. */
size_t model_cache_page_bytes(const struct model_config *config);
size_t model_cache_free_pages(const struct model_cache *cache);

/*
 * Gives the sequence pages for n_tokens in all. {0} is an empty sequence. 0; -ENOSPC: too few free
 * pages, nothing changed; -ENOMEM. Pages come zeroed.
 */
int model_sequence_reserve(struct model_cache *cache, struct model_sequence *sequence,
	size_t n_tokens);
/* Gives all pages back; the sequence is empty then. */
void model_sequence_release(struct model_cache *cache, struct model_sequence *sequence);

/* [MODEL_PAGE_TOKENS, head_dim] f32 of one layer and key/value head. */
float *model_cache_keys(struct model_cache *cache, uint32_t page, uint32_t layer, uint32_t head);
float *model_cache_values(struct model_cache *cache, uint32_t page, uint32_t layer, uint32_t head);

#endif
