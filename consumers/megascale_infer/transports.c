/* SPDX-License-Identifier: Apache-2.0 */
/* The transports that this program has. */
#include <string.h>

#include "model/error.h"
#include "transport.h"

static const struct transport_ops *const transports[] = {&transport_m2n};

const struct transport_ops *transport_find(const char *name)
{
	for (size_t i = 0; i < sizeof(transports) / sizeof(transports[0]); i++)
		if (!strcmp(transports[i]->name, name))
			return transports[i];
	model_fail(0, "transport '%s' is none of: m2n", name);
	return NULL;
}
