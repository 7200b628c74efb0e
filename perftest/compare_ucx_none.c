/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for compare_ucx.c where UCX was not found; never called, because a job with a UCX
 * series is refused.
 */
#include "message.h"

bool ucx_link_built(void)
{
	return false;
}

struct ucx_link *ucx_link_open(struct perf_rank *rank, uint64_t size_max, uint32_t depth)
{
	(void)size_max;
	(void)depth;
	perf_rank_fail(rank, 0, "built without UCX");
}

void ucx_link_close(struct ucx_link *link)
{
	(void)link;
}

void ucx_link_put(struct ucx_link *link, const void *data, uint64_t size)
{
	(void)link;
	(void)data;
	(void)size;
}

void ucx_link_get(struct ucx_link *link, uint64_t size)
{
	(void)link;
	(void)size;
}

void ucx_link_settle(struct ucx_link *link)
{
	(void)link;
}
