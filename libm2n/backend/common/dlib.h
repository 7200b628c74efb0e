/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Vendors' libraries are opened when a backend is first probed, not linked: the same libm2n runs
 * on machines that lack them, and a program that needs none of them does not load them. A backend
 * lists the functions that it calls in an X-macro, has a struct of pointers of their types, and
 * fills it here.
 */
#ifndef M2N_BACKEND_DLIB_H
#define M2N_BACKEND_DLIB_H

#include <stddef.h>

struct m2n__symbol {
	const char *name;
	size_t offset; /* of the pointer in the struct that is filled */
};

/*
 * Opens `library` ("libibverbs.so.1") for good and fills `table`. M2N_ERR_BACKEND names the
 * library, the loader's reason and the Debian package to install.
 */
int m2n__dlib_open(const char *library, const char *package, const struct m2n__symbol *symbols,
	size_t n_symbols, void *table);

#endif
