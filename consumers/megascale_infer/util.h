/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Util of equation (6): the share of the network's bandwidth that a GPU reaches, by the bytes it
 * sends to all its peers in one round. Between two points of the curve the *time* is linear in the
 * bytes, as for a fixed cost and a rate; below the first it is the first's, above the last the
 * share is the last's.
 */
#ifndef MEGASCALE_UTIL_H
#define MEGASCALE_UTIL_H

#include <stddef.h>

enum { PLAN_MAX_UTIL = 64 };

struct plan_util {
	double bytes[PLAN_MAX_UTIL], share[PLAN_MAX_UTIL];
	size_t n;
};

/* The paper's measurement of M2N, 8 x 8 ranks at 200 Gb/s. */
extern const struct plan_util plan_util_default;

/* Columns bytes and util. Bytes must rise, and no more bytes may take less time. */
int plan_util_read(const char *path, struct plan_util *util);
/* Seconds for so many bytes at so many bytes per second. */
double plan_util_seconds(const struct plan_util *util, double bytes, double bytes_per_s);

#endif
