/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread's error text: a fixed buffer in thread-local storage, so that setting it never
 * fails and never allocates. Also the constant texts of results.
 */
#include "util/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TEXT_BYTES 512

static _Thread_local char error_text[TEXT_BYTES];

int m2n__error(int status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error_text, sizeof(error_text), format, args);
	va_end(args);
	return status;
}

int m2n__error_at(int status, const char *format, ...)
{
	char text[2 * TEXT_BYTES + 2];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text, TEXT_BYTES, format, args);
	va_end(args);
	n = n < 0 ? 0 : n < TEXT_BYTES ? n : TEXT_BYTES - 1;
	snprintf(text + n, sizeof(text) - (size_t)n, ": %s", error_text);
	memcpy(error_text, text, TEXT_BYTES);
	error_text[TEXT_BYTES - 1] = '\0';
	return status;
}

const char *m2n_error_text(void)
{
	return error_text;
}

const char *m2n_strerror(int status)
{
	const char *text;

	switch (status) {
	case M2N_OK:
		return "success";
	case M2N_PARTIAL:
		return "done for some peers or rows only";
#define M2N_STATUS_TEXT(name, code, text_)                                                         \
	case -(code):                                                                              \
		return text_;
		M2N_STATUS_LIST(M2N_STATUS_TEXT)
#undef M2N_STATUS_TEXT
	default:
		break;
	}
	/* strerrordesc_np() returns constants, unlike strerror(). */
	text = status < 0 && status > -1000 ? strerrordesc_np(-status) : NULL;
	return text ? text : "unknown status";
}
