/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters: what a channel or exchange did with each peer, readable at any time from any thread
 * without disturbing the data path.
 */
#ifndef M2N_COUNTERS_H
#define M2N_COUNTERS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_counters {
	uint64_t n_rounds;  /* messages completed with this peer */
	uint64_t n_rows;    /* 0 for an exchange */
	uint64_t bytes;     /* payload */
	uint64_t wait_ns;   /* time this rank waited for this peer */
	uint64_t n_puts;    /* transfers posted to a messaging backend; 0 for mapped peers */
	uint64_t staged_bytes; /* payload that was copied once more than needed on its way */
};

#ifdef __cplusplus
}
#endif
#endif
