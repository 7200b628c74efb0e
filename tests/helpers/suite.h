/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A list of cases over one backend, printed as TAP. A case starts its ranks by helpers/ranks.h on
 * the backend that it is given and returns 0, 1 or RANKS_SKIP; what went wrong is printed by then.
 */
#ifndef TESTS_SUITE_H
#define TESTS_SUITE_H

#include "helpers/ranks.h"

struct conf {
	const char *backend;
	struct ranks_opts opts; /* backend and options filled in: copy, add, use */
	int messaging; /* rows travel by posted transfers */
	int faulty; /* delays and reorders: nothing may be assumed about time */
};

struct conf_case {
	const char *name;
	int n_ranks; /* needs this many */
	int (*run)(const struct conf *conf);
};

/*
 * The main() of a suite: PROGRAM BACKEND [WORDS]. lists: ended by NULL; each list by a case
 * without a name. WORDS picks the cases whose name holds them. A case that wants more ranks than
 * the backend can carry is skipped; a backend that cannot be used here skips the whole program.
 */
int suite_main(int argc, char **argv, const struct conf_case *const *lists);

#endif
