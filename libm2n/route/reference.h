/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The oracle: dispatch and combine of a whole M:N job in plain loops over tokens and experts,
 * sharing no code with plans, kernels or channels. Every test compares against it.
 */
#ifndef M2N_ROUTE_REFERENCE_H
#define M2N_ROUTE_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/types.h>

/* One value of a row of the dtype as f32, and back with one rounding to nearest even. */
float m2n__ref_load(enum m2n_dtype dtype, const void *row, size_t i);
void m2n__ref_store(enum m2n_dtype dtype, void *row, size_t i, float value);

/*
 * The rows that one expert instance receives from one source, in order: tokens ascending, then k,
 * whose id is `expert` and whose replica choice (source + token) % n_owners is this owner.
 * Writes token and k of each into rows_token/rows_k (room for n_tokens * top_k) and returns their
 * number. owner: this rank's position among the live owners; n_owners: how many live owners.
 */
size_t m2n__ref_rows(uint32_t n_tokens, uint32_t top_k, const int32_t *ids, int32_t expert,
	uint32_t source, uint32_t owner, uint32_t n_owners, uint32_t *rows_token, uint32_t *rows_k);

/*
 * out[t] = residual[t] + sum_k w[t,k] * reply[t,k] over pairs whose reply pointer is not NULL;
 * k ascending, fmaf(), one rounding. replies: [n_tokens * top_k] pointers to rows of n_values.
 * weights and residual may be NULL.
 */
void m2n__ref_combine(enum m2n_dtype dtype, uint32_t n_tokens, uint32_t top_k, size_t n_values,
	const void *const *replies, const float *weights, const void *residual, void *out);

#endif
