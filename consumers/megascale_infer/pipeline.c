/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Servers with queues. Each has at most one micro-batch in work, so the next event is the earliest
 * end among them; equal ends go by the server's index, which makes runs repeatable. A micro-batch
 * is at most once in a queue, so that queues of m places never overflow.
 */
#include "pipeline.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "model/error.h"

struct server {
	size_t queue[PIPELINE_MAX_M], head, n_queued; /* the head is in work */
	double end, busy; /* end: INFINITY while idle */
};

enum { ATTENTION, OUT, BACK, EXPERTS };

struct pipeline {
	const struct pipeline_params *params;
	struct pipeline_result *result;
	struct server *servers; /* [EXPERTS + n_experts] */
	struct pipeline_step steps[PIPELINE_MAX_M];
	size_t n_pending[PIPELINE_MAX_M]; /* experts that have not finished it */
	double now;
};

static double duration(const struct pipeline *p, size_t idx, size_t micro_batch)
{
	const struct pipeline_times *times = &p->params->times;
	const struct pipeline_step *step = &p->steps[micro_batch];

	if (idx == ATTENTION)
		return times->attention(times->context, step);
	if (idx < EXPERTS)
		return times->transfer(times->context, step);
	return times->expert(times->context, step, idx - EXPERTS);
}

static void start(struct pipeline *p, size_t idx)
{
	struct server *server = &p->servers[idx];
	double seconds;

	if (!server->n_queued) {
		server->end = INFINITY;
		return;
	}
	seconds = duration(p, idx, server->queue[server->head]);
	server->busy += seconds;
	server->end = p->now + seconds;
}

static void arrive(struct pipeline *p, size_t idx, size_t micro_batch)
{
	struct server *server = &p->servers[idx];

	server->queue[(server->head + server->n_queued) % PIPELINE_MAX_M] = micro_batch;
	if (!server->n_queued++)
		start(p, idx);
}

static void end_layer(struct pipeline *p, size_t micro_batch)
{
	struct pipeline_step *step = &p->steps[micro_batch];

	if (++step->layer == p->params->n_layers) {
		p->result->finished[step->iteration * p->params->m + micro_batch] = p->now;
		step->layer = 0;
		step->iteration++;
	}
	if (step->iteration < p->params->n_iterations)
		arrive(p, ATTENTION, micro_batch);
}

/* Where a micro-batch goes from a server. */
static void leave(struct pipeline *p, size_t idx, size_t micro_batch)
{
	size_t n_experts = p->params->n_experts;

	if (idx == ATTENTION) {
		arrive(p, OUT, micro_batch);
	} else if (idx == OUT) {
		p->n_pending[micro_batch] = n_experts;
		for (size_t e = 0; e < n_experts; e++)
			arrive(p, EXPERTS + e, micro_batch);
	} else if (idx == BACK) {
		end_layer(p, micro_batch);
	} else if (!--p->n_pending[micro_batch]) {
		arrive(p, BACK, micro_batch);
	}
}

/* 0 when all are idle. */
static int next_event(struct pipeline *p)
{
	size_t first = 0, micro_batch;
	struct server *server;

	for (size_t i = 1; i < EXPERTS + p->params->n_experts; i++)
		if (p->servers[i].end < p->servers[first].end)
			first = i;
	server = &p->servers[first];
	if (isinf(server->end))
		return 0;
	p->now = server->end;
	micro_batch = server->queue[server->head];
	server->head = (server->head + 1) % PIPELINE_MAX_M;
	server->n_queued--;
	start(p, first);
	leave(p, first, micro_batch);
	return 1;
}

static void sum_up(const struct pipeline *p)
{
	struct pipeline_result *result = p->result;
	size_t n_experts = p->params->n_experts;

	result->first = result->finished[0];
	result->total = 0;
	for (size_t i = 0; i < p->params->m; i++)
		result->total = fmax(result->total, result->finished[i]);
	result->attention_busy = p->servers[ATTENTION].busy / p->now;
	result->network_busy = (p->servers[OUT].busy + p->servers[BACK].busy) / 2 / p->now;
	result->expert_busy = result->busiest_expert = 0;
	for (size_t i = 0; i < n_experts; i++) {
		double busy = p->servers[EXPERTS + i].busy / p->now;

		result->expert_busy += busy / (double)n_experts;
		result->busiest_expert = fmax(result->busiest_expert, busy);
	}
}

int pipeline_run(const struct pipeline_params *params, struct pipeline_result *result)
{
	struct pipeline p = {.params = params, .result = result};
	size_t n_servers = EXPERTS + params->n_experts;

	p.servers = calloc(n_servers, sizeof(*p.servers));
	result->finished = calloc(params->n_iterations * params->m, sizeof(double));
	if (!p.servers || !result->finished) {
		free(p.servers);
		pipeline_result_free(result);
		return model_fail(-ENOMEM, "no memory for %zu iterations", params->n_iterations);
	}
	for (size_t i = 0; i < n_servers; i++)
		p.servers[i].end = INFINITY;
	for (size_t i = 0; i < params->m; i++) {
		p.steps[i].micro_batch = i;
		arrive(&p, ATTENTION, i);
	}
	while (next_event(&p))
		;
	sum_up(&p);
	free(p.servers);
	return 0;
}

void pipeline_result_free(struct pipeline_result *result)
{
	free(result->finished);
	result->finished = NULL;
}

double pipeline_tpot(const struct pipeline_params *params, const struct pipeline_result *result)
{
	size_t last = params->n_iterations - 1;
	double sum = 0;

	for (size_t i = 0; i < params->m; i++)
		sum += result->finished[last * params->m + i] - (last ? result->finished[i] : 0);
	return sum / (double)params->m / (double)(last ? last : 1);
}
