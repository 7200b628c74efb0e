/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the control connection between two ranks. Little-endian; a frame is a header of 16
 * bytes and a body. Bodies are written and read with the cursor below, which checks every length
 * before it moves; a reader that runs past the end stays at the end and says so.
 *
 *   offset size
 *   0      4    magic "M2NC"
 *   4      2    wire version
 *   6      2    type
 *   8      4    body bytes, at most M2N__FRAME_BODY_MAX
 *   12     4    zero
 *
 * Order: HELLO ->, <- CHALLENGE, PROOF ->, then either way GREET (where the backend needs one),
 * NOTICE, LINK, START, UNLINK, UNLINKED, BYE. REJECT ends a connection with a reason.
 */
#ifndef M2N_CONTROL_WIRE_H
#define M2N_CONTROL_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define M2N__FRAME_MAGIC 0x434e324du
#define M2N__FRAME_HEAD_BYTES 16
#define M2N__FRAME_BODY_MAX 65536

enum m2n__frame_type {
	M2N__FRAME_HELLO = 1,
	M2N__FRAME_CHALLENGE = 2,
	M2N__FRAME_PROOF = 3,
	M2N__FRAME_REJECT = 4,
	M2N__FRAME_LINK = 5,
	M2N__FRAME_UNLINK = 6,
	M2N__FRAME_BYE = 7,
	M2N__FRAME_START = 8,
	M2N__FRAME_GREET = 9,
	M2N__FRAME_UNLINKED = 10,
	M2N__FRAME_NOTICE = 11,
};

struct m2n__frame_head {
	uint16_t version;
	uint16_t type;
	uint32_t body_bytes;
};

void m2n__frame_pack(const struct m2n__frame_head *head, uint8_t bytes[M2N__FRAME_HEAD_BYTES]);
/* 0, or M2N_ERR_PROTOCOL (magic, length) with what was found. The version is not judged here. */
int m2n__frame_unpack(const uint8_t bytes[M2N__FRAME_HEAD_BYTES], struct m2n__frame_head *head);

/* A cursor over a body, for writing or reading. */
struct m2n__cursor {
	uint8_t *at;
	uint8_t *end;
	int overrun; /* something did not fit or was not there */
};

void m2n__put_u32(struct m2n__cursor *c, uint32_t value);
void m2n__put_u64(struct m2n__cursor *c, uint64_t value);
void m2n__put_bytes(struct m2n__cursor *c, const void *bytes, size_t n);
void m2n__put_blob(struct m2n__cursor *c, const void *bytes, size_t n); /* u32 length first */
uint32_t m2n__get_u32(struct m2n__cursor *c);
uint64_t m2n__get_u64(struct m2n__cursor *c);
void m2n__get_bytes(struct m2n__cursor *c, void *bytes, size_t n);
/* A pointer into the body, NULL and 0 on overrun or when longer than max. */
const void *m2n__get_blob(struct m2n__cursor *c, size_t max, size_t *n);
/* A blob as text, cut to room - 1 and ended; characters that do not print become '?'. */
void m2n__get_text(struct m2n__cursor *c, char *text, size_t room);

#endif
