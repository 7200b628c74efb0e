/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest user of the installed library: includes the umbrella, calls one function of the
 * shared library, prints the package's version.
 */
#include <m2n/m2n.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
	if (strcmp(m2n_strerror(M2N_OK), "success") != 0)
		return 1;
	puts(m2n_version());
	return 0;
}
