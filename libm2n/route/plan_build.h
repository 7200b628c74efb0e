/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second half of routing, shared by routing and unpacking: from the instance of each pair to
 * rows, unique rows and replies.
 */
#ifndef M2N_ROUTE_PLAN_BUILD_H
#define M2N_ROUTE_PLAN_BUILD_H

#include "route/plan.h"

/* No tokens, no rows, all counts zero. */
void m2n__plan_clear(struct m2n_plan *plan);
/* Whether `map` has the sizes that the plan was made for; -EINVAL names both. */
int m2n__plan_check_map(const struct m2n_plan *plan, const struct m2n_map *map);
/*
 * On entry pair_row holds the instance of each pair (-1: none), `count` the rows per instance,
 * and n_tokens is set. Applies the capacity: M2N_ERR_CAPACITY, or with drop_overflow the pairs
 * that a rank has no room for lose their row: the last ones in (token, k) order at that rank, so
 * that what stays does not depend on how experts are numbered. Then makes everything else.
 */
int m2n__plan_build(struct m2n_plan *plan, struct m2n_map *map);
/* One more pair of the token without a row; the count of a token stops at 255. */
static inline void m2n__plan_drop(struct m2n_plan *plan, uint32_t token)
{
	plan->n_dropped++;
	plan->dropped[token] += plan->dropped[token] != UINT8_MAX;
}

#endif
