/* SPDX-License-Identifier: Apache-2.0 */
/*
 * m2n_model: makes checkpoints with random weights, runs a model in one process, and says what a
 * checkpoint holds. The reference that disaggregated runs are compared with.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "error.h"
#include "reference.h"

struct run {
	const struct model_args *args;
	struct model_reference *reference;
	struct model_sequence sequence;
	FILE *logits_file;
	float *logits; /* [chunk, vocab_size] */
	uint32_t *order; /* [vocab_size] */
	uint64_t state;
};

static int make(struct model_args *args)
{
	struct model_weights_params params = {.parts = MODEL_PART_ALL, .writable = 1};
	struct model_weights *weights;
	int rc = model_config_check(&args->config, "options");

	if (!rc)
		rc = model_weights_create(&args->config, &params, &weights);
	if (rc)
		return rc;
	model_weights_fill(weights, args->seed, args->std);
	rc = model_weights_write(weights, args->dir, args->max_shard_bytes);
	model_weights_close(weights);
	return rc;
}

static void print_config(const struct model_config *c)
{
	printf("Mixtral, %u layers, hidden %u, vocabulary %u%s\n", c->n_layers, c->hidden_size,
		c->vocab_size, c->tie_word_embeddings ? " (embedding tied to the head)" : "");
	printf("attention: %u heads of %u, %u key/value heads, rope theta %g, up to %u positions",
		c->n_heads, c->head_dim, c->n_kv_heads, c->rope_theta, c->max_positions);
	if (c->sliding_window)
		printf(", window of %u", c->sliding_window);
	printf("\nexperts: %u of %u, top-%u; norm eps %g; stored as %s\n", c->n_experts,
		c->intermediate_size, c->top_k, c->rms_norm_eps, model_dtype_torch_name(c->dtype));
}

static int info(const struct model_args *args)
{
	struct model_weights_params params = {.parts = 0};
	struct model_weights *weights;
	int rc = model_weights_open(args->dir, &params, &weights);
	size_t bytes = 0, n_values = 0;

	if (rc)
		return rc;
	print_config(&weights->config);
	for (size_t i = 0; i < weights->checkpoint->n_tensors; i++) {
		const struct model_tensor *tensor = weights->checkpoint->tensors[i];
		char shape[128];

		bytes += tensor->bytes;
		n_values += tensor->bytes / (model_dtype_bytes(tensor->dtype) ? : 1);
		printf("%-5s %-20s %s\n", model_dtype_name(tensor->dtype),
			model_shape_text(tensor->shape, tensor->n_dims, shape, sizeof(shape)),
			tensor->name);
	}
	printf("%zu tensors in %zu files, %zu parameters, %zu bytes; a page of keys and values "
		"(%d tokens) has %zu bytes\n%s\n", weights->checkpoint->n_tensors,
		weights->checkpoint->n_files, n_values, bytes, MODEL_PAGE_TOKENS,
		model_cache_page_bytes(&weights->config), model_product_engine());
	model_weights_close(weights);
	return 0;
}

/* Rows of one step through the model; with them, their logits to the file. */
static int step(struct run *run, const uint32_t *ids, size_t n_ids)
{
	const struct model *model = run->reference->model;
	struct model_span span = {&run->sequence, n_ids};
	size_t vocab = model->config->vocab_size;
	int rc = model_reference_step(run->reference, &span, 1, ids);

	if (rc)
		return rc;
	model_logits(model, run->reference->scratch, run->reference->x, n_ids, run->logits);
	if (run->logits_file && fwrite(run->logits, sizeof(float), n_ids * vocab,
					run->logits_file) != n_ids * vocab)
		return model_fail(-EIO, "%s: cannot be written: %s", run->args->logits_path,
			strerror(errno));
	/* The next token comes from the last row. */
	memmove(run->logits, run->logits + (n_ids - 1) * vocab, vocab * sizeof(float));
	return 0;
}

static int generate(struct run *run)
{
	const struct model_args *args = run->args;
	size_t vocab = run->reference->model->config->vocab_size, n;
	int rc = 0;

	for (size_t at = 0; !rc && at < args->n_prompt; at += n) {
		n = args->n_prompt - at < args->chunk ? args->n_prompt - at : args->chunk;
		rc = step(run, args->prompt + at, n);
	}
	for (size_t i = 0; !rc && i < args->n_tokens; i++) {
		uint32_t token = model_sample(run->logits, vocab, (float)args->temperature,
			(float)args->top_p, &run->state, run->order);

		printf("%s%u", i ? "," : "", token);
		fflush(stdout);
		if (i + 1 < args->n_tokens)
			rc = step(run, &token, 1);
	}
	printf("\n");
	return rc;
}

static int run_model(const struct model_args *args, const struct model *model)
{
	struct run run = {.args = args, .state = args->seed};
	size_t n_tokens = args->n_prompt + args->n_tokens;
	int rc = model_reference_open(model, args->row_dtype, args->chunk,
		n_tokens / MODEL_PAGE_TOKENS + 1, &run.reference);

	if (rc)
		return rc;
	run.logits = malloc(args->chunk * model->config->vocab_size * sizeof(float));
	run.order = malloc(model->config->vocab_size * sizeof(uint32_t));
	if (!run.logits || !run.order)
		rc = model_fail(-ENOMEM, "no memory for the logits of %zu rows", args->chunk);
	if (!rc && args->logits_path && !(run.logits_file = fopen(args->logits_path, "we")))
		rc = model_fail(-errno, "%s: %s", args->logits_path, strerror(errno));
	if (!rc)
		rc = generate(&run);
	if (run.logits_file && fclose(run.logits_file) != 0 && !rc)
		rc = model_fail(-errno, "%s: %s", args->logits_path, strerror(errno));
	model_sequence_release(run.reference->cache, &run.sequence);
	model_reference_close(run.reference);
	free(run.logits);
	free(run.order);
	return rc;
}

static int run_command(struct model_args *args)
{
	struct model_weights_params params = {.parts = MODEL_PART_ALL};
	size_t n_tokens = args->n_prompt + args->n_tokens;
	struct model *model;
	int rc;

	if (args->n_prompt == 0)
		return model_fail(-EINVAL, "run: --prompt-ids or --prompt-bytes is wanted");
	if (args->chunk > args->n_prompt)
		args->chunk = args->n_prompt;
	rc = model_open(args->dir, &params, n_tokens, &model);
	if (rc)
		return rc;
	rc = run_model(args, model);
	model_close(model);
	return rc;
}

int main(int argc, char **argv)
{
	struct model_args args;
	int rc = model_args_parse(argc, argv, &args);

	if (rc == 1)
		fputs(model_usage, stdout);
	else if (rc == 0 && strcmp(args.command, "make") == 0)
		rc = make(&args);
	else if (rc == 0 && strcmp(args.command, "run") == 0)
		rc = run_command(&args);
	else if (rc == 0 && strcmp(args.command, "info") == 0)
		rc = info(&args);
	else if (rc == 0)
		rc = model_fail(-EINVAL, "command '%s' is none of make, run, info", args.command);
	if (rc < 0)
		fprintf(stderr, "m2n_model: %s\n", model_error());
	model_args_free(&args);
	return rc < 0;
}
