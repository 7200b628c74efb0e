/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fault cases: what happens to the others when a rank dies, stops, lies or is starved. Lists as in
 * helpers/suite.h, and the plain loops that survivors run.
 */
#ifndef TESTS_FAULT_H
#define TESTS_FAULT_H

#include "helpers/job_run.h"
#include "helpers/suite.h"

extern const struct conf_case kill_cases[];
extern const struct conf_case stop_cases[];
extern const struct conf_case rejoin_cases[];
extern const struct conf_case readd_cases[];
extern const struct conf_case limit_cases[];
extern const struct conf_case hostile_cases[];
extern const struct conf_case interposer_cases[];
extern const struct conf_case device_fault_cases[];

/* 0 or M2N_PARTIAL; anything else fails the rank. */
#define expect_went_on(call)                                                                       \
	do {                                                                                       \
		int status_ = (call);                                                              \
		if (status_ < 0)                                                                   \
			rank_fail(__FILE__, __LINE__, "%s = %d (%s: %s)", #call, status_,          \
				m2n_strerror(status_), m2n_error_text());                          \
	} while (0)

#endif
