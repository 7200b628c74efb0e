/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The locks of the data path: a rail's and an ep's. They are held for the length of a poll or a
 * post and are hardly ever contended (a rail's is only tried there, an ep's is shared by the two
 * directions of one peer), so what counts is that taking one is a single instruction and not two
 * calls into libc, which were a tenth of a small message. Who does not get it yields.
 */
#ifndef M2N_BACKEND_VERBS_LOCK_H
#define M2N_BACKEND_VERBS_LOCK_H

#include <sched.h>
#include <stdatomic.h>

struct verbs_lock { /* free when zero */
	atomic_int is_held;
};

static inline int m2n__verbs_trylock(struct verbs_lock *lock)
{
	/* A12: what the last holder did, pairs with R12 in m2n__verbs_unlock(). */
	return !atomic_exchange_explicit(&lock->is_held, 1, memory_order_acquire);
}

static inline void m2n__verbs_lock(struct verbs_lock *lock)
{
	while (!m2n__verbs_trylock(lock))
		sched_yield();
}

static inline void m2n__verbs_unlock(struct verbs_lock *lock)
{
	atomic_store_explicit(&lock->is_held, 0, memory_order_release); /* R12 */
}

#endif
