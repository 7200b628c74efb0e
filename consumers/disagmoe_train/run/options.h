/* SPDX-License-Identifier: Apache-2.0 */
/* What `disagmoe_train run` was asked for. */
#ifndef RUN_OPTIONS_H
#define RUN_OPTIONS_H

#include "run/trainer.h"

struct run_options {
	struct nn_settings settings;
	const char *text_path, *size, *config_path, *schedule;
	uint32_t n_attention, n_ffn, n_groups, max_in_flight;
	int join_weights; /* weights' gradients right after the input's */
	uint64_t n_steps, evaluate_every, checkpoint_every;
	size_t evaluate_seqs;
	const char *checkpoint_dir, *metrics_path, *json_path, *timeline_dir, *dump_path;
	uint64_t timeline_step; /* which is drawn, from 1 */
	uint64_t n_aligned;     /* steps from there on that all ranks begin together */
	int resume, launched, no_pin, quiet;
	double timeout_s;
	int kill_rank;
	uint64_t kill_step; /* from 1 */
	/* After parsing. */
	enum train_schedule_kind kind;
	struct place place;
	uint64_t first_step; /* steps done before */
};

/* Ends the process for what cannot be parsed. 0, or a negative code with a text: a checkpoint that
 * cannot be read, sizes that do not fit, a place where nothing can be written. */
int run_options_parse(int argc, char **argv, struct run_options *options);

#endif
