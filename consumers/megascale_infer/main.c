/* SPDX-License-Identifier: Apache-2.0 */
/*
 * megascale_infer: disaggregated serving of mixture-of-experts models, after MegaScale-Infer
 * (arXiv 2504.02263). One program, a command for each step.
 */
#include "commands.h"
#include "report/program.h"

static const struct program_command commands[] = {
	{"plan", "sizes and numbers of nodes for a model, from its shape and the GPUs", plan_main},
	{"profile", "what the plan wants to know of this machine, measured", profile_main},
	{"serve", "serves requests by attention and expert ranks", serve_main},
	{"simulate", "the pipeline of a plan as discrete events", simulate_main},
};

int main(int argc, char **argv)
{
	return program_run(
		"megascale_infer", commands, sizeof(commands) / sizeof(commands[0]), argc, argv);
}
