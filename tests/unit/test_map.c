/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert maps: what creation derives and refuses, digests, references, balance.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "route/map.h"
#include "util/error.h"

static void blocks_give_the_first_ranks_one_more(void **state)
{
	struct m2n_map *map = NULL;

	(void)state;
	assert_int_equal(m2n_map_create(7, 3, NULL, NULL, &map), 0);
	assert_int_equal(m2n_map_n_local(map, 0), 3);
	assert_int_equal(m2n_map_n_local(map, 1), 2);
	assert_int_equal(m2n_map_n_local(map, 2), 2);
	assert_int_equal(m2n_map_n_local(map, 3), 0);
	assert_int_equal(m2n_map_expert(map, 0, 2), 2);
	assert_int_equal(m2n_map_expert(map, 1, 0), 3);
	assert_int_equal(m2n_map_expert(map, 2, 1), 6);
	assert_int_equal(m2n_map_expert(map, 2, 2), -1);
	assert_int_equal(m2n_map_expert(map, 3, 0), -1);
	assert_int_equal(map->max_owners, 1);
	assert_int_equal(map->max_local, 3);
	m2n_map_destroy(map);
	/* More ranks than experts: some own nothing. */
	assert_int_equal(m2n_map_create(2, 4, NULL, NULL, &map), 0);
	assert_int_equal(m2n_map_n_local(map, 1), 1);
	assert_int_equal(m2n_map_n_local(map, 2), 0);
	assert_int_equal(m2n_map_expert(map, 3, 0), -1);
	m2n_map_destroy(map);
	m2n_map_destroy(NULL);
	assert_int_equal(m2n_map_n_local(NULL, 0), 0);
	assert_int_equal(m2n_map_expert(NULL, 0, 0), -1);
}

static void instances_are_by_rank_then_expert(void **state)
{
	/* Expert 0: ranks 2, 0; expert 1: rank 2; expert 2: ranks 0, 2. Rank 1 owns nothing. */
	const uint32_t first[] = {0, 2, 3, 5}, owners[] = {2, 0, 2, 0, 2};
	static const uint32_t rank_first[] = {0, 2, 2, 5}, expert_of[] = {0, 2, 0, 1, 2};
	static const uint32_t owner_instance[] = {2, 0, 3, 1, 4};
	static const uint16_t rank_of[] = {0, 0, 2, 2, 2};
	struct m2n_map *map = NULL;

	(void)state;
	assert_int_equal(m2n_map_create(3, 3, first, owners, &map), 0);
	assert_int_equal(map->n_instances, 5);
	assert_int_equal(map->max_owners, 2);
	assert_int_equal(map->max_local, 3);
	assert_memory_equal(map->owner_first, first, sizeof(first));
	assert_memory_equal(map->owner_rank, owners, sizeof(owners));
	assert_memory_equal(map->rank_first, rank_first, sizeof(rank_first));
	assert_memory_equal(map->expert_of, expert_of, sizeof(expert_of));
	assert_memory_equal(map->owner_instance, owner_instance, sizeof(owner_instance));
	assert_memory_equal(map->rank_of, rank_of, sizeof(rank_of));
	m2n_map_destroy(map);
}

static void refuse(uint32_t n_experts, uint32_t n_ranks, const uint32_t *first,
	const uint32_t *owners, const char *text)
{
	struct m2n_map *map = NULL;

	assert_int_equal(m2n_map_create(n_experts, n_ranks, first, owners, &map), -EINVAL);
	assert_null(map);
	assert_non_null(strstr(m2n_error_text(), text));
}

static void bad_maps_are_refused(void **state)
{
	const uint32_t none[] = {0, 1, 1}, falling[] = {0, 2, 1}, late[] = {1, 2, 3};
	const uint32_t good[] = {0, 1, 3}, many[] = {0, 1, 4};
	const uint32_t owners[] = {0, 0, 1, 1}, twice[] = {0, 1, 1}, far[] = {0, 2, 1};

	(void)state;
	refuse(0, 1, NULL, NULL, "n_experts is 0, accepted: 1..2147483647");
	refuse(UINT32_MAX, 1, NULL, NULL, "n_experts is 4294967295");
	refuse(2, 0, NULL, NULL, "n_ranks is 0, accepted: 1..65535");
	refuse(2, 65536, NULL, NULL, "n_ranks is 65536");
	refuse(2, 2, good, NULL, "owners is NULL");
	refuse(2, 2, NULL, owners, "owner_first is NULL");
	refuse(2, 2, none, owners, "expert 1 has no owner");
	refuse(2, 2, falling, owners, "expert 1 has no owner (owner_first 2, then 1)");
	refuse(2, 2, late, owners, "owner_first[0] is 1");
	refuse(2, 2, many, owners, "expert 1 has 3 owners, accepted: 1..2");
	refuse(2, 2, good, twice, "expert 1 names owner 1 twice");
	refuse(2, 2, good, far, "expert 1 has owner 2, accepted: 0..1");
	assert_int_equal(m2n_map_create(2, 2, NULL, NULL, NULL), -EINVAL);
}

static uint32_t digest_of(
	uint32_t n_experts, uint32_t n_ranks, const uint32_t *first, const uint32_t *owners)
{
	struct m2n_map *map = NULL;
	uint32_t digest;

	assert_int_equal(m2n_map_create(n_experts, n_ranks, first, owners, &map), 0);
	digest = map->digest;
	m2n_map_destroy(map);
	return digest;
}

/* FNV-1a over the words 2, 2, then per expert its number of owners and the owners. */
static uint32_t fnv_by_hand(const uint8_t *bytes, size_t n)
{
	uint32_t hash = 0x811c9dc5u;

	for (size_t i = 0; i < n; i++) {
		hash ^= bytes[i];
		hash *= 0x01000193u;
	}
	return hash;
}

static void digests_tell_maps_apart(void **state)
{
	static const uint8_t words[] = {
		2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0};
	const uint32_t first[] = {0, 1, 2}, both[] = {0, 2, 3}, second[] = {0, 1, 3};
	const uint32_t straight[] = {0, 1, 0}, crossed[] = {1, 0, 0};
	uint32_t digests[6];

	(void)state;
	digests[0] = digest_of(2, 2, NULL, NULL);
	digests[1] = digest_of(2, 2, first, crossed);
	digests[2] = digest_of(2, 2, both, straight);
	digests[3] = digest_of(2, 2, both, crossed); /* the order of owners picks replicas */
	digests[4] = digest_of(2, 2, second, straight);
	digests[5] = digest_of(2, 3, first, straight);
	assert_int_equal(digests[0], fnv_by_hand(words, sizeof(words)));
	assert_int_equal(digests[0], digest_of(2, 2, first, straight));
	for (int i = 0; i < 6; i++) {
		for (int j = 0; j < i; j++)
			assert_int_not_equal(digests[i], digests[j]);
	}
}

static void *take_and_drop(void *arg)
{
	struct m2n_map *map = arg;

	for (int i = 0; i < 10000; i++)
		m2n__map_unref(m2n__map_ref(map));
	m2n__map_unref(map);
	return NULL;
}

static void the_last_reference_frees(void **state)
{
	struct m2n_map *map = NULL;
	pthread_t threads[4];

	(void)state;
	assert_int_equal(m2n_map_create(4, 2, NULL, NULL, &map), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(
			pthread_create(&threads[i], NULL, take_and_drop, m2n__map_ref(map)), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(atomic_load(&map->n_refs), 1);
	m2n_map_destroy(map);
}

/* Largest load of a rank when replicas share equally. */
static double max_load(const struct m2n_map *map, const float *load)
{
	double max = 0;

	for (uint32_t r = 0; r < map->n_ranks; r++) {
		double sum = 0;

		for (uint32_t l = 0; l < m2n_map_n_local(map, r); l++) {
			uint32_t e = (uint32_t)m2n_map_expert(map, r, l);

			sum += (double)load[e] / (map->owner_first[e + 1] - map->owner_first[e]);
		}
		max = sum > max ? sum : max;
	}
	return max;
}

static void balance_splits_the_hottest(void **state)
{
	const float one_hot[] = {90, 10, 10, 10}, even[] = {1, 1, 1, 1, 1, 1};
	const float two_hot[] = {50, 50, 0, 0};
	struct m2n_map *map = NULL;

	(void)state;
	/* 120 on 4 ranks: expert 0 on three of them, the others on the fourth. */
	assert_int_equal(m2n_map_balance(4, 4, one_hot, 3, &map), 0);
	assert_int_equal(map->owner_first[1] - map->owner_first[0], 3);
	assert_int_equal(map->n_instances, 6);
	assert_true(max_load(map, one_hot) == 30);
	m2n_map_destroy(map);
	/* No room for replicas: the best that single owners give. */
	assert_int_equal(m2n_map_balance(4, 4, one_hot, 1, &map), 0);
	assert_int_equal(map->n_instances, 4);
	assert_true(max_load(map, one_hot) == 90);
	m2n_map_destroy(map);
	/* Balanced as it is: nothing is replicated. */
	assert_int_equal(m2n_map_balance(6, 3, even, 6, &map), 0);
	assert_int_equal(map->n_instances, 6);
	assert_true(max_load(map, even) == 2);
	m2n_map_destroy(map);
	/* Splitting one of two equals alone lowers nothing, splitting both does. */
	assert_int_equal(m2n_map_balance(4, 4, two_hot, 2, &map), 0);
	assert_true(max_load(map, two_hot) == 25);
	m2n_map_destroy(map);
}

static void balance_without_load_spreads_experts(void **state)
{
	const float zero[7] = {0};
	struct m2n_map *map = NULL;

	(void)state;
	assert_int_equal(m2n_map_balance(7, 3, zero, 7, &map), 0);
	assert_int_equal(map->n_instances, 7);
	assert_int_equal(map->max_local, 3);
	m2n_map_destroy(map);
}

/*
 * Limits hold for any shape, and with room for all the maximum is within the bound of list
 * scheduling (Graham 1969): mean + (1 - 1 / n_ranks) * largest.
 */
static void balance_holds_its_promises(void **state)
{
	uint32_t seed = 1;
	float load[96];

	(void)state;
	for (uint32_t n_experts = 1; n_experts <= 96; n_experts += 5) {
		for (uint32_t n_ranks = 1; n_ranks <= 40; n_ranks += 3) {
			uint32_t least = (n_experts + n_ranks - 1) / n_ranks;
			struct m2n_map *map = NULL;
			double mean = 0, largest = 0;

			for (uint32_t e = 0; e < n_experts; e++) {
				seed = seed * 1664525 + 1013904223;
				load[e] = (float)(seed >> 20) / (float)(1 + e);
				mean += (double)load[e] / n_ranks;
				largest = load[e] > largest ? (double)load[e] : largest;
			}
			for (uint32_t spare = 0; spare < 3; spare++) {
				assert_int_equal(m2n_map_balance(n_experts, n_ranks, load,
							 least + spare, &map),
					0);
				assert_true(map->max_local <= least + spare);
				m2n_map_destroy(map);
			}
			assert_int_equal(
				m2n_map_balance(n_experts, n_ranks, load, UINT32_MAX, &map), 0);
			assert_true(max_load(map, load) <=
				    mean + largest * (1 - 1.0 / n_ranks) + 1e-6 * mean);
			m2n_map_destroy(map);
		}
	}
}

static void balance_refuses_bad_input(void **state)
{
	float load[] = {1, 2, 3};
	struct m2n_map *map = NULL;

	(void)state;
	assert_int_equal(m2n_map_balance(3, 2, load, 1, &map), -EINVAL);
	assert_non_null(strstr(m2n_error_text(), "max_local is 1, accepted: from 2"));
	assert_int_equal(m2n_map_balance(0, 2, load, 1, &map), -EINVAL);
	assert_int_equal(m2n_map_balance(3, 0, load, 1, &map), -EINVAL);
	assert_int_equal(m2n_map_balance(3, 2, NULL, 2, &map), -EINVAL);
	assert_int_equal(m2n_map_balance(3, 2, load, 2, NULL), -EINVAL);
	load[1] = NAN;
	assert_int_equal(m2n_map_balance(3, 2, load, 2, &map), -EINVAL);
	assert_non_null(strstr(m2n_error_text(), "expert 1 has load nan"));
	load[1] = -1;
	assert_int_equal(m2n_map_balance(3, 2, load, 2, &map), -EINVAL);
	load[1] = INFINITY;
	assert_int_equal(m2n_map_balance(3, 2, load, 2, &map), -EINVAL);
	assert_null(map);
	load[1] = 2;
	assert_int_equal(m2n_map_balance(3, 2, load, UINT32_MAX, &map), 0);
	m2n_map_destroy(map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_give_the_first_ranks_one_more),
		cmocka_unit_test(instances_are_by_rank_then_expert),
		cmocka_unit_test(bad_maps_are_refused),
		cmocka_unit_test(digests_tell_maps_apart),
		cmocka_unit_test(the_last_reference_frees),
		cmocka_unit_test(balance_splits_the_hottest),
		cmocka_unit_test(balance_without_load_spreads_experts),
		cmocka_unit_test(balance_holds_its_promises),
		cmocka_unit_test(balance_refuses_bad_input),
	};

	return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
