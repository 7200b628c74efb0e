/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of the last failure, one per thread.
 */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char text[1024];

int model_fail(int rc, const char *form, ...)
{
	char next[sizeof(text)]; /* the arguments may be the last text */
	va_list args;

	va_start(args, form);
	vsnprintf(next, sizeof(next), form, args);
	va_end(args);
	snprintf(text, sizeof(text), "%s", next);
	return rc;
}

const char *model_error(void)
{
	return text;
}
