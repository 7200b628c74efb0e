/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leak checks by /proc/self, and guard bytes. The descriptor that reads the directory is not
 * counted. A thread that has just been joined may still be listed for a moment, so the count
 * of threads is looked at until it has settled or a second is over.
 */
#include "helpers/leak.h"

#include <dirent.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "helpers/ranks.h"

/* GCC has a macro, Clang a feature. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#endif
#ifndef THREAD_SANITIZER
#define THREAD_SANITIZER 0
#endif

#define GUARD_BYTES 64
#define GUARD_BYTE 0xa5
#define FILL_BYTE 0xdb

static int count_entries(const char *path)
{
	DIR *dir = opendir(path);
	int n = 0;

	if (!dir)
		return -1;
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static int count_shared_maps(char *last, size_t bytes)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[1024];
	char flags[8];
	int n = 0;

	if (!maps)
		return -1;
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%*s %7s", flags) != 1 || flags[3] != 's')
			continue;
		n++;
		if (last)
			snprintf(last, bytes, "%.*s", (int)strcspn(line, "\n"), line);
	}
	fclose(maps);
	return n;
}

/*
 * librdmacm keeps every RDMA device that it saw open until the process ends: the device and its
 * events, once each. A second open of the same device is ours.
 */
static int count_kept_by_librdmacm(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	uint64_t seen = 0;

	while (dir && (entry = readdir(dir))) {
		char link[300], target[64] = "";
		unsigned device;

		snprintf(link, sizeof(link), "/proc/self/fd/%s", entry->d_name);
		if (readlink(link, target, sizeof(target) - 1) > 0 &&
			sscanf(target, "/dev/infiniband/uverbs%u", &device) == 1 && device < 64)
			seen |= UINT64_C(1) << device;
	}
	if (dir)
		closedir(dir);
	return 2 * __builtin_popcountll(seen);
}

void leak_take(struct leak_state *state)
{
	state->n_fds = count_entries("/proc/self/fd") - count_kept_by_librdmacm();
	state->n_shared_maps = count_shared_maps(NULL, 0);
	state->n_threads = count_entries("/proc/self/task");
}

static void name_fds(char *text, size_t bytes)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	char link[300];
	char target[256];
	size_t used = 0;

	text[0] = '\0';
	while (dir && (entry = readdir(dir))) {
		ssize_t n;

		snprintf(link, sizeof(link), "/proc/self/fd/%s", entry->d_name);
		n = readlink(link, target, sizeof(target) - 1);
		if (n < 0 || used + (size_t)n + 8 >= bytes)
			continue;
		target[n] = '\0';
		used += (size_t)snprintf(
			text + used, bytes - used, " %s=%s", entry->d_name, target);
	}
	if (dir)
		closedir(dir);
}

void leak_check(const struct leak_state *before)
{
	struct leak_state after;
	char text[700];
	time_t start = time(NULL);

	leak_take(&after);
	while (after.n_threads > before->n_threads && time(NULL) <= start + 1) {
		sched_yield();
		leak_take(&after);
	}
	if (after.n_fds > before->n_fds) {
		name_fds(text, sizeof(text));
		rank_fail(__FILE__, __LINE__, "%d descriptors leaked; open:%s",
			after.n_fds - before->n_fds, text);
	}
	if (after.n_shared_maps > before->n_shared_maps) {
		count_shared_maps(text, sizeof(text));
		rank_fail(__FILE__, __LINE__, "%d shared mappings leaked, e.g. %s",
			after.n_shared_maps - before->n_shared_maps, text);
	}
	/* ThreadSanitizer starts one of its own. */
#if !THREAD_SANITIZER
	if (after.n_threads > before->n_threads)
		rank_fail(__FILE__, __LINE__, "%d threads are left",
			after.n_threads - before->n_threads);
#endif
}

/* Layout: size, guard, the memory, guard. */
void *guard_alloc(size_t bytes)
{
	size_t head = 2 * GUARD_BYTES;
	uint8_t *block = malloc(head + bytes + GUARD_BYTES);

	if (!block)
		abort();
	memcpy(block, &bytes, sizeof(bytes));
	memset(block + GUARD_BYTES, GUARD_BYTE, GUARD_BYTES);
	memset(block + head, FILL_BYTE, bytes);
	memset(block + head + bytes, GUARD_BYTE, GUARD_BYTES);
	return block + head;
}

void guard_check(const void *base)
{
	const uint8_t *data = base;
	size_t bytes;

	memcpy(&bytes, data - 2 * GUARD_BYTES, sizeof(bytes));
	for (size_t i = 0; i < GUARD_BYTES; i++) {
		if (data[-(ptrdiff_t)i - 1] != GUARD_BYTE)
			rank_fail(__FILE__, __LINE__, "written %zu bytes before an output", i + 1);
		if (data[bytes + i] != GUARD_BYTE)
			rank_fail(__FILE__, __LINE__, "written %zu bytes past an output of %zu",
				i + 1, bytes);
	}
}

void guard_free(void *base)
{
	if (!base)
		return;
	guard_check(base);
	free((uint8_t *)base - 2 * GUARD_BYTES);
}
