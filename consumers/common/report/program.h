/* SPDX-License-Identifier: Apache-2.0 */
/* A program that is a list of commands, each with its own options. */
#ifndef REPORT_PROGRAM_H
#define REPORT_PROGRAM_H

#include <stddef.h>

struct program_command {
	const char *name, *what;
	/* argv[0] is "PROGRAM COMMAND". Returns the exit status. */
	int (*run)(int argc, char **argv);
};

/* The exit status: of the command that is named; 2 when none is, and the list is printed. */
int program_run(const char *name, const struct program_command *commands, size_t n_commands,
	int argc, char **argv);

#endif
