/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs lists of cases. Options of the caller's environment are forgotten first: they would win
 * over what the cases ask for. Those of TESTS_OPTIONS (NAME=VALUE, separated by blanks) are meant
 * to win, and take their place. The interposer gets legal faults only (delays, another order), so
 * that every case must pass under it too.
 */
#include "helpers/suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static const char *const plain_options[] = {"TIMEOUT=20s", NULL};
static const char *const fault_options[] = {
	"TIMEOUT=20s",
	"FAULT=delay=100us,reorder=0.3,seed=7",
	NULL,
};

/* The environment wins over params, so nothing of the caller's may reach the ranks. */
static void forget_options(void)
{
	char name[128];

	for (int i = 0; environ[i];) {
		size_t n = strcspn(environ[i], "=");

		if (strncmp(environ[i], "M2N_", 4) || !strncmp(environ[i], "M2N_DATA=", 9) ||
			n >= sizeof(name)) {
			i++;
			continue;
		}
		memcpy(name, environ[i], n);
		name[n] = '\0';
		unsetenv(name);
	}
}

static void set_options(const char *text)
{
	char name[128] = "M2N_";
	char value[256];
	int n;

	while (text && sscanf(text, " %119[A-Z_0-9]=%255s%n", name + 4, value, &n) == 2) {
		setenv(name, value, 1);
		text += n;
	}
	if (text && text[strspn(text, " ")]) {
		fprintf(stderr, "TESTS_OPTIONS: \"%s\" is not NAME=VALUE\n", text);
		exit(1);
	}
}

static void probe(struct rank *rank)
{
	struct m2n_ctx_params params = M2N_CTX_PARAMS_INIT;
	int status;

	params.backend = rank->backend;
	params.options = rank->options;
	status = m2n_ctx_open(&params, &rank->ctx);
	if (status == M2N_ERR_BACKEND)
		rank_skip(m2n_error_text());
	expect_ok(status);
	m2n_ctx_close(rank->ctx);
}

static int run_case(const struct conf *conf, const struct conf_case *one, unsigned number)
{
	int single = strstr(conf->backend, "self") != NULL;
	int result;

	if (single && one->n_ranks > 1) {
		printf("ok %u - %s # SKIP needs %d ranks\n", number, one->name, one->n_ranks);
		return 0;
	}
	result = one->run(conf);
	printf("%s %u - %s%s\n", result == 0 || result == RANKS_SKIP ? "ok" : "not ok", number,
		one->name, result == RANKS_SKIP ? " # SKIP see above" : "");
	fflush(stdout);
	return result != 0 && result != RANKS_SKIP;
}

static unsigned run_all(const struct conf *conf, const struct conf_case *const *lists,
	const char *words, int count_only, int *failed)
{
	unsigned n = 0;

	for (size_t i = 0; lists[i]; i++) {
		for (const struct conf_case *one = lists[i]; one->name; one++) {
			if (words && !strstr(one->name, words))
				continue;
			n++;
			if (!count_only)
				*failed |= run_case(conf, one, n);
		}
	}
	return n;
}

int suite_main(int argc, char **argv, const struct conf_case *const *lists)
{
	struct conf conf = {0};
	int failed = 0;
	int usable;

	if (argc < 2) {
		fprintf(stderr, "usage: %s BACKEND [WORDS]\n", argv[0]);
		return 2;
	}
	forget_options();
	set_options(getenv("TESTS_OPTIONS"));
	conf.backend = argv[1];
	conf.faulty = !strncmp(argv[1], "fault:", 6);
	conf.messaging =
		conf.faulty || !strcmp(argv[1], "verbs") || !strcmp(argv[1], "ucx");
	conf.opts.backend = argv[1];
	conf.opts.options = conf.faulty ? fault_options : plain_options;
	conf.opts.bare = 1;
	usable = ranks_run(1, probe, NULL, &conf.opts);
	conf.opts.bare = 0;
	if (usable == RANKS_SKIP) {
		printf("1..0 # SKIP backend %s cannot be used here\n", conf.backend);
		return RANKS_SKIP;
	}
	if (usable)
		printf("# %s does not open\n", conf.backend);
	printf("1..%u\n", run_all(&conf, lists, argc > 2 ? argv[2] : NULL, 1, &failed));
	fflush(stdout);
	run_all(&conf, lists, argc > 2 ? argv[2] : NULL, 0, &failed);
	return failed || usable;
}
