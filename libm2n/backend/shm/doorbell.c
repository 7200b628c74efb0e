/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The futex behind a doorbell. Shared between processes, so never the private kind.
 */
#include "backend/shm/doorbell.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S INT64_C(1000000000)

static void ring_slow(struct m2n__doorbell *bell)
{
	atomic_fetch_add_explicit(&bell->rings, 1, memory_order_release);
	syscall(SYS_futex, &bell->rings, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void m2n__doorbell_ring(struct m2n__doorbell *bell)
{
	if (!atomic_load_explicit(&bell->dozers, memory_order_relaxed))
		return;
	/* F1: the signal before the look at sleepers, pairs with F2 in m2n__doorbell_arm(). */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&bell->sleepers, memory_order_relaxed))
		ring_slow(bell);
}

void m2n__doorbell_doze(struct m2n__doorbell *bell, int change)
{
	atomic_fetch_add_explicit(&bell->dozers, (unsigned)change, memory_order_seq_cst);
}

uint32_t m2n__doorbell_arm(struct m2n__doorbell *bell)
{
	uint32_t ticket = atomic_load_explicit(&bell->rings, memory_order_acquire);

	atomic_fetch_add_explicit(&bell->sleepers, 1, memory_order_relaxed);
	/* F2: sleepers before the last look at the signal, pairs with F1. */
	atomic_thread_fence(memory_order_seq_cst);
	return ticket;
}

void m2n__doorbell_sleep(struct m2n__doorbell *bell, uint32_t ticket, int64_t timeout_ns)
{
	struct timespec t = {.tv_sec = timeout_ns / NS_PER_S, .tv_nsec = timeout_ns % NS_PER_S};

	syscall(SYS_futex, &bell->rings, FUTEX_WAIT, ticket, &t, NULL, 0);
}

void m2n__doorbell_disarm(struct m2n__doorbell *bell)
{
	atomic_fetch_sub_explicit(&bell->sleepers, 1, memory_order_relaxed);
}
