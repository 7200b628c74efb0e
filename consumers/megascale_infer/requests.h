/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is to be served: requests from a trace of lengths and times, from a file of prompts, or one
 * from the command line. A line that makes no request is refused with the file, the line and the
 * reason, and the others go on. Every process that reads the same sources with the same parameters
 * has the same list, and divides it in the same way, so that ranks need not tell each other.
 */
#ifndef MEGASCALE_REQUESTS_H
#define MEGASCALE_REQUESTS_H

#include <stddef.h>
#include <stdint.h>

struct request {
	size_t number;      /* from 0, in the order of the source, refused ones counted */
	size_t line;        /* in the source's file; 0: there is none */
	int64_t arrival_ns; /* from the start of serving */
	uint32_t *ids;      /* [n_prompt], each below vocab_size; owned */
	uint32_t n_prompt, n_generate; /* both from 1 */
};

struct request_refusal {
	size_t line;
	char *text; /* "FILE:LINE: reason", or "prompt: reason"; owned */
};

struct request_list {
	struct request *requests; /* by rising arrival, then number */
	size_t n_requests;
	struct request_refusal *refusals;
	size_t n_refusals;
};

struct requests_params {
	uint32_t vocab_size;
	size_t limit;        /* only so many lines; 0: all */
	double divisor;      /* of a trace's lengths, which stay 1 at least; 0: 1 */
	double speed;        /* of a trace's clock; 0: all requests arrive at once */
	uint32_t n_generate; /* for prompts that say nothing */
	uint64_t seed;       /* of the prompts of a trace: they depend on it and the number only */
	int bytes;           /* prompts are text, a byte is a token; else numbers */
};

/*
 * Appends to *list, {0} at first, the requests of ...
 * a trace: a line `TIMESTAMP,ContextTokens,GeneratedTokens`, then one request on each;
 * a file of prompts: one on each line, numbers between commas and spaces, or text. Digits and a tab
 *     before it are the number of tokens to generate. Empty lines are left out;
 * one prompt, in the form of such a line.
 * 0; a negative errno with a text if there is no such file, it is no trace, or memory ends. A line
 * that is refused is in list->refusals.
 */
int requests_read_trace(const char *path, const struct requests_params *params,
	struct request_list *list);
int requests_read_prompts(const char *path, const struct requests_params *params,
	struct request_list *list);
int requests_add_prompt(const char *text, const struct requests_params *params,
	struct request_list *list);
void requests_free(struct request_list *list);

/*
 * The share of one of n_ranks attention ranks, by rising arrival: each request goes to the rank
 * that was given the fewest tokens so far, prompts and answers. The array is the caller's to free,
 * the requests are the list's. 0 or -ENOMEM.
 */
int requests_divide(const struct request_list *list, uint32_t n_ranks, uint32_t rank,
	const struct request ***share, size_t *n_share);

#endif
