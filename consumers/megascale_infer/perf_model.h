/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MegaScale-Infer's performance model (arXiv 2504.02263, section 4): what one replica of n_a
 * attention nodes of tp_a GPUs and one node of tp_e GPUs per expert does with m micro-batches.
 * Numbers in brackets are the paper's equations. Times in seconds, sizes in bytes.
 *
 * (3) makes a layer last m * T_f. Where it does not hold a layer lasts as long as a micro-batch's
 * way through both sides; both cases are one `period` here, with (4) and (5) as the first case.
 */
#ifndef MEGASCALE_PERF_MODEL_H
#define MEGASCALE_PERF_MODEL_H

#include "measured.h"
#include "specs.h"
#include "util.h"

struct plan_inputs {
	struct plan_model model;
	struct plan_util util;
	struct plan_measured measured;
	double context_tokens; /* s: mean length of a sequence */
	double slo_s;
	double compute_efficiency, memory_efficiency; /* of the roofline; links are the second's */
	int straight; /* the sum of the roofline's asymptotes in place of the larger */
	double balance_tolerance; /* (1): largest |T_a - T_e| / T_f */
};

enum plan_bound { /* bits: what does not hold, or what keeps the batch from growing */
	PLAN_BALANCE = 1 << 0, /* (1) */
	PLAN_COMMUNICATION = 1 << 1, /* (2) */
	PLAN_OVERLAP = 1 << 2, /* (3) */
	PLAN_SLO = 1 << 3, /* (7) */
	PLAN_MEMORY = 1 << 4, /* (8) */
	PLAN_BATCH = 1 << 5, /* the batch was given, or the search's own limit */
};

struct plan_point {
	const struct plan_gpu *gpu_a, *gpu_e;
	int tp_a, tp_e, n_a, m;
	double b_a; /* tokens of a micro-batch on one attention node; whole in a search */
	struct plan_line attention, experts; /* k1, k2; k3, k4 */
	/* By plan_evaluate: */
	double b_e, batch, t_a, t_e, t_c, t_f, period, t_iter, t_total;
	double tokens_per_s, cost, tokens_per_s_cost, tokens_per_s_gpu, n_gpus;
	unsigned int broken; /* plan_bound: (1), (2), (3), (7), (8) that do not hold */
	enum plan_bound binding; /* by the search */
};

/* k1, k2 or k3, k4: measured where there are measurements, else by a roofline.
 * -ENOENT: measured, but not for this size. */
int plan_line_find(const struct plan_inputs *inputs, enum plan_side side,
	const struct plan_gpu *gpu, int tp, struct plan_line *line);
/* Bytes of weights of a node, 2 per parameter. */
double plan_weights(const struct plan_inputs *inputs, enum plan_side side);
/* k1 or k3: what a token adds to a large batch. */
double plan_slope(const struct plan_line *line);
/* n_a of T_a = T_e for large batches: k1 * E / (k3 * K). */
double plan_balance(const struct plan_inputs *inputs, const struct plan_point *point);
/* The most b_a that (8) admits, not rounded; 0 or less where the weights alone do not fit. */
double plan_memory_batch(const struct plan_inputs *inputs, const struct plan_point *point);
/* Everything that follows from the upper half. */
void plan_evaluate(const struct plan_inputs *inputs, struct plan_point *point);

#endif
