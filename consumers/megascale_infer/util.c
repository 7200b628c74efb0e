/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The utilisation curve. A time that never falls with the bytes is what lets the search for the
 * largest batch halve its interval.
 */
#include "util.h"

#include <errno.h>

#include "model/error.h"
#include "table.h"

#define KIB 1024.0
#define MIB (1024.0 * KIB)

/* Sizes per pair of 2 KiB to 8 MiB, times 8 peers. */
const struct plan_util plan_util_default = {
	.bytes = {16 * KIB, 128 * KIB, 512 * KIB, 1 * MIB, 2 * MIB, 8 * MIB, 64 * MIB},
	.share = {0.025, 0.16, 0.41, 0.57, 0.72, 0.90, 0.965},
	.n = 7,
};

/* Bytes over share: the time at a bandwidth of 1. */
static double point(const struct plan_util *util, size_t i)
{
	return util->bytes[i] / util->share[i];
}

static int read_point(const struct table *table, size_t row, struct plan_util *util)
{
	size_t i = util->n;
	int rc = i == PLAN_MAX_UTIL ? model_fail(-E2BIG, "%s:%zu: more than %d points",
		table->path, table->lines[row], PLAN_MAX_UTIL) : 0;

	if (!rc)
		rc = table_number(table, row, "bytes", 1, &util->bytes[i]);
	if (!rc)
		rc = table_number(table, row, "util", 1e-9, &util->share[i]);
	if (rc)
		return rc;
	if (util->share[i] > 1)
		return model_fail(-EINVAL, "%s:%zu: util: %g is above 1", table->path,
			table->lines[row], util->share[i]);
	if (i && (util->bytes[i] <= util->bytes[i - 1] || point(util, i) < point(util, i - 1)))
		return model_fail(-EINVAL, "%s:%zu: bytes must rise from line to line, and so must "
			"bytes / util", table->path, table->lines[row]);
	util->n++;
	return 0;
}

int plan_util_read(const char *path, struct plan_util *util)
{
	struct plan_util found = {.n = 0};
	struct table table;
	int rc = table_read(path, &table);

	if (rc)
		return rc;
	for (size_t row = 1; !rc && row < table.n_rows; row++)
		rc = read_point(&table, row, &found);
	if (!rc && !found.n)
		rc = model_fail(-EINVAL, "%s: no point of the curve", path);
	table_free(&table);
	if (!rc)
		*util = found;
	return rc;
}

double plan_util_seconds(const struct plan_util *util, double bytes, double bytes_per_s)
{
	size_t last = util->n - 1, i = 1;
	double part;

	if (bytes <= util->bytes[0])
		return point(util, 0) / bytes_per_s;
	if (bytes >= util->bytes[last])
		return bytes / util->share[last] / bytes_per_s;
	while (bytes > util->bytes[i])
		i++;
	part = (bytes - util->bytes[i - 1]) / (util->bytes[i] - util->bytes[i - 1]);
	return (point(util, i - 1) + part * (point(util, i) - point(util, i - 1))) / bytes_per_s;
}
