/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Proof of a shared secret by challenge and response, both ways, with libsodium. The secret is
 * never sent: each side sends a random nonce, then crypto_auth() over (its role, both nonces and
 * the caller's context bytes) under a key derived from the secret with crypto_generichash().
 * Without a secret the same frames travel under a key that is all zero, so that a side with and
 * one without a secret find out, rather than hang. A build without libsodium (auth_none.c) knows no
 * secret.
 */
#ifndef M2N_AUTH_H
#define M2N_AUTH_H

#include <stddef.h>
#include <stdint.h>

#define M2N__AUTH_NONCE_BYTES 32
#define M2N__AUTH_PROOF_BYTES 32
#define M2N__AUTH_KEY_BYTES 32
/* What a build without libsodium sends as its proof: exactly as many bytes. */
#define M2N__AUTH_NO_PROOF "built without libsodium: none..."

struct m2n__auth_key {
	uint8_t bytes[M2N__AUTH_KEY_BYTES];
};

enum m2n__auth_role { M2N__AUTH_CALLER = 1, M2N__AUTH_LISTENER = 2 };

/*
 * Makes libsodium ready, which the others do by themselves: for one that starts threads, so that
 * no lock of libsodium's is held by them when the program forks. 0, or M2N_ERR_AUTH.
 */
int m2n__auth_init(void);
/*
 * Key of a secret; NULL or "" gives the zero key. 0, or M2N_ERR_AUTH when libsodium fails, or when
 * there is a secret in a build without it.
 */
int m2n__auth_key_derive(const char *secret, struct m2n__auth_key *key);
void m2n__auth_nonce(uint8_t nonce[M2N__AUTH_NONCE_BYTES]);
/* The proof that `role` gives; context binds it to the connection (group name, ranks). */
void m2n__auth_prove(const struct m2n__auth_key *key, enum m2n__auth_role role,
	const uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES],
	const uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES], const void *context,
	size_t context_bytes, uint8_t proof[M2N__AUTH_PROOF_BYTES]);
/* 0, or M2N_ERR_AUTH; constant time. */
int m2n__auth_check(const struct m2n__auth_key *key, enum m2n__auth_role role,
	const uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES],
	const uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES], const void *context,
	size_t context_bytes, const uint8_t proof[M2N__AUTH_PROOF_BYTES]);

#endif
