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
	enum m2n_memory memory; /* where the rows of channels lie */
	int messaging; /* rows travel by posted transfers */
	int faulty; /* delays and reorders: nothing may be assumed about time */
};

enum conf_scope { ANY_MEMORY = 0, HOST_MEMORY, CUDA_MEMORY }; /* a case is for */

struct conf_case {
	const char *name;
	int n_ranks; /* needs this many */
	int (*run)(const struct conf *conf);
	enum conf_scope scope;
};

/*
 * The main() of a suite: PROGRAM [MEMORY:]BACKEND [WORDS]. MEMORY: "host" or "cuda"; without it
 * cuda on backends cuda_ipc and nccl, host on others. Cases for the other memory are left out.
 * lists: ended by NULL; each list by a case without a name. WORDS picks the cases whose name holds
 * them. With TESTS_NCCL_HOSTS in the environment ranks tell NCCL that they are hosts apart, which
 * versions before 2.30 need where ranks share a GPU. A case that wants more ranks than the backend
 * can carry is skipped; a backend that cannot be used here skips the whole program.
 */
int suite_main(int argc, char **argv, const struct conf_case *const *lists);

#endif
