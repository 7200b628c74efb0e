/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disagmoe_train: disaggregated training of mixture-of-experts models, after DisagMoE
 * (arXiv 2605.11005). One program, a command for each step.
 */
#include "commands.h"
#include "report/program.h"

static const struct program_command commands[] = {
	{"run", "trains a model on a text", run_main},
	{"generate", "continues a prompt with what was trained", generate_main},
	{"plan", "GPUs and NICs of attention and experts, by the roofline", plan_main},
	{"profile", "the computation of a run, measured on this machine", profile_main},
	{"simulate", "a step of a cluster under AF-Pipe and other schedules", simulate_main},
};

int main(int argc, char **argv)
{
	return program_run(
		"disagmoe_train", commands, sizeof(commands) / sizeof(commands[0]), argc, argv);
}
