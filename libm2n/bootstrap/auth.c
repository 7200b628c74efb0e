/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Challenge and response on libsodium: BLAKE2b makes the key, HMAC-SHA-512-256 (what crypto_auth()
 * is) makes the proof. Its parts are of fixed length but the last, so no two inputs look alike; the
 * role in it stops a proof from being sent back to the one that made it.
 */
#include "bootstrap/auth.h"

#include <stdatomic.h>
#include <string.h>

#include <sodium.h>

#include "util/error.h"

_Static_assert(M2N__AUTH_KEY_BYTES == crypto_auth_KEYBYTES, "key size of crypto_auth()");
_Static_assert(M2N__AUTH_PROOF_BYTES == crypto_auth_BYTES, "proof size of crypto_auth()");
_Static_assert(sizeof(M2N__AUTH_NO_PROOF) == M2N__AUTH_PROOF_BYTES + 1, "as long as a proof");

static const char key_label[] = "libm2n shared secret, 1";
static const char proof_label[] = "libm2n proof, 1";

/*
 * sodium_init() takes a lock each time, and a process forked while another thread holds it waits
 * for ever. So it is called until it succeeded once, and no more.
 */
int m2n__auth_init(void)
{
	static _Atomic int ready;

	/* A1: what sodium_init() wrote; pairs with R1. */
	if (atomic_load_explicit(&ready, memory_order_acquire))
		return 0;
	if (sodium_init() < 0)
		return m2n__error(M2N_ERR_AUTH, "libsodium cannot be initialised");
	/* R1: pairs with A1. */
	atomic_store_explicit(&ready, 1, memory_order_release);
	return 0;
}

int m2n__auth_key_derive(const char *secret, struct m2n__auth_key *key)
{
	crypto_generichash_state hash;

	if (m2n__auth_init())
		return M2N_ERR_AUTH;
	if (!secret || !secret[0]) {
		memset(key, 0, sizeof(*key));
		return 0;
	}
	crypto_generichash_init(&hash, NULL, 0, sizeof(key->bytes));
	crypto_generichash_update(&hash, (const uint8_t *)key_label, sizeof(key_label));
	crypto_generichash_update(&hash, (const uint8_t *)secret, strlen(secret));
	crypto_generichash_final(&hash, key->bytes, sizeof(key->bytes));
	sodium_memzero(&hash, sizeof(hash));
	return 0;
}

void m2n__auth_nonce(uint8_t nonce[M2N__AUTH_NONCE_BYTES])
{
	/* A failure here leaves libsodium's default generator, the kernel's. */
	(void)m2n__auth_init();
	randombytes_buf(nonce, M2N__AUTH_NONCE_BYTES);
}

void m2n__auth_prove(const struct m2n__auth_key *key, enum m2n__auth_role role,
	const uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES],
	const uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES], const void *context,
	size_t context_bytes, uint8_t proof[M2N__AUTH_PROOF_BYTES])
{
	crypto_auth_hmacsha512256_state mac;
	uint8_t role_byte = (uint8_t)role;

	crypto_auth_hmacsha512256_init(&mac, key->bytes, sizeof(key->bytes));
	crypto_auth_hmacsha512256_update(&mac, (const uint8_t *)proof_label, sizeof(proof_label));
	crypto_auth_hmacsha512256_update(&mac, &role_byte, 1);
	crypto_auth_hmacsha512256_update(&mac, caller_nonce, M2N__AUTH_NONCE_BYTES);
	crypto_auth_hmacsha512256_update(&mac, listener_nonce, M2N__AUTH_NONCE_BYTES);
	crypto_auth_hmacsha512256_update(&mac, context, context_bytes);
	crypto_auth_hmacsha512256_final(&mac, proof);
	sodium_memzero(&mac, sizeof(mac));
}

int m2n__auth_check(const struct m2n__auth_key *key, enum m2n__auth_role role,
	const uint8_t caller_nonce[M2N__AUTH_NONCE_BYTES],
	const uint8_t listener_nonce[M2N__AUTH_NONCE_BYTES], const void *context,
	size_t context_bytes, const uint8_t proof[M2N__AUTH_PROOF_BYTES])
{
	uint8_t expected[M2N__AUTH_PROOF_BYTES];
	int differs;

	m2n__auth_prove(key, role, caller_nonce, listener_nonce, context, context_bytes, expected);
	differs = sodium_memcmp(expected, proof, sizeof(expected));
	sodium_memzero(expected, sizeof(expected));
	if (differs && memcmp(proof, M2N__AUTH_NO_PROOF, sizeof(expected)) == 0)
		return m2n__error(M2N_ERR_AUTH,
			"the other side's libm2n was built without libsodium and proves nothing");
	if (differs)
		return m2n__error(M2N_ERR_AUTH, "the proof of the shared secret is wrong");
	return 0;
}
