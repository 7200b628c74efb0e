/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plan as bytes: what a source hands to sinks that are not the sources, so that they can place
 * and reduce the replies. A header, then three arrays.
 *
 * Decoding checks what can be known from the bytes alone: that the form is ours, that no flag is
 * unknown and that sizes and length agree. What numbers mean is the plan's to check.
 */
#ifndef M2N_PLAN_WIRE_H
#define M2N_PLAN_WIRE_H

#include <stddef.h>
#include <stdint.h>

/*
 * The form. All numbers are little-endian.
 *
 *	offset	size	what
 *	0	4	magic "M2NP"
 *	4	2	version
 *	6	2	flags M2N__PLAN_*
 *	8	8	bytes of the whole message
 *	16	4	digest of the expert map
 *	20	4	source index
 *	24	4	n_tokens
 *	28	4	top_k
 *	32	4	n_instances of the map
 *	36	4	n_rows
 *	40	4	n_dropped
 *	44	4	n_dropped_lost
 *	48		instance of each pair [n_tokens, top_k], u16, or u32 with
 *			M2N__PLAN_WIDE; all ones: no row; zeros up to a multiple of 4 bytes
 *			weights [n_tokens, top_k] f32, with M2N__PLAN_WEIGHTS
 *			dropped pairs of each token [n_tokens] u8, with M2N__PLAN_DROPPED
 */
#define M2N__PLAN_MAGIC 0x504e324du /* "M2NP" */
#define M2N__PLAN_VERSION 1
#define M2N__PLAN_HEADER_BYTES 48

#define M2N__PLAN_WEIGHTS 0x01u /* weights follow */
#define M2N__PLAN_DEDUP 0x02u /* routed with dedup */
#define M2N__PLAN_REDUCE 0x04u /* routed with reduce_at_expert */
#define M2N__PLAN_WIDE 0x08u /* instances are 32 bits: more than 65535 of them */
#define M2N__PLAN_DROPPED 0x10u /* dropped pairs by token follow */
#define M2N__PLAN_ALL_FLAGS 0x1fu

struct m2n__plan_wire {
	uint16_t flags;
	uint32_t digest;
	uint32_t source;
	uint32_t n_tokens;
	uint32_t top_k;
	uint32_t n_instances;
	uint32_t n_rows;
	uint32_t n_dropped;
	uint32_t n_dropped_lost;
	/* Offsets of the arrays and the length, made from the fields above. */
	uint64_t instances_at;
	uint64_t weights_at;
	uint64_t dropped_at;
	uint64_t bytes;
};

/* Fills the offsets and `bytes` from the other fields. */
void m2n__plan_wire_layout(struct m2n__plan_wire *wire);
/* Writes the header of a message whose layout is made. buffer: M2N__PLAN_HEADER_BYTES at least. */
void m2n__plan_wire_encode(const struct m2n__plan_wire *wire, void *buffer);
/*
 * Reads a header and makes the layout; `bytes` must be the whole message. Returns 0,
 * M2N_ERR_VERSION or M2N_ERR_PROTOCOL with a text that says what and where.
 */
int m2n__plan_wire_decode(const void *buffer, size_t bytes, struct m2n__plan_wire *wire);

/* Pair `p` of the instances, -1 for none. */
void m2n__plan_wire_put_instance(
	const struct m2n__plan_wire *wire, void *buffer, size_t p, int64_t instance);
int64_t m2n__plan_wire_get_instance(
	const struct m2n__plan_wire *wire, const void *buffer, size_t p);
void m2n__plan_wire_put_weight(
	const struct m2n__plan_wire *wire, void *buffer, size_t p, float weight);
float m2n__plan_wire_get_weight(const struct m2n__plan_wire *wire, const void *buffer, size_t p);

#endif
