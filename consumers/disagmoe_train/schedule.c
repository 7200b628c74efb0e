/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds the tasks of a step and lets the list scheduler place them. One rule of priority is:
 * backward before forward (as 1F1B has it, which frees activations first), the older micro-batch
 * first, weights' gradients where nothing else can run. The other is by due dates: micro-batches
 * follow each other by the time that they occupy the busiest worker, and an operation is due when
 * all before it in its micro-batch have taken `stretch` times as long as alone. That keeps busy
 * workers whose forward and backward are unequal. The bound on micro-batches under way makes the
 * warm-up; its default is the time that a micro-batch needs alone over the time for which it
 * occupies the busiest worker: fewer leave that one idle, more only cost memory.
 *
 * All rules are tried, then sim_justify()'s priorities on top of them, and the shortest step is
 * kept; without a bound given, also with more under
 * way, and with the fixed order of interleaved 1F1B. More under way has to be worth it. In the
 * fixed order micro-batches go in rounds through the virtual stages, 2 * (stages behind) +
 * (v - 1) * round forwards are the warm-up, then forward and backward take turns. In AF-Pipe the
 * 2p workers are the ring and transfers lengthen round and warm-up.
 *
 * AF-Pipe's transfers are stages of their own: each worker has a sending and a receiving side, and
 * a transfer holds one side of each. Which tasks wait for which is one chain for a micro-batch.
 */
#include "schedule.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sim_engine.h"

enum { MAX_GROUPS = 512, MAX_TASKS = 1 << 22 };

/* More micro-batches under way cost memory: a step has to be shorter by this to be worth it. */
#define WORTH 0.99

static const char *const schedule_names[] = {"afpipe", "1f1b", "sequential"};
static const char *const op_names[] = {"forward", "head", "backward", "weights"};

struct builder {
	const struct train_schedule_params *params;
	struct sim sim;
	struct train_op *ops; /* [n_tasks of sim]; worker -1: a transfer */
	size_t n_ops, max_ops, n_workers;
	size_t *placed[2]; /* forward, backward: [n_workers, v, n_micro] task; fixed order only */
	size_t micro, last; /* of the chain in making */
	int begun;
	double stretch; /* of due dates; 0: the other rule */
	long *priorities; /* [n_tasks] given, over either rule; may be NULL */
	double due, period; /* so far in the chain; between micro-batches */
};

int train_schedule_parse(const char *text, enum train_schedule_kind *kind)
{
	for (int i = 0; i < TRAIN_N_SCHEDULES; i++)
		if (!strcmp(text, schedule_names[i])) {
			*kind = (enum train_schedule_kind)i;
			return 0;
		}
	return -EINVAL;
}

const char *train_schedule_name(enum train_schedule_kind kind)
{
	return schedule_names[kind];
}

const char *train_op_name(enum train_op_kind kind)
{
	return op_names[kind];
}

static long priority_of(enum train_op_kind kind, size_t micro, size_t n_micro)
{
	static const long classes[] = {
		[TRAIN_FORWARD] = 1, [TRAIN_HEAD] = 0, [TRAIN_BACKWARD] = 0, [TRAIN_WEIGHTS] = 2,
	};

	return classes[kind] * (long)n_micro + (long)micro;
}

/* When the task should begin, in millionths of a period; weights' gradients a period later. */
static long due_date(struct builder *builder, enum train_op_kind kind, double seconds)
{
	double due = builder->due + (double)builder->micro * builder->period;

	if (kind == TRAIN_WEIGHTS)
		due += builder->period;
	else
		builder->due += builder->stretch * seconds;
	return (long)(due / builder->period * 1e6);
}

/* A task of the micro-batch; in the chain it waits for the one before it. */
static void add(struct builder *builder, struct train_op op, struct sim_task task, int chained)
{
	size_t at;

	op.micro = builder->micro;
	if (builder->stretch > 0 && builder->period > 0)
		task.priority = due_date(builder, op.kind, task.seconds);
	task.group = (int)builder->micro;
	task.opens = !builder->begun;
	if (builder->priorities)
		task.priority = builder->priorities[builder->sim.n_tasks];
	at = sim_add(&builder->sim, task);
	if (!builder->sim.failed)
		builder->ops[at] = op;
	if (builder->begun)
		sim_after(&builder->sim, builder->last, at);
	builder->begun = 1;
	if (chained)
		builder->last = at;
}

static void compute(struct builder *builder, enum train_op_kind kind, int worker, size_t layer,
	double seconds)
{
	const struct train_schedule_params *params = builder->params;
	int alone = params->kind == TRAIN_SEQUENTIAL;

	if (builder->placed[0] && (kind == TRAIN_FORWARD || kind == TRAIN_BACKWARD))
		builder->placed[kind == TRAIN_BACKWARD][((size_t)worker * params->v +
			layer / params->p) * params->n_micro + builder->micro] =
			builder->sim.n_tasks;
	add(builder, (struct train_op){.kind = kind, .worker = worker, .layer = layer},
		(struct sim_task){.resource = alone ? 0 : worker, .other = SIM_NONE,
			.priority = priority_of(kind, builder->micro, params->n_micro),
			.seconds = seconds}, kind != TRAIN_WEIGHTS);
}

/* Sending sides are resources n_workers.., receiving ones 2 * n_workers... */
static void transfer(struct builder *builder, enum train_op_kind kind, int from, int to,
	double seconds)
{
	const struct train_schedule_params *params = builder->params;
	int alone = params->kind == TRAIN_SEQUENTIAL, n = (int)builder->n_workers;

	if (from == to)
		return;
	add(builder, (struct train_op){.kind = kind, .worker = -1},
		(struct sim_task){.resource = alone ? 0 : n + from,
			.other = alone ? SIM_NONE : 2 * n + to,
			.priority = priority_of(kind, builder->micro, params->n_micro),
			.seconds = seconds}, 1);
}

static void backward(struct builder *builder, int worker, size_t layer, double input,
	double weights)
{
	int split = builder->params->split_weights;

	compute(builder, TRAIN_BACKWARD, worker, layer, split ? input : input + weights);
}

static void add_apart(struct builder *builder)
{
	const struct train_schedule_params *params = builder->params;
	const struct train_costs *costs = &params->costs;
	size_t p = params->p, n_layers = p * params->v;

	for (size_t layer = 0; layer < n_layers; layer++) {
		int a = (int)(layer % p), f = (int)(p + layer % p), next = (int)((layer + 1) % p);

		compute(builder, TRAIN_FORWARD, a, layer, costs->attention[0]);
		transfer(builder, TRAIN_FORWARD, a, f, costs->transfer[0]);
		compute(builder, TRAIN_FORWARD, f, layer, costs->ffn[0]);
		transfer(builder, TRAIN_FORWARD, f, next, costs->transfer[0]);
	}
	compute(builder, TRAIN_HEAD, 0, n_layers, costs->head);
	for (size_t layer = n_layers; layer-- > 0;) {
		int a = (int)(layer % p), f = (int)(p + layer % p), next = (int)((layer + 1) % p);

		transfer(builder, TRAIN_BACKWARD, next, f, costs->transfer[1]);
		backward(builder, f, layer, costs->ffn[1], costs->ffn_weights);
		if (params->split_weights)
			compute(builder, TRAIN_WEIGHTS, f, layer, costs->ffn_weights);
		transfer(builder, TRAIN_BACKWARD, f, a, costs->transfer[1]);
		backward(builder, a, layer, costs->attention[1], costs->attention_weights);
		if (params->split_weights)
			compute(builder, TRAIN_WEIGHTS, a, layer, costs->attention_weights);
	}
}

static void add_together(struct builder *builder)
{
	const struct train_schedule_params *params = builder->params;
	const struct train_costs *costs = &params->costs;
	double forward = costs->attention[0] + costs->ffn[0] + 2 * costs->transfer[0];
	double input = costs->attention[1] + costs->ffn[1] + 2 * costs->transfer[1];
	double weights = costs->attention_weights + costs->ffn_weights;
	size_t p = params->p, n_layers = p * params->v;

	for (size_t layer = 0; layer < n_layers; layer++) {
		compute(builder, TRAIN_FORWARD, (int)(layer % p), layer, forward);
		transfer(builder, TRAIN_FORWARD, (int)(layer % p), (int)((layer + 1) % p),
			costs->stage);
	}
	compute(builder, TRAIN_HEAD, 0, n_layers, costs->head);
	for (size_t layer = n_layers; layer-- > 0;) {
		transfer(builder, TRAIN_BACKWARD, (int)((layer + 1) % p), (int)(layer % p),
			costs->stage);
		backward(builder, (int)(layer % p), layer, input, weights);
		if (params->split_weights)
			compute(builder, TRAIN_WEIGHTS, (int)(layer % p), layer, weights);
	}
}

static int check(const struct train_schedule_params *params)
{
	const double *costs = (const double *)&params->costs;

	if (!params->p || !params->v || !params->n_micro || params->p > MAX_GROUPS ||
		params->kind < 0 || params->kind >= TRAIN_N_SCHEDULES ||
		params->v > MAX_TASKS || params->n_micro > MAX_TASKS ||
		(double)params->p * (double)params->v * (double)params->n_micro * 10 > MAX_TASKS)
		return -EINVAL;
	for (size_t i = 0; i < sizeof(params->costs) / sizeof(*costs); i++)
		if (!isfinite(costs[i]) || costs[i] < 0)
			return -EINVAL;
	return 0;
}

static size_t choose_in_flight(const struct train_schedule_params *params)
{
	const struct train_costs *costs = &params->costs;
	double a = costs->attention[0] + costs->attention[1] + costs->attention_weights;
	double f = costs->ffn[0] + costs->ffn[1] + costs->ffn_weights;
	double c = 2 * (costs->transfer[0] + costs->transfer[1]), p = (double)params->p;
	double busiest = a > f ? a : f, n;

	if (params->kind == TRAIN_SEQUENTIAL)
		return 1;
	if (params->kind == TRAIN_1F1B)
		n = p + 1;
	else
		n = busiest > 0 ? p * (a + f + c) / busiest + 1 : 4 * p + 1;
	n = ceil(n - 1e-9);
	return n < (double)params->n_micro ? (size_t)n : params->n_micro;
}

/* Micro-batches of a round: as many as a round trip through the ring takes operations. */
static double ring_length(const struct train_schedule_params *params)
{
	struct train_schedule_params many = *params;

	many.n_micro = MAX_TASKS;
	return params->kind == TRAIN_1F1B ? (double)params->p :
					    (double)choose_in_flight(&many) - 1;
}

/* Task number `i` of a worker's forwards or backwards, rounds of `round` micro-batches. */
static size_t in_turn(const struct builder *builder, int back, size_t worker, size_t i,
	size_t round)
{
	const struct train_schedule_params *params = builder->params;
	size_t begin = i / (round * params->v) * round, rest = i - begin * params->v, stage;

	if (round > params->n_micro - begin)
		round = params->n_micro - begin;
	stage = rest / round;
	if (back)
		stage = params->v - 1 - stage;
	return builder->placed[back][(worker * params->v + stage) * params->n_micro + begin +
		rest % round];
}

static void fix_order(struct builder *builder)
{
	const struct train_schedule_params *params = builder->params;
	double ring = ring_length(params), step = ring / (double)builder->n_workers;
	size_t n = params->v * params->n_micro, round = (size_t)ceil(ring);

	for (size_t w = 0; w < builder->n_workers; w++) {
		/* Groups alternate in the numbering of workers: A_0, F_0, A_1 ... in the ring. */
		size_t place = params->kind == TRAIN_1F1B ? w : w % params->p * 2 + w / params->p;
		double behind = 2 * step * (double)(builder->n_workers - 1 - place);
		size_t warm = (size_t)ceil(behind) + (params->v - 1) * round + 1, last = 0;

		if (warm > n)
			warm = n;
		for (size_t i = 0, f = 0, b = 0; i < 2 * n; i++) {
			int back = f == n || (f >= warm && f - warm >= b);
			size_t at = in_turn(builder, back, w, back ? b : f, round);

			if (i)
				sim_after(&builder->sim, last, at);
			last = at;
			f += !back;
			b += (size_t)back;
		}
	}
}

static size_t count_in_flight(const struct sim *sim, size_t n_micro)
{
	size_t *left = calloc(n_micro, sizeof(*left)), n = 0, most = 0;

	for (size_t i = 0; left && i < sim->n_tasks; i++)
		left[sim->tasks[i].group]++;
	/* By start: a micro-batch that ended is counted until its last operation is placed. */
	for (size_t i = 0; left && i < sim->n_tasks; i++) {
		const struct sim_task *task = &sim->tasks[sim->order[i]];

		n += (size_t)task->opens;
		most = n > most ? n : most;
		n -= !--left[task->group];
	}
	free(left);
	return most ? most : n_micro;
}

static int collect(const struct builder *builder, struct train_schedule *schedule)
{
	const struct sim *sim = &builder->sim;
	struct train_schedule made = {.n_workers = builder->n_workers,
		.max_in_flight = sim->limits[0]};
	size_t *fill;

	made.ops = calloc(sim->n_tasks, sizeof(*made.ops));
	made.by_worker = calloc(sim->n_tasks, sizeof(*made.by_worker));
	made.first = calloc(made.n_workers + 2, sizeof(*made.first));
	if (!made.ops || !made.by_worker || !made.first) {
		train_schedule_free(&made);
		return -ENOMEM;
	}
	for (size_t i = 0; i < sim->n_tasks; i++) {
		size_t at = sim->order[i];
		struct train_op *op = &made.ops[made.n_ops];

		if (sim->tasks[at].end > made.seconds)
			made.seconds = sim->tasks[at].end;
		if (builder->ops[at].worker < 0)
			continue;
		*op = builder->ops[at];
		op->start = sim->tasks[at].start;
		op->end = sim->tasks[at].end;
		made.first[op->worker + 2]++;
		made.n_ops++;
	}
	fill = made.first + 1; /* moves up to the next worker's first while it is filled */
	for (size_t w = 0; w < made.n_workers; w++)
		fill[w + 1] += fill[w];
	for (size_t i = 0; i < made.n_ops; i++)
		made.by_worker[fill[made.ops[i].worker]++] = i;
	*schedule = made;
	return 0;
}

static void build(struct builder *builder)
{
	for (; builder->micro < builder->params->n_micro; builder->micro++) {
		builder->begun = 0;
		builder->due = 0;
		if (builder->params->kind == TRAIN_1F1B)
			add_together(builder);
		else
			add_apart(builder);
	}
	if (builder->placed[0])
		fix_order(builder);
}

/* How long a micro-batch occupies the busiest worker. */
static double period_of(const struct train_schedule_params *params)
{
	const struct train_costs *costs = &params->costs;
	double a = costs->attention[0] + costs->attention[1] + costs->attention_weights;
	double f = costs->ffn[0] + costs->ffn[1] + costs->ffn_weights;

	return (double)params->v * (params->kind == TRAIN_1F1B ? a + f : fmax(a, f));
}

/* Upper bound of a step's tasks. */
static size_t count_tasks(const struct train_schedule_params *params)
{
	return (10 * params->p * params->v + 1) * params->n_micro;
}

/*
 * `bound` 0: the fixed order. priorities: [n_tasks] `given` ones, or those that are to be tried
 * next; NULL: neither.
 */
static int make(const struct train_schedule_params *params, size_t bound, double stretch,
	long *priorities, int given, struct train_schedule *schedule)
{
	struct builder builder = {.params = params, .stretch = stretch,
		.period = period_of(params), .priorities = given ? priorities : NULL,
		.n_workers = params->kind == TRAIN_1F1B ? params->p : 2 * params->p};
	int rc = sim_open(&builder.sim, params->n_micro, 1);

	if (rc)
		return rc;
	builder.sim.limits[0] = bound && bound < params->n_micro ? bound : params->n_micro;
	builder.ops = calloc(count_tasks(params), sizeof(*builder.ops));
	for (int i = 0; !bound && i < 2; i++)
		builder.placed[i] = calloc(builder.n_workers * params->v * params->n_micro,
			sizeof(size_t));
	if (!builder.ops || (!bound && (!builder.placed[0] || !builder.placed[1])))
		rc = -ENOMEM;
	if (!rc) {
		build(&builder);
		rc = sim_run(&builder.sim);
	}
	if (!rc && !bound)
		builder.sim.limits[0] = count_in_flight(&builder.sim, params->n_micro);
	if (!rc && priorities && !given)
		rc = sim_justify(&builder.sim, priorities);
	if (!rc)
		rc = collect(&builder, schedule);
	free(builder.ops);
	free(builder.placed[0]);
	free(builder.placed[1]);
	sim_close(&builder.sim);
	return rc;
}

/* Keeps the shorter one; `worth`: what `best` may take at most, in parts of what it takes. */
static void keep(struct train_schedule *other, double worth, struct train_schedule *best)
{
	if (!best->ops || other->seconds < worth * best->seconds) {
		train_schedule_free(best);
		*best = *other;
	} else {
		train_schedule_free(other);
	}
}

/* A rule, and once the starts that come of going through its schedule from the end. */
static int try(const struct train_schedule_params *params, size_t bound, double stretch,
	struct train_schedule *best)
{
	long *priorities = calloc(count_tasks(params), sizeof(*priorities));
	int rc = priorities ? 0 : -ENOMEM;

	for (int round = 0; !rc && round < (bound ? 2 : 1); round++) {
		struct train_schedule other;

		rc = make(params, bound, stretch, bound ? priorities : NULL, round, &other);
		if (!rc)
			keep(&other, best->max_in_flight < other.max_in_flight ? WORTH : 1, best);
	}
	free(priorities);
	return rc == -EDEADLK ? 0 : rc; /* a short last round, which is no order */
}

int train_schedule_make(const struct train_schedule_params *params,
	struct train_schedule *schedule)
{
	static const double stretches[] = {0, 2, 3};
	struct train_schedule best = {0};
	int rc = check(params), given = params->max_in_flight != 0;
	size_t bound = given ? params->max_in_flight : rc ? 0 : choose_in_flight(params);

	if (rc)
		return rc;
	if (params->kind == TRAIN_SEQUENTIAL)
		return make(params, bound, 0, NULL, 0, schedule);
	for (size_t more = 2; !rc && more <= (given ? 2 : 4); more++)
		for (size_t i = 0; !rc && i < sizeof(stretches) / sizeof(stretches[0]); i++)
			rc = try(params, bound * more / 2, stretches[i], &best);
	if (!rc && !given)
		rc = try(params, 0, 0, &best);
	if (rc)
		train_schedule_free(&best);
	else
		*schedule = best;
	return rc;
}

void train_schedule_free(struct train_schedule *schedule)
{
	free(schedule->ops);
	free(schedule->by_worker);
	free(schedule->first);
	*schedule = (struct train_schedule){0};
}
