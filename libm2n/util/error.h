/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Details of the last failure, per thread. Any layer may set them, so they live in util. The
 * first function that knows the cause sets the text; callers above pass the code on, or prepend
 * where it happened.
 */
#ifndef M2N_ERROR_H
#define M2N_ERROR_H

#include <m2n/status.h>

/* Sets this thread's text (printf form, cut at 511 bytes) and returns `status`. */
int m2n__error(int status, const char *format, ...)
	__attribute__((cold, format(printf, 2, 3)));
/* Puts "what: " before the text that is there, and returns `status`. */
int m2n__error_at(int status, const char *format, ...)
	__attribute__((cold, format(printf, 2, 3)));

#endif
