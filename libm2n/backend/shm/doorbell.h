/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Doorbell: a page of each process that its peers map, so that a rank can sleep on a futex until
 * somebody stored a signal for it.
 *
 * The sleeper says so (sleepers), looks once more for what it waits for, and sleeps only while
 * `rings` has the value it read first. The ringer stores its signal, fences, and looks at
 * sleepers; nobody asleep costs it one load of a line that nobody writes.
 */
#ifndef M2N_DOORBELL_H
#define M2N_DOORBELL_H

#include <stdatomic.h>
#include <stdint.h>

struct m2n__doorbell {
	_Alignas(64) atomic_uint rings;
	_Alignas(64) atomic_uint sleepers;
};

void m2n__doorbell_ring(struct m2n__doorbell *bell);
uint32_t m2n__doorbell_arm(struct m2n__doorbell *bell);
void m2n__doorbell_sleep(struct m2n__doorbell *bell, uint32_t ticket, int64_t timeout_ns);
void m2n__doorbell_disarm(struct m2n__doorbell *bell);

#endif
