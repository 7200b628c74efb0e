/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Discrete events for schedules of training: tasks that hold one or two resources (a worker; the
 * sending and the receiving side of a transfer) for some time, wait for other tasks, and belong to
 * micro-batches of which a gate lets only so many be under way. It is a list scheduler: what can
 * start first starts, the lower priority value first among those that can start at the same time.
 * So starts never go back, and the order in which tasks are placed is a topological one.
 */
#ifndef DISAGMOE_SIM_ENGINE_H
#define DISAGMOE_SIM_ENGINE_H

#include <stddef.h>

enum { SIM_NONE = -1, SIM_MAX_RESOURCES = 4096 };

struct sim_task {
	int resource, other; /* `other` SIM_NONE: one resource only */
	int group; /* micro-batch, or SIM_NONE */
	int opens; /* 1: the group's first task, waits for its gate */
	long priority;
	double seconds;
	double start, end; /* set by sim_run */
	size_t n_waits; /* kept by sim_after and sim_run */
};

struct sim {
	struct sim_task *tasks; /* [n_tasks]; owned */
	size_t n_tasks, max_tasks;
	size_t *edges; /* [n_edges, 2]: before, after; owned */
	size_t n_edges, max_edges;
	size_t *order; /* [n_tasks] by start, set by sim_run; owned */
	size_t n_groups, n_gates;
	int *gate_of; /* [n_groups]; owned */
	size_t *limits; /* [n_gates]: groups under way at once; owned */
	int failed; /* a negative errno of an earlier call; sim_run returns it */
};

int sim_open(struct sim *sim, size_t n_groups, size_t n_gates);
void sim_close(struct sim *sim);
/* The task's index; after a failure any. */
size_t sim_add(struct sim *sim, struct sim_task task);
void sim_after(struct sim *sim, size_t before, size_t after);
/* -EDEADLK: tasks that wait for each other. */
int sim_run(struct sim *sim);
/*
 * After sim_run: places the tasks once more from the end to the begin, what ended last first, and
 * without gates. priorities: [n_tasks] the starts that come of it, in parts of the whole time;
 * tasks that can wait come late. Run by them, a schedule often gets shorter (forward-backward
 * improvement, Tormos and Lova 2001).
 */
int sim_justify(const struct sim *sim, long *priorities);

#endif
