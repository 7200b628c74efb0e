/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations become tasks with an order, boundaries between stages become transfers; the engine
 * does the rest. A worker's gap before an operation counts as communication that shows as far as
 * the last input was on its way, waiting for a link included, and as bubble before that.
 */
#include "planner/steps.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "sim_engine.h"

#define NOWHERE SIZE_MAX

struct building {
	const struct steps_model *model;
	const struct steps_op *ops;
	size_t n_ops;
	struct sim sim;
	size_t *task_of[TRAIN_N_OPS]; /* [n_stages, n_micro]: task, or NOWHERE */
	double *sent; /* [n_ops]: when the last input of the operation set off, while it ran last */
	double *arrived;
};

static size_t *place(const struct building *b, enum train_op_kind kind, size_t stage, size_t micro)
{
	return &b->task_of[kind][stage * b->model->n_micro + micro];
}

static int open_building(struct building *b)
{
	size_t n = b->model->n_stages * b->model->n_micro;

	for (int kind = 0; kind < TRAIN_N_OPS; kind++) {
		b->task_of[kind] = malloc((n + 1) * sizeof(size_t));
		if (!b->task_of[kind])
			return -ENOMEM;
		for (size_t i = 0; i < n; i++)
			b->task_of[kind][i] = NOWHERE;
	}
	b->sent = calloc(b->n_ops + 1, sizeof(double));
	b->arrived = calloc(b->n_ops + 1, sizeof(double));
	return b->sent && b->arrived ? 0 : -ENOMEM;
}

static void close_building(struct building *b)
{
	for (int kind = 0; kind < TRAIN_N_OPS; kind++)
		free(b->task_of[kind]);
	free(b->sent);
	free(b->arrived);
	sim_close(&b->sim);
}

/* Task i of the engine is operation i. */
static int add_ops(struct building *b)
{
	size_t *last = malloc((b->model->n_workers + 1) * sizeof(*last));

	if (!last)
		return -ENOMEM;
	for (size_t w = 0; w < b->model->n_workers; w++)
		last[w] = NOWHERE;
	for (size_t i = 0; i < b->n_ops; i++) {
		const struct steps_op *op = &b->ops[i];
		size_t at = sim_add(&b->sim, (struct sim_task){.resource = op->worker,
			.other = SIM_NONE, .group = SIM_NONE, .seconds = op->seconds});

		for (size_t part = 0; part < op->n_parts; part++)
			*place(b, op->parts[part].kind, op->parts[part].stage,
				op->parts[part].micro) = at;
		if (last[op->worker] != NOWHERE)
			sim_after(&b->sim, last[op->worker], at);
		last[op->worker] = at;
	}
	free(last);
	return b->sim.failed;
}

/* `ways`: 1 and 2 for transfers, 3 and 4 for those beside them. */
static void connect(struct building *b, size_t from, size_t to, double seconds, int ways)
{
	int n = (int)b->model->n_workers, src, dst;
	size_t at;

	if (from == NOWHERE || to == NOWHERE || from == to)
		return;
	src = b->ops[from].worker;
	dst = b->ops[to].worker;
	if (src == dst || seconds <= 0) {
		sim_after(&b->sim, from, to);
		return;
	}
	at = sim_add(&b->sim, (struct sim_task){.resource = ways * n + src,
		.other = (ways + 1) * n + dst, .group = SIM_NONE, .priority = (long)to,
		.seconds = seconds});
	sim_after(&b->sim, from, at);
	sim_after(&b->sim, at, to);
}

static void connect_stage(struct building *b, size_t stage, size_t micro)
{
	const struct steps_model *m = b->model;
	size_t f = *place(b, TRAIN_FORWARD, stage, micro);
	size_t back = *place(b, TRAIN_BACKWARD, stage, micro);
	double seconds;

	connect(b, f, back, 0, 1);
	connect(b, back, *place(b, TRAIN_WEIGHTS, stage, micro), 0, 1);
	if (stage + 1 < m->n_stages) {
		connect(b, f, *place(b, TRAIN_FORWARD, stage + 1, micro),
			m->transfer(m->arg, stage, micro, 0), 1);
		connect(b, *place(b, TRAIN_BACKWARD, stage + 1, micro), back,
			m->transfer(m->arg, stage, micro, 1), 1);
	}
	if (stage + 2 >= m->n_stages || !m->beside)
		return;
	seconds = m->beside(m->arg, stage, micro, 0);
	if (seconds >= 0)
		connect(b, f, *place(b, TRAIN_FORWARD, stage + 2, micro), seconds, 3);
	seconds = m->beside(m->arg, stage, micro, 1);
	if (seconds >= 0)
		connect(b, *place(b, TRAIN_BACKWARD, stage + 2, micro), back, seconds, 3);
}

/* When the input that came last had been made, and when it was there. */
static void find_inputs(struct building *b)
{
	const struct sim *sim = &b->sim;

	for (size_t i = 0; i + 1 < sim->n_edges; i++) {
		size_t mid = sim->edges[2 * i + 1], op = sim->edges[2 * (i + 1) + 1];

		/* A transfer's two edges were made one after the other. */
		if (mid < b->n_ops || sim->edges[2 * (i + 1)] != mid || op >= b->n_ops ||
			sim->tasks[mid].end < b->arrived[op])
			continue;
		b->arrived[op] = sim->tasks[mid].end;
		b->sent[op] = sim->tasks[sim->edges[2 * i]].end;
	}
}

static void count_live(const struct steps_op *op, size_t *live, struct steps_worker *worker)
{
	/* There and back at once, as the head goes: nothing is kept. */
	if (op->n_parts == 2 && op->parts[0].stage == op->parts[1].stage &&
		op->parts[0].micro == op->parts[1].micro)
		return;
	for (size_t part = 0; part < op->n_parts; part++)
		*live += op->parts[part].kind == TRAIN_FORWARD;
	if (*live > worker->live)
		worker->live = *live;
	for (size_t part = 0; part < op->n_parts; part++)
		*live -= (size_t)op->parts[part].releases;
}

static int collect(struct building *b, struct steps_result *result)
{
	size_t n = b->model->n_workers, *live = calloc(n + 1, sizeof(*live));
	double *until = calloc(n + 1, sizeof(*until));
	struct steps_result made = {.workers = calloc(n + 1, sizeof(*made.workers)),
		.spans = calloc(b->n_ops + 1, sizeof(*made.spans))};

	for (size_t i = 0; live && until && made.workers && made.spans && i < b->n_ops; i++) {
		const struct steps_op *op = &b->ops[i];
		const struct sim_task *task = &b->sim.tasks[i];
		struct steps_worker *worker = &made.workers[op->worker];
		double from = fmax(until[op->worker], b->sent[i]);

		made.spans[i] = (struct steps_span){task->start, task->end};
		worker->busy += op->computing;
		worker->exposed += op->seconds - op->computing;
		if (b->arrived[i] > from)
			worker->exposed += b->arrived[i] - from;
		until[op->worker] = task->end;
		made.seconds = fmax(made.seconds, task->end);
		count_live(op, &live[op->worker], worker);
	}
	free(live);
	free(until);
	if (!live || !until || !made.workers || !made.spans) {
		steps_free(&made);
		return -ENOMEM;
	}
	for (size_t w = 0; w < n; w++)
		made.workers[w].bubble = made.seconds - made.workers[w].busy -
			made.workers[w].exposed;
	*result = made;
	return 0;
}

int steps_run(const struct steps_model *model, const struct steps_op *ops, size_t n_ops,
	struct steps_result *result)
{
	struct building b = {.model = model, .ops = ops, .n_ops = n_ops};
	int rc = sim_open(&b.sim, 0, 0);

	if (rc)
		return rc;
	rc = open_building(&b);
	if (!rc)
		rc = add_ops(&b);
	for (size_t stage = 0; !rc && stage < model->n_stages; stage++)
		for (size_t micro = 0; micro < model->n_micro; micro++)
			connect_stage(&b, stage, micro);
	if (!rc)
		rc = sim_run(&b.sim);
	if (!rc) {
		find_inputs(&b);
		rc = collect(&b, result);
	}
	close_building(&b);
	return rc;
}

void steps_free(struct steps_result *result)
{
	free(result->workers);
	free(result->spans);
	*result = (struct steps_result){0};
}
