/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing and unpacking of address records, in the order of the struct.
 */
#include "core/record.h"

#include <string.h>

#include <m2n/status.h>

#include "util/error.h"
#include "wire/control_wire.h"

static void put_text(struct m2n__cursor *c, const char *text)
{
	m2n__put_blob(c, text, strlen(text));
}

void m2n__record_pack(const struct m2n__record *r, struct m2n__cursor *c)
{
	m2n__put_u64(c, r->incarnation);
	m2n__put_u32(c, r->n_ranks);
	m2n__put_u32(c, r->port);
	put_text(c, r->host_id);
	put_text(c, r->address);
	m2n__put_u32(c, r->n_backends);
	for (uint32_t i = 0; i < r->n_backends; i++) {
		put_text(c, r->backends[i].name);
		m2n__put_blob(c, r->backends[i].blob, r->backends[i].bytes);
	}
}

int m2n__record_unpack(struct m2n__record *r, struct m2n__cursor *c)
{
	memset(r, 0, sizeof(*r));
	r->incarnation = m2n__get_u64(c);
	r->n_ranks = m2n__get_u32(c);
	r->port = m2n__get_u32(c);
	m2n__get_text(c, r->host_id, sizeof(r->host_id));
	m2n__get_text(c, r->address, sizeof(r->address));
	r->n_backends = m2n__get_u32(c);
	if (r->n_backends > M2N__RECORD_BACKENDS || r->port > 65535 || !r->incarnation)
		c->overrun = 1;
	for (uint32_t i = 0; !c->overrun && i < r->n_backends; i++) {
		const void *blob;
		size_t n;

		m2n__get_text(c, r->backends[i].name, sizeof(r->backends[i].name));
		blob = m2n__get_blob(c, M2N__ADDRESS_BYTES, &n);
		r->backends[i].bytes = (uint32_t)n;
		if (blob)
			memcpy(r->backends[i].blob, blob, n);
	}
	return c->overrun ? m2n__error(M2N_ERR_PROTOCOL, "address record cannot be read") : 0;
}
