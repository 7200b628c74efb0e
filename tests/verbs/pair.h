/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two processes that are connected by the verbs backend without core: what core does, by hand.
 */
#ifndef TESTS_VERBS_PAIR_H
#define TESTS_VERBS_PAIR_H

#include <stdatomic.h>

#include "backend/backend.h"
#include "helpers/ranks.h"
#include "util/options.h"

#define PAIR_MEM_BYTES 262144
#define PAIR_N_SIGNALS 64
#define PAIR_SIGNAL 5
#define PAIR_TOKEN_AT 23 /* last byte of the token in a greeting */

/* What the two tell each other; the ranks' shared memory. */
struct pair_board {
	size_t blob_bytes[2], greeting_bytes[2], key_bytes[2];
	uint8_t blob[2][M2N__ADDRESS_BYTES];
	uint8_t greeting[2][M2N__GREETING_BYTES];
	uint8_t key[2][M2N__KEY_BYTES];
};

struct pair {
	struct rank *rank;
	struct pair_board *board;
	int peer;
	struct m2n__options options;
	struct m2n__backend_ops ops;
	struct m2n__iface *iface;
	struct m2n__ep *ep;
	struct m2n__mem *mem, *source_mem, *signal_mem;
	struct m2n__mr *mr, *source_mr;
	struct m2n__rmem *rmem;
	_Atomic uint64_t *signals;
	uint8_t greeting[M2N__GREETING_BYTES]; /* the peer's */
	size_t greeting_bytes;
	int n_again; /* puts that had no room */
};

extern char pair_last_log[512]; /* the last warning */

/* rank NULL: alone. */
int pair_try_open(struct pair *p, struct rank *rank, const char *const *options);
void pair_open(struct pair *p, struct rank *rank, const char *const *options);
/* connect() and greeting() of both sides; nobody has met yet. */
void pair_greet(struct pair *p);
/* Until both are ready. */
void pair_connect(struct pair *p);
/* Memory of both sides, and the peer's key. */
void pair_share(struct pair *p);
void pair_import(struct pair *p);
void pair_close(struct pair *p);

void pair_put(struct pair *p, struct m2n__put *put);
void pair_flush(struct pair *p);
void pair_arrived(struct pair *p);

#endif
