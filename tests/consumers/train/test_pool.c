/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool of memory for rows: parts never share a byte, whatever comes and goes; what is free is
 * used again; only what found no gap is allocated beside it, and counted while it is most.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "run/pool.h"

#define ROOM 10000
#define MAX_PARTS 24
#define LINE 64 /* of each part */

struct taken {
	uint8_t *at;
	size_t bytes;
	uint8_t mark;
};

static int holds_mark(const struct taken *taken)
{
	for (size_t i = 0; i < taken->bytes; i++)
		if (taken->at[i] != taken->mark)
			return 0;
	return 1;
}

static void comes_and_goes(void **state)
{
	struct taken parts[MAX_PARTS] = {{0}};
	unsigned seed = 7;
	struct pool pool;

	(void)state;
	assert_int_equal(pool_open(&pool, ROOM), 0);
	for (unsigned turn = 0; turn < 20000; turn++) {
		struct taken *part = &parts[(unsigned)rand_r(&seed) % MAX_PARTS];

		if (part->at) {
			assert_true(holds_mark(part));
			pool_give(&pool, part->at);
			part->at = NULL;
			continue;
		}
		part->bytes = (size_t)rand_r(&seed) % (ROOM / 8);
		part->mark = (uint8_t)turn;
		part->at = pool_take(&pool, part->bytes);
		assert_non_null(part->at);
		assert_int_equal((uintptr_t)part->at % LINE, 0);
		memset(part->at, part->mark, part->bytes);
	}
	assert_true(pool_bytes(&pool) > ROOM);
	for (unsigned i = 0; i < MAX_PARTS; i++)
		if (parts[i].at)
			pool_give(&pool, parts[i].at);
	assert_int_equal(pool.outside, 0);
	pool_close(&pool);
}

/* A large part in place of two small ones, and the reverse. */
static void gaps_join(void **state)
{
	size_t each = 1024 - LINE;
	struct pool pool;
	void *part[4], *large;

	(void)state;
	assert_int_equal(pool_open(&pool, 4096), 0);
	for (unsigned i = 0; i < 4; i++)
		part[i] = pool_take(&pool, each);
	pool_give(&pool, part[2]);
	pool_give(&pool, part[1]);
	large = pool_take(&pool, 2048 - LINE);
	assert_ptr_equal(large, part[1]);
	assert_int_equal(pool_bytes(&pool), 4096);
	pool_give(&pool, large);
	pool_give(&pool, part[0]);
	pool_give(&pool, part[3]);
	large = pool_take(&pool, 4096 - LINE);
	assert_ptr_equal(large, part[0]);
	assert_int_equal(pool_bytes(&pool), 4096);
	pool_give(&pool, large);
	pool_close(&pool);
}

static void beside_it(void **state)
{
	struct pool pool;
	void *inside, *large, *small;

	(void)state;
	assert_int_equal(pool_open(&pool, 1024), 0);
	inside = pool_take(&pool, 512);
	large = pool_take(&pool, 2000); /* 2,048 and its line */
	small = pool_take(&pool, 1000); /* 1,024 and its line */
	assert_int_equal(pool_bytes(&pool), 1024 + 2112 + 1088);
	pool_give(&pool, large);
	pool_give(&pool, pool_take(&pool, 600));
	assert_int_equal(pool_bytes(&pool), 1024 + 2112 + 1088);
	pool_give(&pool, small);
	pool_give(&pool, inside);
	pool_close(&pool);
	assert_int_equal(pool_open(&pool, 0), 0);
	pool_give(&pool, pool_take(&pool, 0));
	assert_int_equal(pool_bytes(&pool), LINE);
	pool_close(&pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(comes_and_goes),
		cmocka_unit_test(gaps_join),
		cmocka_unit_test(beside_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
