/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The values of the options as a plain struct, which every layer may read (backends too). How they
 * are parsed and from where is core's.
 */
#ifndef M2N_OPTIONS_H
#define M2N_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "util/option_list.h"

#define M2N_OPTION_TYPE_bool int
#define M2N_OPTION_TYPE_int int64_t
#define M2N_OPTION_TYPE_size size_t
#define M2N_OPTION_TYPE_time int64_t
#define M2N_OPTION_TYPE_text char *
#define M2N_OPTION_TYPE_choice int

struct m2n__options {
#define M2N_OPTION_FIELD(name, field, type, def, range, unit, about) M2N_OPTION_TYPE_##type field;
	M2N_OPTION_LIST(M2N_OPTION_FIELD)
#undef M2N_OPTION_FIELD
	uint64_t from_environment; /* bit per row */
	uint64_t from_params;
};

#endif
