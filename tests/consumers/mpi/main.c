/* SPDX-License-Identifier: Apache-2.0 */
/* `megascale_infer serve` with both transports, under mpirun: --launched --transport m2n|mpi. */
#include <string.h>

#include "consumers/mpi/transport_mpi.h"
#include "megascale_infer/commands.h"
#include "model/error.h"

const struct transport_ops *transport_find(const char *name)
{
	if (!strcmp(name, transport_mpi.name))
		return &transport_mpi;
	if (!strcmp(name, transport_m2n.name))
		return &transport_m2n;
	model_fail(0, "transport '%s' is none of: m2n, mpi", name);
	return NULL;
}

int main(int argc, char **argv)
{
	return serve_main(argc, argv);
}
