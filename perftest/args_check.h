/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the command line's parser and what it checks as a whole: see args_check.c.
 */
#ifndef PERF_ARGS_CHECK_H
#define PERF_ARGS_CHECK_H

#include <argp.h>

#include "args.h"

/* Fills in what depends on the test, and refuses what cannot be run: does not return then. */
void perf_args_check(struct argp_state *state, struct perf_args *args);
/* The yardsticks of a set, as words. */
void perf_args_list_compare(unsigned set, char text[128]);

#endif
