/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that are joined by the NCCL backend alone, without core: each opens the double's device and
 * an iface and connects to all others; greetings, keys and notices go through shared memory.
 */
#ifndef TESTS_NCCL_MESH_H
#define TESTS_NCCL_MESH_H

#include "backend/registry.h"
#include "core/option.h"
#include "helpers/ranks.h"
#include "mem/cuda.h"

#define MESH_RANKS 4
#define MESH_SIGNALS 64
#define MESH_MEM ((size_t)1 << 20)
#define MESH_KEY_AT 4096 /* what is exported: from here */
#define MESH_KEY_BYTES (MESH_MEM - 2 * MESH_KEY_AT)

struct mesh;

struct link { /* to one peer */
	struct mesh *mesh;
	int peer;
	struct m2n__ep *ep; /* NULL: none, or given up */
	struct m2n__rmem *rmem;
};

struct mesh {
	struct rank *rank;
	struct mesh_board *board;
	struct m2n__options options;
	struct m2n__backend_ops ops;
	struct m2n__iface *iface;
	struct m2n__cuda *cuda;
	struct m2n__mem *signal_mem, *mem, *source; /* mem: peers write to it */
	struct m2n__mr *mr, *source_mr;
	struct m2n__reg source_reg;
	_Atomic uint64_t *signals;
	struct link links[MESH_RANKS];
};

size_t mesh_shared_bytes(void);
/* Is it the stand-in that was loaded? */
int mesh_is_double(void);
/* On real NCCL ranks may share the GPU as if each were a host of its own. Once it is loaded. */
void mesh_share_gpu(const struct rank *rank);
/* Probes and opens; `mesh` is all of a rank's. Skips where the double is not found. */
void mesh_open(struct mesh *mesh, struct rank *rank);
/* Connects to all others up to ready(). */
void mesh_connect(struct mesh *mesh);
/* The same; the first status of meet() or ready() that is an error. */
int mesh_try_connect(struct mesh *mesh);
/* Allocates, registers, exports and imports memory. */
void mesh_share(struct mesh *mesh);
void mesh_disconnect(struct mesh *mesh, int peer);
void mesh_close(struct mesh *mesh);
/* Progress, and what peers said. */
void mesh_turn(struct mesh *mesh);
/* One put of n bytes in `n_pieces` from the source's `from` to the peer's exported `to`. */
void mesh_put(struct mesh *mesh, int peer, size_t from, size_t n, unsigned n_pieces, size_t to,
	uint32_t signal);
/* The same once: the status. */
int mesh_try_put(struct mesh *mesh, int peer, size_t from, size_t n, unsigned n_pieces, size_t to,
	uint32_t signal);
void mesh_await(struct mesh *mesh, uint32_t signal, uint64_t value);
void mesh_flush(struct mesh *mesh, int peer);
/* Notices that this rank's backend says to `peer` are kept from it while set. */
void mesh_hold(struct mesh *mesh, int peer, int hold);

#endif
