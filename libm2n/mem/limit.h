/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much memory may be taken without waking the kernel's OOM killer. The kernel overcommits:
 * an allocation that is far too large does not fail, it kills. So large ones ask first.
 */
#ifndef M2N_MEM_LIMIT_H
#define M2N_MEM_LIMIT_H

#include <stddef.h>

/* 0, or -ENOMEM with size, limit and remedy in the text. Small sizes are not looked at, huge
 * pages come from a pool of their own and are refused by the kernel in time. */
int m2n__mem_check_available(size_t bytes, int hugetlb);

#endif
