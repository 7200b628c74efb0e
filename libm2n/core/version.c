/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The versions that a program can ask for: the package's, which the build passes in M2N_VERSION,
 * and the wire's. The third one, the soname's, is the linker's business.
 */
#include <m2n/context.h>

#include "wire/wire.h"

const char *m2n_version(void)
{
	return M2N_VERSION;
}

unsigned m2n_wire_version(void)
{
	return M2N__WIRE_VERSION;
}
