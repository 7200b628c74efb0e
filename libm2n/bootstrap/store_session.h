/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client's connection at a store's server: its handshake, its requests, and the one answer
 * that may be on its way. A session whose answer is not sent yet is not read, so a client costs at
 * most one request and one answer of memory; before it has proven itself, one handshake frame.
 */
#ifndef M2N_STORE_SESSION_H
#define M2N_STORE_SESSION_H

#include <stddef.h>
#include <stdint.h>

#include "bootstrap/auth.h"
#include "bootstrap/store_table.h"
#include "wire/store_wire.h"

/* What a proof is bound to, the terminator included. */
#define M2N__STORE_AUTH_CONTEXT "libm2n store"
/* A client that has not proven itself, or was refused, is dropped after this. */
#define M2N__STORE_HANDSHAKE_NS INT64_C(10000000000)
#define M2N__STORE_LINGER_NS INT64_C(1000000000)

enum m2n__store_phase {
	M2N__STORE_AWAIT_HELLO,
	M2N__STORE_AWAIT_PROOF,
	M2N__STORE_SERVING,
	M2N__STORE_REFUSING, /* reads and drops until the client has seen why, or LINGER_NS */
};

struct m2n__store_session {
	int fd;
	int dead; /* to be closed by the server's loop */
	enum m2n__store_phase phase;
	int64_t deadline_ns; /* INT64_MAX while serving */
	uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES];
	uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES];
	int waiting; /* a GET waits for wait_key */
	uint32_t wait_request;
	char wait_key[M2N__STORE_WIRE_KEY_MAX + 1];
	uint8_t *in; /* [in_room], in_bytes of it filled */
	size_t in_bytes, in_room;
	uint8_t *out; /* [out_room], out_sent of out_bytes sent */
	size_t out_bytes, out_sent, out_room;
};

/* What the sessions of a server share. */
struct m2n__store_shared {
	struct m2n__auth_key key;
	struct m2n__store_table table;
	struct m2n__store_session **sessions; /* [n_sessions] */
	size_t n_sessions, sessions_room;
};

/* Takes the connected, non-blocking socket; NULL: no memory, the socket stays the caller's. */
struct m2n__store_session *m2n__store_session_create(int fd, int64_t handshake_ns);
void m2n__store_session_destroy(struct m2n__store_session *session);
/* The poll() events the session waits for. */
short m2n__store_session_events(const struct m2n__store_session *session);
/* After poll(): sends, reads, answers. Sets session->dead when the client is to be dropped. */
void m2n__store_session_progress(
	struct m2n__store_session *session, struct m2n__store_shared *shared, short events);

#endif
