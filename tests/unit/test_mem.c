/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host memory: what is promised of an allocation, seen from outside by mincore(), /proc and a
 * second process; and each limit that can refuse one, set in a forked child. A child ends with 0,
 * with 1 and the check that failed, or with 77 when the machine forbids the set-up.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "mem/limit.h"
#include "mem/mem.h"

#define MIB ((size_t)1 << 20)
#define SKIPPED 77

/* In a child, where cmocka's checks would go on with the parent's tests. */
#define child_check(cond) \
	do { \
		if (!(cond)) { \
			dprintf(STDERR_FILENO, "%s:%d: %s; error text: %s\n", __FILE__, __LINE__, \
				#cond, m2n_error_text()); \
			_exit(1); \
		} \
	} while (0)

static size_t page_bytes;

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

static void run_child(void (*child)(void *arg), void *arg)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (!pid) {
		child(arg);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED)
		skip();
	assert_int_equal(status, 0);
}

static size_t count_resident(const struct m2n__mem *mem, size_t offset, size_t bytes)
{
	size_t n_pages = (bytes + page_bytes - 1) / page_bytes;
	unsigned char *present = malloc(n_pages);
	size_t n = 0;

	assert_non_null(present);
	assert_int_equal(mincore((char *)mem->base + offset, bytes, present), 0);
	for (size_t i = 0; i < n_pages; i++)
		n += present[i] & 1;
	free(present);
	return n;
}

static int is_zero(const char *base, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		if (base[i])
			return 0;
	return 1;
}

static void sizes_are_kept_and_zeroed(void **state)
{
	const size_t sizes[] = {1, page_bytes - 1, page_bytes, page_bytes + 1, MIB + 1,
		2 * MIB - 1, 5 * MIB};
	int n_fds = count_fds();

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct m2n__mem *mem;

		assert_int_equal(m2n__mem_alloc(sizes[i], sizes[i], M2N__HUGE_NO, &mem), 0);
		assert_int_equal(mem->kind, M2N__MEM_HOST);
		assert_int_equal((uintptr_t)mem->base % page_bytes, 0);
		assert_true(mem->bytes >= sizes[i] && mem->bytes < sizes[i] + page_bytes);
		assert_true(mem->committed >= sizes[i] && mem->committed <= mem->bytes);
		assert_int_equal(mem->page_bytes, page_bytes);
		assert_true(is_zero(mem->base, mem->bytes));
		memset(mem->base, 0xff, mem->bytes);
		m2n__mem_free(mem);
	}
	assert_int_equal(count_fds(), n_fds);
	m2n__mem_free(NULL);
}

static void bad_sizes_are_refused(void **state)
{
	struct m2n__mem *mem = NULL;

	(void)state;
	assert_int_equal(m2n__mem_alloc(0, 0, M2N__HUGE_NO, &mem), -EINVAL);
	assert_int_equal(m2n__mem_alloc(4096, 4097, M2N__HUGE_NO, &mem), -EINVAL);
	assert_int_equal(m2n__mem_alloc(SIZE_MAX, 0, M2N__HUGE_TRY, &mem), -ENOMEM);
	assert_non_null(strstr(m2n_error_text(), "18446744073709551615"));
	assert_null(mem);
}

/* Writes one byte a page; by itself, so that the checks of a sanitizer touch no other memory. */
__attribute__((noinline, no_sanitize("address", "thread", "undefined")))
static long count_faults(volatile char *base, size_t bytes)
{
	struct rusage before, after;

	getrusage(RUSAGE_SELF, &before);
	for (size_t at = 0; at < bytes; at += page_bytes)
		base[at] = 1;
	getrusage(RUSAGE_SELF, &after);
	return after.ru_minflt - before.ru_minflt;
}

static void committed_pages_are_there(void **state)
{
	struct m2n__mem *mem;
	size_t n_pages = MIB / page_bytes;

	(void)state;
	assert_int_equal(m2n__mem_alloc(4 * MIB, MIB, M2N__HUGE_NO, &mem), 0);
	assert_int_equal(mem->committed, MIB);
	assert_int_equal(count_resident(mem, 0, MIB), n_pages);
	assert_int_equal(count_resident(mem, MIB, 3 * MIB), 0);
	assert_true(count_faults(mem->base, MIB) < (long)n_pages / 8);

	assert_int_equal(m2n__mem_commit(mem, 2 * MIB + 1, 1), 0);
	assert_int_equal(count_resident(mem, MIB, 3 * MIB), 1);
	assert_int_equal(mem->committed, MIB);
	assert_int_equal(m2n__mem_commit(mem, MIB, MIB), 0);
	assert_int_equal(mem->committed, 2 * MIB);
	assert_int_equal(count_resident(mem, 0, 2 * MIB), 2 * n_pages);
	assert_int_equal(*(char *)mem->base, 1);

	assert_int_equal(m2n__mem_commit(mem, 0, 0), 0);
	assert_int_equal(m2n__mem_commit(mem, 4 * MIB, 1), -EINVAL);
	assert_int_equal(m2n__mem_commit(mem, 1, SIZE_MAX), -EINVAL);
	m2n__mem_free(mem);
}

static void address_space_costs_nothing(void **state)
{
	struct m2n__mem *mem;

	(void)state;
	assert_int_equal(m2n__mem_alloc((size_t)64 << 30, 1, M2N__HUGE_TRY, &mem), 0);
	assert_int_equal(mem->committed, page_bytes);
	assert_int_equal(count_resident(mem, 0, 16 * MIB), 1);
	((char *)mem->base)[mem->bytes - 1] = 1;
	m2n__mem_free(mem);
}

static void peer(void *arg)
{
	struct m2n__mem *mem = arg;
	char path[64];
	char *base;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getppid(), mem->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	child_check(fd >= 0);
	base = mmap(NULL, mem->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	child_check(base != MAP_FAILED && base != mem->base);
	child_check(strcmp(base, "from the owner") == 0);
	strcpy(base + MIB, "from the peer");
	child_check(ftruncate(fd, 0) == -1 && errno == EPERM);
	child_check(ftruncate(fd, (off_t)(2 * mem->bytes)) == -1 && errno == EPERM);
	child_check(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == -1 && errno == EPERM);
}

static void a_peer_shares_and_cannot_shrink(void **state)
{
	struct m2n__mem *mem;

	(void)state;
	assert_int_equal(m2n__mem_alloc(2 * MIB, 2 * MIB, M2N__HUGE_TRY, &mem), 0);
	strcpy(mem->base, "from the owner");
	assert_int_equal(fcntl(mem->fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	run_child(peer, mem);
	assert_string_equal((char *)mem->base + MIB, "from the peer");
	m2n__mem_free(mem);
}

static void huge_try_never_fails_for_want_of_huge_pages(void **state)
{
	struct m2n__mem *mem;

	(void)state;
	assert_int_equal(m2n__mem_alloc(5 * MIB, 5 * MIB, M2N__HUGE_TRY, &mem), 0);
	assert_true(is_zero(mem->base, mem->bytes));
	m2n__mem_free(mem);
	assert_int_equal(m2n__mem_alloc(3 * page_bytes, 1, M2N__HUGE_TRY, &mem), 0);
	assert_int_equal(mem->bytes, 3 * page_bytes);
	m2n__mem_free(mem);
	/* Nothing of the tail may depend on a pool that can be empty by then. */
	assert_int_equal(m2n__mem_alloc(8 * MIB, 0, M2N__HUGE_TRY, &mem), 0);
	assert_int_equal(mem->page_bytes, page_bytes);
	assert_int_equal(m2n__mem_commit(mem, 0, 8 * MIB), 0);
	m2n__mem_free(mem);
}

static void huge_yes_has_huge_pages_or_says_how(void **state)
{
	struct m2n__mem *mem = NULL;
	int n_fds = count_fds();
	int ret = m2n__mem_alloc(MIB, MIB, M2N__HUGE_YES, &mem);

	(void)state;
	if (ret) {
		assert_int_equal(ret, -ENOMEM);
		assert_non_null(strstr(m2n_error_text(), "1048576 of "));
		assert_non_null(strstr(m2n_error_text(), "nr_hugepages"));
	} else {
		assert_true(mem->page_bytes > page_bytes);
		assert_int_equal(mem->bytes % mem->page_bytes, 0);
		memset(mem->base, 1, mem->bytes);
		m2n__mem_free(mem);
	}
	assert_int_equal(count_fds(), n_fds);
}

static void set_limit(int which, rlim_t value)
{
	struct rlimit limit;

	child_check(getrlimit(which, &limit) == 0);
	limit.rlim_cur = value;
	child_check(setrlimit(which, &limit) == 0);
}

static void child_without_address_space(void *arg)
{
	struct m2n__mem *mem = NULL;
	int n_fds = count_fds();
	FILE *statm = fopen("/proc/self/statm", "r");
	size_t n_pages;

	(void)arg;
	child_check(statm && fscanf(statm, "%zu", &n_pages) == 1);
	fclose(statm);
	set_limit(RLIMIT_AS, n_pages * page_bytes + 64 * MIB);
	child_check(m2n__mem_alloc(256 * MIB, 1, M2N__HUGE_TRY, &mem) == -ENOMEM);
	child_check(strstr(m2n_error_text(), "268435456") && strstr(m2n_error_text(), "RLIMIT_AS"));
	child_check(!mem && count_fds() == n_fds);
	child_check(m2n__mem_alloc(8 * MIB, 8 * MIB, M2N__HUGE_TRY, &mem) == 0);
	m2n__mem_free(mem);
}

static void child_without_descriptors(void *arg)
{
	struct m2n__mem *mem = NULL;

	(void)arg;
	set_limit(RLIMIT_NOFILE, 3);
	while (dup(STDERR_FILENO) >= 0)
		;
	child_check(m2n__mem_alloc(MIB, MIB, M2N__HUGE_TRY, &mem) == -ENOMEM);
	child_check(strstr(m2n_error_text(), "1048576"));
	child_check(strstr(m2n_error_text(), "RLIMIT_NOFILE"));
	child_check(!mem);
}

static void child_without_large_files(void *arg)
{
	struct m2n__mem *mem = NULL;
	int n_fds = count_fds();

	(void)arg;
	set_limit(RLIMIT_FSIZE, MIB);
	child_check(m2n__mem_alloc(2 * MIB, 1, M2N__HUGE_TRY, &mem) == -ENOMEM);
	child_check(strstr(m2n_error_text(), "RLIMIT_FSIZE"));
	child_check(!mem && count_fds() == n_fds);
}

static void each_limit_is_an_error_with_its_name(void **state)
{
	(void)state;
	run_child(child_without_address_space, NULL);
	run_child(child_without_descriptors, NULL);
	run_child(child_without_large_files, NULL);
}

static void more_than_the_machine_has_is_refused(void **state)
{
	struct m2n__mem *mem = NULL;
	size_t bytes = (size_t)1 << 44;

	(void)state;
	/* First, because an allocation that goes unchecked takes the machine down. */
	assert_int_equal(m2n__mem_check_available(bytes, 0), -ENOMEM);
	assert_int_equal(m2n__mem_alloc(bytes, bytes, M2N__HUGE_TRY, &mem), -ENOMEM);
	assert_non_null(strstr(m2n_error_text(), "17592186044416"));
	assert_null(mem);
	assert_int_equal(m2n__mem_check_available(bytes, 1), 0);
	assert_int_equal(m2n__mem_check_available(MIB, 0), 0);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return good;
}

/* A mount namespace, in a user namespace where that takes one. */
static int enter_namespace(void)
{
	char users[32], groups[32];

	if (unshare(CLONE_NEWNS) == 0)
		return 1;
	snprintf(users, sizeof(users), "0 %d 1", (int)geteuid());
	snprintf(groups, sizeof(groups), "0 %d 1", (int)getegid());
	return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 &&
		write_file("/proc/self/uid_map", users) &&
		write_file("/proc/self/setgroups", "deny") &&
		write_file("/proc/self/gid_map", groups);
}

static void child_with_a_small_dev_shm(void *arg)
{
	struct m2n__mem *mem;
	int fd;

	(void)arg;
	if (!enter_namespace()) {
		print_message("skipped: no right to a mount namespace\n");
		_exit(SKIPPED);
	}
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		mount("m2n", "/dev/shm", "tmpfs", 0, "size=64K")) {
		print_message("skipped: no right to mount on /dev/shm\n");
		_exit(SKIPPED);
	}
	fd = open("/dev/shm/full", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	child_check(fd >= 0 && fallocate(fd, 0, 0, 65536) == 0);
	child_check(m2n__mem_alloc(4 * MIB, 4 * MIB, M2N__HUGE_TRY, &mem) == 0);
	memset(mem->base, 1, mem->bytes);
	m2n__mem_free(mem);
}

static void make_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	child_check(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

/* The files of a made-up control group, in the form of one version or the other. */
struct group_files {
	const char *line; /* of /proc/self/cgroup */
	const char *max, *used, *stat;
	const char *stat_text;
	const char *want; /* in the error text */
};

/* 64 MiB of which 40 are used, 10 of these by page cache. */
static void child_in_a_control_group(void *arg)
{
	const struct group_files *files = arg;
	struct m2n__mem *mem = NULL;

	if (!enter_namespace() || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		mount("m2n", "/sys/fs/cgroup", "tmpfs", 0, "size=64K")) {
		print_message("skipped: no right to mount on /sys/fs/cgroup\n");
		_exit(SKIPPED);
	}
	child_check(mkdir("/sys/fs/cgroup/memory", 0700) == 0);
	make_file("/sys/fs/cgroup/line", files->line);
	if (mount("/sys/fs/cgroup/line", "/proc/self/cgroup", NULL, MS_BIND, NULL)) {
		print_message("skipped: no right to mount on /proc/self/cgroup\n");
		_exit(SKIPPED);
	}
	make_file(files->max, "67108864\n");
	make_file(files->used, "41943040\n");
	make_file(files->stat, files->stat_text);
	child_check(m2n__mem_alloc(34 * MIB, 34 * MIB, M2N__HUGE_NO, &mem) == 0);
	m2n__mem_free(mem);
	mem = NULL;
	child_check(m2n__mem_alloc(35 * MIB, 35 * MIB, M2N__HUGE_NO, &mem) == -ENOMEM);
	child_check(strstr(m2n_error_text(), files->want));
	child_check(!mem);
	make_file(files->max, "max\n");
	child_check(m2n__mem_alloc(35 * MIB, 35 * MIB, M2N__HUGE_NO, &mem) == 0);
	m2n__mem_free(mem);
}

static void the_control_group_sets_a_limit(void **state)
{
	struct group_files versions[] = {
		{"0::/here/below\n", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
			"/sys/fs/cgroup/memory.stat",
			"anon 7\ninactive_file 6291456\nactive_file 4194304\n",
			"36700160 bytes: the control group has room for 35651584; raise its "
			"memory.max"},
		{"3:cpuset:/\n2:memory:/\n0::/\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
			"/sys/fs/cgroup/memory/memory.usage_in_bytes",
			"/sys/fs/cgroup/memory/memory.stat",
			"inactive_file 0\ntotal_inactive_file 6291456\ntotal_active_file 4194304\n",
			"has room for 35651584; raise its memory.limit_in_bytes"},
	};

	(void)state;
	run_child(child_in_a_control_group, &versions[0]);
	run_child(child_in_a_control_group, &versions[1]);
}

static void a_full_dev_shm_does_not_matter(void **state)
{
	(void)state;
	run_child(child_with_a_small_dev_shm, NULL);
}

static void memory_of_the_user_is_described(void **state)
{
	char *base = mmap(NULL, 3 * page_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct m2n__mem *mem = NULL;
	char local[16];

	(void)state;
	assert_ptr_not_equal(base, MAP_FAILED);
	assert_int_equal(m2n__mem_wrap(base + 5, 2 * page_bytes, &mem), 0);
	assert_ptr_equal(mem->base, base + 5);
	assert_int_equal(mem->bytes, 2 * page_bytes);
	assert_int_equal(mem->committed, 2 * page_bytes);
	assert_int_equal(mem->fd, -1);
	assert_int_equal(m2n__mem_commit(mem, 0, page_bytes), 0);
	m2n__mem_free(mem);
	base[5] = 1; /* still the user's */
	assert_int_equal(m2n__mem_wrap(local, sizeof(local), &mem), 0);
	m2n__mem_free(mem);

	mem = NULL;
	assert_int_equal(m2n__mem_wrap(NULL, 1, &mem), -EINVAL);
	assert_int_equal(m2n__mem_wrap(base, 0, &mem), -EINVAL);
	assert_int_equal(m2n__mem_wrap(base, SIZE_MAX, &mem), -EINVAL);
	assert_int_equal(munmap(base + page_bytes, page_bytes), 0);
	assert_int_equal(m2n__mem_wrap(base, 3 * page_bytes, &mem), -EINVAL);
	assert_non_null(strstr(m2n_error_text(), "mapped"));
	assert_int_equal(m2n__mem_wrap(base, page_bytes + 1, &mem), -EINVAL);
	assert_null(mem);
	assert_int_equal(m2n__mem_wrap(base, page_bytes, &mem), 0);
	m2n__mem_free(mem);
	munmap(base, page_bytes);
	munmap(base + 2 * page_bytes, page_bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_are_kept_and_zeroed),
		cmocka_unit_test(bad_sizes_are_refused),
		cmocka_unit_test(committed_pages_are_there),
		cmocka_unit_test(address_space_costs_nothing),
		cmocka_unit_test(a_peer_shares_and_cannot_shrink),
		cmocka_unit_test(huge_try_never_fails_for_want_of_huge_pages),
		cmocka_unit_test(huge_yes_has_huge_pages_or_says_how),
		cmocka_unit_test(each_limit_is_an_error_with_its_name),
		cmocka_unit_test(more_than_the_machine_has_is_refused),
		cmocka_unit_test(the_control_group_sets_a_limit),
		cmocka_unit_test(a_full_dev_shm_does_not_matter),
		cmocka_unit_test(memory_of_the_user_is_described),
	};

	page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	return cmocka_run_group_tests_name("mem", tests, NULL, NULL);
}
