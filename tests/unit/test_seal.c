/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seal of small messages: it fits when all bytes are there, in whatever order they come, and
 * at no moment before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "wire/slot_seal.h"

#define ROUND 41

struct slot {
	struct m2n__slot_head head;
	uint8_t payload[M2N__SEALED_BYTES + M2N__SEALED_UNIT];
};

static const size_t sizes[] = {0, 1, 8, 31, 32, 33, 64, 100, 191, 192};
#define N_SIZES (sizeof(sizes) / sizeof(sizes[0]))

/* A message as a sender makes it; bytes of `slot` behind it stay. Returns what travels. */
static size_t make(struct slot *slot, size_t bytes, uint64_t round, uint8_t first)
{
	size_t room = m2n__sealed_room(bytes);

	slot->head = (struct m2n__slot_head){.signal = round + 1, .bytes = bytes, .place = 7};
	memset(slot->payload, 0, room);
	for (size_t i = 0; i < bytes; i++)
		slot->payload[i] = (uint8_t)(first + 3 * i);
	slot->head.seal = m2n__seal_of(&slot->head, slot->payload, room, round);
	return sizeof(slot->head) + room;
}

static int fits(const struct slot *slot, uint64_t round)
{
	return m2n__slot_is_sealed(&slot->head, round, M2N__SEALED_BYTES);
}

static void whole_messages_fit(void **state)
{
	struct slot slot;

	(void)state;
	memset(&slot, 0xa5, sizeof(slot));
	for (size_t i = 0; i < N_SIZES; i++) {
		make(&slot, sizes[i], ROUND, 1);
		assert_true(fits(&slot, ROUND));
		assert_false(fits(&slot, ROUND + 1));
		slot.head.seal = 0; /* of a message that is counted */
		assert_false(fits(&slot, ROUND));
	}
}

static void no_changed_bit_fits(void **state)
{
	struct slot slot;

	(void)state;
	for (size_t i = 0; i < N_SIZES; i++) {
		size_t bytes = make(&slot, sizes[i], ROUND, 1);

		/* the signal is compared by who looks */
		for (size_t bit = 8 * sizeof(slot.head.signal); bit < 8 * bytes; bit++) {
			((uint8_t *)&slot)[bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_false(fits(&slot, ROUND));
			((uint8_t *)&slot)[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
		assert_true(fits(&slot, ROUND));
	}
}

/* Numbers whose signs alone change: such differences must not cancel each other. */
static void no_two_changed_signs_fit(void **state)
{
	struct slot slot;

	(void)state;
	make(&slot, M2N__SEALED_BYTES, ROUND, 1);
	for (size_t a = 7; a < M2N__SEALED_BYTES; a += 8)
		for (size_t b = a + 8; b < M2N__SEALED_BYTES; b += 8) {
			slot.payload[a] ^= 0x80;
			slot.payload[b] ^= 0x80;
			assert_false(fits(&slot, ROUND));
			slot.payload[a] ^= 0x80;
			slot.payload[b] ^= 0x80;
		}
}

/* Words of a new message over an old one, from the front, from the back, and every third first. */
static void no_torn_message_fits(void **state)
{
	(void)state;
	for (size_t order = 0; order < 3; order++) {
		for (size_t i = 0; i < N_SIZES; i++) {
			struct slot slot, next;
			size_t n = make(&next, sizes[i], ROUND + 3, 11) / 8;

			memset(&slot, 0, sizeof(slot));
			make(&slot, M2N__SEALED_BYTES, ROUND, 9);
			for (size_t w = 0; w < n; w++) {
				size_t at = order == 0 ? w : n - 1 - w;

				if (order == 2) /* n is no multiple of 3 or of 5: they reach all */
					at = w * (n % 3 ? 3 : 5) % n;
				assert_false(memcmp(&slot, &next, 8 * n) &&
					     slot.head.signal == ROUND + 4 &&
					     fits(&slot, ROUND + 3));
				memcpy((uint8_t *)&slot + 8 * at, (uint8_t *)&next + 8 * at, 8);
			}
			assert_true(slot.head.signal == ROUND + 4 && fits(&slot, ROUND + 3));
		}
	}
}

static void sizes_that_lie_do_not_fit(void **state)
{
	struct slot slot;

	(void)state;
	make(&slot, 64, ROUND, 1);
	assert_true(m2n__slot_is_sealed(&slot.head, ROUND, 64));
	assert_false(m2n__slot_is_sealed(&slot.head, ROUND, 63));
	slot.head.bytes = M2N__SEALED_BYTES + 1;
	slot.head.seal = m2n__seal_of(
		&slot.head, slot.payload, m2n__sealed_room(M2N__SEALED_BYTES + 1), ROUND);
	assert_false(m2n__slot_is_sealed(&slot.head, ROUND, SIZE_MAX));
	slot.head.bytes = UINT64_MAX;
	assert_false(m2n__slot_is_sealed(&slot.head, ROUND, SIZE_MAX));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whole_messages_fit),
		cmocka_unit_test(no_changed_bit_fits),
		cmocka_unit_test(no_two_changed_signs_fit),
		cmocka_unit_test(no_torn_message_fits),
		cmocka_unit_test(sizes_that_lie_do_not_fit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
