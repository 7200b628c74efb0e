/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Doorbell: a page of each process that its peers map, so that a rank can sleep on a futex until
 * somebody stored a signal for it.
 *
 * The sleeper says so (sleepers), looks once more for what it waits for, and sleeps only while
 * `rings` has the value it read first. The ringer stores its signal, fences, and looks at
 * sleepers. As the fence would cost every message the time its stores take to drain, a waiter
 * says long before it sleeps (it yields for a while first) that it dozes; where nobody dozes the
 * ringer is done after one load of a line that nobody writes. Should its signal have been stuck
 * for all of that time, the sleeper misses a ring and wakes at the end of its nap.
 */
#ifndef M2N_DOORBELL_H
#define M2N_DOORBELL_H

#include <stdatomic.h>
#include <stdint.h>

struct m2n__doorbell {
	_Alignas(64) atomic_uint rings;
	_Alignas(64) atomic_uint dozers;
	atomic_uint sleepers;
};

void m2n__doorbell_ring(struct m2n__doorbell *bell);
/* One waiter more or less that may sleep soon. */
void m2n__doorbell_doze(struct m2n__doorbell *bell, int change);
uint32_t m2n__doorbell_arm(struct m2n__doorbell *bell);
void m2n__doorbell_sleep(struct m2n__doorbell *bell, uint32_t ticket, int64_t timeout_ns);
void m2n__doorbell_disarm(struct m2n__doorbell *bell);

#endif
