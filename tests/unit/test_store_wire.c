/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the store: the bytes of each type written out by hand, and what must not be read. Every
 * input stands at the end of its own allocation, so that a sanitizer sees a read too far.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "wire/store_wire.h"

static const uint8_t put_frame[] = {'M', '2', 'N', 'S', 1, 0, 6, 0, 0x44, 0x33, 0x22, 0x11, 3, 0, 0,
	0, 2, 0, 0, 0, 'a', '/', 'b', 0xfe, 0x00};

static int unpack(const void *bytes, size_t n, struct m2n__store_frame *frame, size_t *need)
{
	uint8_t *copy = malloc(n ? n : 1);
	int status;

	memcpy(copy, bytes, n);
	status = m2n__store_frame_unpack(n ? copy : copy + 1, n, frame, need);
	free(copy);
	return status;
}

static void the_bytes_are_as_documented(void **state)
{
	struct m2n__store_frame frame = {.type = M2N__STORE_PUT,
		.request = 0x11223344,
		.key = "a/b",
		.key_bytes = 3,
		.value = "\xfe",
		.value_bytes = 2};
	uint8_t out[64];
	size_t n = 0, need;

	(void)state;
	assert_int_equal(m2n__store_frame_pack(&frame, out, sizeof(out), &n), 0);
	assert_int_equal(n, sizeof(put_frame));
	assert_memory_equal(out, put_frame, n);
	memset(&frame, 0, sizeof(frame));
	assert_int_equal(m2n__store_frame_unpack(out, sizeof(out), &frame, &need), 0);
	assert_int_equal(need, n);
	assert_int_equal(frame.version, 1);
	assert_int_equal(frame.type, M2N__STORE_PUT);
	assert_int_equal(frame.request, 0x11223344);
	assert_int_equal(frame.key_bytes, 3);
	assert_memory_equal(frame.key, "a/b", 3);
	assert_int_equal(frame.value_bytes, 2);
	assert_memory_equal(frame.value, "\xfe", 2);
	m2n__store_status_pack(-1004, out);
	assert_memory_equal(out, "\x14\xfc\xff\xff", 4);
	assert_int_equal(m2n__store_status_unpack(out), -1004);
}

static void every_cut_asks_for_more(void **state)
{
	struct m2n__store_frame frame;
	size_t need;

	(void)state;
	for (size_t n = 0; n < sizeof(put_frame); n++) {
		assert_int_equal(unpack(put_frame, n, &frame, &need), -EAGAIN);
		assert_int_equal(need, n < 20 ? 20 : sizeof(put_frame));
	}
	assert_int_equal(unpack(put_frame, sizeof(put_frame), &frame, &need), 0);
}

/* One byte of the frame replaced, read when only n bytes are there. */
static int with_byte(size_t at, uint8_t byte, size_t n, struct m2n__store_frame *frame)
{
	uint8_t bytes[sizeof(put_frame)];
	size_t need;
	int status;

	memcpy(bytes, put_frame, sizeof(bytes));
	bytes[at] = byte;
	status = unpack(bytes, n, frame, &need);
	assert_true(need <= M2N__STORE_FRAME_MAX);
	return status;
}

static void wrong_bytes_are_refused_early(void **state)
{
	struct m2n__store_frame frame = {0};

	(void)state;
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(with_byte(i, 'X', i + 1, &frame), M2N_ERR_PROTOCOL);
	assert_int_equal(with_byte(4, 2, 6, &frame), M2N_ERR_VERSION);
	assert_int_equal(frame.version, 2);
	assert_int_equal(with_byte(5, 1, 6, &frame), M2N_ERR_VERSION);
	assert_int_equal(frame.version, 0x101);
	assert_int_equal(with_byte(4, 2, 5, &frame), -EAGAIN);
	assert_int_equal(with_byte(6, 0, 20, &frame), M2N_ERR_PROTOCOL);
	assert_int_equal(with_byte(6, M2N__STORE_ENTRY + 1, 20, &frame), M2N_ERR_PROTOCOL);
	assert_int_equal(with_byte(7, 0xff, 20, &frame), M2N_ERR_PROTOCOL);
	/* Types whose lengths are others. */
	for (uint8_t type = 0; type < 20; type++)
		if (type != M2N__STORE_PUT && type != M2N__STORE_ENTRY)
			assert_int_equal(with_byte(6, type, 20, &frame), M2N_ERR_PROTOCOL);
	/* Key: none, 201, 2^31 bytes. Value: 2^17, 2^31 bytes. */
	assert_int_equal(with_byte(12, 0, 20, &frame), M2N_ERR_PROTOCOL);
	assert_int_equal(with_byte(12, 201, 20, &frame), M2N_ERR_PROTOCOL);
	assert_int_equal(with_byte(12, 200, 20, &frame), -EAGAIN);
	assert_int_equal(with_byte(15, 0x80, 20, &frame), M2N_ERR_PROTOCOL);
	assert_int_equal(with_byte(18, 2, 20, &frame), M2N_ERR_PROTOCOL);
	assert_int_equal(with_byte(19, 0x80, 20, &frame), M2N_ERR_PROTOCOL);
	/* Key bytes. */
	for (int byte = 0; byte < 256; byte++)
		assert_int_equal(with_byte(21, (uint8_t)byte, sizeof(put_frame), &frame),
			byte > 0x20 && byte < 0x7f ? 0 : M2N_ERR_PROTOCOL);
}

static void the_longest_frame_fits(void **state)
{
	static uint8_t value[M2N__STORE_WIRE_VALUE_MAX + 1], out[M2N__STORE_FRAME_MAX];
	char key[M2N__STORE_WIRE_KEY_MAX + 1];
	struct m2n__store_frame frame = {.type = M2N__STORE_PUT,
		.key = key,
		.key_bytes = M2N__STORE_WIRE_KEY_MAX,
		.value = value,
		.value_bytes = M2N__STORE_WIRE_VALUE_MAX};
	size_t n = 7, need;

	(void)state;
	memset(key, 'k', sizeof(key));
	assert_int_equal(m2n__store_frame_pack(&frame, out, sizeof(out) - 1, &n), -ENOSPC);
	assert_int_equal(n, 7);
	assert_int_equal(m2n__store_frame_pack(&frame, out, sizeof(out), &n), 0);
	assert_int_equal(n, sizeof(out));
	assert_int_equal(m2n__store_frame_unpack(out, n, &frame, &need), 0);
	frame.value_bytes++;
	assert_int_equal(m2n__store_frame_pack(&frame, out, sizeof(out), &n), -EINVAL);
	frame.value_bytes--;
	frame.key = key;
	frame.key_bytes++;
	assert_int_equal(m2n__store_frame_pack(&frame, out, sizeof(out), &n), -EINVAL);
	assert_int_equal(m2n__store_key_check(key, sizeof(key)), -EINVAL);
	assert_int_equal(m2n__store_key_check(key, sizeof(key) - 1), 0);
	assert_int_equal(m2n__store_key_check(NULL, 1), -EINVAL);
	assert_int_equal(m2n__store_key_check(key, 0), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_bytes_are_as_documented),
		cmocka_unit_test(every_cut_asks_for_more),
		cmocka_unit_test(wrong_bytes_are_refused_early),
		cmocka_unit_test(the_longest_frame_fits),
	};

	return cmocka_run_group_tests_name("store wire", tests, NULL, NULL);
}
