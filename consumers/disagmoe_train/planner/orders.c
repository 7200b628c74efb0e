/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AF-Pipe: the list scheduler's order, layers beyond the last left out. 1F1B: a worker does
 * 2 (p - 1 - w) + (v - 1) p forwards first, then one forward and one backward in turn,
 * micro-batches in rounds of p through its v chunks (Narayanan et al., 2021). DualPipe:
 * DeepSeek-V3's schedule as its authors' program has it (github.com/deepseek-ai/DualPipe), phase
 * by phase.
 */
#include "planner/orders.h"

#include <errno.h>
#include <stdlib.h>

static void add(struct orders *orders, int worker, size_t n_parts, struct steps_part first,
	struct steps_part second)
{
	if (orders->n_ops == orders->max_ops) {
		size_t wanted = orders->max_ops ? 2 * orders->max_ops : 1024;
		void *grown = realloc(orders->ops, wanted * sizeof(*orders->ops));

		if (!grown) {
			orders->failed = -ENOMEM;
			return;
		}
		orders->ops = grown;
		orders->max_ops = wanted;
	}
	orders->ops[orders->n_ops++] = (struct steps_op){.worker = worker, .n_parts = n_parts,
		.parts = {first, second}};
}

static void add_one(struct orders *orders, int worker, struct steps_part part)
{
	add(orders, worker, 1, part, part);
}

void orders_free(struct orders *orders)
{
	free(orders->ops);
	*orders = (struct orders){0};
}

static int finish(struct orders *made, struct orders *orders)
{
	int rc = made->failed;

	if (rc)
		orders_free(made);
	else
		*orders = *made;
	return rc;
}

static void add_afpipe(struct orders *made, const struct train_op *op, size_t p, size_t n_layers)
{
	struct steps_part part = {.kind = op->kind, .releases = op->kind == TRAIN_WEIGHTS,
		.stage = 2 * op->layer + (op->worker >= (int)p), .micro = op->micro};

	if (op->kind == TRAIN_HEAD) {
		part.stage = 2 * n_layers;
		part.kind = TRAIN_FORWARD;
		add(made, op->worker, 2, part, (struct steps_part){TRAIN_BACKWARD, 1,
			2 * n_layers, op->micro});
	} else if (op->layer < n_layers) {
		add_one(made, op->worker, part);
	}
}

int orders_afpipe(const struct train_costs *mean, size_t p, size_t n_layers, size_t n_micro,
	size_t in_flight, struct orders *orders)
{
	struct train_schedule_params params = {.kind = TRAIN_AFPIPE, .p = p,
		.v = (n_layers + p - 1) / p, .n_micro = n_micro, .split_weights = 1,
		.max_in_flight = in_flight, .costs = *mean};
	struct train_schedule schedule;
	struct orders made = {0};
	int rc = train_schedule_make(&params, &schedule);

	if (rc)
		return rc;
	for (size_t i = 0; i < schedule.n_ops; i++)
		add_afpipe(&made, &schedule.ops[i], p, n_layers);
	train_schedule_free(&schedule);
	return finish(&made, orders);
}

/* Forward or backward number i of a worker; layers beyond the last are left out. */
static void add_1f1b(struct orders *made, size_t worker, int back, size_t i, size_t p,
	size_t n_layers)
{
	size_t v = (n_layers + p - 1) / p, chunk = i % (p * v) / p;
	size_t layer = (back ? v - 1 - chunk : chunk) * p + worker;

	if (layer < n_layers)
		add_one(made, (int)worker, (struct steps_part){
			back ? TRAIN_BACKWARD : TRAIN_FORWARD, back, layer,
			i / (p * v) * p + i % p});
}

int orders_1f1b(size_t p, size_t n_layers, size_t n_micro, struct orders *orders)
{
	size_t v = (n_layers + p - 1) / p, n = n_micro * v;
	struct orders made = {0};

	if (!p || !n_micro || n_micro % p)
		return -EINVAL;
	for (size_t worker = 0; worker < p; worker++) {
		size_t warm = 2 * (p - 1 - worker) + (v - 1) * p;

		warm = warm < n ? warm : n;
		for (size_t i = 0; i < warm; i++)
			add_1f1b(&made, worker, 0, i, p, n_layers);
		for (size_t i = 0; i < n; i++) {
			if (warm + i < n)
				add_1f1b(&made, worker, 0, warm + i, p, n_layers);
			add_1f1b(&made, worker, 1, i, p, n_layers);
		}
	}
	return finish(&made, orders);
}

/* One worker's way through DualPipe. Phase 0 is the direction that begins nearer to the worker. */
struct walk {
	struct orders *made;
	int worker;
	size_t p, begun[2], back[2]; /* next forward and backward of each phase */
	struct steps_part *left; /* weights' gradients put off, first in first out */
	size_t n_left, first_left;
};

static struct steps_part part_of(struct walk *walk, enum train_op_kind kind, int phase)
{
	int reverse = phase ^ (walk->worker >= (int)(walk->p / 2));
	size_t i = kind == TRAIN_FORWARD ? walk->begun[phase]++ : walk->back[phase]++;

	return (struct steps_part){.kind = kind, .releases = kind == TRAIN_BACKWARD,
		.stage = reverse ? walk->p - 1 - (size_t)walk->worker : (size_t)walk->worker,
		.micro = 2 * i + (size_t)reverse};
}

static void forward(struct walk *walk, int phase)
{
	add_one(walk->made, walk->worker, part_of(walk, TRAIN_FORWARD, phase));
}

static void backward(struct walk *walk, int phase, int put_off)
{
	struct steps_part part = part_of(walk, TRAIN_BACKWARD, phase);

	part.releases = !put_off;
	add_one(walk->made, walk->worker, part);
	if (put_off)
		walk->left[walk->n_left++] = part;
}

static void weights(struct walk *walk)
{
	struct steps_part part = walk->left[walk->first_left++];

	part.kind = TRAIN_WEIGHTS;
	part.releases = 1;
	add_one(walk->made, walk->worker, part);
}

static void both(struct walk *walk, int forward_phase)
{
	struct steps_part one = part_of(walk, TRAIN_FORWARD, forward_phase);

	add(walk->made, walk->worker, 2, one, part_of(walk, TRAIN_BACKWARD, !forward_phase));
}

static void fill(struct walk *walk, size_t half)
{
	size_t ahead = walk->p / 2 - half - 1;

	for (size_t i = 0; i < 2 * ahead; i++)
		forward(walk, 0);
	for (size_t i = 0; i < half + 1; i++) {
		forward(walk, 0);
		forward(walk, 1);
	}
	for (size_t i = 0; i < ahead; i++) {
		backward(walk, 1, 1);
		weights(walk);
		forward(walk, 1);
	}
}

static void drain(struct walk *walk, size_t half)
{
	size_t ahead = walk->p / 2 - half - 1;
	int put_off = 0;

	for (size_t i = 0; i < ahead; i++) {
		backward(walk, 1, 0);
		both(walk, 1);
	}
	for (size_t i = 0; i < half + 1; i++) {
		put_off |= i == (half + 1) / 2 && half % 2 == 1;
		backward(walk, 1, put_off);
		put_off |= i == (half + 1) / 2 && half % 2 == 0;
		backward(walk, 0, put_off);
	}
	for (size_t i = 0; i < ahead; i++) {
		weights(walk);
		backward(walk, 0, 1);
	}
	while (walk->first_left < walk->n_left)
		weights(walk);
}

static void steady(struct walk *walk, size_t half, size_t n_micro)
{
	size_t n = n_micro / 2 - walk->p + half + 1;

	for (size_t i = 0; i < n; i++) {
		/* In the middle the first two do not overlap: a smaller bubble. */
		if (i == 0 && half == walk->p / 2 - 1) {
			forward(walk, 0);
			backward(walk, 1, 0);
		} else {
			both(walk, 0);
		}
		both(walk, 1);
	}
}

int orders_dualpipe(size_t p, size_t n_micro, struct orders *orders)
{
	struct orders made = {0};

	if (!p || p % 2 || n_micro % 2 || n_micro < 2 * p)
		return -EINVAL;
	for (size_t worker = 0; worker < p; worker++) {
		size_t half = worker < p / 2 ? worker : p - 1 - worker;
		struct walk walk = {.made = &made, .worker = (int)worker, .p = p,
			.left = calloc(n_micro, sizeof(*walk.left))};

		if (!walk.left) {
			made.failed = -ENOMEM;
			break;
		}
		fill(&walk, half);
		steady(&walk, half, n_micro);
		drain(&walk, half);
		free(walk.left);
	}
	return finish(&made, orders);
}
