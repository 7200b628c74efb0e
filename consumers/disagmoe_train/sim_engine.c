/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list scheduler. Ready tasks lie in one unsorted array: gates keep it short, and a pass over
 * it for each placed task is what gives the exact rule of sim_engine.h.
 */
#include "sim_engine.h"

#include <errno.h>
#include <stdlib.h>

struct run {
	struct sim *sim;
	size_t *ready, n_ready;
	size_t *first, *next; /* successors: next[first[task] .. first[task + 1]) */
	double *after; /* [n_tasks]: end of the last task waited for */
	double free_at[SIM_MAX_RESOURCES];
	size_t *left; /* [n_groups]: tasks not yet placed */
	size_t *open; /* [n_gates] */
	double *opened; /* [n_gates]: when the gate last let a group out */
};

int sim_open(struct sim *sim, size_t n_groups, size_t n_gates)
{
	*sim = (struct sim){.n_groups = n_groups, .n_gates = n_gates};
	sim->gate_of = calloc(n_groups + 1, sizeof(*sim->gate_of));
	sim->limits = calloc(n_gates + 1, sizeof(*sim->limits));
	if (sim->gate_of && sim->limits)
		return 0;
	sim_close(sim);
	return -ENOMEM;
}

void sim_close(struct sim *sim)
{
	free(sim->tasks);
	free(sim->edges);
	free(sim->order);
	free(sim->gate_of);
	free(sim->limits);
	*sim = (struct sim){0};
}

/* Room for one more in an array that doubles. */
static int grow(void **array, size_t n, size_t *max, size_t item_bytes)
{
	size_t wanted = *max ? 2 * *max : 1024;
	void *grown;

	if (n < *max)
		return 0;
	grown = realloc(*array, wanted * item_bytes);
	if (!grown)
		return -ENOMEM;
	*array = grown;
	*max = wanted;
	return 0;
}

size_t sim_add(struct sim *sim, struct sim_task task)
{
	void *tasks = sim->tasks;

	if (!sim->failed)
		sim->failed = grow(&tasks, sim->n_tasks, &sim->max_tasks, sizeof(task));
	sim->tasks = tasks;
	if (!sim->failed && (task.resource < 0 || task.resource >= SIM_MAX_RESOURCES ||
				    task.other >= SIM_MAX_RESOURCES))
		sim->failed = -EINVAL;
	if (sim->failed)
		return 0;
	sim->tasks[sim->n_tasks] = task;
	return sim->n_tasks++;
}

void sim_after(struct sim *sim, size_t before, size_t after)
{
	void *edges = sim->edges;

	if (!sim->failed)
		sim->failed = grow(&edges, sim->n_edges, &sim->max_edges, 2 * sizeof(size_t));
	sim->edges = edges;
	if (sim->failed)
		return;
	sim->edges[2 * sim->n_edges] = before;
	sim->edges[2 * sim->n_edges + 1] = after;
	sim->n_edges++;
	sim->tasks[after].n_waits++;
}

static void index_successors(struct run *run)
{
	const struct sim *sim = run->sim;

	for (size_t i = 0; i < sim->n_edges; i++)
		run->first[sim->edges[2 * i] + 1]++;
	for (size_t i = 0; i < sim->n_tasks; i++)
		run->first[i + 1] += run->first[i];
	/* Filled from the back, so that first[] ends where it began. */
	for (size_t i = 0; i < sim->n_edges; i++) {
		size_t before = sim->edges[2 * i];

		run->next[run->first[before] + --run->left[before]] = sim->edges[2 * i + 1];
	}
}

static double earliest(const struct run *run, size_t at)
{
	const struct sim_task *task = &run->sim->tasks[at];
	double start = run->after[at];

	if (run->free_at[task->resource] > start)
		start = run->free_at[task->resource];
	if (task->other != SIM_NONE && run->free_at[task->other] > start)
		start = run->free_at[task->other];
	if (task->opens && run->opened[run->sim->gate_of[task->group]] > start)
		start = run->opened[run->sim->gate_of[task->group]];
	return start;
}

static int barred(const struct run *run, const struct sim_task *task)
{
	const struct sim *sim = run->sim;

	return task->opens && run->open[sim->gate_of[task->group]] >=
		sim->limits[sim->gate_of[task->group]];
}

/* Place in `ready` of what starts first, or n_ready if all are barred. */
static size_t choose(const struct run *run, double *start)
{
	const struct sim_task *tasks = run->sim->tasks;
	size_t best = run->n_ready;

	for (size_t i = 0; i < run->n_ready; i++) {
		size_t at = run->ready[i], than = best < run->n_ready ? run->ready[best] : 0;
		double when = earliest(run, at);

		if (barred(run, &tasks[at]))
			continue;
		if (best == run->n_ready || when < *start ||
			(when <= *start && (tasks[at].priority < tasks[than].priority ||
			(tasks[at].priority == tasks[than].priority && at < than)))) {
			best = i;
			*start = when;
		}
	}
	return best;
}

static void place(struct run *run, size_t at, double start)
{
	struct sim *sim = run->sim;
	struct sim_task *task = &sim->tasks[at];
	int gate = task->group == SIM_NONE ? SIM_NONE : sim->gate_of[task->group];

	task->start = start;
	task->end = run->free_at[task->resource] = start + task->seconds;
	if (task->other != SIM_NONE)
		run->free_at[task->other] = task->end;
	if (task->opens)
		run->open[gate]++;
	if (gate != SIM_NONE && !--run->left[task->group]) {
		run->open[gate]--;
		run->opened[gate] = task->end > run->opened[gate] ? task->end : run->opened[gate];
	}
	for (size_t i = run->first[at]; i < run->first[at + 1]; i++) {
		size_t next = run->next[i];

		if (task->end > run->after[next])
			run->after[next] = task->end;
		if (!--sim->tasks[next].n_waits)
			run->ready[run->n_ready++] = next;
	}
}

static int place_all(struct run *run)
{
	struct sim *sim = run->sim;

	for (size_t i = 0; i < sim->n_tasks; i++) {
		if (!sim->tasks[i].n_waits)
			run->ready[run->n_ready++] = i;
		if (sim->tasks[i].group != SIM_NONE)
			run->left[sim->tasks[i].group]++;
	}
	for (size_t i = 0; i < sim->n_tasks; i++) {
		double start = 0;
		size_t best = choose(run, &start), at;

		if (best == run->n_ready)
			return -EDEADLK;
		at = run->ready[best];
		run->ready[best] = run->ready[--run->n_ready];
		sim->order[i] = at;
		place(run, at, start);
	}
	return 0;
}

/* `left` counts successors while they are indexed, groups' tasks from then on. */
static int prepare(struct run *run)
{
	struct sim *sim = run->sim;
	size_t n_left = sim->n_tasks > sim->n_groups ? sim->n_tasks : sim->n_groups;

	sim->order = calloc(sim->n_tasks + 1, sizeof(*sim->order));
	run->ready = calloc(sim->n_tasks + 1, sizeof(*run->ready));
	run->first = calloc(sim->n_tasks + 2, sizeof(*run->first));
	run->next = calloc(sim->n_edges + 1, sizeof(*run->next));
	run->after = calloc(sim->n_tasks + 1, sizeof(*run->after));
	run->left = calloc(n_left + 1, sizeof(*run->left));
	run->open = calloc(sim->n_gates + 1, sizeof(*run->open));
	run->opened = calloc(sim->n_gates + 1, sizeof(*run->opened));
	if (!sim->order || !run->ready || !run->first || !run->next || !run->after ||
		!run->left || !run->open || !run->opened)
		return -ENOMEM;
	for (size_t i = 0; i < sim->n_edges; i++)
		run->left[sim->edges[2 * i]]++;
	index_successors(run);
	return 0;
}

int sim_run(struct sim *sim)
{
	struct run *run = sim->failed ? NULL : calloc(1, sizeof(*run));
	int rc;

	if (!run)
		return sim->failed ? sim->failed : -ENOMEM;
	run->sim = sim;
	rc = prepare(run);
	if (!rc)
		rc = place_all(run);
	free(run->ready);
	free(run->first);
	free(run->next);
	free(run->after);
	free(run->left);
	free(run->open);
	free(run->opened);
	free(run);
	return rc;
}

enum { JUSTIFY_STEPS = 1 << 30 };

/*
 * Tasks that nobody waits for, like weights' gradients, could all begin at once from the end: those
 * of a resource keep their order, so that few are ready at a time.
 */
static int keep_last(const struct sim *sim, struct sim *other)
{
	unsigned char *waited = calloc(sim->n_tasks + 1, 1);
	size_t *last = calloc(SIM_MAX_RESOURCES, sizeof(*last));

	for (size_t i = 0; waited && i < sim->n_edges; i++)
		waited[sim->edges[2 * i]] = 1;
	for (size_t i = sim->n_tasks; waited && last && i-- > 0;) {
		size_t at = sim->order[i];
		int resource = sim->tasks[at].resource;

		if (waited[at])
			continue;
		if (last[resource])
			sim_after(other, last[resource] - 1, at);
		last[resource] = at + 1;
	}
	free(waited);
	free(last);
	return waited && last ? other->failed : -ENOMEM;
}

int sim_justify(const struct sim *sim, long *priorities)
{
	struct sim other;
	double whole = 0, scale;
	int rc = sim_open(&other, 0, 0);

	if (rc)
		return rc;
	for (size_t i = 0; i < sim->n_tasks; i++)
		whole = sim->tasks[i].end > whole ? sim->tasks[i].end : whole;
	scale = whole > 0 ? JUSTIFY_STEPS / whole : 0;
	for (size_t i = 0; i < sim->n_tasks; i++) {
		struct sim_task task = sim->tasks[i];

		task.group = SIM_NONE;
		task.opens = 0;
		task.n_waits = 0;
		task.priority = -(long)(scale * task.end);
		sim_add(&other, task);
	}
	for (size_t i = 0; i < sim->n_edges; i++)
		sim_after(&other, sim->edges[2 * i + 1], sim->edges[2 * i]);
	rc = keep_last(sim, &other);
	if (!rc)
		rc = sim_run(&other);
	for (size_t i = 0; !rc && i < sim->n_tasks; i++)
		priorities[i] = -(long)(scale * other.tasks[i].end);
	sim_close(&other);
	return rc;
}
