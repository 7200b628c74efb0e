/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options: one table (util/option_list.h), parsed once when a context opens. The environment wins
 * over params, params over defaults. Everything else reads the struct's fields.
 */
#ifndef M2N_OPTION_H
#define M2N_OPTION_H

#include <stddef.h>
#include <stdint.h>

#include "bootstrap/launcher.h" /* m2n__getenv_fn */
#include "util/options.h"

/* The process's environment: the library's one use of getenv() and of environ. */
const char *m2n__getenv(void *arg, const char *name);
char *const *m2n__environment(void);

/*
 * Fills all fields. params: "NAME=value" texts ended by NULL, or NULL. backend: overrides the
 * default of BACKEND, or NULL. Unknown names in params are M2N_ERR_OPTION with the nearest name;
 * unknown M2N_* in the environment only fill `warning` (with the nearest name; "" when all is
 * well). M2N_ERR_OPTION: name, text, accepted range.
 */
int m2n__options_parse(struct m2n__options *options, const char *backend,
	const char *const *params, char *const *environ_list, m2n__getenv_fn get, void *arg,
	char *warning, size_t warning_bytes);
void m2n__options_clear(struct m2n__options *options);
/* A value as text: -ENOENT, -ENOSPC. */
int m2n__options_format(const struct m2n__options *options, const char *name, char *value,
	size_t bytes, const char **origin);

#endif
