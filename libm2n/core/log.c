/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Formats a line and hands it to whoever wants it. A line is cut rather than allocated, control
 * characters become spaces (texts may quote what a peer sent, and a line must stay one line), and
 * standard error gets it in one write, so that the lines of several ranks do not mix. errno is
 * kept: a caller may log before it looks at it.
 */
#include "core/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES 2048

static const char *level_name(enum m2n_log_level level)
{
	static const char *const names[] = {"off", "error", "warn", "info", "debug", "trace"};

	return names[level];
}

static void keep_one_line(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 127)
			*text = ' ';
}

static void write_stderr(enum m2n_log_level level, const char *text)
{
	char line[LINE_BYTES + 64];
	int n = snprintf(line, sizeof(line), "m2n[%d] %s: %s\n", (int)getpid(), level_name(level),
		text);
	ssize_t written;

	if (n <= 0)
		return;
	written = write(STDERR_FILENO, line, (size_t)n);
	(void)written; /* nobody is left to be told */
}

void m2n__log_write(const struct m2n__log *log, enum m2n_log_level level, const char *format, ...)
{
	char text[LINE_BYTES];
	int saved_errno = errno;
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	keep_one_line(text);
	if (log->sink)
		log->sink(log->sink_arg, level, text);
	if ((int)level <= log->stderr_level)
		write_stderr(level, text);
	errno = saved_errno;
}
