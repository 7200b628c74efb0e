/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands of megascale_infer. Each takes its own arguments, argv[0] being "megascale_infer
 * COMMAND", and returns the exit status: 0, 1 for a failure, 2 for arguments that do not fit.
 */
#ifndef MEGASCALE_COMMANDS_H
#define MEGASCALE_COMMANDS_H

int plan_main(int argc, char **argv);
int profile_main(int argc, char **argv);
int serve_main(int argc, char **argv);
int simulate_main(int argc, char **argv);

#endif
