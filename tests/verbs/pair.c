/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two processes connected by the verbs backend.
 */
#include "verbs/pair.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backend/registry.h"
#include "core/option.h"

char pair_last_log[512];

static const char *no_environment(void *arg, const char *name)
{
	(void)arg, (void)name;
	return NULL;
}

static void keep_warning(void *arg, enum m2n_log_level level, const char *line)
{
	(void)arg;
	if (level <= M2N_LOG_WARN)
		snprintf(pair_last_log, sizeof(pair_last_log), "%s", line);
}

int pair_try_open(struct pair *p, struct rank *rank, const char *const *options)
{
	static char *const no_list[] = {NULL};
	struct m2n__iface_params params;
	char warning[128];
	int status;

	memset(p, 0, sizeof(*p));
	p->rank = rank;
	p->board = rank ? rank->shared : NULL;
	p->peer = rank ? rank->n_ranks - 1 - rank->rank : 0;
	m2n__backend_resolve(&m2n__backend_verbs, &p->ops);
	expect_ok(m2n__options_parse(&p->options, NULL, options, no_list, no_environment, NULL,
		warning, sizeof(warning)));
	expect_ok(m2n__mem_alloc(
		PAIR_N_SIGNALS * 8, PAIR_N_SIGNALS * 8, M2N__HUGE_NO, &p->signal_mem));
	p->signals = p->signal_mem->base;
	params = (struct m2n__iface_params){.options = &p->options,
		.log = keep_warning,
		.host_id = "host",
		.signals = p->signals,
		.signal_mem = p->signal_mem,
		.n_signals = PAIR_N_SIGNALS};
	status = p->ops.probe(&p->options);
	if (!status)
		status = p->ops.open(&params, &p->iface);
	if (!status) {
		p->iface->ops = &p->ops;
		return 0;
	}
	m2n__mem_free(p->signal_mem);
	m2n__options_clear(&p->options);
	return status;
}

void pair_open(struct pair *p, struct rank *rank, const char *const *options)
{
	expect_ok(pair_try_open(p, rank, options));
}

void pair_greet(struct pair *p)
{
	struct pair_board *board = p->board;
	int own = p->rank->rank;

	board->blob_bytes[own] = M2N__ADDRESS_BYTES;
	expect_ok(p->ops.address(p->iface, board->blob[own], &board->blob_bytes[own]));
	rank_barrier(p->rank);
	expect_ok(
		p->ops.connect(p->iface, board->blob[p->peer], board->blob_bytes[p->peer], &p->ep));
	p->ep->ops = &p->ops;
	board->greeting_bytes[own] = M2N__GREETING_BYTES;
	expect_ok(p->ops.greeting(p->ep, board->greeting[own], &board->greeting_bytes[own]));
	rank_barrier(p->rank);
	p->greeting_bytes = board->greeting_bytes[p->peer];
	memcpy(p->greeting, board->greeting[p->peer], p->greeting_bytes);
	rank_barrier(p->rank);
}

void pair_connect(struct pair *p)
{
	int status;

	pair_greet(p);
	expect_ok(p->ops.meet(p->ep, p->greeting, p->greeting_bytes));
	while ((status = p->ops.ready(p->ep)) == -EAGAIN)
		expect(p->ops.progress(p->iface) >= 0);
	expect_ok(status);
	rank_barrier(p->rank);
}

void pair_import(struct pair *p)
{
	struct pair_board *board = p->board;
	int own = p->rank->rank;

	board->key_bytes[own] = M2N__KEY_BYTES;
	expect_ok(p->ops.export_key(
		p->mr, 0, PAIR_MEM_BYTES, board->key[own], &board->key_bytes[own]));
	rank_barrier(p->rank);
	expect_ok(
		p->ops.import_key(p->ep, board->key[p->peer], board->key_bytes[p->peer], &p->rmem));
	rank_barrier(p->rank);
}

void pair_share(struct pair *p)
{
	expect_ok(m2n__mem_alloc(PAIR_MEM_BYTES, PAIR_MEM_BYTES, M2N__HUGE_NO, &p->mem));
	expect_ok(m2n__mem_alloc(PAIR_MEM_BYTES, PAIR_MEM_BYTES, M2N__HUGE_NO, &p->source_mem));
	expect_ok(p->ops.reg(p->iface, p->mem, &p->mr));
	expect_ok(p->ops.reg(p->iface, p->source_mem, &p->source_mr));
	pair_import(p);
}

void pair_close(struct pair *p)
{
	if (p->rank)
		rank_barrier(p->rank);
	if (p->rmem)
		p->ops.release_key(p->rmem);
	if (p->ep)
		p->ops.disconnect(p->ep);
	if (p->mr)
		p->ops.dereg(p->mr);
	if (p->source_mr)
		p->ops.dereg(p->source_mr);
	p->ops.close(p->iface);
	m2n__mem_free(p->mem);
	m2n__mem_free(p->source_mem);
	m2n__mem_free(p->signal_mem);
	m2n__options_clear(&p->options);
}

void pair_put(struct pair *p, struct m2n__put *put)
{
	int status;

	while ((status = p->ops.put(p->ep, put)) == -EAGAIN) {
		p->n_again++;
		expect(p->ops.progress(p->iface) >= 0);
	}
	expect_ok(status);
}

void pair_flush(struct pair *p)
{
	int status;

	while ((status = p->ops.flush(p->ep)) == -EAGAIN)
		expect(p->ops.progress(p->iface) >= 0);
	expect_ok(status);
}

void pair_arrived(struct pair *p)
{
	int status;

	while ((status = p->ops.arrived(p->ep)) == -EAGAIN)
		expect(p->ops.progress(p->iface) >= 0);
	expect_ok(status);
}
