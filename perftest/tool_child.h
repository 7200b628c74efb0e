/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program of others as a child: started with its output in a pipe, watched with a deadline,
 * ended when it does not end by itself. It dies with the rank that started it.
 */
#ifndef PERF_TOOL_CHILD_H
#define PERF_TOOL_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TOOL_TEXT_BYTES 16384

struct tool_child {
	pid_t pid;  /* 0: not running */
	int fd;     /* of its standard output and error */
	int status; /* as of waitpid(), once it has ended */
	size_t n_text;
	char text[TOOL_TEXT_BYTES]; /* the end of what it printed */
};

/* argv[0] is looked up in PATH. 0, or errno: ENOENT when there is no such program. */
int tool_child_start(struct tool_child *child, char *const argv[]);
/* Collects output for at most so long. True: it has ended. */
bool tool_child_watch(struct tool_child *child, int timeout_ms);
/* Ends and reaps it if it still runs. */
void tool_child_stop(struct tool_child *child);
/* It ended by itself with status 0. */
bool tool_child_succeeded(const struct tool_child *child);
/* Its last words: up to three lines that say something, joined. */
void tool_child_last_words(const struct tool_child *child, char *text, size_t bytes);

/* A TCP port that nobody listens on now, 0: none. */
uint16_t tool_free_port(void);
/* Whether somebody listens on a TCP port of this host (network namespace). */
bool tool_port_listens(uint16_t port);

#endif
