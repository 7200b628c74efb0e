/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands of disagmoe_train. Each takes its own arguments, argv[0] being "disagmoe_train
 * COMMAND", and returns the exit status: 0, 1 for a failure, 2 for arguments that do not fit.
 */
#ifndef DISAGMOE_COMMANDS_H
#define DISAGMOE_COMMANDS_H

int run_main(int argc, char **argv);
int generate_main(int argc, char **argv);
int plan_main(int argc, char **argv);
int profile_main(int argc, char **argv);
int simulate_main(int argc, char **argv);
/* simulate with --profile: a run on this machine. */
int simulate_run_main(int argc, char **argv);

#endif
