/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of m2n_model: sizes of a model by one table, the rest by name.
 */
#include "args.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

const char model_usage[] =
	"usage: m2n_model make [--config FILE] [SIZES] [--dtype f32|bf16|f16] [--seed N]\n"
	"                      [--std X] [--shard-bytes N] DIR\n"
	"       m2n_model run DIR --prompt-ids 1,2,3 | --prompt-bytes TEXT [--tokens N]\n"
	"                      [--logits FILE] [--chunk N] [--rows f32|bf16]\n"
	"                      [--temperature X] [--top-p X] [--seed N]\n"
	"       m2n_model info DIR\n"
	"\n"
	"make   writes a checkpoint with random weights. SIZES: --vocab --hidden --intermediate\n"
	"       --layers --heads --kv-heads --head-dim --experts --top-k --max-positions\n"
	"       --window N, --rope-theta X --eps X --tie\n"
	"run    prints the prompt's continuation, as token ids, greedily unless --temperature is\n"
	"       given. --logits: f32 [tokens seen, vocabulary]. --chunk: rows of a prefill step.\n"
	"       --rows: what rows between attention and experts are rounded to\n"
	"info   prints what a checkpoint holds\n";

enum {
	OPT_CONFIG = 256, OPT_DTYPE, OPT_SEED, OPT_STD, OPT_SHARD, OPT_IDS, OPT_BYTES, OPT_TOKENS,
	OPT_LOGITS, OPT_CHUNK, OPT_ROWS, OPT_TEMPERATURE, OPT_TOP_P, OPT_THETA, OPT_EPS, OPT_TIE,
	OPT_HELP,
	OPT_SIZE, /* and what follows: sizes[] */
};

static const size_t sizes[] = {
	offsetof(struct model_config, vocab_size),
	offsetof(struct model_config, hidden_size),
	offsetof(struct model_config, intermediate_size),
	offsetof(struct model_config, n_layers),
	offsetof(struct model_config, n_heads),
	offsetof(struct model_config, n_kv_heads),
	offsetof(struct model_config, head_dim),
	offsetof(struct model_config, n_experts),
	offsetof(struct model_config, top_k),
	offsetof(struct model_config, max_positions),
	offsetof(struct model_config, sliding_window),
};

static const struct option options[] = {
	{"config", 1, NULL, OPT_CONFIG}, {"dtype", 1, NULL, OPT_DTYPE},
	{"seed", 1, NULL, OPT_SEED}, {"std", 1, NULL, OPT_STD},
	{"shard-bytes", 1, NULL, OPT_SHARD}, {"prompt-ids", 1, NULL, OPT_IDS},
	{"prompt-bytes", 1, NULL, OPT_BYTES}, {"tokens", 1, NULL, OPT_TOKENS},
	{"logits", 1, NULL, OPT_LOGITS}, {"chunk", 1, NULL, OPT_CHUNK},
	{"rows", 1, NULL, OPT_ROWS}, {"temperature", 1, NULL, OPT_TEMPERATURE},
	{"top-p", 1, NULL, OPT_TOP_P}, {"rope-theta", 1, NULL, OPT_THETA},
	{"eps", 1, NULL, OPT_EPS}, {"tie", 0, NULL, OPT_TIE}, {"help", 0, NULL, OPT_HELP},
	{"vocab", 1, NULL, OPT_SIZE}, {"hidden", 1, NULL, OPT_SIZE + 1},
	{"intermediate", 1, NULL, OPT_SIZE + 2}, {"layers", 1, NULL, OPT_SIZE + 3},
	{"heads", 1, NULL, OPT_SIZE + 4}, {"kv-heads", 1, NULL, OPT_SIZE + 5},
	{"head-dim", 1, NULL, OPT_SIZE + 6}, {"experts", 1, NULL, OPT_SIZE + 7},
	{"top-k", 1, NULL, OPT_SIZE + 8}, {"max-positions", 1, NULL, OPT_SIZE + 9},
	{"window", 1, NULL, OPT_SIZE + 10}, {NULL, 0, NULL, 0},
};

static int parse_count(const char *name, const char *text, uint64_t max, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || *value > max)
		return model_fail(-EINVAL, "--%s: '%s' is no whole number up to %llu", name, text,
			(unsigned long long)max);
	return 0;
}

static int parse_real(const char *name, const char *text, double *value)
{
	char *end;

	*value = strtod(text, &end);
	if (end == text || *end || !isfinite(*value) || *value < 0)
		return model_fail(-EINVAL, "--%s: '%s' is no number from 0", name, text);
	return 0;
}

static int parse_type(const char *name, const char *text, enum model_dtype *dtype)
{
	enum model_dtype found = model_dtype_parse(text);

	if (found == MODEL_OTHER)
		return model_fail(-EINVAL, "--%s: '%s' is none of f32, bf16, f16", name, text);
	*dtype = found;
	return 0;
}

static int set_prompt(struct model_args *args, size_t n_tokens)
{
	free(args->prompt);
	args->n_prompt = 0;
	args->prompt = malloc(n_tokens * sizeof(uint32_t) + 1);
	return args->prompt ? 0 : model_fail(-ENOMEM, "no memory for the prompt");
}

static int parse_ids(struct model_args *args, const char *text)
{
	const char *at = text;
	int rc = set_prompt(args, strlen(text) + 1);

	while (!rc) {
		char *end;
		unsigned long id;

		errno = 0;
		id = strtoul(at, &end, 10);
		if (end == at || *at == '-' || errno || id > UINT32_MAX || (*end && *end != ','))
			return model_fail(-EINVAL, "--prompt-ids: '%.32s' is no token id", at);
		args->prompt[args->n_prompt++] = (uint32_t)id;
		if (!*end)
			break;
		at = end + 1;
	}
	return rc;
}

static int parse_bytes(struct model_args *args, const char *text)
{
	int rc = set_prompt(args, strlen(text));

	for (; !rc && *text; text++)
		args->prompt[args->n_prompt++] = (unsigned char)*text;
	return rc;
}

static int take_size(struct model_args *args, const char *name, size_t which, const char *text)
{
	uint64_t value;
	int rc = parse_count(name, text, UINT32_MAX, &value);
	uint32_t narrow = (uint32_t)value;

	if (!rc)
		memcpy((char *)&args->config + sizes[which], &narrow, sizeof(narrow));
	return rc;
}

static int take_config(struct model_args *args, int option, const char *name, const char *text)
{
	switch (option) {
	case OPT_CONFIG:
		return model_config_read(text, &args->config);
	case OPT_DTYPE:
		return parse_type(name, text, &args->config.dtype);
	case OPT_THETA:
		return parse_real(name, text, &args->config.rope_theta);
	case OPT_EPS:
		return parse_real(name, text, &args->config.rms_norm_eps);
	case OPT_TIE:
		args->config.tie_word_embeddings = 1;
		return 0;
	default:
		return take_size(args, name, (size_t)(option - OPT_SIZE), text);
	}
}

static int take(struct model_args *args, int option, const char *name, const char *text)
{
	uint64_t count = 0;
	int rc;

	switch (option) {
	case OPT_SEED:
		return parse_count(name, text, UINT64_MAX, &args->seed);
	case OPT_STD:
		return parse_real(name, text, &args->std);
	case OPT_TEMPERATURE:
		return parse_real(name, text, &args->temperature);
	case OPT_TOP_P:
		return parse_real(name, text, &args->top_p);
	case OPT_IDS:
		return parse_ids(args, text);
	case OPT_BYTES:
		return parse_bytes(args, text);
	case OPT_ROWS:
		return parse_type(name, text, &args->row_dtype);
	case OPT_LOGITS:
		args->logits_path = text;
		return 0;
	case OPT_SHARD:
	case OPT_TOKENS:
	case OPT_CHUNK:
		rc = parse_count(name, text, UINT32_MAX * 1024ull, &count);
		*(option == OPT_SHARD ? &args->max_shard_bytes :
			option == OPT_TOKENS ? &args->n_tokens : &args->chunk) = (size_t)count;
		return rc;
	default:
		return take_config(args, option, name, text);
	}
}

int model_args_parse(int argc, char **argv, struct model_args *args)
{
	int option, index = 0, rc = 0;

	*args = (struct model_args){.n_tokens = 16, .chunk = 64, .top_p = 1};
	model_config_default(&args->config);
	while (!rc && (option = getopt_long(argc, argv, ":", options, &index)) != -1) {
		if (option == OPT_HELP)
			return 1;
		if (option == '?' || option == ':')
			return model_fail(-EINVAL, "option %s %s", argv[optind - 1],
				option == '?' ? "is unknown" : "needs a value");
		rc = take(args, option, options[index].name, optarg);
	}
	if (rc)
		return rc;
	if (argc - optind != 2)
		return model_fail(-EINVAL, "a command and a directory are wanted");
	args->command = argv[optind];
	args->dir = argv[optind + 1];
	if (args->chunk == 0)
		return model_fail(-EINVAL, "--chunk: 0 rows are none");
	return 0;
}

void model_args_free(struct model_args *args)
{
	free(args->prompt);
	args->prompt = NULL;
}
