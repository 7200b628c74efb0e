/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In place of the UCX backend where UCX's headers were not there at build time: says so.
 */
#include <m2n/status.h>

#include "backend/registry.h"
#include "util/error.h"

static int none_probe(const struct m2n__options *options)
{
	(void)options;
	return m2n__error(M2N_ERR_BACKEND,
		"ucx: this libm2n was built without UCX's headers: install libucx-dev and build it "
		"anew");
}

const struct m2n__backend_ops m2n__backend_ucx = {
	.name = "ucx",
	.about = "UCX: not in this build",
	.probe = none_probe,
};
