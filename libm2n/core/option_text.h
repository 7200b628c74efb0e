/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values of options as text: reading, range checks and printing for each type of the table. Pure
 * functions of their arguments. What is printed reads back as the same value.
 *
 *   bool    yes no true false on off 1 0
 *   int     decimal, with a sign
 *   size    decimal, with K M G or T (powers of 1,024), or bytes without one
 *   time    decimal, with ns us ms s m or h; 0 needs no unit
 *   choice  one of the words of the range
 *   text    anything, unless the range is a list of words or "LOW..HIGH characters"
 *
 * Words and units are read in either case.
 */
#ifndef M2N_OPTION_TEXT_H
#define M2N_OPTION_TEXT_H

#include <stddef.h>
#include <stdint.h>

enum m2n__option_type {
	M2N__OPTION_bool,
	M2N__OPTION_int,
	M2N__OPTION_size,
	M2N__OPTION_time,
	M2N__OPTION_text,
	M2N__OPTION_choice,
};

/*
 * Reads `text`; *value is the number, or the position of the word (0 for type text).
 * -EINVAL: not of that type, or not one of the words. -ERANGE: outside the range.
 */
int m2n__option_read(enum m2n__option_type type, const char *range, const char *text,
	int64_t *value);
/* Prints a value of any type but text. Returns the length, like snprintf(). */
int m2n__option_print(enum m2n__option_type type, const char *range, int64_t value, char *text,
	size_t bytes);
/* How many letters differ: edits that turn `a` into `b`, both cut at 31, case ignored. */
unsigned m2n__option_distance(const char *a, const char *b);

#endif
