/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts: options and their errors, params of another size, the lists of backends and options.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "conformance/conformance.h"

static int bare(const struct conf *conf, rank_fn fn)
{
	struct ranks_opts opts = conf->opts;

	opts.bare = 1;
	return ranks_run(1, fn, NULL, &opts);
}

static int open_with(struct rank *rank, const char *option)
{
	const char *options[] = {option, NULL};
	struct m2n_ctx_params params = M2N_CTX_PARAMS_INIT;
	struct m2n_ctx *ctx = NULL;
	int status;

	params.backend = rank->backend;
	params.options = options;
	status = m2n_ctx_open(&params, &ctx);
	if (status == 0)
		m2n_ctx_close(ctx);
	else
		expect(ctx == NULL);
	return status;
}

static void check_options(struct rank *rank)
{
	expect_status(M2N_ERR_OPTION, open_with(rank, "TIMEOUT=soon"));
	expect_text("TIMEOUT");
	expect_text("soon");
	expect_text("1ms..1h");
	expect_status(M2N_ERR_OPTION, open_with(rank, "SPIN=2s"));
	expect_text("SPIN");
	expect_text("0..1s");
	expect_status(M2N_ERR_OPTION, open_with(rank, "TIMOUT=1s"));
	expect_text("TIMOUT");
	expect_text("TIMEOUT");
	expect_status(M2N_ERR_OPTION, open_with(rank, "HUGE_PAGES=maybe"));
	expect_text("no|try|yes");
	expect_status(M2N_ERR_OPTION, open_with(rank, "SIGNALS=-1"));
	expect_status(M2N_ERR_OPTION, open_with(rank, "SIGNALS"));
	expect_status(M2N_ERR_OPTION, open_with(rank, "SIGNALS="));
	expect_status(M2N_ERR_OPTION, open_with(rank, "SIGNALS=99999999999999999999999"));
	expect_ok(open_with(rank, "SIGNALS=64"));
	expect_ok(open_with(rank, "TIMEOUT=250ms"));
}

static int options(const struct conf *conf)
{
	return bare(conf, check_options);
}

static void check_unknown_backend(struct rank *rank)
{
	struct m2n_ctx_params params = M2N_CTX_PARAMS_INIT;
	struct m2n_ctx *ctx = NULL;
	int status;

	(void)rank;
	params.backend = "nosuch";
	status = m2n_ctx_open(&params, &ctx);
	expect(status == M2N_ERR_BACKEND || status == M2N_ERR_OPTION);
	expect_text("nosuch");
	expect(ctx == NULL);
	params.backend = "fault:nosuch";
	status = m2n_ctx_open(&params, &ctx);
	expect(status == M2N_ERR_BACKEND || status == M2N_ERR_OPTION);
	expect_text("nosuch");
}

static int unknown_backend(const struct conf *conf)
{
	return bare(conf, check_unknown_backend);
}

static void check_sizes(struct rank *rank)
{
	struct {
		struct m2n_ctx_params known;
		uint64_t tail;
	} params = {M2N_CTX_PARAMS_INIT, 0};
	struct m2n_ctx *ctx = NULL;

	params.known.backend = rank->backend;
	params.known.size = sizeof(params);
	expect_ok(m2n_ctx_open(&params.known, &ctx));
	m2n_ctx_close(ctx);
	ctx = NULL;
	params.tail = 1;
	expect_status(-EINVAL, m2n_ctx_open(&params.known, &ctx));
	expect(ctx == NULL);
	params.known.size = offsetof(struct m2n_ctx_params, log);
	expect_ok(m2n_ctx_open(&params.known, &ctx));
	m2n_ctx_close(ctx);
	params.known.size = 0;
	expect_status(-EINVAL, m2n_ctx_open(&params.known, &ctx));
	m2n_ctx_close(NULL);
}

static int sizes(const struct conf *conf)
{
	return bare(conf, check_sizes);
}

static void check_option_list(struct rank *rank)
{
	struct m2n_option_attr option;
	const char *origin;
	char value[256];
	unsigned n = 0;

	while (m2n_option_at(n, &option) == 0) {
		expect(option.name[0] && option.type[0] && option.range[0] && option.about[0]);
		expect_ok(m2n_ctx_option(rank->ctx, option.name, value, sizeof(value), &origin));
		if (!strcmp(option.name, "SECRET"))
			expect(!strcmp(value, "***"));
		n++;
	}
	expect(n >= 15);
	expect_status(-ENOENT, m2n_option_at(n, &option));
	expect_ok(m2n_ctx_option(rank->ctx, "BACKEND", value, sizeof(value), &origin));
	expect(!strcmp(value, rank->backend) && !strcmp(origin, "params"));
	expect_ok(m2n_ctx_option(rank->ctx, "TIMEOUT", value, sizeof(value), &origin));
	expect(!strcmp(value, "20s") && !strcmp(origin, "params"));
	expect_ok(m2n_ctx_option(rank->ctx, "KERNELS", value, sizeof(value), NULL));
	expect_status(-ENOSPC, m2n_ctx_option(rank->ctx, "KERNELS", value, 2, NULL));
	expect_status(-ENOENT, m2n_ctx_option(rank->ctx, "NO_SUCH", value, sizeof(value), NULL));
}

static void check_lists(struct rank *rank)
{
	static const char *const more[] = {"TIMEOUT=20s", "SECRET=abc", NULL};
	struct m2n_ctx_params params = M2N_CTX_PARAMS_INIT;
	const char *inner = strchr(rank->backend, ':');
	struct m2n_backend_attr attr;
	unsigned n = 0;
	int found = 0;

	params.backend = rank->backend;
	params.options = more;
	expect_ok(m2n_ctx_open(&params, &rank->ctx));
	check_option_list(rank);
	for (; m2n_ctx_backend_at(rank->ctx, n, &attr) == 0; n++) {
		expect(attr.name[0] && attr.about[0] && attr.reason);
		found |= attr.usable && (!strcmp(attr.name, rank->backend) ||
						(inner && (!strcmp(attr.name, inner + 1) ||
								  !strcmp(attr.name, "fault"))));
	}
	expect(found);
	expect_status(-ENOENT, m2n_ctx_backend_at(rank->ctx, n, &attr));
	expect(m2n_ctx_progress(rank->ctx) >= 0);
	m2n_ctx_close(rank->ctx);
	expect(m2n_version()[0]);
	expect(m2n_wire_version() > 0);
}

static int list_all(const struct conf *conf)
{
	return bare(conf, check_lists);
}

static void check_environment(struct rank *rank)
{
	static const char *const more[] = {"TIMEOUT=20s", NULL};
	struct m2n_ctx_params params = M2N_CTX_PARAMS_INIT;
	const char *origin;
	char value[64];

	setenv("M2N_TIMEOUT", "3s", 1);
	setenv("M2N_NO_SUCH_OPTION", "1", 1);
	params.backend = rank->backend;
	params.options = more;
	expect_ok(m2n_ctx_open(&params, &rank->ctx));
	expect_ok(m2n_ctx_option(rank->ctx, "TIMEOUT", value, sizeof(value), &origin));
	expect(!strcmp(value, "3s") && !strcmp(origin, "environment"));
	m2n_ctx_close(rank->ctx);
	setenv("M2N_TIMEOUT", "3 fortnights", 1);
	expect_status(M2N_ERR_OPTION, m2n_ctx_open(&params, &rank->ctx));
	expect_text("TIMEOUT");
	expect_text("environment");
}

static int environment(const struct conf *conf)
{
	return bare(conf, check_environment);
}

static void check_memory(struct rank *rank)
{
	struct m2n_mem *mem = NULL;
	void *base = NULL;
	uint8_t *bytes;
	static uint8_t own[5000];

	expect_ok(m2n_mem_alloc(rank->ctx, 100000, &mem, &base));
	bytes = base;
	for (size_t i = 0; i < 100000; i++)
		expect(bytes[i] == 0);
	expect_equal((uintptr_t)base % 4096, 0);
	memset(bytes, 7, 100000);
	m2n_mem_free(mem);
	expect_status(-EINVAL, m2n_mem_alloc(rank->ctx, 0, &mem, &base));
	expect_status(-ENOMEM, m2n_mem_alloc(rank->ctx, SIZE_MAX / 4, &mem, &base));
	expect_ok(m2n_mem_register(rank->ctx, own, sizeof(own), &mem));
	m2n_mem_deregister(mem);
	expect_status(-EINVAL, m2n_mem_register(rank->ctx, NULL, 100, &mem));
	expect_status(-EINVAL, m2n_mem_register(rank->ctx, own, 0, &mem));
	expect_status(-EINVAL, m2n_mem_register(rank->ctx, (void *)(uintptr_t)4096, 4096, &mem));
	m2n_mem_free(NULL);
	m2n_mem_deregister(NULL);
}

static int memory(const struct conf *conf)
{
	return ranks_run(1, check_memory, NULL, &conf->opts);
}

const struct conf_case context_cases[] = {
	{"context: option errors name option, value and range", 1, options, HOST_MEMORY},
	{"context: unknown backend", 1, unknown_backend, HOST_MEMORY},
	{"context: params of other sizes", 1, sizes, HOST_MEMORY},
	{"context: lists of options and backends", 1, list_all, HOST_MEMORY},
	{"context: the environment wins over params", 1, environment, HOST_MEMORY},
	{"memory: allocate, register, errors", 1, memory, HOST_MEMORY},
	{0},
};
