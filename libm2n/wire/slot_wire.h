/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies at the start of every slot: 64 bytes, one cache line, little-endian, followed by the
 * payload.
 *
 * Mapped peers store the payload and the fields first, then `signal` with a release store.
 * Messaging peers write head and payload in one transfer and are counted by the signal table;
 * `signal` then only says which round the bytes belong to. Small messages of the public exchange
 * may be sealed instead of counted. `body` is the same for rows that go
 * elsewhere than behind the head (exact placement), after the peer granted a place.
 */
#ifndef M2N_SLOT_WIRE_H
#define M2N_SLOT_WIRE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct m2n__slot_head {
	_Atomic uint64_t signal; /* 0: round + 1 */
	_Atomic uint64_t body;   /* 8: round + 1 when the body is complete (mapped) */
	uint64_t bytes;          /* 16: payload bytes behind this head */
	uint64_t place;          /* 24: dispatch: where replies go, bytes into the sink's region;
				  *     exchange: how many messages the writer has released */
	uint32_t n_rows;         /* 32: rows (routed pairs) */
	uint32_t n_sent;         /* 36: rows that travel; fewer with dedup */
	uint32_t map_digest;     /* 40: dispatch: the expert map of this round */
	uint32_t sink;           /* 44: dispatch: sink index that gets the replies */
	uint32_t n_body_puts;    /* 48: signalled transfers besides this one (messaging) */
	uint32_t flags;          /* 52: M2N__SLOT_* */
	uint64_t seal;           /* 56: of a sealed message (slot_seal.h), else zero */
};

_Static_assert(sizeof(struct m2n__slot_head) == 64, "a slot head is one cache line");
_Static_assert(offsetof(struct m2n__slot_head, n_rows) == 32, "wire offset");
_Static_assert(offsetof(struct m2n__slot_head, flags) == 52, "wire offset");

#define M2N__SLOT_REFUSED 1u /* reply or grant: the expert rank could not take the rows */

#endif
