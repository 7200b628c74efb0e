/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room left, by the kernel's own counts: MemAvailable and swap of the machine, and the limit of
 * the control group (of either version) and of each one above it, where page cache counts as
 * free. What cannot be read sets no limit. The counts move while we look: this is a guard
 * against sizes that cannot work, no reservation.
 */
#include "mem/limit.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "util/error.h"

#define SMALL_BYTES ((size_t)16 << 20)

/* Where the two versions of control groups keep their counts. */
struct hierarchy {
	const char *controllers; /* second field of /proc/self/cgroup */
	const char *root;
	const char *max;
	const char *used;
	const char *cache[2]; /* lines of memory.stat */
};

static const struct hierarchy hierarchies[] = {
	{"", "/sys/fs/cgroup", "memory.max", "memory.current",
		{"inactive_file ", "active_file "}},
	{"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
		{"total_inactive_file ", "total_active_file "}},
};

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

static uint64_t read_in(const char *folder, const char *file, const char *name)
{
	char path[PATH_MAX + 32];

	snprintf(path, sizeof(path), "%s/%s", folder, file);
	return read_count(path, name);
}

/* Room in one group: UINT64_MAX when it has no limit ("max" is no number). */
static uint64_t group_room(const struct hierarchy *hierarchy, const char *folder)
{
	uint64_t max = read_in(folder, hierarchy->max, "");
	uint64_t used, cache;

	if (max == UINT64_MAX)
		return UINT64_MAX;
	used = or_zero(read_in(folder, hierarchy->used, ""));
	cache = or_zero(read_in(folder, "memory.stat", hierarchy->cache[0])) +
		or_zero(read_in(folder, "memory.stat", hierarchy->cache[1]));
	used -= cache < used ? cache : used;
	return used < max ? max - used : 0;
}

/* The folder of this process's group; 0 when there is none. Lines: number:controllers:path. */
static int find_group(const struct hierarchy *hierarchy, char *folder, size_t bytes)
{
	FILE *file = fopen("/proc/self/cgroup", "re");
	char line[PATH_MAX];
	int found = 0;

	if (!file)
		return 0;
	while (!found && fgets(line, sizeof(line), file)) {
		char *controllers = strchr(line, ':');
		char *path = controllers ? strchr(controllers + 1, ':') : NULL;

		if (!path)
			continue;
		*path++ = '\0';
		path[strcspn(path, "\n")] = '\0';
		found = strcmp(controllers + 1, hierarchy->controllers) == 0 &&
			snprintf(folder, bytes, "%s%s", hierarchy->root, path) < (int)bytes;
	}
	fclose(file);
	return found;
}

static uint64_t groups_room(const struct hierarchy *hierarchy)
{
	char folder[PATH_MAX];
	uint64_t room = UINT64_MAX;

	if (!find_group(hierarchy, folder, sizeof(folder)))
		return UINT64_MAX;
	while (strlen(folder) >= strlen(hierarchy->root)) {
		uint64_t here = group_room(hierarchy, folder);

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
	for (size_t i = 0; i < sizeof(hierarchies) / sizeof(hierarchies[0]); i++) {
		room = groups_room(&hierarchies[i]);
		if (bytes > room)
			return m2n__error(-ENOMEM, "no memory for %zu bytes: the control group has "
				"room for %" PRIu64 "; raise its %s", bytes, room,
				hierarchies[i].max);
	}
	room = machine_room();
	if (bytes > room)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: the machine has %" PRIu64
			" available", bytes, room);
	return 0;
}
