/* SPDX-License-Identifier: Apache-2.0 */
/* The command is found by its name; what is left of the arguments is its own. */
#include "program.h"

#include <stdio.h>
#include <string.h>

static void print_usage(
	FILE *stream, const char *name, const struct program_command *commands, size_t n_commands)
{
	fprintf(stream, "usage: %s COMMAND [OPTION...]\n\n", name);
	for (size_t i = 0; i < n_commands; i++)
		fprintf(stream, "  %-10s %s\n", commands[i].name, commands[i].what);
	fprintf(stream, "\n`%s COMMAND --help` lists a command's options.\n", name);
}

int program_run(const char *name, const struct program_command *commands, size_t n_commands,
	int argc, char **argv)
{
	char title[64];

	for (size_t i = 0; argc > 1 && i < n_commands; i++)
		if (!strcmp(argv[1], commands[i].name)) {
			snprintf(title, sizeof(title), "%s %s", name, argv[1]);
			argv[1] = title;
			return commands[i].run(argc - 1, argv + 1);
		}
	if (argc > 1 && !strcmp(argv[1], "--help")) {
		print_usage(stdout, name, commands, n_commands);
		return 0;
	}
	if (argc > 1)
		fprintf(stderr, "%s: '%s' is no command\n", name, argv[1]);
	print_usage(stderr, name, commands, n_commands);
	return 2;
}
