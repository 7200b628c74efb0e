/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One of two processes that drive a backend's table without core: opens an iface, connects it to
 * the other's (for `self` its own) and exchanges blobs, greetings and keys by a page that both
 * map. Tests of the contract, and of what a backend has beyond it.
 */
#ifndef TESTS_SIDE_H
#define TESTS_SIDE_H

#include "backend/backend.h"
#include "helpers/ranks.h"
#include "util/options.h"

#define MEM_BYTES 262144
#define KEY_AT 4096
#define KEY_SPAN 100000
#define N_SIGNALS 64
#define SIGNAL 5

/* Words and memory that the two processes agree by. */
struct board {
	size_t blob_bytes[2], greeting_bytes[2], key_bytes[2];
	uint8_t greeting[2][M2N__GREETING_BYTES];
	uint8_t blob[2][M2N__ADDRESS_BYTES];
	uint8_t key[2][M2N__KEY_BYTES];
};

struct side {
	struct rank *rank;
	struct board *board;
	int peer; /* its index on the board */
	struct m2n__options options;
	struct m2n__backend_ops ops, inner;
	struct m2n__cuda *cuda; /* NULL: the backend has no use for a device */
	struct m2n__iface *iface;
	struct m2n__ep *ep;
	struct m2n__mem *mem, *source_mem, *signal_mem;
	uint8_t *source; /* where the next bytes that are sent lie */
	struct m2n__mr *source_mr;
	uint64_t raised;
	_Atomic uint64_t *signals;
	struct m2n__mr *mr;
	struct m2n__rmem *rmem;
};

/*
 * Runs `fn` with a check of its own for what it leaves behind: what a driver makes in the first
 * work of a process it keeps, so that comes before. For ranks with opts.no_leak_check.
 */
void side_run(struct rank *rank, int needs_device, rank_fn fn);
/* Has this backend, or the one under the interposer, use for a CUDA device? */
int side_needs_device(const char *backend);
/* Probe and open, on device `device` unless that is -1; skips where it cannot. */
void side_open(struct side *side, struct rank *rank, int device);
/* Both sides: blobs, reaches, connect and greetings. */
void side_connect(struct side *side);
/* Both sides: host memory to be written to, with its key, and a source of writes. */
void side_share(struct side *side);
/* Both sides; what was not made is left out. */
void side_close(struct side *side);

#endif
