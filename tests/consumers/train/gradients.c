/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gradients of one micro-batch, for test_gradients.py:
 *
 *	train_gradients MODEL IDS N_SEQS SEQ_LEN BALANCE OUT
 *
 * MODEL: a checkpoint's directory. IDS: uint32, n_seqs sequences of seq_len + 1 tokens. OUT: a
 * safetensors file with the gradient of every tensor, the logits, and "losses": the mean cross
 * entropy and the mean balancing loss.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "nn/reference.h"

static int load_weights(const char *dir, struct nn_params *params)
{
	struct model_weights_params all = {.parts = MODEL_PART_ALL, .writable = 1};
	struct model_weights *weights;
	int rc = model_weights_open(dir, &all, &weights);

	for (size_t i = 0; !rc && i < params->n; i++)
		memcpy(params->list[i].value, weights->tensors[i].data, weights->tensors[i].bytes);
	if (!rc)
		model_weights_close(weights);
	return rc;
}

static int load_ids(const char *path, struct nn_reference *r)
{
	uint32_t seq_len = r->settings.seq_len, n_read = 0;
	FILE *file = fopen(path, "rb");

	for (uint32_t seq = 0; file && seq < r->n_seqs; seq++) {
		uint32_t *ids = r->ids + seq * seq_len, *targets = r->targets + seq * seq_len;

		n_read += fread(ids, sizeof(*ids), seq_len, file) == seq_len &&
			fread(&targets[seq_len - 1], sizeof(*targets), 1, file) == 1;
		memcpy(targets, ids + 1, (seq_len - 1) * sizeof(*ids));
	}
	if (file)
		fclose(file);
	return n_read == r->n_seqs ? 0 : model_fail(-1, "%s: too few ids", path);
}

static int write_all(const char *path, const struct nn_reference *r, const float *losses,
	float *logits)
{
	size_t n = r->params->n, vocab = r->settings.config.vocab_size;
	struct model_tensor *tensors = calloc(n + 2, sizeof(*tensors));
	int rc;

	for (size_t i = 0; i < n; i++) {
		const struct nn_param *param = &r->params->list[i];

		tensors[i] = (struct model_tensor){.name = param->name, .n_dims = param->n_dims,
			.shape = {param->shape[0], param->shape[1]}, .data = param->grad,
			.bytes = param->n_values * sizeof(float)};
	}
	tensors[n] = (struct model_tensor){.name = "logits", .n_dims = 2,
		.shape = {r->head.n_rows, vocab}, .data = logits,
		.bytes = r->head.n_rows * vocab * sizeof(float)};
	tensors[n + 1] = (struct model_tensor){.name = "losses", .n_dims = 1, .shape = {2},
		.data = losses, .bytes = 2 * sizeof(float)};
	rc = model_safetensors_write(path, tensors, n + 2);
	free(tensors);
	return rc;
}

static int run(char **argv, struct nn_reference *r, double balance)
{
	size_t n_rows = (size_t)r->n_seqs * r->settings.seq_len;
	size_t bytes = n_rows * r->settings.config.vocab_size * sizeof(float);
	float *logits = malloc(bytes), losses[2];
	double loss, balance_sum;
	int rc = load_weights(argv[1], r->params);

	if (!rc)
		rc = load_ids(argv[2], r);
	if (!rc && logits) {
		nn_reference_forward(r);
		memcpy(logits, r->head.logits, bytes);
		nn_reference_backward(r, 1.0 / (double)n_rows, balance / r->n_seqs, &loss,
			&balance_sum);
		losses[0] = (float)(loss / (double)n_rows);
		losses[1] = (float)(balance_sum / r->n_seqs);
		rc = write_all(argv[6], r, losses, logits);
	}
	free(logits);
	return rc;
}

int main(int argc, char **argv)
{
	struct nn_reference *reference = NULL;
	struct nn_settings settings;
	char path[4096];
	int rc;

	if (argc != 7)
		return 2;
	nn_settings_named("tiny", &settings);
	snprintf(path, sizeof(path), "%.4000s/config.json", argv[1]);
	rc = model_config_read(path, &settings.config);
	settings.step_seqs = (uint32_t)strtoul(argv[3], NULL, 10);
	settings.seq_len = (uint32_t)strtoul(argv[4], NULL, 10);
	settings.n_micro_batches = 1;
	if (!rc)
		rc = nn_reference_open(&settings, &reference);
	if (!rc)
		rc = run(argv, reference, strtod(argv[5], NULL));
	if (rc)
		fprintf(stderr, "%s\n", model_error());
	nn_reference_close(reference);
	return rc != 0;
}
