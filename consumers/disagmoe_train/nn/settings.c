/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings by name, and what they may be.
 */
#include "nn/settings.h"

#include <errno.h>
#include <string.h>

#include "model/error.h"

static const struct nn_settings defaults = {
	.config = {.vocab_size = 256, .hidden_size = 128, .intermediate_size = 256, .n_layers = 4,
		.n_heads = 4, .n_kv_heads = 4, .head_dim = 32, .n_experts = 8, .top_k = 2,
		.max_positions = 4096, .rms_norm_eps = 1e-5, .rope_theta = 1e4,
		.dtype = MODEL_F32},
	.seed = 1, .seq_len = 128, .step_seqs = 16, .n_micro_batches = 4, .held_back = 0.1,
	.balance = 0.01, .learning_rate = 1e-3, .min_learning_rate = 1e-4, .warmup_steps = 20,
	.decay_steps = 200, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1,
	.max_grad_norm = 1,
};

int nn_settings_named(const char *name, struct nn_settings *settings)
{
	struct nn_settings named = defaults;

	if (!strcmp(name, "tiny")) {
		named.config.hidden_size = 32;
		named.config.intermediate_size = 32;
		named.config.n_layers = 2;
		named.config.n_kv_heads = 2;
		named.config.head_dim = 8;
		named.config.n_experts = 4;
		named.seq_len = 32;
		named.step_seqs = 8;
	} else if (strcmp(name, "small") != 0) {
		return model_fail(-EINVAL, "no configuration is named '%s'; tiny and small are",
			name);
	}
	*settings = named;
	return 0;
}

static int check_real(const char *name, double value, double min, double below)
{
	if (value >= min && value < below)
		return 0;
	return model_fail(-EINVAL, "%s is %g, not from %g to below %g", name, value, min, below);
}

static int check_sizes(const struct nn_settings *s)
{
	if (s->config.vocab_size < 256)
		return model_fail(-EINVAL, "vocab_size is %u; a token is a byte, so 256 or more",
			s->config.vocab_size);
	if (s->seq_len == 0 || s->seq_len > s->config.max_positions)
		return model_fail(-EINVAL, "seq_len is %u, not 1 to max_position_embeddings, %u",
			s->seq_len, s->config.max_positions);
	if (s->step_seqs == 0 || s->n_micro_batches == 0 ||
		s->step_seqs % s->n_micro_batches != 0)
		return model_fail(-EINVAL, "%u sequences of a step cannot be divided into %u equal "
			"micro-batches", s->step_seqs, s->n_micro_batches);
	if (s->warmup_steps > s->decay_steps)
		return model_fail(-EINVAL, "warmup_steps %llu are more than decay_steps %llu",
			(unsigned long long)s->warmup_steps, (unsigned long long)s->decay_steps);
	return 0;
}

int nn_settings_check(const struct nn_settings *settings)
{
	const struct {
		const char *name;
		double value, min, below;
	} reals[] = {
		{"held_back", settings->held_back, 1e-9, 1},
		{"balance", settings->balance, 0, 1e6},
		{"learning_rate", settings->learning_rate, 0, 1e6},
		{"min_learning_rate", settings->min_learning_rate, 0, 1e6},
		{"beta1", settings->beta1, 0, 1},
		{"beta2", settings->beta2, 0, 1},
		{"eps", settings->eps, 1e-30, 1},
		{"weight_decay", settings->weight_decay, 0, 1e6},
		{"max_grad_norm", settings->max_grad_norm, 0, 1e30},
	};
	int rc = model_config_check(&settings->config, "model");

	if (!rc)
		rc = check_sizes(settings);
	for (size_t i = 0; !rc && i < sizeof(reals) / sizeof(reals[0]); i++)
		rc = check_real(reals[i].name, reals[i].value, reals[i].min, reals[i].below);
	return rc;
}
