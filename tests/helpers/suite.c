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

#include "kernel/gpu.h"

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
			!strncmp(environ[i], "M2N_DOUBLE_", 11) || n >= sizeof(name)) {
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

/* A channel needs the kernels too. */
static void probe_device(struct rank *rank)
{
	struct m2n_mem *mem;
	void *base;
	int status = m2n_mem_alloc_on(rank->ctx, M2N_MEMORY_CUDA, 1, &mem, &base);

	if (status == M2N_ERR_BACKEND)
		rank_skip(m2n_error_text());
	expect_ok(status);
	m2n_mem_free(mem);
	if (!m2n__gpu_image)
		rank_skip("this build has no kernels for GPUs (nvcc)");
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
	if (rank->memory == M2N_MEMORY_CUDA)
		probe_device(rank);
	m2n_ctx_close(rank->ctx);
}

static int is_usable(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;

	opts.bare = 1;
	opts.uses_device = 0; /* a reason is wanted, not a failure */
	opts.no_leak_check = 1;
	return ranks_run(1, probe, NULL, &opts);
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

static int is_for(const struct conf *conf, const struct conf_case *one)
{
	return one->scope == ANY_MEMORY ||
	       (one->scope == CUDA_MEMORY) == (conf->memory == M2N_MEMORY_CUDA);
}

static unsigned run_all(const struct conf *conf, const struct conf_case *const *lists,
	const char *words, int count_only, int *failed)
{
	unsigned n = 0;

	for (size_t i = 0; lists[i]; i++) {
		for (const struct conf_case *one = lists[i]; one->name; one++) {
			if ((words && !strstr(one->name, words)) || !is_for(conf, one))
				continue;
			n++;
			if (!count_only)
				*failed |= run_case(conf, one, n);
		}
	}
	return n;
}

/* "memory:backend", and what a run on it needs. */
static void choose(struct conf *conf, const char *argument)
{
	int on_device = !strcmp(argument, "cuda_ipc") || !strcmp(argument, "nccl");

	if (!strncmp(argument, "host:", 5) || !strncmp(argument, "cuda:", 5)) {
		on_device = argument[0] == 'c';
		argument += 5;
	}
	conf->backend = conf->opts.backend = argument;
	conf->memory = conf->opts.memory = on_device ? M2N_MEMORY_CUDA : M2N_MEMORY_HOST;
	conf->faulty = !strncmp(argument, "fault:", 6);
	conf->messaging = conf->faulty || !strcmp(argument, "verbs") || !strcmp(argument, "ucx") ||
			  !strcmp(argument, "nccl");
	conf->opts.options = conf->faulty ? fault_options : plain_options;
	if (!on_device && strcmp(argument, "cuda_ipc"))
		return;
	conf->opts.uses_device = 1;
	setenv("M2N_CUDA_DEVICE", "0", 0);
	if (!strcmp(argument, "nccl")) { /* all ranks are on one device */
		setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
		setenv("NCCL_MAX_CTAS", "2", 0);
		setenv("NCCL_NVLS_ENABLE", "0", 0);
		conf->opts.nccl_hosts = getenv("TESTS_NCCL_HOSTS") != NULL;
	}
	/* Streams that share a hardware queue wait for each other; a rank has several. */
	setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
}

int suite_main(int argc, char **argv, const struct conf_case *const *lists)
{
	struct conf conf = {0};
	int failed = 0;
	int usable;

	if (argc < 2) {
		fprintf(stderr, "usage: %s [MEMORY:]BACKEND [WORDS]\n", argv[0]);
		return 2;
	}
	forget_options();
	set_options(getenv("TESTS_OPTIONS"));
	choose(&conf, argv[1]);
	usable = is_usable(&conf);
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
