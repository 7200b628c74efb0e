/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ping-pong pipeline as discrete events: m micro-batches go round through attention, the
 * network, the experts and the network again, once per layer. Attention, each expert and each
 * direction of the network serve one micro-batch at a time, in the order of arrival; a micro-batch
 * leaves the experts with the last of them. With constant times it is what (4) and (5) say.
 */
#ifndef MEGASCALE_PIPELINE_H
#define MEGASCALE_PIPELINE_H

#include <stddef.h>
#include <stdint.h>

enum { PIPELINE_MAX_M = 64 };

/* Where a micro-batch stands, for whoever gives the times. */
struct pipeline_step {
	size_t iteration, layer, micro_batch;
};

struct pipeline_times {
	void *context;
	double (*attention)(void *context, const struct pipeline_step *step);
	double (*transfer)(void *context, const struct pipeline_step *step);
	double (*expert)(void *context, const struct pipeline_step *step, size_t expert);
};

struct pipeline_params {
	size_t m, n_layers, n_iterations, n_experts;
	struct pipeline_times times;
};

struct pipeline_result {
	double *finished; /* [n_iterations, m] s from the start; owned */
	double total, first; /* end of the last, of the first micro-batch of iteration 0 */
	double attention_busy, expert_busy, network_busy; /* shares of the whole time; means */
	double busiest_expert;
};

/* 0, or -ENOMEM with a text. */
int pipeline_run(const struct pipeline_params *params, struct pipeline_result *result);
void pipeline_result_free(struct pipeline_result *result);
/* Mean seconds between the tokens of a sequence, the first left out where there are more. */
double pipeline_tpot(const struct pipeline_params *params, const struct pipeline_result *result);

#endif
