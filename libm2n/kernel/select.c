/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The choice of a table. Nothing is cached: callers keep the pointer, and asking the processor
 * is cheap.
 */
#include "kernel/tables.h"

#include <string.h>

static int is_usable(const struct m2n__kernel_candidate *candidate)
{
	return !candidate->usable || candidate->usable();
}

const struct m2n__kernels *m2n__kernels_select(const char *name)
{
	unsigned i = m2n__n_kernel_candidates;

	while (i-- > 0) {
		const struct m2n__kernel_candidate *candidate = &m2n__kernel_candidates[i];

		if ((!name || strcmp(name, candidate->table->name) == 0) && is_usable(candidate))
			return candidate->table;
	}
	return NULL;
}

const struct m2n__kernels *m2n__kernels_at(unsigned index, int *usable)
{
	if (index >= m2n__n_kernel_candidates)
		return NULL;
	*usable = is_usable(&m2n__kernel_candidates[index]);
	return m2n__kernel_candidates[index].table;
}

size_t m2n__dtype_bytes(enum m2n_dtype dtype)
{
	return dtype == M2N_DTYPE_F32 ? 4 : 2;
}

const char *m2n__dtype_name(enum m2n_dtype dtype)
{
	switch (dtype) {
	case M2N_DTYPE_F32:
		return "f32";
	case M2N_DTYPE_BF16:
		return "bf16";
	case M2N_DTYPE_F16:
		return "f16";
	}
	return "unknown";
}
