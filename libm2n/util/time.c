/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The monotonic clock and deadlines.
 */
#include "util/time.h"

#include <time.h>

#define NS_PER_S INT64_C(1000000000)

int64_t m2n__now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

int64_t m2n__deadline_ns(int64_t timeout_ns)
{
	int64_t now = m2n__now_ns();

	return timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
}

void m2n__sleep_ns(int64_t ns)
{
	struct timespec t = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};

	nanosleep(&t, NULL);
}
