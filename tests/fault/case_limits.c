/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Too little of something: file descriptors, address space, file size, room in /dev/shm. Each
 * call gives a code and a text, nothing is left behind, and with enough of it the same process
 * goes on to a whole round.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "fault/fault.h"
#include "helpers/leak.h"

static const struct job one_job = {
	.name = "limits",
	.n_sources = 1,
	.n_expert_ranks = 1,
	.classic = 1,
	.n_experts = 4,
	.top_k = 2,
	.n_tokens = 6,
	.row_bytes = 64,
	.out_row_bytes = 64,
	.dtype = M2N_DTYPE_BF16,
	.depth = 2,
	.in_flight = 1,
	.n_rounds = 3,
	.seed = 35,
};

/* Open, join, one job, close. 0 or the code of what failed; nothing is left either way. */
static int whole_life(struct rank *rank)
{
	struct job_rank jr;
	int status = rank_open(rank);

	if (status)
		return status;
	status = job_open(&jr, rank, rank->arg);
	if (status == 0)
		job_rounds(&jr);
	job_close(&jr);
	rank_close(rank);
	return status;
}

static void check_descriptors(struct rank *rank)
{
	struct leak_state before;
	struct rlimit usual, limit;
	int n_failed = 0, status = -1;

	expect_ok(whole_life(rank)); /* vendors' libraries are loaded once per process */
	leak_take(&before);
	expect_ok(getrlimit(RLIMIT_NOFILE, &usual));
	for (rlim_t n = 3; status && n < 200; n++) {
		limit = usual;
		limit.rlim_cur = n;
		expect_ok(setrlimit(RLIMIT_NOFILE, &limit));
		status = whole_life(rank);
		expect_ok(setrlimit(RLIMIT_NOFILE, &usual));
		expect(status <= 0);
		if (status)
			expect(m2n_error_text()[0]);
		n_failed += status != 0;
		leak_check(&before);
	}
	expect_equal(status, 0);
	expect(n_failed > 0);
	expect_ok(whole_life(rank));
}

static int bare_job(const struct conf *conf, rank_fn fn)
{
	const char *options[] = {"TIMEOUT=1s", "HUGE_PAGES=no", NULL};
	struct ranks_opts opts = conf->opts;
	struct job job = one_job;

	opts.options = options;
	opts.bare = 1;
	return ranks_run(1, fn, &job, &opts);
}

static int descriptors(const struct conf *conf)
{
	return bare_job(conf, check_descriptors);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static int little_memory(const struct conf *conf)
{
	(void)conf;
	printf("# the sanitizer needs the address space itself\n");
	return RANKS_SKIP;
}
#else
static size_t address_space(void)
{
	FILE *statm = fopen("/proc/self/statm", "re");
	unsigned long pages = 0;

	expect(statm && fscanf(statm, "%lu", &pages) == 1);
	fclose(statm);
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void check_address_space(struct rank *rank)
{
	struct job job = one_job;
	struct rlimit usual, limit;
	struct job_rank jr;

	job.n_tokens = 1024;
	job.row_bytes = 65536; /* 2 x 1024 x 2 x 64 KiB at least */
	expect_ok(rank_open(rank));
	expect_ok(getrlimit(RLIMIT_AS, &usual));
	limit = usual;
	limit.rlim_cur = address_space() + (64 << 20);
	expect_ok(setrlimit(RLIMIT_AS, &limit));
	expect_status(-ENOMEM, job_open(&jr, rank, &job));
	expect(m2n_error_text()[0]);
	expect(jr.channel == NULL);
	expect_ok(setrlimit(RLIMIT_AS, &usual));
	expect_ok(job_open(&jr, rank, rank->arg));
	job_rounds(&jr);
	job_close(&jr);
	rank_close(rank);
}

static int little_memory(const struct conf *conf)
{
	return bare_job(conf, check_address_space);
}
#endif

/* A limit on file size holds for memfds too, and comes with a signal. */
static void check_file_size(struct rank *rank)
{
	struct rlimit usual, limit;
	struct leak_state before;
	int status;

	leak_take(&before);
	signal(SIGXFSZ, SIG_IGN);
	expect_ok(getrlimit(RLIMIT_FSIZE, &usual));
	limit = usual;
	limit.rlim_cur = 8192;
	expect_ok(setrlimit(RLIMIT_FSIZE, &limit));
	status = whole_life(rank);
	expect_ok(setrlimit(RLIMIT_FSIZE, &usual));
	expect(status <= 0);
	leak_check(&before);
	expect_ok(whole_life(rank));
}

static int file_size(const struct conf *conf)
{
	return bare_job(conf, check_file_size);
}

/* A private, tiny and full /dev/shm, and the same for /tmp's neighbours: memfds need neither. */
static int full_dev_shm_here(void)
{
	char block[4096] = {0};
	int fd;

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=64k"))
		return -1;
	fd = open("/dev/shm/fill", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	while (write(fd, block, sizeof(block)) > 0)
		;
	close(fd);
	return 0;
}

static void check_dev_shm(struct rank *rank)
{
	struct statvfs room;
	struct job job = one_job;
	struct job_rank jr;
	int status;

	if (full_dev_shm_here())
		rank_skip("needs the right to mount");
	expect_ok(statvfs("/dev/shm", &room));
	expect_equal(room.f_bavail, 0);
	job.classic = rank->n_ranks == 1;
	expect_ok(rank_open(rank));
	status = job_open(&jr, rank, &job);
	if (status == -ENOMEM && !strcmp(rank->backend, "ucx"))
		expect_text("/dev/shm"); /* where UCX's posix has its queues */
	else
		expect_ok(status);
	if (status == 0)
		job_rounds(&jr);
	rank_barrier(rank);
	job_close(&jr);
	rank_close(rank);
}

static int full_dev_shm(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;

	opts.bare = 1;
	return ranks_run(2, check_dev_shm, NULL, &opts);
}

const struct conf_case limit_cases[] = {
	{"limits: few descriptors", 1, descriptors, HOST_MEMORY},
	{"limits: little address space", 1, little_memory, HOST_MEMORY},
	{"limits: small files only", 1, file_size, HOST_MEMORY},
	{"limits: a full /dev/shm", 2, full_dev_shm, HOST_MEMORY},
	{0},
};
