/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of a dispatch on their way out: as stores into mapped slots or regions, or as pieces
 * of a gather list; as they are, cast, or weighted.
 */
#ifndef M2N_CORE_ROWS_H
#define M2N_CORE_ROWS_H

#include "core/channel.h"

/* Stores the rows of a round to all ranks whose ch->row_base is set. Fences what it streamed. */
void m2n__rows_store(struct m2n_channel *ch, const struct m2n__open *open);
/* Stores travelling rows [first, end) of rank j to dst (dense), with scales when it has any. */
void m2n__rows_store_range(struct m2n_channel *ch, const struct m2n__open *open, uint32_t first,
	uint32_t end, uint8_t *rows, uint8_t *scales);
/*
 * Appends scales (padded to scale_room bytes) and rows [first, end) to a gather list of n pieces;
 * returns the new number. Rows that must be made are made in staging, which was reserved.
 */
size_t m2n__rows_gather(struct m2n_channel *ch, const struct m2n__open *open, uint32_t slot,
	uint32_t first, uint32_t end, size_t scale_room, struct m2n__piece *pieces, size_t n,
	struct m2n__tx *tx);

/*
 * Can messages carry the caller's rows as they lie there? If not (a cast, a weight, memory that
 * is not registered where it must be) they are made in staging first. 0 or -ENOMEM.
 */
int m2n__rows_prepare(struct m2n_channel *ch, struct m2n__open *open);

#endif
