/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parent blocks its signals and takes them one at a time, so that a death, an interrupt and the
 * end of a grace period are seen in one place. Ranks are forked before the store has a thread,
 * whose locks a child would have for ever; they hear its address through a pipe.
 */
#include "ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "model/error.h"

enum { GRACE_MS = 5000 }; /* from SIGTERM to SIGKILL, where nothing is said */

struct run {
	const struct ranks_params *params;
	rank_main main;
	void *arg;
	struct rank_result *results;
	pid_t parent, *pids; /* 0: not running */
	int n_left;
	int is_ending; /* 1: SIGTERM was sent, 2: SIGKILL */
	int signal;    /* that the parent got */
	struct address {
		char url[256], secret[33];
	} address;
	int door[2]; /* a pipe: an address for each rank that was started */
	sigset_t signals, before;
};

static void pin(int rank)
{
	cpu_set_t usable, one;

	if (sched_getaffinity(0, sizeof(usable), &usable))
		return;
	for (size_t cpu = 0, n = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &usable) || n++ != (size_t)rank)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
		return;
	}
}

static int usable_cores(void)
{
	cpu_set_t usable;

	return sched_getaffinity(0, sizeof(usable), &usable) ? 0 : CPU_COUNT(&usable);
}

/* Joins, runs, leaves. */
static int be_rank(const struct ranks_params *params, struct m2n_group_params *join,
	int incarnation, rank_main main, void *arg, int *rank)
{
	struct m2n_ctx_params ctx_params = M2N_CTX_PARAMS_INIT;
	struct rank_env env = {.incarnation = incarnation};
	int rc;

	ctx_params.options = params->options;
	join->name = params->group;
	rc = m2n_ctx_open(&ctx_params, &env.ctx);
	if (rc < 0)
		return model_fail(rc, "%s", m2n_error_text());
	rc = m2n_group_join(env.ctx, join, &env.group);
	if (rc < 0) {
		m2n_ctx_close(env.ctx);
		return model_fail(rc, "%s", m2n_error_text());
	}
	env.rank = *rank = m2n_group_rank(env.group);
	env.n_ranks = m2n_group_size(env.group);
	if (env.n_ranks == params->n_ranks)
		rc = main(&env, arg);
	else
		rc = model_fail(-EINVAL, "the launcher started %d ranks, %d are needed",
			env.n_ranks, params->n_ranks);
	m2n_group_leave(env.group);
	m2n_ctx_close(env.ctx);
	return rc;
}

static void be_child(struct run *run, int rank, int incarnation)
{
	struct m2n_group_params join = M2N_GROUP_PARAMS_INIT;
	int rc;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != run->parent)
		_exit(1);
	sigprocmask(SIG_SETMASK, &run->before, NULL);
	if (run->params->pin && usable_cores() >= run->params->n_ranks)
		pin(rank);
	close(run->door[1]); /* with the parent's gone, too, the read ends */
	if (read(run->door[0], &run->address, sizeof(run->address)) != sizeof(run->address))
		_exit(1);
	close(run->door[0]);
	join.rank = rank;
	join.n_ranks = run->params->n_ranks;
	join.store = run->address.url;
	join.secret = run->address.secret;
	rc = be_rank(run->params, &join, incarnation, run->main, run->arg, &rank);
	if (rc < 0)
		fprintf(stderr, "%s: rank %d: %s\n", program_invocation_short_name, rank,
			model_error());
	fflush(NULL);
	_exit(rc < 0 ? 1 : rc & 0xff);
}

static int start(struct run *run, int rank)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return model_fail(-errno, "rank %d: fork: %s", rank, strerror(errno));
	if (pid == 0)
		be_child(run, rank, run->results[rank].n_restarts);
	run->pids[rank] = pid;
	run->n_left++;
	if (run->params->started)
		run->params->started(run->arg, rank, pid);
	return 0;
}

/* To one of those that read: all get the same, in one piece (it is less than PIPE_BUF). */
static int tell_address(const struct run *run)
{
	if (write(run->door[1], &run->address, sizeof(run->address)) == sizeof(run->address))
		return 0;
	return model_fail(-errno, "telling a rank where the store is: %s", strerror(errno));
}

static void end_all(struct run *run, int signal)
{
	run->is_ending = signal == SIGKILL ? 2 : 1;
	for (int i = 0; i < run->params->n_ranks; i++)
		if (run->pids[i])
			kill(run->pids[i], signal);
}

static int note_end(struct run *run, int rank, int status)
{
	struct rank_result *result = &run->results[rank];

	run->pids[rank] = 0;
	run->n_left--;
	result->status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	result->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	if (result->signal && !run->is_ending && result->n_restarts < run->params->max_restart) {
		int rc;

		result->n_restarts++;
		rc = start(run, rank);
		return rc ? rc : tell_address(run);
	}
	if (result->status != 0 && !run->params->go_on && !run->is_ending)
		end_all(run, SIGTERM);
	return 0;
}

static int reap(struct run *run)
{
	int status, rc = 0;
	pid_t pid;

	while (!rc && (pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (int i = 0; i < run->params->n_ranks; i++)
			if (run->pids[i] == pid) {
				rc = note_end(run, i, status);
				break;
			}
	return rc;
}

static int wait_all(struct run *run)
{
	int ms = run->params->grace_ms ? run->params->grace_ms : GRACE_MS;
	const struct timespec grace = {ms / 1000, ms % 1000 * 1000000L};
	int signal, rc = 0;

	while (run->n_left) {
		signal = run->is_ending == 1 ? sigtimedwait(&run->signals, NULL, &grace)
					     : sigwaitinfo(&run->signals, NULL);
		if (signal < 0 && errno == EAGAIN)
			end_all(run, SIGKILL);
		if (signal == SIGINT || signal == SIGTERM) {
			run->signal = signal;
			end_all(run, run->is_ending ? SIGKILL : SIGTERM);
		}
		if (!rc && (rc = reap(run)) < 0)
			end_all(run, SIGTERM);
		else
			reap(run);
	}
	return rc;
}

static int make_secret(char *text)
{
	unsigned char bytes[16];

	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return model_fail(-EIO, "no random numbers for the store's secret");
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	return 0;
}

static int fork_all(struct run *run, struct m2n_store_server **server)
{
	int n = run->params->n_ranks, rc = 0;

	for (int i = 0; !rc && i < n; i++)
		rc = start(run, i);
	if (rc)
		return rc;
	rc = m2n_store_server_start("127.0.0.1:0", run->address.secret, run->address.url,
		sizeof(run->address.url), server);
	if (rc < 0)
		return model_fail(rc, "%s", m2n_error_text());
	for (int i = 0; !rc && i < n; i++)
		rc = tell_address(run);
	return rc;
}

static int fork_ranks(struct run *run)
{
	struct m2n_store_server *server = NULL;
	int rc = make_secret(run->address.secret), ended;

	if (rc)
		return rc;
	if (pipe2(run->door, O_CLOEXEC))
		return model_fail(-errno, "a pipe to the ranks: %s", strerror(errno));
	sigemptyset(&run->signals);
	sigaddset(&run->signals, SIGCHLD);
	sigaddset(&run->signals, SIGINT);
	sigaddset(&run->signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &run->signals, &run->before);
	run->parent = getpid();
	rc = fork_all(run, &server);
	if (rc)
		end_all(run, SIGTERM);
	ended = wait_all(run);
	sigprocmask(SIG_SETMASK, &run->before, NULL);
	m2n_store_server_stop(server);
	close(run->door[0]);
	close(run->door[1]);
	return rc ? rc : ended;
}

int ranks_run(
	const struct ranks_params *params, rank_main main, void *arg, struct rank_result *results)
{
	struct run run = {.params = params, .main = main, .arg = arg, .results = results};
	struct m2n_group_params join = M2N_GROUP_PARAMS_INIT;
	int rc, rank = 0;

	for (int i = 0; i < params->n_ranks; i++)
		results[i] = (struct rank_result){.status = -1};
	if (params->launched) {
		rc = be_rank(params, &join, 0, main, arg, &rank);
		if (rc >= 0)
			results[rank].status = rc;
		return rc > 0 ? 1 : rc;
	}
	run.pids = calloc((size_t)params->n_ranks, sizeof(*run.pids));
	if (!run.pids)
		return model_fail(-ENOMEM, "no memory for %d ranks", params->n_ranks);
	rc = fork_ranks(&run);
	free(run.pids);
	if (run.signal)
		return model_fail(-EINTR, "ended by signal %d", run.signal);
	for (int i = 0; !rc && i < params->n_ranks; i++)
		rc = results[i].status != 0;
	return rc;
}

int ranks_share(const struct rank_env *env, const char *key, void *value, size_t bytes)
{
	int rc = env->rank ? m2n_group_get(env->group, key, value, &bytes, M2N_TIMEOUT_DEFAULT)
			   : m2n_group_put(env->group, key, value, bytes, M2N_TIMEOUT_DEFAULT);

	return rc < 0 ? model_fail(rc, "%s", m2n_error_text()) : 0;
}
