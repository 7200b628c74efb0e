/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page pool: a stack of free page numbers over one allocation. Attention multiplies whole
 * pages and gives the places behind a token the weight 0; they are zeroed when a page is handed out
 * because 0 times what an earlier owner left could be NaN.
 */
#include "cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

struct model_cache {
	float *values; /* [n_pages, n_layers, n_kv_heads, 2, MODEL_PAGE_TOKENS, head_dim] */
	size_t head_values, page_values;
	uint32_t n_kv_heads;
	uint32_t *free_pages;
	size_t n_free, n_pages;
};

size_t model_cache_page_bytes(const struct model_config *config)
{
	return (size_t)config->n_layers * config->n_kv_heads * config->head_dim * 2 *
		MODEL_PAGE_TOKENS * sizeof(float);
}

int model_cache_open(const struct model_config *config, size_t n_pages,
	struct model_cache **cache)
{
	size_t page_bytes = model_cache_page_bytes(config), bytes;
	struct model_cache *opened = calloc(1, sizeof(*opened));

	if (!opened || n_pages > UINT32_MAX || __builtin_mul_overflow(n_pages, page_bytes, &bytes))
		goto no_memory;
	opened->values = malloc(bytes + 1);
	opened->free_pages = malloc(n_pages * sizeof(uint32_t) + 1);
	if (!opened->values || !opened->free_pages)
		goto no_memory;
	opened->page_values = page_bytes / sizeof(float);
	opened->head_values = (size_t)MODEL_PAGE_TOKENS * config->head_dim;
	opened->n_kv_heads = config->n_kv_heads;
	opened->n_free = opened->n_pages = n_pages;
	for (size_t i = 0; i < n_pages; i++)
		opened->free_pages[i] = (uint32_t)(n_pages - 1 - i);
	*cache = opened;
	return 0;
no_memory:
	model_cache_close(opened);
	return model_fail(-ENOMEM, "no memory for a cache of %zu pages of %zu bytes (%d tokens "
		"each); ask for fewer tokens", n_pages, page_bytes, MODEL_PAGE_TOKENS);
}

void model_cache_close(struct model_cache *cache)
{
	if (!cache)
		return;
	free(cache->values);
	free(cache->free_pages);
	free(cache);
}

size_t model_cache_free_pages(const struct model_cache *cache)
{
	return cache->n_free;
}

int model_sequence_reserve(struct model_cache *cache, struct model_sequence *sequence,
	size_t n_tokens)
{
	size_t wanted = n_tokens / MODEL_PAGE_TOKENS + (n_tokens % MODEL_PAGE_TOKENS != 0);
	uint32_t *pages;

	if (wanted <= sequence->n_pages)
		return 0;
	if (wanted - sequence->n_pages > cache->n_free)
		return model_fail(-ENOSPC, "%zu tokens need %zu more pages of the key/value cache, "
			"%zu of %zu are free", n_tokens, wanted - sequence->n_pages, cache->n_free,
			cache->n_pages);
	pages = realloc(sequence->pages, wanted * sizeof(*pages));
	if (!pages)
		return model_fail(-ENOMEM, "no memory for a list of %zu pages", wanted);
	sequence->pages = pages;
	while (sequence->n_pages < wanted) {
		uint32_t page = cache->free_pages[--cache->n_free];

		memset(cache->values + page * cache->page_values, 0,
			cache->page_values * sizeof(float));
		pages[sequence->n_pages++] = page;
	}
	return 0;
}

void model_sequence_release(struct model_cache *cache, struct model_sequence *sequence)
{
	while (sequence->n_pages > 0)
		cache->free_pages[cache->n_free++] = sequence->pages[--sequence->n_pages];
	free(sequence->pages);
	*sequence = (struct model_sequence){0};
}

float *model_cache_keys(struct model_cache *cache, uint32_t page, uint32_t layer, uint32_t head)
{
	return cache->values + page * cache->page_values +
		((size_t)layer * cache->n_kv_heads + head) * 2 * cache->head_values;
}

float *model_cache_values(struct model_cache *cache, uint32_t page, uint32_t layer, uint32_t head)
{
	return model_cache_keys(cache, page, layer, head) + cache->head_values;
}
