/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs backend of a build without the headers of libibverbs and librdmacm: listed, so that
 * m2n_info says why it cannot be used.
 */
#include "backend/registry.h"
#include "util/error.h"

static int none_probe(const struct m2n__options *options)
{
	(void)options;
	return m2n__error(M2N_ERR_BACKEND,
		"verbs: this build has no support for it: install libibverbs-dev and "
		"librdmacm-dev and build again with -Dverbs=enabled");
}

const struct m2n__backend_ops m2n__backend_verbs = {
	.name = "verbs",
	.about = "InfiniBand and RoCE (not in this build)",
	.priority = 50,
	.probe = none_probe,
};
