/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grids of emulated blocks: what device_kernels.cpp makes the table of kernels of, and what tests
 * of kernels may turn.
 */
#ifndef M2N_DOUBLES_DEVICE_RUN_H
#define M2N_DOUBLES_DEVICE_RUN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Not 0: blocks run in an order that it shuffles. Read at each launch, atomically. */
extern uint64_t m2n_double_block_seed;

/* Runs body(args) in every thread of the grid; returns when all have ended. */
void m2n_double_run_grid(void (*body)(const void *args), const void *args, unsigned n_blocks,
	unsigned n_threads, size_t shared_bytes);

#ifdef __cplusplus
}
#endif
#endif
