/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Address record: what a rank publishes about itself in the store and repeats when it calls or is
 * called: which process it is, where its control port is, and each backend's address blob.
 */
#ifndef M2N_CORE_RECORD_H
#define M2N_CORE_RECORD_H

#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"

#define M2N__RECORD_BYTES_MAX 16384
#define M2N__RECORD_BACKENDS 8

struct m2n__record {
	uint64_t incarnation; /* random, not 0: tells processes of one rank apart */
	uint32_t n_ranks;
	uint32_t port;
	char host_id[64];
	char address[64];
	uint32_t n_backends;
	struct {
		char name[16];
		uint32_t bytes;
		uint8_t blob[M2N__ADDRESS_BYTES];
	} backends[M2N__RECORD_BACKENDS];
};

struct m2n__cursor;
void m2n__record_pack(const struct m2n__record *record, struct m2n__cursor *cursor);
/* 0 or M2N_ERR_PROTOCOL; everything is checked. */
int m2n__record_unpack(struct m2n__record *record, struct m2n__cursor *cursor);

#endif
