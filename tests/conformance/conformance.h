/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of conformance cases: one list, run over every backend.
 */
#ifndef TESTS_CONFORMANCE_H
#define TESTS_CONFORMANCE_H

#include "helpers/suite.h"

/* One array for each file, ended by a NULL name. */
extern const struct conf_case context_cases[];
extern const struct conf_case group_cases[];
extern const struct conf_case exchange_cases[];
extern const struct conf_case channel_cases[];
extern const struct conf_case shape_cases[];
extern const struct conf_case round_cases[];
extern const struct conf_case order_cases[];
extern const struct conf_case plan_cases[];
extern const struct conf_case sink_cases[];
extern const struct conf_case backward_cases[];
extern const struct conf_case digest_cases[];
extern const struct conf_case together_cases[];
extern const struct conf_case work_cases[];
extern const struct conf_case threads_cases[];
extern const struct conf_case device_cases[];
extern const struct conf_case graph_cases[];

#endif
