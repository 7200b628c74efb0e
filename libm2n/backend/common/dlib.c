/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening vendors' libraries by the loader.
 */
#include "backend/common/dlib.h"

#include <dlfcn.h>
#include <string.h>

#include <m2n/status.h>

#include "util/error.h"

int m2n__dlib_open(const char *library, const char *package, const struct m2n__symbol *symbols,
	size_t n_symbols, void *table)
{
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);

	if (!handle)
		return m2n__error(M2N_ERR_BACKEND, "%s cannot be loaded: %s; install %s", library,
			dlerror(), package);
	for (size_t i = 0; i < n_symbols; i++) {
		void *symbol = dlsym(handle, symbols[i].name);

		if (!symbol) {
			dlclose(handle);
			return m2n__error(M2N_ERR_BACKEND,
				"%s has no %s: it is too old; install a newer %s", library,
				symbols[i].name, package);
		}
		memcpy((char *)table + symbols[i].offset, &symbol, sizeof(symbol));
	}
	return 0;
}
