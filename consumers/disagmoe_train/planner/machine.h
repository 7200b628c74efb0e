/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this machine takes for the computation of training: `disagmoe_train profile` measures it,
 * plan and simulate read it. The file, in microseconds of one core:
 *
 *	{"model": {"layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "experts",
 *	           "top_k", "vocab"}, "seq": tokens,
 *	 "attention": [{"sequences", "forward", "backward", "weights"}, ...],
 *	 "experts": [{"rows", "forward", "backward", "weights"}, ...],    of one expert
 *	 "head": {"forward_backward", "weights"},                         of one sequence
 *	 "values": {"zero", "norm", "update"},                            of a million values
 *	 "bytes": {"copy", "combine"},                                    of a million bytes
 *	 "transfer": {"us"},  of handing over and taking, beside the copies and what is computed
 *	 "rate": {"gflops"}}  of a large product
 *
 * Sequences and rows rise; between two points times are linear, beyond the last proportional to its
 * last slope.
 */
#ifndef PLANNER_MACHINE_H
#define PLANNER_MACHINE_H

#include <stdio.h>

#include "nn/settings.h"

enum { MACHINE_MAX_POINTS = 32 };

/* backward: of the input */
enum machine_part { MACHINE_FORWARD, MACHINE_BACKWARD, MACHINE_WEIGHTS, MACHINE_N_PARTS };

struct machine_points {
	size_t n;
	double size[MACHINE_MAX_POINTS]; /* sequences or rows */
	double us[MACHINE_MAX_POINTS][MACHINE_N_PARTS];
};

struct machine {
	double layers, hidden, intermediate, heads, kv_heads, head_dim, experts, top_k, vocab, seq;
	struct machine_points attention, expert;
	double head_us, head_weights_us;
	double zero_us, norm_us, update_us; /* of 10^6 values */
	double copy_us, combine_us; /* of 10^6 bytes */
	double transfer_us;
	double gflops;
};

/* At any size; 0 at 0. */
double machine_us(const struct machine_points *points, enum machine_part part, double size);

/* Of a run with these settings and up to `max_seqs` sequences on an attention rank; transfers are
 * left out. */
int machine_measure(const struct nn_settings *settings, uint32_t max_seqs, struct machine *machine);
int machine_write(const struct machine *machine, FILE *out);
/* 0, or a negative errno with a text that names file and member. */
int machine_read(const char *path, struct machine *machine);

#endif
