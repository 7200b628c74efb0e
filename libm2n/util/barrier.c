/* SPDX-License-Identifier: Apache-2.0 */
/*
 * membarrier(2): expedited where the process could register, else the slow global one. Where a
 * sandbox forbids the call, time stands in: a store that was made 10 ms ago is visible.
 */
#include "util/barrier.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/time.h"

#define GRACE_NS INT64_C(10000000)

int m2n__barrier_all_threads(void)
{
	static _Atomic int64_t asked_ns;
	int64_t now, first = 0;

	if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0)
		return 0;
	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0 ||
		syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0)
		return 0;
	now = m2n__now_ns();
	if (atomic_compare_exchange_strong(&asked_ns, &first, now))
		return -EAGAIN;
	if (now - first < GRACE_NS)
		return -EAGAIN;
	atomic_store(&asked_ns, 0);
	return 0;
}
