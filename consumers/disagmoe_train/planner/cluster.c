/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Puts times to the orders of orders.h and runs them. All schedules have the same GPUs: AF-Pipe p
 * pairs of groups, the others p stages of a pair's GPUs each, with larger micro-batches in the same
 * proportion.
 */
#include "planner/cluster.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "planner/memory.h"
#include "planner/orders.h"

struct cluster {
	const struct train_case *job;
	const struct pair_split *split;
	enum cluster_kind kind;
	size_t p, n_layers, n_micro, n_workers;
	double gpus, tokens; /* of a pair; of a micro-batch */
	double *busiest; /* [n_layers, n_micro] */
	double mean_busiest;
	struct train_costs even; /* at balance */
};

static const char *const names[] = {"afpipe", "1f1b", "dualpipe", "chunks-2", "chunks-16"};

const char *cluster_name(enum cluster_kind kind)
{
	return names[kind];
}

static double busiest_of(const struct cluster *c, size_t layer, size_t micro)
{
	return c->busiest[layer * c->n_micro + micro];
}

static int worker_apart(const void *arg, size_t stage, size_t micro)
{
	const struct cluster *c = arg;

	(void)micro;
	if (stage == 2 * c->n_layers)
		return 0;
	return (int)(stage / 2 % c->p + (stage % 2 ? c->p : 0));
}

static double transfer_apart(const void *arg, size_t stage, size_t micro, int back)
{
	const struct cluster *c = arg;

	(void)back;
	return costs_transfer(c->job, c->split, c->tokens, busiest_of(c, stage / 2, micro));
}

static double beside_apart(const void *arg, size_t stage, size_t micro, int back)
{
	const struct cluster *c = arg;

	(void)micro;
	(void)back;
	return stage % 2 ? -1 : costs_residual(c->job, c->split, c->tokens);
}

static int worker_together(const void *arg, size_t stage, size_t micro)
{
	const struct cluster *c = arg;

	if (c->kind == CLUSTER_DUALPIPE && micro % 2)
		return (int)(c->p - 1 - stage);
	return (int)(stage % c->p);
}

static double transfer_together(const void *arg, size_t stage, size_t micro, int back)
{
	const struct cluster *c = arg;

	(void)stage;
	(void)micro;
	(void)back;
	return costs_stage(c->job, c->tokens, c->gpus);
}

/* What a part takes, of one layer: attention, experts, and their two transfers. */
struct piece {
	double attention, experts, after, transfer; /* after: of the experts, may come later */
};

static struct piece piece_of(const struct cluster *c, const struct steps_part *part, size_t layer,
	enum case_copies copies)
{
	double busiest = busiest_of(c, layer, part->micro);
	const struct train_costs *even = &c->even;
	int back = part->kind == TRAIN_BACKWARD;
	struct piece piece = {even->attention[back], even->ffn[back] * busiest, 0,
		costs_all_to_all(c->job, c->tokens, c->gpus, copies, busiest)};

	if (part->kind == TRAIN_WEIGHTS)
		return (struct piece){even->attention_weights, even->ffn_weights * busiest, 0, 0};
	if (back && part->releases) {
		piece.attention += even->attention_weights;
		piece.after = even->ffn_weights * busiest;
	}
	if (back && layer + 1 == c->n_layers)
		piece.attention += even->head;
	return piece;
}

static void time_apart(const struct cluster *c, struct steps_op *op)
{
	const struct steps_part *part = &op->parts[0];
	int ffn = part->stage % 2, back = part->kind == TRAIN_BACKWARD;
	const struct train_costs *even = &c->even;

	if (part->stage == 2 * c->n_layers)
		op->seconds = even->head;
	else if (part->kind == TRAIN_WEIGHTS)
		op->seconds = ffn ? even->ffn_weights : even->attention_weights;
	else
		op->seconds = ffn ? even->ffn[back] : even->attention[back];
	if (ffn)
		op->seconds *= busiest_of(c, part->stage / 2, part->micro);
	op->computing = op->seconds;
}

static void time_together(const struct cluster *c, struct steps_op *op)
{
	struct piece piece = piece_of(c, &op->parts[0], op->parts[0].stage, CASE_PER_EXPERT);
	double slower = 1 / (1 - c->job->sm_share);

	if (c->kind == CLUSTER_1F1B) {
		op->computing = piece.attention + piece.experts + piece.after;
		op->seconds = op->computing + 2 * piece.transfer;
		return;
	}
	op->computing = piece.attention + (piece.experts + piece.after) * slower;
	op->seconds = piece.attention + costs_chunked(piece.transfer, piece.experts * slower,
		piece.after * slower, c->kind == CLUSTER_CHUNKS_2 ? 2 : 16);
}

/* Layers first .. end - 1 of a stage: the first stages have one more where p does not divide. */
static size_t first_layer(const struct cluster *c, size_t stage)
{
	size_t rest = c->n_layers % c->p;

	return stage * (c->n_layers / c->p) + (stage < rest ? stage : rest);
}

static void time_dualpipe(const struct cluster *c, struct steps_op *op)
{
	double computing = 0, transfers = 0;

	for (size_t i = 0; i < op->n_parts; i++) {
		const struct steps_part *part = &op->parts[i];
		size_t end = first_layer(c, part->stage + 1);

		for (size_t layer = first_layer(c, part->stage); layer < end; layer++) {
			struct piece piece = piece_of(c, part, layer, c->job->copies);

			computing += piece.attention + piece.experts + piece.after;
			transfers += 2 * piece.transfer;
		}
	}
	if (op->n_parts == 2) {
		op->computing = computing / (1 - c->job->sm_share);
		op->seconds = fmax(op->computing, transfers);
	} else {
		op->computing = computing;
		op->seconds = computing + transfers;
	}
}

static void set_times(const struct cluster *c, struct orders *orders)
{
	for (size_t i = 0; i < orders->n_ops; i++)
		if (c->kind == CLUSTER_AFPIPE)
			time_apart(c, &orders->ops[i]);
		else if (c->kind == CLUSTER_DUALPIPE)
			time_dualpipe(c, &orders->ops[i]);
		else
			time_together(c, &orders->ops[i]);
}

static int make_order(const struct cluster *c, struct orders *orders)
{
	struct train_costs mean;

	if (c->kind == CLUSTER_DUALPIPE)
		return orders_dualpipe(c->p, c->n_micro, orders);
	if (c->kind != CLUSTER_AFPIPE)
		return orders_1f1b(c->p, c->n_layers, c->n_micro, orders);
	costs_compute(c->job, c->tokens, (double)c->split->gpus_a, (double)c->split->gpus_f,
		c->mean_busiest, &mean);
	mean.transfer[0] = mean.transfer[1] = costs_transfer(c->job, c->split, c->tokens,
		c->mean_busiest);
	return orders_afpipe(&mean, c->p, c->n_layers, c->n_micro,
		(size_t)c->job->in_flight, orders);
}

/* Micro-batches as the batch has them, to what the schedule can be made of. */
static int count_micro(struct cluster *c)
{
	double n = c->job->batch * c->job->seq / c->tokens, least = 1, unit = 1;

	if (c->kind == CLUSTER_DUALPIPE) {
		least = 2 * (double)c->p;
		unit = 2;
	} else if (c->kind != CLUSTER_AFPIPE) {
		least = unit = (double)c->p;
	}
	n = fmax(1, round(n / unit)) * unit;
	if (n < least)
		return model_fail(-EINVAL, "%s: %g sequences are %g micro-batches, %g are needed "
			"with %zu groups", names[c->kind], c->job->batch, n, least, c->p);
	if (n * c->job->model.n_layers > 1 << 20)
		return model_fail(-EINVAL, "%g micro-batches of %g layers are too many", n,
			c->job->model.n_layers);
	c->n_micro = (size_t)n;
	return 0;
}

static int prepare(struct cluster *c)
{
	size_t ranks = c->kind == CLUSTER_AFPIPE ? c->split->gpus_f : (size_t)c->job->ep;
	double side = c->kind == CLUSTER_AFPIPE ? 0 : c->gpus;
	size_t n_layers = c->n_layers, known = c->job->trace.experts ? c->job->trace.n_layers : 1;
	int rc = count_micro(c);

	if (rc)
		return rc;
	c->busiest = calloc(n_layers * c->n_micro, sizeof(*c->busiest));
	if (!c->busiest)
		return model_fail(-ENOMEM, "no memory");
	for (size_t layer = 0; layer < n_layers; layer++)
		for (size_t micro = 0; micro < c->n_micro; micro++) {
			double *at = &c->busiest[layer * c->n_micro + micro];

			*at = layer < known ? case_busiest(c->job, ranks, layer, micro) :
					      c->busiest[layer % known * c->n_micro + micro];
			c->mean_busiest += *at / (double)(n_layers * c->n_micro);
		}
	costs_compute(c->job, c->tokens, side > 0 ? side : (double)c->split->gpus_a,
		side > 0 ? side : (double)c->split->gpus_f, 1, &c->even);
	return 0;
}

static void sum_apart(const struct cluster *c, const struct steps_result *steps,
	struct cluster_result *found)
{
	for (size_t w = 0; w < c->n_workers; w++) {
		const struct steps_worker *worker = &steps->workers[w];
		double *live = w < c->p ? &found->live_a : &found->live_f;
		double gpus = (double)(w < c->p ? c->split->gpus_a : c->split->gpus_f);
		double share = gpus / (c->gpus * (double)c->p * steps->seconds);

		found->busy += worker->busy * share;
		found->exposed += worker->exposed * share;
		found->bubble += worker->bubble * share;
		*live = fmax(*live, (double)worker->live);
	}
	memory_apart(c->job, c->split, found->live_a, found->live_f, &found->bytes_a,
		&found->bytes_f);
}

static void sum_together(const struct cluster *c, const struct steps_result *steps,
	struct cluster_result *found)
{
	double layers = c->kind == CLUSTER_DUALPIPE ? ceil((double)c->n_layers / (double)c->p) : 1;

	for (size_t w = 0; w < c->n_workers; w++) {
		const struct steps_worker *worker = &steps->workers[w];
		double share = 1 / ((double)c->p * steps->seconds);

		found->busy += worker->busy * share;
		found->exposed += worker->exposed * share;
		found->bubble += worker->bubble * share;
		found->live_a = fmax(found->live_a, (double)worker->live * layers);
	}
	found->live_f = found->live_a;
	found->bytes_a = found->bytes_f = memory_together(c->job, c->gpus, found->live_a,
		c->kind == CLUSTER_DUALPIPE ? 2 : 1);
}

static void sum_up(const struct cluster *c, const struct steps_result *steps,
	struct cluster_result *result)
{
	const struct train_case *job = c->job;
	struct cluster_result found = {.seconds = steps->seconds,
		.tokens = c->tokens * (double)c->n_micro, .gpus = c->gpus * (double)c->p,
		.n_micro = (double)c->n_micro, .busiest = c->mean_busiest};
	double flops = job->model.n_layers * (3 * (case_projections(job) + case_experts(job)) +
		(1 + CASE_SCORES_BACKWARD) * case_scores(job)) + 3 * case_head(job);

	found.tokens_per_s_gpu = found.tokens / (found.seconds * found.gpus);
	found.mfu = flops * found.tokens_per_s_gpu / job->flops;
	if (c->kind == CLUSTER_AFPIPE)
		sum_apart(c, steps, &found);
	else
		sum_together(c, steps, &found);
	*result = found;
}

static int run(const struct cluster *c, struct orders *orders, struct cluster_result *result)
{
	int apart = c->kind == CLUSTER_AFPIPE;
	struct steps_model model = {.n_workers = c->n_workers, .n_micro = c->n_micro, .arg = c,
		.n_stages = apart ? 2 * c->n_layers + 1 :
			c->kind == CLUSTER_DUALPIPE ? c->p : c->n_layers,
		.worker = apart ? worker_apart : worker_together,
		.transfer = apart ? transfer_apart : transfer_together,
		.beside = apart ? beside_apart : NULL};
	struct steps_result steps;
	int rc = make_order(c, orders);

	if (!rc) {
		set_times(c, orders);
		rc = steps_run(&model, orders->ops, orders->n_ops, &steps);
	}
	if (rc)
		return model_fail(rc, "%s with %zu groups, %zu layers, %zu micro-batches: %s",
			names[c->kind], c->p, c->n_layers, c->n_micro, strerror(-rc));
	sum_up(c, &steps, result);
	steps_free(&steps);
	return 0;
}

int cluster_run(const struct train_case *job, const struct pair_split *split,
	enum cluster_kind kind, struct cluster_result *result)
{
	struct cluster c = {.job = job, .split = split, .kind = kind, .p = (size_t)job->p,
		.n_layers = (size_t)job->model.n_layers,
		.gpus = (double)(split->gpus_a + split->gpus_f)};
	struct orders orders = {0};
	int rc;

	c.n_workers = kind == CLUSTER_AFPIPE ? 2 * c.p : c.p;
	c.tokens = job->seq * job->n_sequences *
		(kind == CLUSTER_AFPIPE ? (double)split->gpus_a : c.gpus);
	if (c.p > c.n_layers)
		return model_fail(-EINVAL, "%zu groups for %zu layers", c.p, c.n_layers);
	if (kind == CLUSTER_DUALPIPE && c.p % 2)
		return model_fail(-EINVAL, "%s: %zu groups; an even number is needed", names[kind],
			c.p);
	rc = prepare(&c);
	if (!rc)
		rc = run(&c, &orders, result);
	free(c.busiest);
	orders_free(&orders);
	return rc;
}
