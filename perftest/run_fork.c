/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forked ranks. The parent blocks its signals and takes them one at a time, so that an
 * interrupt, a child's death and a stall all end in the same place: tell everybody to leave,
 * wait a moment, kill what is left, remove the store's directory. Children die with the parent.
 */
#include "run.h"

#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct run {
	struct perf_job *job;
	int n_rank_children; /* one for each rank, or one for all with --threads */
	int n_children;      /* with the MPI helper */
	int n_left;
	pid_t *pids;        /* by rank; the MPI helper behind them */
	bool failed;
	int64_t give_up_at; /* after a failure: when the rest is killed */
	int signal;         /* that ended the run; 0: none */
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static const char *role_of(const struct perf_job *job, int rank)
{
	if (job->args->classic)
		return "source and expert rank";
	return (uint64_t)rank < job->args->n_sources ? "source" : "expert rank";
}

static void be_rank(struct perf_job *job, int number)
{
	int n_sources = (int)job->args->n_sources;
	struct perf_rank rank = {.job = job, .args = job->args, .page = job->page, .rank = number,
		.n_ranks = (int)job->dims.n_ranks, .source = number < n_sources ? number : -1,
		.expert = number < n_sources ? -1 : number - n_sources};

	if (job->args->classic)
		rank.expert = number;
	if (job->nccl_hosts) {
		char host[32];
		snprintf(host, sizeof(host), "m2n_perf-%d", number);
		setenv("NCCL_HOSTID", host, 1);
	}
	if (!job->args->no_pin)
		perf_pin((unsigned)number);
	if (!job->joins_itself)
		perf_rank_join(&rank, NULL);
	job->body(&rank);
	if (!job->joins_itself) {
		/* Nobody's links close while others still measure. */
		perf_rank_barrier(&rank);
		perf_rank_leave(&rank);
	}
	page_rank(job->page, (uint32_t)number)->finished = 1;
}

struct thread_rank {
	struct perf_job *job;
	int number;
};

static void *rank_main(void *arg)
{
	const struct thread_rank *rank = arg;

	be_rank(rank->job, rank->number);
	return NULL;
}

/* Every rank of the job, each as a thread of this process. */
static void be_all_ranks(struct perf_job *job)
{
	uint32_t n = job->dims.n_ranks;
	struct thread_rank *ranks = calloc(n, sizeof(*ranks));
	pthread_t *threads = calloc(n, sizeof(*threads));
	int status = ranks != NULL && threads != NULL ? 0 : ENOMEM;

	/*
	 * Ranks that share a GPU wait for each other there: each needs a hardware queue of its own,
	 * and no kernel may still have to be loaded when another rank's already waits.
	 */
	setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
	setenv("CUDA_MODULE_LOADING", "EAGER", 0);
	for (uint32_t i = 0; status == 0 && i < n; i++) {
		ranks[i] = (struct thread_rank){job, (int)i};
		status = pthread_create(&threads[i], NULL, rank_main, &ranks[i]);
	}
	if (status != 0) {
		page_fail(job->page, 0, "cannot start a thread for each rank: %s",
			strerror(status));
		_exit(1);
	}
	for (uint32_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	free(threads);
	free(ranks);
}

static pid_t fork_rank(struct perf_job *job, int number, const sigset_t *mask)
{
	pid_t parent = getpid();
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(3);
	sigprocmask(SIG_SETMASK, mask, NULL);
	if (job->args->threads)
		be_all_ranks(job);
	else
		be_rank(job, number);
	_exit(0);
}

/* What a child's end means; a rank that failed has left its text in the page. */
static void note_end(struct run *run, pid_t pid, int status)
{
	int n_ranks = run->n_rank_children;

	for (int i = 0; i < run->n_children; i++) {
		if (run->pids[i] != pid)
			continue;
		run->pids[i] = 0;
		run->n_left--;
		if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
			return;
		int number = i < n_ranks ? i : PAGE_MPI_RANK;
		if (WIFEXITED(status)) {
			page_fail(run->job->page, number, "exit status %d", WEXITSTATUS(status));
			return;
		}
		/* The cause: a rank that missed this one may have said so first. */
		if (!run->failed || perf_now() < run->give_up_at)
			atomic_store(&run->job->page->failed_rank, -1);
		page_fail(run->job->page, number, "killed by signal %d (%s)", WTERMSIG(status),
			strsignal(WTERMSIG(status)));
	}
}

static void note_stall(struct run *run)
{
	char list[256] = "";
	size_t used = 0;

	for (uint32_t i = 0; i < run->job->dims.n_ranks && used < sizeof(list) - 16; i++)
		if (!page_rank(run->job->page, i)->finished)
			used += (size_t)snprintf(list + used, sizeof(list) - used, " %u", i);
	page_fail(run->job->page, -2, "no progress for %llu s; not finished: ranks%s",
		(unsigned long long)run->job->args->timeout_s, list);
}

static void kill_rest(const struct run *run)
{
	for (int i = 0; i < run->n_children; i++)
		if (run->pids[i] != 0)
			kill(run->pids[i], SIGKILL);
}

static void watch(struct run *run, const sigset_t *signals)
{
	const struct timespec tenth = {.tv_nsec = 100000000};
	const int64_t second = 1000000000;
	uint64_t seen = 0;
	int64_t moved_at = perf_now();

	while (run->n_left > 0) {
		int status;
		int got = sigtimedwait(signals, NULL, &tenth);
		for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
			note_end(run, pid, status);
		if (got == SIGINT || got == SIGTERM) {
			run->signal = got;
			page_fail(run->job->page, -3, "ended by signal %d", got);
		}
		uint64_t sum = perf_progress_sum(run->job);
		if (sum != seen) {
			seen = sum;
			moved_at = perf_now();
			perf_progress_show(run->job, sum);
		}
		if (perf_now() - moved_at > (int64_t)run->job->args->timeout_s * second &&
			!atomic_load(&run->job->page->abort))
			note_stall(run);
		if (!run->failed && atomic_load(&run->job->page->abort)) {
			run->failed = true;
			run->give_up_at = perf_now() + second;
		}
		if (run->failed && perf_now() > run->give_up_at)
			kill_rest(run);
	}
	perf_progress_clear();
}

static int report_failure(const struct run *run)
{
	const struct page *page = run->job->page;
	int rank = atomic_load(&page->failed_rank);

	if (rank >= PAGE_MPI_RANK)
		fprintf(stderr, "m2n_perf: MPI yardstick: %s\n", page->failed_text);
	else if (rank >= 0)
		fprintf(stderr, "m2n_perf: rank %d (%s): %s\n", rank, role_of(run->job, rank),
			page->failed_text);
	else
		fprintf(stderr, "m2n_perf: %s\n", page->failed_text);
	return run->signal != 0 ? 128 + run->signal : 1;
}

/* A directory for the store, in memory where there is a file system for it. */
static bool make_store(struct perf_job *job)
{
	static const char *const places[] = {"/dev/shm", "/tmp"};

	for (unsigned i = 0; i < 2; i++) {
		snprintf(job->store, sizeof(job->store), "dir:%s/m2n_perf.%d.XXXXXX", places[i],
			(int)getpid());
		if (mkdtemp(job->store + 4) != NULL)
			return true;
	}
	return false;
}

static bool start_all(struct run *run, const sigset_t *mask)
{
	struct perf_job *job = run->job;
	int n_ranks = run->n_rank_children;

	for (int i = 0; i < run->n_children; i++) {
		run->pids[i] = i < n_ranks ? fork_rank(job, i, mask) : perf_mpi_start(job);
		if (run->pids[i] < 0) {
			run->pids[i] = 0;
			page_fail(job->page, i < n_ranks ? i : PAGE_MPI_RANK,
				"cannot be started: %s", strerror(errno));
			return false;
		}
		run->n_left++;
	}
	return true;
}

int perf_run_fork(struct perf_job *job)
{
	struct run run = {.job = job};
	sigset_t signals, mask;

	run.n_rank_children = job->args->threads ? 1 : (int)job->dims.n_ranks;
	run.n_children = run.n_rank_children + perf_job_has(job, PERF_MPI);
	run.pids = calloc((size_t)run.n_children, sizeof(*run.pids));
	if (run.pids == NULL || !make_store(job)) {
		fprintf(stderr, "m2n_perf: no directory for the ranks to meet: %s\n",
			strerror(errno));
		free(run.pids);
		return 1;
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, &mask);
	fflush(NULL);
	start_all(&run, &mask);
	watch(&run, &signals);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	nftw(job->store + 4, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	free(run.pids);
	return run.failed || atomic_load(&job->page->abort) ? report_failure(&run) : 0;
}
