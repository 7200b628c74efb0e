/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room left, by the kernel's own counts: MemAvailable and swap of the machine, and memory.max of
 * the control group (version 2) and of each one above it, where page cache counts as free. What
 * cannot be read sets no limit. The counts move while we look: this is a guard against sizes
 * that cannot work, no reservation.
 */
#include "mem/limit.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "util/error.h"

#define CGROUP_ROOT "/sys/fs/cgroup"
#define SMALL_BYTES ((size_t)16 << 20)

/* The number after `name` at the start of a line; UINT64_MAX when there is none. */
static uint64_t read_count(const char *path, const char *name)
{
	FILE *file = fopen(path, "re");
	uint64_t value = UINT64_MAX;
	char line[256];

	if (!file)
		return UINT64_MAX;
	while (fgets(line, sizeof(line), file)) {
		size_t n = strlen(name);

		if (strncmp(line, name, n) == 0 && sscanf(line + n, "%" SCNu64, &value) == 1)
			break;
		value = UINT64_MAX;
	}
	fclose(file);
	return value;
}

static uint64_t or_zero(uint64_t count)
{
	return count == UINT64_MAX ? 0 : count;
}

static uint64_t machine_room(void)
{
	uint64_t available = read_count("/proc/meminfo", "MemAvailable:");

	if (available == UINT64_MAX)
		return UINT64_MAX;
	return (available + or_zero(read_count("/proc/meminfo", "SwapFree:"))) * 1024;
}

/* Room in one group: UINT64_MAX when it has no limit ("max" is no number). */
static uint64_t group_room(const char *folder)
{
	char path[PATH_MAX + 32];
	uint64_t max, used, cache;

	snprintf(path, sizeof(path), "%s/memory.max", folder);
	max = read_count(path, "");
	if (max == UINT64_MAX)
		return UINT64_MAX;
	snprintf(path, sizeof(path), "%s/memory.current", folder);
	used = or_zero(read_count(path, ""));
	snprintf(path, sizeof(path), "%s/memory.stat", folder);
	cache = or_zero(read_count(path, "inactive_file ")) +
		or_zero(read_count(path, "active_file "));
	used -= cache < used ? cache : used;
	return used < max ? max - used : 0;
}

/* The folder of this process's group; 0 when there is no version 2. */
static int find_group(char *folder, size_t bytes)
{
	FILE *file = fopen("/proc/self/cgroup", "re");
	char line[PATH_MAX];
	int found = 0;

	if (!file)
		return 0;
	while (!found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "0::/", 4) != 0)
			continue;
		line[strcspn(line, "\n")] = '\0';
		found = snprintf(folder, bytes, CGROUP_ROOT "%s", line + 3) < (int)bytes;
	}
	fclose(file);
	return found;
}

static uint64_t groups_room(void)
{
	char folder[PATH_MAX];
	uint64_t room = UINT64_MAX;

	if (!find_group(folder, sizeof(folder)))
		return UINT64_MAX;
	while (strlen(folder) >= strlen(CGROUP_ROOT)) {
		uint64_t here = group_room(folder);

		if (here < room)
			room = here;
		*strrchr(folder, '/') = '\0';
	}
	return room;
}

int m2n__mem_check_available(size_t bytes, int hugetlb)
{
	uint64_t room;

	if (hugetlb || bytes < SMALL_BYTES)
		return 0;
	room = groups_room();
	if (bytes > room)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: the control group has room for "
			"%" PRIu64 "; raise its memory.max", bytes, room);
	room = machine_room();
	if (bytes > room)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: the machine has %" PRIu64
			" available", bytes, room);
	return 0;
}
