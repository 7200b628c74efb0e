/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the bootstrap store from bytes that nobody vouches for: the input is read as a stream
 * of frames, as the server reads a connection. What is read must lie inside the input and obey the
 * limits, and packing it again must give the same bytes.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "wire/store_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(int condition)
{
	if (!condition)
		abort();
}

static void check_frame(const uint8_t *in, const struct m2n__store_frame *frame, size_t need)
{
	static uint8_t again[M2N__STORE_FRAME_MAX];
	const uint8_t *value = frame->value;
	size_t n;

	require((const uint8_t *)frame->key == in + M2N__STORE_HEADER_BYTES);
	require(value == in + M2N__STORE_HEADER_BYTES + frame->key_bytes);
	require(value + frame->value_bytes == in + need);
	if (frame->key_bytes)
		require(!m2n__store_key_check(frame->key, frame->key_bytes));
	if (frame->type == M2N__STORE_REFUSED || frame->type == M2N__STORE_FAILED)
		(void)m2n__store_status_unpack(frame->value);
	require(!m2n__store_frame_pack(frame, again, sizeof(again), &n));
	require(n == need && !memcmp(again, in, n));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct m2n__store_frame frame;
	size_t need;
	int status;

	for (;;) {
		need = 0;
		status = m2n__store_frame_unpack(data, bytes, &frame, &need);
		require(need >= M2N__STORE_HEADER_BYTES && need <= M2N__STORE_FRAME_MAX);
		if (status == -EAGAIN) {
			require(need > bytes);
			return 0;
		}
		if (status) {
			require(status == M2N_ERR_PROTOCOL || status == M2N_ERR_VERSION);
			return 0;
		}
		require(need <= bytes);
		check_frame(data, &frame, need);
		data += need;
		bytes -= need;
	}
}
