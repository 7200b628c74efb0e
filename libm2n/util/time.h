/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time: one monotonic clock in nanoseconds, and deadlines in it.
 */
#ifndef M2N_TIME_H
#define M2N_TIME_H

#include <stdint.h>

/* CLOCK_MONOTONIC in nanoseconds; a vDSO call, no system call. */
int64_t m2n__now_ns(void);
/* now + timeout, without overflow; INT64_MAX stays INT64_MAX (no deadline). */
int64_t m2n__deadline_ns(int64_t timeout_ns);
/* A bounded sleep for slow paths (waiting for a store's key); never on the data path. */
void m2n__sleep_ns(int64_t ns);

#endif
