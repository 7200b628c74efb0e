/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads what `rdma -j resource show` prints: a list of flat objects, those of processes with
 * their number.
 */
#include "scale/queues.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The number behind `"name":` in one object; 0 when there is none. */
static uint64_t number_of(const char *object, const char *name)
{
	char key[32];
	const char *at;

	snprintf(key, sizeof(key), "\"%s\":", name);
	at = strstr(object, key);
	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

/* Counts this process' objects of one kind; adds up one of their numbers. */
static int count(const char *kind, const char *name, uint64_t *n, uint64_t *sum)
{
	char command[64], *object = NULL;
	size_t room = 0;
	FILE *pipe;
	int status;

	snprintf(command, sizeof(command), "rdma -j resource show %s", kind);
	pipe = popen(command, "re");
	if (!pipe)
		return -1;
	while (getdelim(&object, &room, '}', pipe) > 0) {
		if (number_of(object, "pid") != (uint64_t)getpid())
			continue;
		++*n;
		*sum += number_of(object, name);
	}
	free(object);
	status = pclose(pipe);
	return status ? -1 : 0;
}

static uint64_t mapped_from_devices(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	uint64_t bytes = 0;
	char line[512];

	while (maps && fgets(line, sizeof(line), maps)) {
		uint64_t from, to;

		if (strstr(line, "/uverbs") &&
			sscanf(line, "%" SCNx64 "-%" SCNx64, &from, &to) == 2)
			bytes += to - from;
	}
	if (maps)
		fclose(maps);
	return bytes;
}

int queues_count(struct queues *q)
{
	uint64_t none = 0;

	memset(q, 0, sizeof(*q));
	q->queue_bytes = mapped_from_devices();
	return count("qp", "none", &q->n_qps, &none) || count("srq", "none", &q->n_srqs, &none) ||
			       count("cq", "cqe", &q->n_cqs, &q->n_cqes) ||
			       count("mr", "mrlen", &q->n_mrs, &q->pinned_bytes)
		       ? -1
		       : 0;
}
