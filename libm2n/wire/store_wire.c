/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing and unpacking of store frames. One table says which lengths each type may have, so that
 * a header alone tells whether its frame is allowed, before any byte of the rest is stored.
 */
#include "wire/store_wire.h"

#include <errno.h>
#include <string.h>

#include <m2n/status.h>

#define KEY_MAX M2N__STORE_WIRE_KEY_MAX
#define VALUE_MAX M2N__STORE_WIRE_VALUE_MAX

struct lengths {
	uint32_t min_key, max_key, min_value, max_value;
};

static const struct lengths allowed[] = {
	[M2N__STORE_HELLO] = {0, 0, 32, 32},
	[M2N__STORE_CHALLENGE] = {0, 0, 32, 32},
	[M2N__STORE_PROOF] = {0, 0, 32, 32},
	[M2N__STORE_WELCOME] = {0, 0, 32, 32},
	[M2N__STORE_REFUSED] = {0, 0, 4, 4},
	[M2N__STORE_PUT] = {1, KEY_MAX, 0, VALUE_MAX},
	[M2N__STORE_GET] = {1, KEY_MAX, 0, 0},
	[M2N__STORE_TRY] = {1, KEY_MAX, 0, 0},
	[M2N__STORE_DONE] = {0, 0, 0, 0},
	[M2N__STORE_VALUE] = {0, 0, 0, VALUE_MAX},
	[M2N__STORE_MISSING] = {0, 0, 0, 0},
	[M2N__STORE_FAILED] = {0, 0, 4, 4},
	[M2N__STORE_ENTRY] = {1, KEY_MAX, 0, VALUE_MAX},
};

static void store_u16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static void store_u32(uint8_t *p, uint32_t v)
{
	store_u16(p, (uint16_t)v);
	store_u16(p + 2, (uint16_t)(v >> 16));
}

static uint16_t load_u16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p)
{
	return load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static int lengths_allowed(uint16_t type, size_t key_bytes, size_t value_bytes)
{
	const struct lengths *a;

	if (type < M2N__STORE_HELLO || type > M2N__STORE_ENTRY)
		return 0;
	a = &allowed[type];
	return key_bytes >= a->min_key && key_bytes <= a->max_key && value_bytes >= a->min_value &&
	       value_bytes <= a->max_value;
}

static int key_allowed(const char *key, size_t key_bytes)
{
	for (size_t i = 0; i < key_bytes; i++)
		if (key[i] < 0x21 || key[i] > 0x7e)
			return 0;
	return 1;
}

int m2n__store_key_check(const char *key, size_t key_bytes)
{
	if (!key || key_bytes < 1 || key_bytes > KEY_MAX)
		return -EINVAL;
	return key_allowed(key, key_bytes) ? 0 : -EINVAL;
}

int m2n__store_frame_pack(
	const struct m2n__store_frame *frame, uint8_t *out, size_t room, size_t *bytes)
{
	size_t total;

	if (!lengths_allowed(frame->type, frame->key_bytes, frame->value_bytes))
		return -EINVAL;
	if (frame->key_bytes && !key_allowed(frame->key, frame->key_bytes))
		return -EINVAL;
	total = M2N__STORE_HEADER_BYTES + frame->key_bytes + frame->value_bytes;
	if (total > room)
		return -ENOSPC;
	store_u32(out, M2N__STORE_MAGIC);
	store_u16(out + 4, M2N__STORE_WIRE_VERSION);
	store_u16(out + 6, frame->type);
	store_u32(out + 8, frame->request);
	store_u32(out + 12, (uint32_t)frame->key_bytes);
	store_u32(out + 16, (uint32_t)frame->value_bytes);
	out += M2N__STORE_HEADER_BYTES;
	if (frame->key_bytes)
		memcpy(out, frame->key, frame->key_bytes);
	if (frame->value_bytes)
		memcpy(out + frame->key_bytes, frame->value, frame->value_bytes);
	*bytes = total;
	return 0;
}

/* The bytes of the magic that are there, so that a stranger is told from its first byte. */
static int magic_differs(const uint8_t *in, size_t bytes)
{
	uint8_t magic[4];

	store_u32(magic, M2N__STORE_MAGIC);
	return memcmp(in, magic, bytes < 4 ? bytes : 4) != 0;
}

int m2n__store_frame_unpack(
	const uint8_t *in, size_t bytes, struct m2n__store_frame *frame, size_t *need)
{
	size_t key_bytes, value_bytes;

	*need = M2N__STORE_HEADER_BYTES;
	if (bytes && magic_differs(in, bytes))
		return M2N_ERR_PROTOCOL;
	if (bytes >= 6 && load_u16(in + 4) != M2N__STORE_WIRE_VERSION) {
		frame->version = load_u16(in + 4);
		return M2N_ERR_VERSION;
	}
	if (bytes < M2N__STORE_HEADER_BYTES)
		return -EAGAIN;
	key_bytes = load_u32(in + 12);
	value_bytes = load_u32(in + 16);
	if (!lengths_allowed(load_u16(in + 6), key_bytes, value_bytes))
		return M2N_ERR_PROTOCOL;
	*need = M2N__STORE_HEADER_BYTES + key_bytes + value_bytes;
	if (bytes < *need)
		return -EAGAIN;
	frame->version = M2N__STORE_WIRE_VERSION;
	frame->type = load_u16(in + 6);
	frame->request = load_u32(in + 8);
	frame->key = (const char *)in + M2N__STORE_HEADER_BYTES;
	frame->key_bytes = key_bytes;
	frame->value = in + M2N__STORE_HEADER_BYTES + key_bytes;
	frame->value_bytes = value_bytes;
	return key_allowed(frame->key, key_bytes) ? 0 : M2N_ERR_PROTOCOL;
}

void m2n__store_status_pack(int32_t status, uint8_t out[4])
{
	store_u32(out, (uint32_t)status);
}

int32_t m2n__store_status_unpack(const void *value)
{
	return (int32_t)load_u32(value);
}
