/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.json of the Mixtral form: one table of its numbers, their members and their ranges.
 * Everything that multiplies into a size is bounded here, so that sizes fit into size_t later.
 */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "error.h"

#define REQUIRED UINT32_MAX

static const struct number {
	const char *member;
	size_t offset;
	uint32_t min, max, otherwise; /* when the member is missing or null */
} numbers[] = {
#define AT(field) offsetof(struct model_config, field)
	/* clang-format off */
	{"vocab_size", AT(vocab_size), 1, 1u << 24, REQUIRED},
	{"hidden_size", AT(hidden_size), 1, 1u << 20, REQUIRED},
	{"intermediate_size", AT(intermediate_size), 1, 1u << 22, REQUIRED},
	{"num_hidden_layers", AT(n_layers), 1, 4096, REQUIRED},
	{"num_attention_heads", AT(n_heads), 1, 4096, REQUIRED},
	{"num_key_value_heads", AT(n_kv_heads), 1, 4096, 0},
	{"head_dim", AT(head_dim), 1, 4096, 0},
	{"num_local_experts", AT(n_experts), 1, 65536, REQUIRED},
	{"num_experts_per_tok", AT(top_k), 1, 256, REQUIRED},
	{"max_position_embeddings", AT(max_positions), 1, 1u << 24, 4096 * 32},
	{"sliding_window", AT(sliding_window), 1, UINT32_MAX - 1, 0},
	/* clang-format on */
#undef AT
};
#define N_NUMBERS (sizeof(numbers) / sizeof(numbers[0]))

static uint32_t *number_at(struct model_config *config, const struct number *number)
{
	return (uint32_t *)(void *)((char *)config + number->offset);
}

void model_config_default(struct model_config *config)
{
	*config = (struct model_config){.vocab_size = 256, .hidden_size = 128,
		.intermediate_size = 256, .n_layers = 4, .n_heads = 8, .n_kv_heads = 2,
		.head_dim = 16, .n_experts = 8, .top_k = 2, .max_positions = 4096,
		.rms_norm_eps = 1e-5, .rope_theta = 1e6, .dtype = MODEL_F32};
}

static int check_numbers(const struct model_config *config, const char *where)
{
	for (size_t i = 0; i < N_NUMBERS; i++) {
		uint32_t value;

		memcpy(&value, (const char *)config + numbers[i].offset, sizeof(value));
		if ((value < numbers[i].min || value > numbers[i].max) &&
			!(numbers[i].otherwise == 0 && value == 0 &&
				!strcmp(numbers[i].member, "sliding_window")))
			return model_fail(-EINVAL, "%s: %s is %u, not %u to %u", where,
				numbers[i].member, value, numbers[i].min, numbers[i].max);
	}
	return 0;
}

int model_config_check(const struct model_config *config, const char *where)
{
	int rc = check_numbers(config, where);

	if (rc)
		return rc;
	if (config->n_heads % config->n_kv_heads)
		return model_fail(-EINVAL,
			"%s: num_attention_heads %u is no multiple of num_key_value_heads %u",
			where, config->n_heads, config->n_kv_heads);
	if (config->head_dim % 2)
		return model_fail(-EINVAL, "%s: head_dim %u is odd; rotary embedding needs pairs",
			where, config->head_dim);
	if (config->top_k > config->n_experts)
		return model_fail(-EINVAL,
			"%s: num_experts_per_tok %u is more than num_local_experts %u", where,
			config->top_k, config->n_experts);
	if (!(config->rms_norm_eps > 0) || !(config->rms_norm_eps < 1))
		return model_fail(-EINVAL, "%s: rms_norm_eps is %g, not above 0 and below 1", where,
			config->rms_norm_eps);
	if (!(config->rope_theta >= 1) || !isfinite(config->rope_theta))
		return model_fail(-EINVAL, "%s: rope_theta is %g, not 1 or more", where,
			config->rope_theta);
	return 0;
}

static int read_number(const json_t *root, const char *path, const struct number *number,
	uint32_t *value)
{
	const json_t *member = json_object_get(root, number->member);

	*value = number->otherwise;
	if (!member || json_is_null(member)) {
		if (number->otherwise != REQUIRED)
			return 0;
		return model_fail(-EINVAL, "%s: member %s is missing", path, number->member);
	}
	if (!json_is_integer(member) || json_integer_value(member) < number->min ||
		json_integer_value(member) > number->max)
		return model_fail(-EINVAL, "%s: %s is not a whole number from %u to %u", path,
			number->member, number->min, number->max);
	*value = (uint32_t)json_integer_value(member);
	return 0;
}

static int read_real(const json_t *root, const char *path, const char *name, double otherwise,
	double *value)
{
	const json_t *member = json_object_get(root, name);

	*value = otherwise;
	if (!member || json_is_null(member))
		return 0;
	if (!json_is_number(member))
		return model_fail(-EINVAL, "%s: %s is not a number", path, name);
	*value = json_number_value(member);
	return 0;
}

/* A missing member is what `expected` says. */
static int read_word(const json_t *root, const char *path, const char *name, const char *expected)
{
	const json_t *member = json_object_get(root, name);

	if (!member || json_is_null(member))
		return 0;
	if (!json_is_string(member) || strcmp(json_string_value(member), expected) != 0)
		return model_fail(-EINVAL, "%s: %s is '%s'; only '%s' is known here", path, name,
			json_is_string(member) ? json_string_value(member) : "no string", expected);
	return 0;
}

/* "architectures" or "model_type" must say that it is a Mixtral. */
static int read_architecture(const json_t *root, const char *path)
{
	const json_t *list = json_object_get(root, "architectures");
	const char *name = json_string_value(json_array_get(list, 0));

	if (name && strcmp(name, "MixtralForCausalLM") != 0)
		return model_fail(-EINVAL,
			"%s: architecture '%s' is unknown; only MixtralForCausalLM can be run",
			path, name);
	if (!name && !json_is_string(json_object_get(root, "model_type")))
		return model_fail(-EINVAL,
			"%s: neither architectures nor model_type says what model this is", path);
	return read_word(root, path, "model_type", "mixtral");
}

static int read_rope(const json_t *root, const char *path, double *theta)
{
	const json_t *scaling = json_object_get(root, "rope_scaling");
	const json_t *parameters = json_object_get(root, "rope_parameters");
	int rc = read_real(root, path, "rope_theta", 1e6, theta);

	if (rc)
		return rc;
	if (scaling && !json_is_null(scaling))
		return model_fail(-EINVAL,
			"%s: rope_scaling is set; scaled rotary embedding is not supported", path);
	if (!json_is_object(parameters))
		return 0;
	rc = read_word(parameters, path, "rope_type", "default");
	return rc ? rc : read_real(parameters, path, "rope_theta", *theta, theta);
}

static int read_flag(const json_t *root, const char *path, const char *name, int *value)
{
	const json_t *member = json_object_get(root, name);

	*value = 0;
	if (!member || json_is_null(member))
		return 0;
	if (!json_is_boolean(member))
		return model_fail(-EINVAL, "%s: %s is neither true nor false", path, name);
	*value = json_is_true(member);
	return 0;
}

static int read_dtype(const json_t *root, const char *path, enum model_dtype *dtype)
{
	const char *name = json_string_value(json_object_get(root, "torch_dtype"));

	if (!name)
		name = json_string_value(json_object_get(root, "dtype"));
	*dtype = name ? model_dtype_parse(name) : MODEL_F32;
	if (*dtype == MODEL_OTHER)
		return model_fail(-EINVAL,
			"%s: dtype '%s'; known are float32, bfloat16 and float16", path, name);
	return 0;
}

static int read_root(const json_t *root, const char *path, struct model_config *config)
{
	int rc = 0, bias = 0;

	if (!json_is_object(root))
		return model_fail(-EINVAL, "%s: holds no JSON object", path);
	rc = read_architecture(root, path);
	for (size_t i = 0; !rc && i < N_NUMBERS; i++)
		rc = read_number(root, path, &numbers[i], number_at(config, &numbers[i]));
	if (!rc)
		rc = read_real(root, path, "rms_norm_eps", 1e-5, &config->rms_norm_eps);
	if (!rc)
		rc = read_rope(root, path, &config->rope_theta);
	if (!rc)
		rc = read_flag(root, path, "tie_word_embeddings", &config->tie_word_embeddings);
	if (!rc)
		rc = read_flag(root, path, "attention_bias", &bias);
	if (!rc && bias)
		rc = model_fail(-EINVAL, "%s: attention_bias is not supported", path);
	if (!rc)
		rc = read_word(root, path, "hidden_act", "silu");
	if (!rc)
		rc = read_dtype(root, path, &config->dtype);
	return rc;
}

static int fill_defaults(struct model_config *config, const char *path)
{
	if (!config->n_kv_heads)
		config->n_kv_heads = config->n_heads;
	if (config->head_dim)
		return 0;
	if (config->hidden_size % config->n_heads)
		return model_fail(-EINVAL,
			"%s: hidden_size %u is no multiple of num_attention_heads %u, and there is "
			"no head_dim", path, config->hidden_size, config->n_heads);
	config->head_dim = config->hidden_size / config->n_heads;
	return 0;
}

int model_config_read(const char *path, struct model_config *config)
{
	struct model_config found = {0};
	json_error_t error;
	FILE *file = fopen(path, "re");
	json_t *root;
	int rc = -errno;

	if (!file)
		return model_fail(rc, "%s: %s", path, strerror(-rc));
	root = json_loadf(file, JSON_REJECT_DUPLICATES, &error);
	fclose(file);
	if (!root)
		return model_fail(-EINVAL, "%s: line %d: %s", path, error.line, error.text);
	rc = read_root(root, path, &found);
	json_decref(root);
	if (!rc)
		rc = fill_defaults(&found, path);
	if (!rc)
		rc = model_config_check(&found, path);
	if (!rc)
		*config = found;
	return rc;
}

static json_t *to_json(const struct model_config *config)
{
	json_t *root = json_pack("{s:[s], s:s, s:s, s:f, s:f, s:b, s:b, s:f, s:s}", "architectures",
		"MixtralForCausalLM", "model_type", "mixtral", "hidden_act", "silu",
		"rms_norm_eps", config->rms_norm_eps, "rope_theta", config->rope_theta,
		"tie_word_embeddings", config->tie_word_embeddings, "attention_bias", 0,
		"attention_dropout", 0.0, "torch_dtype", model_dtype_torch_name(config->dtype));

	for (size_t i = 0; root && i < N_NUMBERS; i++) {
		uint32_t value;

		memcpy(&value, (const char *)config + numbers[i].offset, sizeof(value));
		/* Only sliding_window may be 0: no window. */
		if (json_object_set_new(root, numbers[i].member,
			    value ? json_integer(value) : json_null()) != 0) {
			json_decref(root);
			return NULL;
		}
	}
	return root;
}

int model_config_write(const char *path, const struct model_config *config)
{
	json_t *root = to_json(config);
	int rc = -ENOMEM;
	FILE *file;

	if (!root)
		return model_fail(rc, "%s: no memory", path);
	file = fopen(path, "we");
	rc = file ? 0 : -errno;
	if (file && json_dumpf(root, file, JSON_INDENT(2) | JSON_SORT_KEYS) != 0)
		rc = -EIO;
	if (file && fputc('\n', file) == EOF)
		rc = -EIO;
	if (file && fclose(file) != 0)
		rc = -errno;
	json_decref(root);
	return rc ? model_fail(rc, "%s: %s", path, strerror(-rc)) : 0;
}
