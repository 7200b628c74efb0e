/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of conformance cases: one list, run over every backend. A case starts its ranks by
 * helpers/ranks.h on the backend that it is given and returns 0, 1 or RANKS_SKIP; what went wrong
 * is printed by then.
 */
#ifndef TESTS_CONFORMANCE_H
#define TESTS_CONFORMANCE_H

#include "helpers/ranks.h"

struct conf {
	const char *backend;
	struct ranks_opts opts; /* backend and options filled in: copy, add, use */
	int messaging;          /* rows travel by posted transfers */
	int faulty;             /* delays and reorders: nothing may be assumed about time */
};

struct conf_case {
	const char *name;
	int n_ranks; /* needs this many */
	int (*run)(const struct conf *conf);
};

/* One array for each file, ended by a NULL name. */
extern const struct conf_case context_cases[];
extern const struct conf_case group_cases[];
extern const struct conf_case exchange_cases[];
extern const struct conf_case channel_cases[];
extern const struct conf_case shape_cases[];
extern const struct conf_case round_cases[];
extern const struct conf_case order_cases[];
extern const struct conf_case plan_cases[];
extern const struct conf_case sink_cases[];
extern const struct conf_case backward_cases[];
extern const struct conf_case digest_cases[];

#endif
