/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks as processes: results, policies at a death, and that nothing is left behind. Ranks wait
 * for each other through shared memory and signals; nothing here waits for a time to pass but the
 * grace that a rank gets.
 */
#include <errno.h>
#include <ftw.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/error.h"
#include "report/ranks.h"

enum { MAX_RANKS = 8 };

/* Seen by the test and all ranks. */
struct shared {
	atomic_int n_ready, n_runs[MAX_RANKS], sum;
	_Atomic pid_t pids[MAX_RANKS];
	int n_cores[MAX_RANKS], core[MAX_RANKS];
};

static struct shared *shared;
static struct rank_result results[MAX_RANKS];

static int prepare(void **state)
{
	(void)state;
	memset(shared, 0, sizeof(*shared));
	return 0;
}

static void note_pid(void *arg, int rank, pid_t pid)
{
	(void)arg;
	shared->pids[rank] = pid;
}

static void nap(void)
{
	const struct timespec ms = {0, 1000000};

	nanosleep(&ms, NULL);
}

/* Until the process is gone and its end was taken note of. */
static void await_end(int rank)
{
	while (!shared->pids[rank] || kill(shared->pids[rank], 0) == 0)
		nap();
}

static void await_ready(int n)
{
	while (shared->n_ready < n)
		nap();
}

static _Noreturn void stay(void)
{
	for (;;)
		pause();
}

/* Rank 0 tells all others a number through the group; each ends with its rank's status. */
static int talk(const struct rank_env *env, void *arg)
{
	int number = 41;
	size_t bytes = sizeof(number);

	if (env->rank == 0)
		m2n_group_put(env->group, "number", &number, bytes, M2N_TIMEOUT_DEFAULT);
	else if (m2n_group_get(env->group, "number", &number, &bytes, M2N_TIMEOUT_DEFAULT))
		return 99;
	shared->sum += number + env->rank + 100 * env->n_ranks + 1000 * env->incarnation;
	return ((int *)arg)[env->rank];
}

static void statuses(void **state)
{
	struct ranks_params params = {.n_ranks = 4, .group = "test", .go_on = 1};
	int none[4] = {0}, some[4] = {0, 3, 0, 255};

	(void)state;
	assert_int_equal(ranks_run(&params, talk, none, results), 0);
	assert_int_equal(shared->sum, 4 * 41 + 6 + 4 * 400);
	assert_int_equal(ranks_run(&params, talk, some, results), 1);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(results[i].status, some[i]);
		assert_int_equal(results[i].signal, 0);
		assert_int_equal(results[i].n_restarts, 0);
	}
}

static int fail_or_stay(const struct rank_env *env, void *arg)
{
	shared->n_ready++;
	if (env->rank != 1)
		stay();
	await_ready(3);
	if (arg)
		return 7;
	raise(SIGKILL);
	return 0;
}

static void all_end_with_one(void **state)
{
	struct ranks_params params = {.n_ranks = 3, .group = "test"};

	(void)state;
	assert_int_equal(ranks_run(&params, fail_or_stay, NULL, results), 1);
	assert_int_equal(results[0].signal, SIGTERM);
	assert_int_equal(results[1].signal, SIGKILL);
	assert_int_equal(results[1].status, -1);
	assert_int_equal(results[2].signal, SIGTERM);
	shared->n_ready = 0;
	assert_int_equal(ranks_run(&params, fail_or_stay, &shared, results), 1);
	assert_int_equal(results[0].signal, SIGTERM);
	assert_int_equal(results[1].status, 7);
	assert_int_equal(results[2].signal, SIGTERM);
}

static int refuse_to_end(const struct rank_env *env, void *arg)
{
	(void)arg;
	signal(SIGTERM, SIG_IGN);
	shared->n_ready++;
	if (env->rank != 1)
		stay();
	await_ready(2);
	return 1;
}

static void grace_ends(void **state)
{
	struct ranks_params params = {.n_ranks = 2, .group = "test", .grace_ms = 50};

	(void)state;
	assert_int_equal(ranks_run(&params, refuse_to_end, NULL, results), 1);
	assert_int_equal(results[0].signal, SIGKILL);
	assert_int_equal(results[1].status, 1);
}

static int outlive(const struct rank_env *env, void *arg)
{
	(void)arg;
	if (env->rank == 1)
		stay();
	if (env->rank == 0)
		kill(shared->pids[1], SIGKILL);
	await_end(1);
	return 0;
}

static void others_go_on(void **state)
{
	struct ranks_params params = {
		.n_ranks = 3, .group = "test", .go_on = 1, .started = note_pid};

	(void)state;
	assert_int_equal(ranks_run(&params, outlive, NULL, results), 1);
	assert_int_equal(results[0].status, 0);
	assert_int_equal(results[1].signal, SIGKILL);
	assert_int_equal(results[2].status, 0);
}

/* Rank 1 dies in its first two lives; the others wait for the third, if there is one. */
static int be_reborn(const struct rank_env *env, void *arg)
{
	int n_lives = *(int *)arg;

	shared->n_runs[env->rank]++;
	if (env->rank == 1 && env->incarnation < 2)
		raise(SIGKILL);
	while (shared->n_runs[1] < n_lives)
		nap();
	return env->rank == 1 && env->incarnation != 2;
}

static void the_dead_come_back(void **state)
{
	struct ranks_params params = {.n_ranks = 2, .group = "test", .go_on = 1, .max_restart = 5};
	int n_lives = 3;

	(void)state;
	assert_int_equal(ranks_run(&params, be_reborn, &n_lives, results), 0);
	assert_int_equal(results[1].n_restarts, 2);
	assert_int_equal(results[1].status, 0);
	assert_int_equal(shared->n_runs[0], 1);
	shared->n_runs[1] = 0;
	params.max_restart = 1;
	n_lives = 2;
	assert_int_equal(ranks_run(&params, be_reborn, &n_lives, results), 1);
	assert_int_equal(results[1].n_restarts, 1);
	assert_int_equal(results[1].signal, SIGKILL);
	assert_int_equal(results[0].status, 0);
}

static int signal_parent(const struct rank_env *env, void *arg)
{
	if (++shared->n_ready == env->n_ranks)
		kill(getppid(), *(int *)arg);
	stay();
}

static void signals_end_all(void **state)
{
	struct ranks_params params = {.n_ranks = 3, .group = "test", .go_on = 1};
	int signals[] = {SIGTERM, SIGINT};

	(void)state;
	for (int i = 0; i < 2; i++) {
		shared->n_ready = 0;
		assert_int_equal(ranks_run(&params, signal_parent, &signals[i], results), -EINTR);
		for (int rank = 0; rank < 3; rank++)
			assert_int_equal(results[rank].signal, SIGTERM);
	}
}

/* The parent is killed; this process inherits its children and sees how they end. */
static void ranks_die_with_parent(void **state)
{
	struct ranks_params params = {.n_ranks = 3, .group = "test", .go_on = 1};
	int status, signal = SIGKILL;
	pid_t parent;

	(void)state;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	parent = fork();
	if (parent == 0)
		_exit(ranks_run(&params, signal_parent, &signal, results) != 0);
	assert_int_equal(waitpid(parent, &status, 0), parent);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	for (int i = 0; i < 3; i++) {
		assert_true(wait(&status) > 0);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}
	assert_int_equal(wait(&status), -1);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static int meet_own(const struct rank_env *env, void *arg)
{
	pid_t parent = getppid();
	size_t bytes = sizeof(parent);

	(void)arg;
	shared->n_ready++;
	await_ready(2 * MAX_RANKS); /* all runs at the same time */
	if (env->rank == 0)
		return m2n_group_put(env->group, "parent", &parent, bytes, M2N_TIMEOUT_DEFAULT) !=
		       0;
	return m2n_group_get(env->group, "parent", &parent, &bytes, M2N_TIMEOUT_DEFAULT) ||
	       parent != getppid();
}

static void runs_beside_each_other(void **state)
{
	struct ranks_params params = {.n_ranks = 2, .group = "test"};
	pid_t pids[MAX_RANKS];
	int status;

	(void)state;
	for (int i = 0; i < MAX_RANKS; i++) {
		pids[i] = fork();
		if (pids[i] == 0)
			_exit(ranks_run(&params, meet_own, NULL, results) != 0);
	}
	for (int i = 0; i < MAX_RANKS; i++) {
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
}

static int note_cores(const struct rank_env *env, void *arg)
{
	cpu_set_t usable;

	(void)arg;
	sched_getaffinity(0, sizeof(usable), &usable);
	shared->n_cores[env->rank] = CPU_COUNT(&usable);
	while (!CPU_ISSET((size_t)shared->core[env->rank], &usable))
		shared->core[env->rank]++;
	return 0;
}

static void ranks_are_pinned(void **state)
{
	struct ranks_params params = {.n_ranks = 2, .group = "test", .pin = 1};
	cpu_set_t usable;
	int n_cores;

	(void)state;
	sched_getaffinity(0, sizeof(usable), &usable);
	n_cores = CPU_COUNT(&usable);
	assert_int_equal(ranks_run(&params, note_cores, NULL, results), 0);
	if (n_cores < 2) {
		assert_int_equal(shared->n_cores[1], 1);
		return;
	}
	assert_int_equal(shared->n_cores[0], 1);
	assert_int_equal(shared->n_cores[1], 1);
	assert_int_not_equal(shared->core[0], shared->core[1]);
	sched_getaffinity(0, sizeof(usable), &usable);
	assert_int_equal(CPU_COUNT(&usable), n_cores); /* the parent is not */
	params.n_ranks = MAX_RANKS;
	if (n_cores < MAX_RANKS) {
		assert_int_equal(ranks_run(&params, note_cores, NULL, results), 0);
		assert_int_equal(shared->n_cores[0], n_cores);
	}
}

static int end_well(const struct rank_env *env, void *arg)
{
	(void)arg;
	shared->sum += 1 + env->rank;
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

/* As one rank of a launcher that started one. */
static void launched(void **state)
{
	const char *dir = getenv("TMPDIR") ? getenv("TMPDIR") : P_tmpdir;
	struct ranks_params params = {.n_ranks = 1, .group = "test", .launched = 1};
	char path[4096], store[4100];

	(void)state;
	assert_true(snprintf(path, sizeof(path), "%s/test_ranks-XXXXXX", dir) < (int)sizeof(path));
	assert_non_null(mkdtemp(path));
	snprintf(store, sizeof(store), "dir:%s", path);
	setenv("M2N_RANK", "0", 1);
	setenv("M2N_SIZE", "1", 1);
	setenv("M2N_STORE", store, 1);
	assert_int_equal(ranks_run(&params, end_well, NULL, results), 0);
	assert_int_equal(results[0].status, 0);
	assert_int_equal(shared->sum, 1);
	params.n_ranks = 2;
	assert_int_equal(ranks_run(&params, end_well, NULL, results), -EINVAL);
	assert_string_equal(model_error(), "the launcher started 1 ranks, 2 are needed");
	assert_int_equal(shared->sum, 1);
	unsetenv("M2N_RANK");
	unsetenv("M2N_SIZE");
	unsetenv("M2N_STORE");
	assert_int_equal(nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(statuses, prepare),
		cmocka_unit_test_setup(all_end_with_one, prepare),
		cmocka_unit_test_setup(grace_ends, prepare),
		cmocka_unit_test_setup(others_go_on, prepare),
		cmocka_unit_test_setup(the_dead_come_back, prepare),
		cmocka_unit_test_setup(signals_end_all, prepare),
		cmocka_unit_test_setup(ranks_die_with_parent, prepare),
		cmocka_unit_test_setup(runs_beside_each_other, prepare),
		cmocka_unit_test_setup(ranks_are_pinned, prepare),
		cmocka_unit_test_setup(launched, prepare),
	};

	shared = mmap(
		NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
