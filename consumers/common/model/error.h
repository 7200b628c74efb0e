/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What went wrong, as a sentence for the user: which file, tensor or member, what was expected,
 * what was found, and the remedy. The function that knows sets the text of its thread and returns
 * a negative errno; callers pass the number on and whoever talks to the user asks for the text.
 */
#ifndef MODEL_ERROR_H
#define MODEL_ERROR_H

/* Sets the text of this thread; returns rc. */
int model_fail(int rc, const char *form, ...) __attribute__((format(printf, 2, 3)));
/* The text of the last failure in this thread; "" before the first. Valid until the next one. */
const char *model_error(void);

#endif
