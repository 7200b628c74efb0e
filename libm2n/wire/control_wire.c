/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing and unpacking of control frames: bytes in, checked values out.
 */
#include "wire/control_wire.h"

#include <string.h>

#include <m2n/status.h>

#include "util/error.h"
#include "wire/wire.h"

static void store_le(uint8_t *at, uint64_t value, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t load_le(const uint8_t *at, unsigned n)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < n; i++)
		value |= (uint64_t)at[i] << (8 * i);
	return value;
}

void m2n__frame_pack(const struct m2n__frame_head *head, uint8_t bytes[M2N__FRAME_HEAD_BYTES])
{
	store_le(bytes, M2N__FRAME_MAGIC, 4);
	store_le(bytes + 4, head->version, 2);
	store_le(bytes + 6, head->type, 2);
	store_le(bytes + 8, head->body_bytes, 4);
	store_le(bytes + 12, 0, 4);
}

int m2n__frame_unpack(const uint8_t bytes[M2N__FRAME_HEAD_BYTES], struct m2n__frame_head *head)
{
	uint32_t magic = (uint32_t)load_le(bytes, 4);

	head->version = (uint16_t)load_le(bytes + 4, 2);
	head->type = (uint16_t)load_le(bytes + 6, 2);
	head->body_bytes = (uint32_t)load_le(bytes + 8, 4);
	if (magic != M2N__FRAME_MAGIC)
		return m2n__error(M2N_ERR_PROTOCOL,
			"control frame starts with 0x%08x, expected 0x%08x: not a libm2n peer",
			magic, M2N__FRAME_MAGIC);
	if (head->body_bytes > M2N__FRAME_BODY_MAX)
		return m2n__error(M2N_ERR_PROTOCOL, "control frame of %u bytes, at most %u allowed",
			head->body_bytes, M2N__FRAME_BODY_MAX);
	return 0;
}

/* The place of n bytes, or NULL when they do not fit; then nothing moves any more. */
static uint8_t *take(struct m2n__cursor *c, size_t n)
{
	uint8_t *at = c->at;

	if (c->overrun || (size_t)(c->end - c->at) < n) {
		c->overrun = 1;
		return NULL;
	}
	c->at += n;
	return at;
}

void m2n__put_u32(struct m2n__cursor *c, uint32_t value)
{
	uint8_t *at = take(c, 4);

	if (at)
		store_le(at, value, 4);
}

void m2n__put_u64(struct m2n__cursor *c, uint64_t value)
{
	uint8_t *at = take(c, 8);

	if (at)
		store_le(at, value, 8);
}

void m2n__put_bytes(struct m2n__cursor *c, const void *bytes, size_t n)
{
	uint8_t *at = take(c, n);

	if (at && n)
		memcpy(at, bytes, n);
}

void m2n__put_blob(struct m2n__cursor *c, const void *bytes, size_t n)
{
	m2n__put_u32(c, (uint32_t)n);
	m2n__put_bytes(c, bytes, n);
}

uint32_t m2n__get_u32(struct m2n__cursor *c)
{
	const uint8_t *at = take(c, 4);

	return at ? (uint32_t)load_le(at, 4) : 0;
}

uint64_t m2n__get_u64(struct m2n__cursor *c)
{
	const uint8_t *at = take(c, 8);

	return at ? load_le(at, 8) : 0;
}

void m2n__get_bytes(struct m2n__cursor *c, void *bytes, size_t n)
{
	const uint8_t *at = take(c, n);

	if (at)
		memcpy(bytes, at, n);
	else
		memset(bytes, 0, n);
}

const void *m2n__get_blob(struct m2n__cursor *c, size_t max, size_t *n)
{
	uint32_t bytes = m2n__get_u32(c);
	const void *at = bytes <= max ? take(c, bytes) : NULL;

	if (!at)
		c->overrun = 1;
	*n = at ? bytes : 0;
	return at;
}

void m2n__get_text(struct m2n__cursor *c, char *text, size_t room)
{
	size_t n;
	const char *at = m2n__get_blob(c, M2N__FRAME_BODY_MAX, &n);

	n = n < room - 1 ? n : room - 1;
	for (size_t i = 0; i < n; i++)
		text[i] = at[i] >= ' ' && at[i] < 127 ? at[i] : '?';
	text[n] = '\0';
}
