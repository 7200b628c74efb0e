/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes as ranks. One anonymous shared mapping holds the words and each rank's result; the
 * parent blocks SIGCHLD and waits with sigtimedwait(), so that it wakes for a death or for the
 * deadline and for nothing else. Children die with the parent (PR_SET_PDEATHSIG).
 */
#include "helpers/ranks.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "helpers/device.h"
#include "helpers/leak.h"

#define DEADLINE_S 40
#define LIBRARY_TIMEOUT_S 30 /* as M2N_TIMEOUT is by default */
#define MAX_OPTIONS 32

/* Under a sanitizer everything takes longer, and in a guest (TESTS_SLOWER=N in the environment). */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 4
#else
#define SLOWER 1
#endif

struct result {
	_Atomic uint32_t dies; /* its death by SIGKILL is meant */
	char text[RANKS_TEXT];
};

struct page {
	_Atomic uint32_t word[RANKS_WORDS];
	_Atomic uint32_t barrier_count;
	_Atomic uint32_t barrier_turn;
	struct result result[RANKS_MAX];
};

struct ranks {
	int n;
	struct ranks_opts opts;
	void *arg;
	struct page *page;
	void *shared;
	char dir[PATH_MAX];
	char store[PATH_MAX + 8];
	int64_t deadline_ns;
	sigset_t old_mask;
	pid_t pid[RANKS_MAX]; /* 0: not running */
	int status[RANKS_MAX]; /* 0 well, RANKS_SKIP, or 1 */
};

/* The rank that this process is; a process is one rank at most. */
static struct page *own_page;
static int own_rank;

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t slower(void)
{
	const char *text = getenv("TESTS_SLOWER");
	int n = text ? atoi(text) : 1;

	return SLOWER * (n > 0 ? n : 1);
}

static void *map_shared(size_t bytes)
{
	void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (base == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return base;
}

void word_set(_Atomic uint32_t *word, uint32_t value)
{
	atomic_store(word, value);
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

uint32_t word_add(_Atomic uint32_t *word, uint32_t value)
{
	uint32_t now = atomic_fetch_add(word, value) + value;

	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	return now;
}

void word_wait(_Atomic uint32_t *word, uint32_t at_least)
{
	uint32_t now;

	while ((now = atomic_load(word)) < at_least)
		syscall(SYS_futex, word, FUTEX_WAIT, now, NULL, NULL, 0);
}

void rank_barrier(struct rank *rank)
{
	uint32_t turn = atomic_load(&own_page->barrier_turn);

	if (atomic_fetch_add(&own_page->barrier_count, 1) + 1 == (uint32_t)rank->n_ranks) {
		atomic_store(&own_page->barrier_count, 0);
		word_set(&own_page->barrier_turn, turn + 1);
	}
	word_wait(&own_page->barrier_turn, turn + 1);
}

void rank_die(void)
{
	atomic_store(&own_page->result[own_rank].dies, 1);
	raise(SIGKILL);
	_exit(1);
}

void rank_done(void)
{
	_exit(0);
}

void rank_skip(const char *reason)
{
	snprintf(own_page->result[own_rank].text, RANKS_TEXT, "%s", reason);
	_exit(RANKS_SKIP);
}

void rank_fail(const char *file, int line, const char *format, ...)
{
	char *text = own_page ? own_page->result[own_rank].text : NULL;
	char here[RANKS_TEXT];
	const char *base = strrchr(file, '/');
	va_list args;
	int n;

	if (!text)
		text = here;
	n = snprintf(text, RANKS_TEXT, "%s:%d: ", base ? base + 1 : file, line);
	va_start(args, format);
	vsnprintf(text + n, (size_t)(RANKS_TEXT - n), format, args);
	va_end(args);
	if (!own_page)
		printf("# %s\n", text);
	_exit(1);
}

void expect_text_at(const char *file, int line, const char *words)
{
	if (!strstr(m2n_error_text(), words))
		rank_fail(file, line, "error text \"%s\" lacks \"%s\"", m2n_error_text(), words);
}

void expect_rank_named_at(const char *file, int line, int rank)
{
	const char *at = m2n_error_text();

	while ((at = strstr(at, "rank"))) {
		char *end;
		long n;

		at += at[4] == 's' ? 5 : 4;
		for (n = strtol(at, &end, 10); end != at; n = strtol(at, &end, 10)) {
			if (n == rank)
				return;
			at = end;
		}
	}
	rank_fail(file, line, "error text \"%s\" does not name rank %d", m2n_error_text(), rank);
}

/* The rank's options, with the library's own deadline stretched like ours where it gives none. */
static void stretch_timeout(const struct rank *rank, const char **list, size_t max, char text[32])
{
	size_t n = 0;

	snprintf(text, 32, "TIMEOUT=%ds", (int)(LIBRARY_TIMEOUT_S * slower()));
	list[n++] = text;
	for (const char *const *at = rank->options; at && *at && n + 1 < max; at++) {
		if (strncmp(*at, "TIMEOUT=", 8))
			list[n++] = *at;
		else
			list[0] = *at;
	}
	list[n] = NULL;
}

int rank_open(struct rank *rank)
{
	struct m2n_ctx_params ctx_params = M2N_CTX_PARAMS_INIT;
	struct m2n_group_params params = M2N_GROUP_PARAMS_INIT;
	const char *options[MAX_OPTIONS];
	char timeout[32];
	int status;

	stretch_timeout(rank, options, MAX_OPTIONS, timeout);
	ctx_params.backend = rank->backend;
	ctx_params.options = options;
	status = m2n_ctx_open(&ctx_params, &rank->ctx);
	if (status)
		return status;
	params.name = "test";
	params.rank = rank->rank;
	params.n_ranks = rank->n_ranks;
	params.store = rank->store;
	params.secret = rank->secret;
	status = m2n_group_join(rank->ctx, &params, &rank->group);
	if (status) {
		m2n_ctx_close(rank->ctx);
		rank->ctx = NULL;
	}
	return status;
}

void rank_close(struct rank *rank)
{
	m2n_group_leave(rank->group);
	m2n_ctx_close(rank->ctx);
	rank->group = NULL;
	rank->ctx = NULL;
}

/* Whatever LeakSanitizer knows; absent without it. */
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

static void set_nccl_host(int rank)
{
	char host[32];

	snprintf(host, sizeof(host), "m2n-test-%d", rank);
	setenv("NCCL_HOSTID", host, 1);
	setenv("NCCL_NET", "Socket", 1);
	setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}

static void run_child(struct ranks *ranks, int n, rank_fn fn)
{
	struct rank rank = {
		.rank = n,
		.n_ranks = ranks->n,
		.arg = ranks->arg,
		.word = ranks->page->word,
		.shared = ranks->shared,
		.store = ranks->store,
		.backend = ranks->opts.backend,
		.options = ranks->opts.options,
		.secret = ranks->opts.secret,
		.memory = ranks->opts.memory,
		.check_leaks = !ranks->opts.no_leak_check,
	};
	struct leak_state before;

	own_page = ranks->page;
	own_rank = n;
	if (ranks->opts.nccl_hosts)
		set_nccl_host(n);
	if (ranks->opts.uses_device)
		expect_ok(device_open());
	leak_take(&before);
	if (!ranks->opts.bare)
		expect_ok(rank_open(&rank));
	fn(&rank);
	if (!ranks->opts.bare)
		rank_close(&rank);
	if (rank.check_leaks) {
		leak_check(&before);
		if (__lsan_do_recoverable_leak_check && __lsan_do_recoverable_leak_check())
			rank_fail(__FILE__, __LINE__, "memory leaked");
	}
	_exit(0);
}

void ranks_spawn(struct ranks *ranks, int rank, rank_fn fn)
{
	pid_t parent = getpid();
	pid_t pid;

	fflush(NULL);
	ranks->page->result[rank].text[0] = '\0';
	atomic_store(&ranks->page->result[rank].dies, 0);
	pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(1);
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		sigprocmask(SIG_SETMASK, &ranks->old_mask, NULL);
		run_child(ranks, rank, fn);
	}
	ranks->pid[rank] = pid;
	ranks->status[rank] = 0;
}

struct ranks *ranks_start(int n, rank_fn fn, void *arg, const struct ranks_opts *opts)
{
	struct ranks *ranks = calloc(1, sizeof(*ranks));
	const char *tmp = getenv("TMPDIR");
	sigset_t mask;

	if (!ranks || n > RANKS_MAX)
		abort();
	ranks->n = n;
	ranks->arg = arg;
	if (opts)
		ranks->opts = *opts;
	snprintf(ranks->dir, sizeof(ranks->dir), "%s/m2n-test-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(ranks->dir)) {
		perror(ranks->dir);
		exit(1);
	}
	snprintf(ranks->store, sizeof(ranks->store), "dir:%s", ranks->dir);
	ranks->page = map_shared(sizeof(*ranks->page));
	if (ranks->opts.shared_bytes)
		ranks->shared = map_shared(ranks->opts.shared_bytes);
	ranks->deadline_ns =
		now_ns() + slower() * 1000000000LL *
				   (ranks->opts.deadline_s ? ranks->opts.deadline_s : DEADLINE_S);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, &ranks->old_mask);
	for (int i = 0; i < n; i++)
		ranks_spawn(ranks, i, fn);
	return ranks;
}

static void take_status(struct ranks *ranks, int i, int wait_status)
{
	char *text = ranks->page->result[i].text;

	ranks->pid[i] = 0;
	if (WIFEXITED(wait_status)) {
		ranks->status[i] = WEXITSTATUS(wait_status);
		if (ranks->status[i] && !text[0])
			snprintf(text, RANKS_TEXT, "exit status %d", ranks->status[i]);
	} else if (WTERMSIG(wait_status) == SIGKILL && ranks->page->result[i].dies) {
		ranks->status[i] = 0;
	} else {
		ranks->status[i] = 1;
		snprintf(text, RANKS_TEXT, "ended by signal %d (%s)", WTERMSIG(wait_status),
			strsignal(WTERMSIG(wait_status)));
	}
}

/* Takes what has ended; returns how many still run, or -1 when one failed. */
static int reap(struct ranks *ranks)
{
	int n_running = 0;
	int failed = 0;
	int wait_status;

	for (int i = 0; i < ranks->n; i++) {
		if (ranks->pid[i] && waitpid(ranks->pid[i], &wait_status, WNOHANG) > 0)
			take_status(ranks, i, wait_status);
		n_running += ranks->pid[i] != 0;
		failed |= ranks->status[i] != 0 && ranks->status[i] != RANKS_SKIP;
	}
	return failed ? -1 : n_running;
}

/* Sleeps until a child ends or the time is over. */
static void wait_child(int64_t deadline_ns)
{
	int64_t left = deadline_ns - now_ns();
	struct timespec timeout = {left / 1000000000, left % 1000000000};
	sigset_t mask;

	if (left <= 0)
		return;
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigtimedwait(&mask, NULL, &timeout);
}

static void kill_rest(struct ranks *ranks, int hung)
{
	int wait_status;

	for (int i = 0; i < ranks->n; i++) {
		if (!ranks->pid[i])
			continue;
		kill(ranks->pid[i], SIGKILL);
		waitpid(ranks->pid[i], &wait_status, 0);
		ranks->pid[i] = 0;
		if (hung) {
			ranks->status[i] = 1;
			snprintf(ranks->page->result[i].text, RANKS_TEXT,
				"still running at the deadline");
		}
	}
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	remove(path);
	return 0;
}

static int result_of(struct ranks *ranks)
{
	int result = 0;

	for (int i = 0; i < ranks->n; i++) {
		if (!ranks->status[i])
			continue;
		printf("# rank %d%s: %s\n", i, ranks->status[i] == RANKS_SKIP ? " skips" : "",
			ranks->page->result[i].text);
		if (ranks->status[i] != RANKS_SKIP)
			result = 1;
		else if (!result)
			result = RANKS_SKIP;
	}
	fflush(stdout);
	return result;
}

int ranks_finish(struct ranks *ranks)
{
	int n_running;
	int result;

	while ((n_running = reap(ranks)) > 0 && now_ns() < ranks->deadline_ns)
		wait_child(ranks->deadline_ns);
	kill_rest(ranks, n_running > 0);
	result = result_of(ranks);
	sigprocmask(SIG_SETMASK, &ranks->old_mask, NULL);
	nftw(ranks->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
	munmap(ranks->page, sizeof(*ranks->page));
	if (ranks->shared)
		munmap(ranks->shared, ranks->opts.shared_bytes);
	free(ranks);
	return result;
}

int ranks_run(int n, rank_fn fn, void *arg, const struct ranks_opts *opts)
{
	return ranks_finish(ranks_start(n, fn, arg, opts));
}

int ranks_run_shared(int n, rank_fn fn, void *arg, const struct ranks_opts *opts, void *copy)
{
	struct ranks *ranks = ranks_start(n, fn, arg, opts);

	while (reap(ranks) > 0 && now_ns() < ranks->deadline_ns)
		wait_child(ranks->deadline_ns);
	memcpy(copy, ranks->shared, opts->shared_bytes);
	return ranks_finish(ranks);
}

void ranks_signal(struct ranks *ranks, int rank, int signal)
{
	if (ranks->pid[rank])
		kill(ranks->pid[rank], signal);
}

void ranks_kill(struct ranks *ranks, int rank)
{
	int wait_status;

	if (!ranks->pid[rank])
		return;
	atomic_store(&ranks->page->result[rank].dies, 1);
	kill(ranks->pid[rank], SIGKILL);
	if (waitpid(ranks->pid[rank], &wait_status, 0) > 0)
		take_status(ranks, rank, wait_status);
}

int ranks_wait_word(struct ranks *ranks, unsigned word, uint32_t value)
{
	const struct timespec look_again = {0, 2000000};
	uint32_t now;

	while ((now = atomic_load(&ranks->page->word[word])) < value) {
		if (reap(ranks) <= 0 || now_ns() > ranks->deadline_ns)
			return atomic_load(&ranks->page->word[word]) < value ? -1 : 0;
		syscall(SYS_futex, &ranks->page->word[word], FUTEX_WAIT, now, &look_again, NULL, 0);
	}
	return 0;
}

int ranks_wait_end(struct ranks *ranks, int rank)
{
	while (ranks->pid[rank]) {
		if (now_ns() > ranks->deadline_ns)
			return -1;
		if (reap(ranks) < 0 && !ranks->pid[rank])
			break;
		if (ranks->pid[rank])
			wait_child(ranks->deadline_ns);
	}
	return 0;
}

_Atomic uint32_t *ranks_words(struct ranks *ranks)
{
	return ranks->page->word;
}

void *ranks_shared(struct ranks *ranks)
{
	return ranks->shared;
}

const char *ranks_store_dir(struct ranks *ranks)
{
	return ranks->dir;
}

pid_t ranks_pid(struct ranks *ranks, int rank)
{
	return ranks->pid[rank];
}
