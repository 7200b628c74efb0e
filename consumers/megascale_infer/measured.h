/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measured coefficients of T_a = k1 * b_a + k2 and T_e = k3 * b_e + k4, per size of tensor
 * parallelism and, where wanted, per GPU:
 *   {"attention": [{"tp": 1, "gpu": "H20", "k1_us": 1.5, "k2_us": 30}],
 *    "experts": [{"tp": 1, "k3_us": 2.0, "k4_us": 90}]}
 * A row without "gpu" holds for every GPU. Sizes without a row are not searched.
 */
#ifndef MEGASCALE_MEASURED_H
#define MEGASCALE_MEASURED_H

#include <stddef.h>

enum plan_side { PLAN_ATTENTION, PLAN_EXPERTS };

struct plan_line { /* seconds = slope * tokens + max(constant, product * tokens) */
	double slope, constant;
	double product; /* 0 where the line is straight, as measured ones are */
};

enum { PLAN_MAX_MEASURED = 64 };

struct plan_measured {
	struct {
		int tp;
		char gpu[64]; /* "": any */
		struct plan_line line;
	} rows[2][PLAN_MAX_MEASURED];
	size_t n[2]; /* by plan_side; none: there is no measurement */
};

int plan_measured_read(const char *path, struct plan_measured *measured);
/* 0, or -ENOENT without a text. A row of that GPU goes before one of any. */
int plan_measured_find(const struct plan_measured *measured, enum plan_side side, const char *gpu,
	int tp, struct plan_line *line);

#endif
