/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The build without libsodium (-Dauth=disabled): a shared secret is refused, never ignored. The
 * frames of the handshake travel all the same; in place of a proof stands a text by which builds
 * like this one meet, and by which others can tell why they refuse. Nothing is lost by it: without
 * a secret everybody could make the proof.
 */
#include "bootstrap/auth.h"

#include <string.h>
#include <sys/random.h>

#include "util/error.h"
#include "util/time.h"

_Static_assert(sizeof(M2N__AUTH_NO_PROOF) == M2N__AUTH_PROOF_BYTES + 1, "as long as a proof");

int m2n__auth_init(void)
{
	return 0;
}

int m2n__auth_key_derive(const char *secret, struct m2n__auth_key *key)
{
	memset(key, 0, sizeof(*key));
	if (!secret || !secret[0])
		return 0;
	return m2n__error(M2N_ERR_AUTH,
		"this libm2n was built without libsodium and cannot prove a shared secret: leave "
		"SECRET empty, or build it with -Dauth=enabled");
}

void m2n__auth_nonce(uint8_t nonce[M2N__AUTH_NONCE_BYTES])
{
	size_t n = 0;

	/* So few bytes come at once; where the call is forbidden the time tells nonces apart. */
	while (n < M2N__AUTH_NONCE_BYTES) {
		ssize_t got = getrandom(nonce + n, M2N__AUTH_NONCE_BYTES - n, 0);

		if (got <= 0)
			break;
		n += (size_t)got;
	}
	for (; n < M2N__AUTH_NONCE_BYTES; n++)
		nonce[n] = (uint8_t)(m2n__now_ns() >> (8 * (n % 8)));
}

void m2n__auth_prove(const struct m2n__auth_key *key, enum m2n__auth_role role,
	const uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES],
	const uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES], const void *context,
	size_t context_bytes, uint8_t proof[M2N__AUTH_PROOF_BYTES])
{
	(void)key;
	(void)role;
	(void)caller_nonce;
	(void)listener_nonce;
	(void)context;
	(void)context_bytes;
	memcpy(proof, M2N__AUTH_NO_PROOF, M2N__AUTH_PROOF_BYTES);
}

int m2n__auth_check(const struct m2n__auth_key *key, enum m2n__auth_role role,
	const uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES],
	const uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES], const void *context,
	size_t context_bytes, const uint8_t proof[M2N__AUTH_PROOF_BYTES])
{
	(void)key;
	(void)role;
	(void)caller_nonce;
	(void)listener_nonce;
	(void)context;
	(void)context_bytes;
	if (memcmp(proof, M2N__AUTH_NO_PROOF, M2N__AUTH_PROOF_BYTES) == 0)
		return 0;
	return m2n__error(M2N_ERR_AUTH,
		"the other side proves a shared secret, and this libm2n was built without "
		"libsodium");
}
