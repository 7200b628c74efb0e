/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A memory barrier in all threads of the process at once, asked for by the side that is rare, so
 * that the side that is frequent needs none.
 */
#ifndef M2N_BARRIER_H
#define M2N_BARRIER_H

/* 0, or -EAGAIN: this kernel has no such call; ask again, after a while the stores are seen. */
int m2n__barrier_all_threads(void);

#endif
