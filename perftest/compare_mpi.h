/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What m2n_perf tells m2n_perf_mpi: the head of page_extra(), followed by the routing.
 */
#ifndef PERF_COMPARE_MPI_H
#define PERF_COMPARE_MPI_H

#include "rank.h"

struct mpi_task {
	uint64_t row_bytes, out_row_bytes;
	uint64_t n_iters, n_reps, n_warmup;
	uint32_t n_sources;
	uint32_t depth;       /* receive buffers in turn, as a channel has slots */
	uint32_t dtype;
	uint32_t series;      /* of the sheet */
	uint32_t first_case;  /* dispatch; combine is the next */
	uint32_t no_pin;
	alignas(64) char routing[]; /* struct perf_routing */
};

/* Bytes of page_extra() that the task takes. */
uint64_t perf_mpi_extra_bytes(const struct perf_routing *routing);
/* The helper's path into path[bytes]; false: it was not built. */
bool perf_mpi_find(char *path, size_t bytes);

#endif
