/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disagmoe_train: disaggregated training of mixture-of-experts models, after DisagMoE
 * (arXiv 2605.11005). One program, a command for each step.
 */
#include <stdio.h>
#include <string.h>

#include "commands.h"

static const struct {
	const char *name, *what;
	int (*run)(int argc, char **argv);
} commands[] = {
	{"run", "trains a model on a text", run_main},
	{"generate", "continues a prompt with what was trained", generate_main},
	{"plan", "GPUs and NICs of attention and experts, by the roofline", plan_main},
	{"profile", "the computation of a run, measured on this machine", profile_main},
	{"simulate", "a step of a cluster under AF-Pipe and other schedules", simulate_main},
};

enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void print_usage(FILE *stream)
{
	fprintf(stream, "usage: disagmoe_train COMMAND [OPTION...]\n\n");
	for (size_t i = 0; i < N_COMMANDS; i++)
		fprintf(stream, "  %-10s %s\n", commands[i].name, commands[i].what);
	fprintf(stream, "\n`disagmoe_train COMMAND --help` lists a command's options.\n");
}

int main(int argc, char **argv)
{
	char name[64];

	for (size_t i = 0; argc > 1 && i < N_COMMANDS; i++)
		if (!strcmp(argv[1], commands[i].name)) {
			snprintf(name, sizeof(name), "disagmoe_train %s", argv[1]);
			argv[1] = name;
			return commands[i].run(argc - 1, argv + 1);
		}
	if (argc > 1 && !strcmp(argv[1], "--help")) {
		print_usage(stdout);
		return 0;
	}
	if (argc > 1)
		fprintf(stderr, "disagmoe_train: '%s' is no command\n", argv[1]);
	print_usage(stderr);
	return 2;
}
