/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the bootstrap store: what a client and the server of a TCP store send each other, and
 * what a file of a directory store holds. All numbers are little-endian:
 *
 *     offset 0  u32 magic        bytes "M2NS"
 *            4  u16 version      M2N__STORE_WIRE_VERSION
 *            6  u16 type         enum m2n__store_frame_type
 *            8  u32 request      chosen by the client, echoed in the answer
 *           12  u32 key_bytes
 *           16  u32 value_bytes
 *           20  key              printable ASCII without spaces, not terminated
 *           20 + key_bytes  value
 *
 * The first 6 bytes are the same in every version, so that two versions can tell. A connection:
 * HELLO (client's nonce), CHALLENGE (server's nonce), PROOF (client's), WELCOME (server's proof)
 * or REFUSED; then requests PUT, GET, TRY, answered by DONE, VALUE, MISSING or FAILED. A GET is
 * answered when the key is there. A new request ends a GET that waits: its answer may have crossed,
 * and is known by its request number.
 */
#ifndef M2N_STORE_WIRE_H
#define M2N_STORE_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "wire/wire.h"

#define M2N__STORE_MAGIC UINT32_C(0x534e324d)
#define M2N__STORE_WIRE_VERSION M2N__WIRE_VERSION
#define M2N__STORE_HEADER_BYTES 20
#define M2N__STORE_WIRE_KEY_MAX 200
#define M2N__STORE_WIRE_VALUE_MAX 65536
#define M2N__STORE_FRAME_MAX \
	(M2N__STORE_HEADER_BYTES + M2N__STORE_WIRE_KEY_MAX + M2N__STORE_WIRE_VALUE_MAX)
/* The longest frame of a client that has not proven itself. */
#define M2N__STORE_HANDSHAKE_MAX (M2N__STORE_HEADER_BYTES + 32)

enum m2n__store_frame_type {
	M2N__STORE_HELLO = 1,     /* value: nonce, 32 bytes */
	M2N__STORE_CHALLENGE = 2, /* value: nonce, 32 bytes */
	M2N__STORE_PROOF = 3,     /* value: proof, 32 bytes */
	M2N__STORE_WELCOME = 4,   /* value: proof, 32 bytes */
	M2N__STORE_REFUSED = 5,   /* value: i32 status; the server closes */
	M2N__STORE_PUT = 6,       /* key, value */
	M2N__STORE_GET = 7,       /* key; answered when the key is there */
	M2N__STORE_TRY = 8,       /* key; answered at once */
	M2N__STORE_DONE = 9,
	M2N__STORE_VALUE = 10, /* value */
	M2N__STORE_MISSING = 11,
	M2N__STORE_FAILED = 12, /* value: i32 status; the connection goes on */
	M2N__STORE_ENTRY = 13,  /* key, value; only in files, never on a connection */
};

struct m2n__store_frame {
	uint16_t version; /* out only: unpack() */
	uint16_t type;
	uint32_t request;
	const char *key; /* [key_bytes], not terminated; may be NULL when key_bytes is 0 */
	size_t key_bytes;
	const void *value; /* [value_bytes]; may be NULL when value_bytes is 0 */
	size_t value_bytes;
};

/* 0, or -EINVAL: a key has 1 to 200 bytes, all of 0x21 to 0x7e. */
int m2n__store_key_check(const char *key, size_t key_bytes);

/*
 * Packs a frame of this version. -EINVAL: lengths or key not allowed for the type; -ENOSPC: room
 * is too small (at most M2N__STORE_FRAME_MAX is needed).
 */
int m2n__store_frame_pack(
	const struct m2n__store_frame *frame, uint8_t *out, size_t room, size_t *bytes);

/*
 * Reads the frame at the start of in[bytes]. 0: *frame is filled, its pointers point into `in`,
 * and *need is its size. -EAGAIN: more bytes are needed; *need says how many there must be at
 * least, counted from the start, never above M2N__STORE_FRAME_MAX. M2N_ERR_VERSION: frame->version
 * is the sender's. M2N_ERR_PROTOCOL: not a frame. Says what it can as early as it can: from the
 * first 4, 6 and 20 bytes.
 */
int m2n__store_frame_unpack(
	const uint8_t *in, size_t bytes, struct m2n__store_frame *frame, size_t *need);

/* The i32 that REFUSED and FAILED carry; unpack() has checked that there are 4 bytes. */
void m2n__store_status_pack(int32_t status, uint8_t out[4]);
int32_t m2n__store_status_unpack(const void *value);

#endif
