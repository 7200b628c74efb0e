/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What serving has to give: every request alone through the one-process reference, prompt in one
 * step, then a token at a time.
 *
 *   reference_tokens DIR trace|prompts FILE f32|bf16 LINES DIVISOR
 *
 * prints a line {"request": N, "tokens": [...]} for each, as `megascale_infer serve --tokens-out`.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megascale_infer/requests.h"
#include "model/error.h"
#include "model/reference.h"

enum { MAX_ROWS = 4096, TOKENS = 16 };

static int fail(void)
{
	fprintf(stderr, "reference_tokens: %s\n", model_error());
	return 1;
}

static int run(struct model_reference *reference, float *logits, const struct request *request)
{
	struct model_sequence sequence = {0};
	const struct model_config *config = reference->model->config;
	uint32_t token = 0;
	int rc = 0;

	printf("{\"request\": %zu, \"tokens\": [", request->number);
	for (uint32_t i = 0; !rc && i < request->n_generate; i++) {
		struct model_span span = {&sequence, i ? 1 : request->n_prompt};
		const float *last = reference->x + (span.n_rows - 1) * config->hidden_size;

		rc = model_reference_step(reference, &span, 1, i ? &token : request->ids);
		if (rc)
			break;
		model_logits(reference->model, reference->scratch, last, 1, logits);
		token = model_argmax(logits, config->vocab_size);
		printf("%s%u", i ? "," : "", token);
	}
	printf("]}\n");
	model_sequence_release(reference->cache, &sequence);
	return rc;
}

static int read_list(char **argv, uint32_t vocab_size, struct request_list *list)
{
	struct requests_params params = {.vocab_size = vocab_size,
		.n_generate = TOKENS,
		.limit = (size_t)atol(argv[5]),
		.divisor = atof(argv[6]),
		.seed = 1};

	return strcmp(argv[2], "trace") ? requests_read_prompts(argv[3], &params, list)
					: requests_read_trace(argv[3], &params, list);
}

int main(int argc, char **argv)
{
	struct model_weights_params all = {.parts = MODEL_PART_ALL};
	struct model_reference *reference;
	struct request_list list = {0};
	struct model *model;
	float *logits;
	int rc;

	if (argc != 7)
		return 2;
	if (model_open(argv[1], &all, 0, &model) ||
		model_reference_open(model, model_dtype_parse(argv[4]), MAX_ROWS,
			2 * MAX_ROWS / MODEL_PAGE_TOKENS, &reference) ||
		read_list(argv, model->config->vocab_size, &list))
		return fail();
	logits = malloc(model->config->vocab_size * sizeof(*logits));
	if (!logits)
		return 1;
	rc = 0;
	for (size_t i = 0; !rc && i < list.n_requests; i++)
		rc = run(reference, logits, &list.requests[i]);
	free(logits);
	requests_free(&list);
	model_reference_close(reference);
	model_close(model);
	return rc ? fail() : 0;
}
