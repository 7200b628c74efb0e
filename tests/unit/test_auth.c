/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Proofs of a secret: what makes one valid, and that every input changes it. The oracle is
 * Python's hashlib and hmac, over the bytes that the documentation names.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "bootstrap/auth.h"
#include "util/error.h"

static const uint8_t caller[32] = {1, 2, 3}, listener[32] = {4, 5, 6};

static void proof_of(const struct m2n__auth_key *key, enum m2n__auth_role role, const uint8_t *a,
	const uint8_t *b, const char *context, uint8_t proof[32])
{
	m2n__auth_prove(key, role, a, b, context, strlen(context), proof);
}

static void keys_follow_the_secret(void **state)
{
	static const struct m2n__auth_key zero;
	struct m2n__auth_key a, b;

	(void)state;
	assert_int_equal(m2n__auth_key_derive("tea", &a), 0);
	assert_int_equal(m2n__auth_key_derive("tea", &b), 0);
	assert_memory_equal(&a, &b, sizeof(a));
	assert_null(memmem(&a, sizeof(a), "tea", 3));
	assert_int_equal(m2n__auth_key_derive("Tea", &b), 0);
	assert_memory_not_equal(&a, &b, sizeof(a));
	assert_int_equal(m2n__auth_key_derive("", &a), 0);
	assert_memory_equal(&a, &zero, sizeof(a));
	assert_int_equal(m2n__auth_key_derive(NULL, &b), 0);
	assert_memory_equal(&b, &zero, sizeof(b));
}

/*
 * Python: key = blake2b(b"libm2n shared secret, 1\0tea", digest_size=32); proof = HMAC-SHA-512
 * under it of b"libm2n proof, 1\0", role 2, both nonces, b"group"; its first 32 bytes.
 */
static void keys_and_proofs_are_as_documented(void **state)
{
	static const uint8_t key_bytes[32] = {0x67, 0xaf, 0x30, 0xf5, 0x95, 0xb6, 0x5d, 0x13, 0xfe,
		0xd8, 0x05, 0x7d, 0x9e, 0x41, 0xdf, 0xb9, 0xb7, 0xc5, 0x7d, 0xe4, 0x48, 0x88, 0x00,
		0x60, 0x32, 0x4b, 0x9f, 0x1b, 0xf3, 0x26, 0x7f, 0x0e};
	static const uint8_t expected[32] = {0x01, 0x6e, 0xe2, 0x63, 0x78, 0x93, 0x69, 0xa1, 0xad,
		0x2d, 0xa2, 0xaa, 0x05, 0x97, 0xa0, 0xd2, 0x91, 0x05, 0x0c, 0xc4, 0xbe, 0x63, 0x34,
		0x80, 0xae, 0x67, 0xc2, 0xd8, 0x25, 0xd7, 0x7e, 0x7f};
	struct m2n__auth_key key;
	uint8_t proof[32];

	(void)state;
	m2n__auth_key_derive("tea", &key);
	assert_memory_equal(key.bytes, key_bytes, sizeof(key_bytes));
	proof_of(&key, M2N__AUTH_LISTENER, caller, listener, "group", proof);
	assert_memory_equal(proof, expected, sizeof(proof));
	assert_int_equal(
		m2n__auth_check(&key, M2N__AUTH_LISTENER, caller, listener, "group", 5, expected),
		0);
}

static void every_input_counts(void **state)
{
	struct m2n__auth_key key, other;
	uint8_t proof[32];

	(void)state;
	m2n__auth_key_derive("tea", &key);
	m2n__auth_key_derive("coffee", &other);
	proof_of(&key, M2N__AUTH_CALLER, caller, listener, "group", proof);
#define CHECK(key_, role, a, b, context, bytes)                                                    \
	m2n__auth_check(key_, role, a, b, context, bytes, proof)
	assert_int_equal(CHECK(&key, M2N__AUTH_CALLER, caller, listener, "group", 5), 0);
	assert_int_equal(
		CHECK(&other, M2N__AUTH_CALLER, caller, listener, "group", 5), M2N_ERR_AUTH);
	/* A proof sent back to its maker. */
	assert_int_equal(
		CHECK(&key, M2N__AUTH_LISTENER, caller, listener, "group", 5), M2N_ERR_AUTH);
	/* A proof recorded from another connection. */
	assert_int_equal(CHECK(&key, M2N__AUTH_CALLER, caller, caller, "group", 5), M2N_ERR_AUTH);
	assert_int_equal(
		CHECK(&key, M2N__AUTH_CALLER, listener, listener, "group", 5), M2N_ERR_AUTH);
	assert_int_equal(CHECK(&key, M2N__AUTH_CALLER, listener, caller, "group", 5), M2N_ERR_AUTH);
	assert_int_equal(CHECK(&key, M2N__AUTH_CALLER, caller, listener, "grouq", 5), M2N_ERR_AUTH);
	assert_int_equal(CHECK(&key, M2N__AUTH_CALLER, caller, listener, "group", 4), M2N_ERR_AUTH);
#undef CHECK
	assert_int_equal(m2n__auth_check(&key, M2N__AUTH_CALLER, caller, listener, "group", 5,
				 (const uint8_t *)M2N__AUTH_NO_PROOF),
		M2N_ERR_AUTH);
	assert_non_null(strstr(m2n_error_text(), "without libsodium"));
	for (size_t i = 0; i < sizeof(proof); i++) {
		proof[i] ^= 1;
		assert_int_equal(m2n__auth_check(&key, M2N__AUTH_CALLER, caller, listener, "group",
					 5, proof),
			M2N_ERR_AUTH);
		proof[i] ^= 1;
	}
}

static void nonces_differ(void **state)
{
	uint8_t nonces[64][M2N__AUTH_NONCE_BYTES];

	(void)state;
	for (int i = 0; i < 64; i++) {
		m2n__auth_nonce(nonces[i]);
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(nonces[i], nonces[j], sizeof(nonces[i]));
	}
}

static atomic_int stop;

static void *busy_main(void *arg)
{
	uint8_t nonce[M2N__AUTH_NONCE_BYTES];

	while (!atomic_load(&stop))
		m2n__auth_nonce(nonce);
	return arg;
}

/* A lock that the busy thread held at the fork would stay locked in the child. */
static void forks_beside_busy_threads_work(void **state)
{
	uint8_t nonce[M2N__AUTH_NONCE_BYTES];
	struct m2n__auth_key key;
	pthread_t busy;
	int ended;
	pid_t pid;

	(void)state;
	assert_int_equal(m2n__auth_init(), 0);
	assert_int_equal(pthread_create(&busy, NULL, busy_main, NULL), 0);
	for (int i = 0; i < 200; i++) {
		pid = fork();
		assert_true(pid >= 0);
		if (!pid) {
			alarm(20);
			m2n__auth_nonce(nonce);
			_exit(m2n__auth_key_derive("tea", &key) != 0);
		}
		assert_int_equal(waitpid(pid, &ended, 0), pid);
		assert_int_equal(ended, 0);
	}
	atomic_store(&stop, 1);
	pthread_join(busy, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keys_follow_the_secret),
		cmocka_unit_test(keys_and_proofs_are_as_documented),
		cmocka_unit_test(every_input_counts),
		cmocka_unit_test(nonces_differ),
		cmocka_unit_test(forks_beside_busy_threads_work),
	};

	return cmocka_run_group_tests_name("auth", tests, NULL, NULL);
}
