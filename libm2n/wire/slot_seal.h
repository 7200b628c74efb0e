/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealed messages: small ones of the public exchange that nobody counts. The receiver looks at the
 * slot itself; `seal`, a digest of the round, the head and the payload, says that all of it is
 * there. So no order is asked of whoever writes the bytes, within a line, a packet or a device:
 * what is torn, or left of the slot's last message, does not fit (but once in 2^64).
 */
#ifndef M2N_SLOT_SEAL_H
#define M2N_SLOT_SEAL_H

#include <string.h>

#include "wire/slot_wire.h"

#define M2N__SEALED_BYTES 192 /* of payload at most */

/* What travels behind the head: the payload and zeros up to a whole number of these. */
#define M2N__SEALED_UNIT 32

static inline size_t m2n__sealed_room(size_t payload_bytes)
{
	return (payload_bytes + M2N__SEALED_UNIT - 1) & ~(size_t)(M2N__SEALED_UNIT - 1);
}

/* One to one in each of its arguments; every bit of either reaches the others in two steps. */
static inline uint64_t m2n__seal_mix(uint64_t h, uint64_t word)
{
	h ^= word;
	return (h << 29 | h >> 35) * UINT64_C(0x9e3779b97f4a7c15);
}

/* In four lanes, which a processor works on side by side. The payload is padded. Never 0. */
static inline uint64_t m2n__seal_of(
	const struct m2n__slot_head *head, const void *payload, size_t room, uint64_t round)
{
	const uint8_t *at = payload, *end = at + room;
	uint64_t w[8], a = round + 1, b = a, c = a, d = a;

	memcpy(w, head, sizeof(w)); /* 0 is the signal, 7 the seal */
	a = m2n__seal_mix(a, w[1]);
	b = m2n__seal_mix(b, w[2]);
	c = m2n__seal_mix(c, w[3]);
	d = m2n__seal_mix(d, w[4]);
	a = m2n__seal_mix(a, w[5]);
	b = m2n__seal_mix(b, w[6]);
	for (; at < end; at += M2N__SEALED_UNIT) {
		memcpy(w, at, M2N__SEALED_UNIT);
		a = m2n__seal_mix(a, w[0]);
		b = m2n__seal_mix(b, w[1]);
		c = m2n__seal_mix(c, w[2]);
		d = m2n__seal_mix(d, w[3]);
	}
	a = m2n__seal_mix(m2n__seal_mix(a, b), m2n__seal_mix(c, d));
	return a ? a : 1;
}

/* Is the sealed message of `round` whole? The payload behind the head has room for max_bytes. */
static inline int m2n__slot_is_sealed(
	const struct m2n__slot_head *head, uint64_t round, size_t max_bytes)
{
	size_t bytes = head->bytes;

	return head->seal && bytes <= M2N__SEALED_BYTES && bytes <= max_bytes &&
	       head->seal == m2n__seal_of(head, head + 1, m2n__sealed_room(bytes), round);
}

#endif
