/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The build without libsodium: a secret is refused with the remedy, builds of this kind meet, and
 * a real proof is not taken for one of theirs. Linked with auth_none.c in every build.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "bootstrap/auth.h"
#include "util/error.h"

static const uint8_t nonce[M2N__AUTH_NONCE_BYTES];

static void a_secret_is_refused(void **state)
{
	static const struct m2n__auth_key zero;
	struct m2n__auth_key key;

	(void)state;
	assert_int_equal(m2n__auth_key_derive("tea", &key), M2N_ERR_AUTH);
	assert_non_null(strstr(m2n_error_text(), "-Dauth=enabled"));
	assert_memory_equal(&key, &zero, sizeof(key));
	assert_int_equal(m2n__auth_key_derive("", &key), 0);
	assert_int_equal(m2n__auth_key_derive(NULL, &key), 0);
}

static void two_such_builds_meet(void **state)
{
	struct m2n__auth_key key;
	uint8_t proof[M2N__AUTH_PROOF_BYTES];

	(void)state;
	assert_int_equal(m2n__auth_init(), 0);
	assert_int_equal(m2n__auth_key_derive(NULL, &key), 0);
	m2n__auth_prove(&key, M2N__AUTH_CALLER, nonce, nonce, "group", 5, proof);
	assert_int_equal(
		m2n__auth_check(&key, M2N__AUTH_CALLER, nonce, nonce, "group", 5, proof), 0);
	proof[0] ^= 1;
	assert_int_equal(m2n__auth_check(&key, M2N__AUTH_CALLER, nonce, nonce, "group", 5, proof),
		M2N_ERR_AUTH);
	assert_non_null(strstr(m2n_error_text(), "without libsodium"));
}

static void nonces_differ(void **state)
{
	uint8_t a[M2N__AUTH_NONCE_BYTES] = {0}, b[M2N__AUTH_NONCE_BYTES] = {0};

	(void)state;
	m2n__auth_nonce(a);
	m2n__auth_nonce(b);
	assert_memory_not_equal(a, b, sizeof(a));
	assert_memory_not_equal(a + 16, nonce, 16);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_secret_is_refused),
		cmocka_unit_test(two_such_builds_meet),
		cmocka_unit_test(nonces_differ),
	};

	return cmocka_run_group_tests_name("auth_none", tests, NULL, NULL);
}
