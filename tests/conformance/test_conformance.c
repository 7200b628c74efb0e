/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the conformance cases over one backend: test_conformance BACKEND [WORDS]
 */
#include "conformance/conformance.h"

static const struct conf_case *const lists[] = {
	context_cases,
	group_cases,
	exchange_cases,
	channel_cases,
	shape_cases,
	round_cases,
	order_cases,
	plan_cases,
	sink_cases,
	backward_cases,
	digest_cases,
	together_cases,
	work_cases,
	threads_cases,
	device_cases,
	graph_cases,
	NULL,
};

int main(int argc, char **argv)
{
	return suite_main(argc, argv, lists);
}
