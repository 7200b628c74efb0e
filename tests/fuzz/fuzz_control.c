/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control frames from any bytes: the frame head, the address record, and LINK, UNLINK and START
 * frames of a peer that is proven. The first byte picks which. A group without exchanges keeps
 * what may be a LINK frame for later; it must not keep anything else, and forgets all of it.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/group.h"
#include "wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void try_head(const uint8_t *data, size_t bytes)
{
	uint8_t head_bytes[M2N__FRAME_HEAD_BYTES] = {0};
	struct m2n__frame_head head;

	memcpy(head_bytes, data, bytes < sizeof(head_bytes) ? bytes : sizeof(head_bytes));
	if (m2n__frame_unpack(head_bytes, &head) == 0 && head.body_bytes > M2N__FRAME_BODY_MAX)
		abort();
}

static void try_record(uint8_t *data, size_t bytes)
{
	struct m2n__cursor in = {data, data + bytes, 0};
	uint8_t again[M2N__RECORD_BYTES_MAX];
	struct m2n__cursor out = {again, again + sizeof(again), 0};
	struct m2n__record record;

	if (m2n__record_unpack(&record, &in))
		return;
	if (record.n_backends > M2N__RECORD_BACKENDS)
		abort();
	m2n__record_pack(&record, &out);
	if (out.overrun)
		abort();
}

static void try_link(const uint8_t *data, size_t bytes, enum m2n__frame_type type)
{
	struct m2n_group group = {.rank = 0};
	struct m2n__peer peer = {.group = &group, .rank = 1};
	int rc = m2n__link_frame(&peer, type, data, bytes);

	if ((type != M2N__FRAME_LINK || rc) && group.pending)
		abort();
	m2n__group_forget(&group, 1);
	if (group.pending || group.n_pending)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	uint8_t *copy;

	if (bytes < 1)
		return 0;
	/* a copy of its own size, so that a sanitizer sees a read past the end */
	copy = malloc(bytes);
	if (!copy)
		return 0;
	memcpy(copy, data + 1, bytes - 1);
	switch (data[0] % 5) {
	case 0:
		try_head(copy, bytes - 1);
		break;
	case 1:
		try_record(copy, bytes - 1);
		break;
	case 2:
		try_link(copy, bytes - 1, M2N__FRAME_LINK);
		break;
	case 3:
		try_link(copy, bytes - 1, M2N__FRAME_UNLINK);
		break;
	default:
		try_link(copy, bytes - 1, M2N__FRAME_START);
	}
	free(copy);
	return 0;
}
