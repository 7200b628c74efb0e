/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host may ask of the device: a plan's numbers, a batch's rows, what went wrong.
 */
#include <errno.h>

#include <m2n/gpu.h>
#include <m2n/round.h>

#include "core/channel.h"
#include "util/error.h"

int m2n_plan_wait(struct m2n_plan *plan, int64_t timeout_ns)
{
	(void)timeout_ns;
	return plan ? 0 : m2n__error(-EINVAL, "m2n_plan_wait: plan is NULL");
}

int m2n_batch_wait(
	struct m2n_channel *ch, const struct m2n_batch *batch, int64_t timeout_ns)
{
	(void)timeout_ns;
	return ch && batch ? 0 : m2n__error(-EINVAL, "m2n_batch_wait: channel or batch is NULL");
}

int m2n_channel_check(struct m2n_channel *ch)
{
	return ch ? 0 : m2n__error(-EINVAL, "m2n_channel_check: channel is NULL");
}
