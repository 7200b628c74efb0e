/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `disagmoe_train generate`: the trainer's own words after a prompt, by the forward of training in
 * one process. It is what serving the checkpoint has to give as well.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "model/error.h"
#include "nn/reference.h"
#include "nn/state.h"
#include "report/options.h"

struct generate {
	const char *dir, *prompt;
	size_t n_tokens;
	int ids;
};

static const char *check(void *into, const unsigned char *given)
{
	const struct generate *g = into;

	(void)given;
	return g->dir && g->prompt ? NULL : "a checkpoint and a --prompt are wanted";
}

static void print_tokens(const uint32_t *tokens, size_t n, int ids)
{
	for (size_t i = 0; i < n; i++)
		if (ids)
			printf("%s%u", i ? "," : "", tokens[i]);
		else
			putchar((int)tokens[i]);
	putchar('\n');
}

static int generate(const struct generate *g)
{
	size_t n_prompt = strlen(g->prompt);
	uint32_t *tokens = calloc(n_prompt + g->n_tokens, sizeof(*tokens));
	struct nn_reference *reference = NULL;
	struct nn_state state;
	int rc = tokens ? nn_state_read(g->dir, &state) : model_fail(-1, "no memory");

	if (!rc) {
		state.settings.step_seqs = state.settings.n_micro_batches = 1;
		rc = nn_reference_open(&state.settings, &reference);
	}
	if (!rc)
		rc = nn_state_read_params(g->dir, reference->params);
	for (size_t i = 0; !rc && i < n_prompt; i++)
		tokens[i] = (unsigned char)g->prompt[i];
	if (!rc)
		rc = nn_reference_generate(reference, tokens, n_prompt, g->n_tokens);
	if (!rc)
		print_tokens(tokens + n_prompt, g->n_tokens, g->ids);
	nn_reference_close(reference);
	free(tokens);
	return rc;
}

int generate_main(int argc, char **argv)
{
	static const struct option_row rows[] = {
		{"prompt", 'p', "TEXT", "what is continued", OPTION_TEXT,
			offsetof(struct generate, prompt), 0, 0},
		{"tokens", 'n', "N", "to generate (40)", OPTION_SIZE,
			offsetof(struct generate, n_tokens), 1, 1e9},
		{"ids", 0, NULL, "prints token ids", OPTION_FLAG, offsetof(struct generate, ids), 0,
			0},
	};
	static const struct option_table table = {.rows = rows,
		.n_rows = sizeof(rows) / sizeof(rows[0]),
		.args_doc = "CHECKPOINT",
		.arg_offset = offsetof(struct generate, dir),
		.check = check,
		.doc = "Continues a prompt greedily with a checkpoint of `run`."};
	struct generate g = {.n_tokens = 40};
	int rc;

	options_parse(&table, argc, argv, &g);
	rc = generate(&g);
	if (rc)
		fprintf(stderr, "%s: %s\n", argv[0], model_error());
	return rc != 0;
}
