/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the fault cases over one backend: test_fault BACKEND [WORDS]
 */
#include "fault/fault.h"

static const struct conf_case *const lists[] = {
	kill_cases,
	stop_cases,
	rejoin_cases,
	readd_cases,
	limit_cases,
	hostile_cases,
	interposer_cases,
	device_fault_cases,
	NULL,
};

int main(int argc, char **argv)
{
	return suite_main(argc, argv, lists);
}
