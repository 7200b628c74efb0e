/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two sides in step: what both call has a barrier wherever one reads what the other wrote.
 */
#include "side.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/registry.h"
#include "core/option.h"
#include "helpers/leak.h"
#include "kernel/kernel.h"
#include "mem/cuda.h"

static const struct m2n__backend_ops *find(const char *name)
{
	for (size_t i = 0; m2n__backends[i]; i++) {
		if (!strcmp(m2n__backends[i]->name, name))
			return m2n__backends[i];
	}
	rank_fail(__FILE__, __LINE__, "no backend named %s", name);
}

static void resolve(struct side *side, const char *name)
{
	if (!strncmp(name, "fault:", 6)) {
		m2n__backend_resolve(find(name + 6), &side->inner);
		m2n__fault_wrap(&side->inner);
		m2n__backend_resolve(&m2n__backend_fault, &side->ops);
	} else {
		m2n__backend_resolve(find(name), &side->ops);
	}
}

int side_needs_device(const char *backend)
{
	return strstr(backend, "cuda_ipc") != NULL || strstr(backend, "nccl") != NULL;
}

void side_run(struct rank *rank, int needs_device, rank_fn fn)
{
	struct leak_state before;
	struct m2n__cuda *cuda;
	struct m2n__mem *mem;

	if (needs_device) {
		if (m2n__cuda_open(0, &cuda))
			rank_skip(m2n_error_text());
		expect_ok(m2n__mem_alloc_cuda(cuda, 1, &mem));
		m2n__mem_free(mem);
		m2n__cuda_close(cuda);
	}
	leak_take(&before);
	fn(rank);
	leak_check(&before);
}

/* Those of TESTS_OPTIONS, as for the suites of helpers/suite.c; `text` holds them. */
static void list_options(char *text, size_t text_bytes, const char **list, size_t max)
{
	const char *all = getenv("TESTS_OPTIONS");
	char *rest = text;
	size_t n = 0;

	snprintf(text, text_bytes, "%s", all ? all : "");
	while (n + 1 < max && (list[n] = strtok_r(rest, " ", &rest)))
		n++;
	list[n] = NULL;
}

static const char *no_environment(void *arg, const char *name)
{
	(void)arg;
	(void)name;
	return NULL;
}

static void no_log(void *arg, enum m2n_log_level level, const char *line)
{
	(void)arg;
	(void)level;
	(void)line;
}

void side_open(struct side *side, struct rank *rank, int device)
{
	static char *const no_list[] = {NULL};
	struct m2n__iface_params params;
	char warning[128], text[256];
	const char *list[16];

	list_options(text, sizeof(text), list, 16);
	memset(side, 0, sizeof(*side));
	side->rank = rank;
	side->board = rank->shared;
	side->peer = rank->n_ranks - 1 - rank->rank;
	resolve(side, rank->backend);
	expect_ok(m2n__options_parse(&side->options, NULL, list, no_list, no_environment, NULL,
		warning, sizeof(warning)));
	if (side->ops.probe(&side->options))
		rank_skip(m2n_error_text());
	expect_ok(m2n__mem_alloc(N_SIGNALS * 8, N_SIGNALS * 8, M2N__HUGE_NO, &side->signal_mem));
	side->signals = side->signal_mem->base;
	params = (struct m2n__iface_params){.options = &side->options,
		.log = no_log,
		.host_id = "host",
		.signals = side->signals,
		.signal_mem = side->signal_mem,
		.n_signals = N_SIGNALS,
		.kernels = m2n__kernels_select(NULL)};
	if (device >= 0)
		expect_ok(m2n__cuda_open(device, &side->cuda));
	params.cuda = side->cuda;
	expect_ok(side->ops.open(&params, &side->iface));
	side->iface->ops = &side->ops;
}

static void greet_side(struct side *side)
{
	struct board *board = side->board;
	int own = side->rank->rank, status;

	board->greeting_bytes[own] = M2N__GREETING_BYTES;
	expect_ok(side->ops.greeting(side->ep, board->greeting[own], &board->greeting_bytes[own]));
	expect(board->greeting_bytes[own] <= M2N__GREETING_BYTES);
	rank_barrier(side->rank);
	expect_ok(side->ops.meet(
		side->ep, board->greeting[side->peer], board->greeting_bytes[side->peer]));
	while ((status = side->ops.ready(side->ep)) == -EAGAIN)
		expect(side->ops.progress(side->iface) >= 0);
	expect_ok(status);
}

void side_connect(struct side *side)
{
	struct board *board = side->board;
	int own = side->rank->rank;

	board->blob_bytes[own] = M2N__ADDRESS_BYTES;
	expect_ok(side->ops.address(side->iface, board->blob[own], &board->blob_bytes[own]));
	expect(board->blob_bytes[own] <= M2N__ADDRESS_BYTES);
	rank_barrier(side->rank);
	expect_equal(side->ops.reaches(
			     side->iface, board->blob[side->peer], board->blob_bytes[side->peer]),
		1);
	expect_ok(side->ops.connect(
		side->iface, board->blob[side->peer], board->blob_bytes[side->peer], &side->ep));
	side->ep->ops = &side->ops;
	if (side->ops.caps & M2N__CAP_GREETS)
		greet_side(side);
	expect_ok(side->ops.check(side->ep));
}

void side_share(struct side *side)
{
	struct board *board = side->board;
	int own = side->rank->rank;

	expect_ok(m2n__mem_alloc(MEM_BYTES, MEM_BYTES, M2N__HUGE_NO, &side->mem));
	expect_ok(side->ops.reg(side->iface, side->mem, &side->mr));
	expect_ok(m2n__mem_alloc(MEM_BYTES, MEM_BYTES, M2N__HUGE_NO, &side->source_mem));
	expect_ok(side->ops.reg(side->iface, side->source_mem, &side->source_mr));
	side->source = side->source_mem->base;
	board->key_bytes[own] = M2N__KEY_BYTES;
	expect_ok(side->ops.export_key(
		side->mr, KEY_AT, KEY_SPAN, board->key[own], &board->key_bytes[own]));
	expect(board->key_bytes[own] <= M2N__KEY_BYTES);
	rank_barrier(side->rank);
	expect_ok(side->ops.import_key(
		side->ep, board->key[side->peer], board->key_bytes[side->peer], &side->rmem));
	expect_equal(side->rmem->bytes, KEY_SPAN);
	expect((side->rmem->ptr != NULL) == ((side->ops.caps & M2N__CAP_MAPPED) != 0));
}

void side_close(struct side *side)
{
	rank_barrier(side->rank); /* nobody uses the other's memory any more */
	if (side->rmem)
		side->ops.release_key(side->rmem);
	if (side->ep)
		side->ops.disconnect(side->ep);
	if (side->mr)
		side->ops.dereg(side->mr);
	if (side->source_mr)
		side->ops.dereg(side->source_mr);
	side->ops.close(side->iface);
	m2n__mem_free(side->mem);
	m2n__mem_free(side->source_mem);
	m2n__mem_free(side->signal_mem);
	m2n__cuda_close(side->cuda);
	m2n__options_clear(&side->options);
}
