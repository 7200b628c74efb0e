/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What launchers tell, as one table of variable names, and a function a launcher for what a table
 * cannot say: where the store is. The store's address, in the order of preference: M2N_STORE; an
 * address that the launcher gives (torchrun); one that all ranks derive alike (Slurm: first host of
 * the step and a port from the job's number); a directory in /dev/shm when all ranks are on this
 * host (Open MPI). Otherwise it stays "", and joining a group says what to set.
 *
 * Names: Open MPI mpirun(1), Slurm srun(1) "OUTPUT ENVIRONMENT VARIABLES", PyTorch's page "torchrun
 * (Elastic Launch)", the PMIx standard.
 */
#include "bootstrap/launcher.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "util/error.h"

struct env {
	m2n__getenv_fn get;
	void *arg;
};

struct names {
	const char *launcher;
	const char *rank, *n_ranks, *local_rank, *n_local_ranks;
	const char *jobs[2];
	/* The rank alone is a sign of this launcher: its size has to be told otherwise. */
	int rank_is_enough;
	int (*find_store)(const struct env *env, struct m2n__launch *launch);
};

static int torchrun_store(const struct env *env, struct m2n__launch *launch);
static int local_store(const struct env *env, struct m2n__launch *launch);
static int slurm_store(const struct env *env, struct m2n__launch *launch);

/* clang-format off */
static const struct names launchers[] = {
	{"m2n", "M2N_RANK", "M2N_SIZE", "M2N_LOCAL_RANK", "M2N_LOCAL_SIZE",
		{NULL, NULL}, 0, NULL},
	{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
		{"TORCHELASTIC_RUN_ID", NULL}, 0, torchrun_store},
	{"openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
		"OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
		{"OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE"}, 0, local_store},
	{"pmix", "PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE",
		{"PMIX_NAMESPACE", NULL}, 1, local_store},
	{"slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", NULL,
		{NULL, NULL}, 0, slurm_store},
	{"kubernetes", "JOB_COMPLETION_INDEX", "M2N_SIZE", NULL, NULL,
		{NULL, NULL}, 1, NULL},
};
/* clang-format on */
#define N_LAUNCHERS (sizeof(launchers) / sizeof(launchers[0]))

/* NULL when unset or empty. */
static const char *look_up(const struct env *env, const char *name)
{
	const char *text = name ? env->get(env->arg, name) : NULL;

	return text && text[0] ? text : NULL;
}

/* An unsigned decimal number up to `max`, and nothing else. */
static int parse_number(const char *text, uint64_t max, uint64_t *number)
{
	uint64_t value = 0;

	if (!text[0])
		return -EINVAL;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return -EINVAL;
		value = value * 10 + (uint64_t)(*text - '0');
		if (value > max)
			return -EINVAL;
	}
	*number = value;
	return 0;
}

/* Leaves *number alone when the variable is not set. */
static int read_number(
	const struct env *env, const char *name, int min, uint64_t max, uint64_t *number)
{
	const char *text = look_up(env, name);
	uint64_t value;

	if (!text)
		return 0;
	if (parse_number(text, max, &value) || value < (uint64_t)min)
		return m2n__error(-EINVAL, "%s='%.64s': must be a number from %d to %llu", name,
			text, min, (unsigned long long)max);
	*number = value;
	return 0;
}

static int read_int(const struct env *env, const char *name, int min, int *number)
{
	uint64_t value = 0;
	int status;

	if (!look_up(env, name))
		return 0;
	status = read_number(env, name, min, INT_MAX, &value);
	if (!status)
		*number = (int)value;
	return status;
}

static int put_store(struct m2n__launch *launch, const char *host, unsigned port)
{
	const char *format = strchr(host, ':') ? "tcp://[%s]:%u" : "tcp://%s:%u";
	int n = snprintf(launch->store, sizeof(launch->store), format, host, port);

	if (n < 0 || (size_t)n >= sizeof(launch->store))
		return m2n__error(-EINVAL, "%s: the store's host name is too long: '%.100s...'",
			launch->launcher, host);
	return 0;
}

/* Letters, digits, '.', '-' and '_' stay: the name becomes part of paths and keys. */
static void put_job(struct m2n__launch *launch, const char *name)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
				    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
	size_t n = strnlen(name, sizeof(launch->job) - 1);

	for (size_t i = 0; i < n; i++)
		launch->job[i] = strchr(plain, name[i]) ? name[i] : '_';
	launch->job[n] = '\0';
}

/* MASTER_PORT itself is where torch's own store listens; the next one is ours. */
static int torchrun_store(const struct env *env, struct m2n__launch *launch)
{
	const char *host = look_up(env, "MASTER_ADDR");
	uint64_t port = 0;
	int status;

	status = read_number(env, "MASTER_PORT", 1, 65535, &port);
	if (status || !host || !port)
		return status;
	if (port == 65535)
		return m2n__error(-EINVAL,
			"MASTER_PORT=65535: the store takes MASTER_PORT + 1, for MASTER_PORT is "
			"torch's own; choose a smaller one or set M2N_STORE");
	return put_store(launch, host, (unsigned)port + 1);
}

static int local_store(const struct env *env, struct m2n__launch *launch)
{
	(void)env;
	if (launch->job[0] && launch->n_ranks > 0 && launch->n_local_ranks == launch->n_ranks)
		snprintf(launch->store, sizeof(launch->store), "dir:/dev/shm/m2n-%u-%s",
			(unsigned)geteuid(), launch->job);
	return 0;
}

/*
 * First host of a Slurm node list such as "node[07-09,12],gpu1" or "r[1-2]n[01-16]": every bracket
 * gives its first number, the first comma outside brackets ends it.
 */
static int first_host(const char *list, char *host, size_t host_bytes)
{
	int in_brackets = 0, skipping = 0;
	size_t n = 0;

	for (; *list && (in_brackets || *list != ','); list++) {
		if (*list == '[' && !in_brackets) {
			in_brackets = 1;
			skipping = 0;
		} else if (*list == ']' && in_brackets) {
			in_brackets = 0;
		} else if (*list == '[' || *list == ']') {
			return -EINVAL;
		} else if (in_brackets && (*list == '-' || *list == ',')) {
			skipping = 1;
		} else if (!in_brackets || !skipping) {
			if (n + 1 >= host_bytes)
				return -EINVAL;
			host[n++] = *list;
		}
	}
	host[n] = '\0';
	return in_brackets || !n ? -EINVAL : 0;
}

/* This node's count from the likes of "4(x2),3"; -1 when it cannot be told. */
static int slurm_local_ranks(const struct env *env)
{
	const char *text = look_up(env, "SLURM_STEP_TASKS_PER_NODE");
	const char *node_text = look_up(env, "SLURM_NODEID");
	uint64_t node = 0;
	int n_tasks, n_nodes, used;

	if (!text || !node_text || parse_number(node_text, INT_MAX, &node))
		return -1;
	for (;;) {
		n_nodes = 1;
		if (sscanf(text, "%9d%n", &n_tasks, &used) != 1 || n_tasks < 1)
			return -1;
		text += used;
		if (*text == '(') {
			used = 0;
			if (sscanf(text, "(x%9d)%n", &n_nodes, &used) != 1 || !used || n_nodes < 1)
				return -1;
			text += used;
		}
		if (node < (uint64_t)n_nodes)
			return n_tasks;
		node -= (uint64_t)n_nodes;
		if (*text++ != ',')
			return -1;
	}
}

/* Steps of one job may run side by side on one host, so both numbers go into the port. */
static int slurm_store(const struct env *env, struct m2n__launch *launch)
{
	const char *name = "SLURM_STEP_NODELIST";
	const char *list = look_up(env, name);
	uint64_t job = 0, step = 0;
	char host[200];
	int status;

	launch->n_local_ranks = slurm_local_ranks(env);
	if (!look_up(env, "SLURM_JOB_ID"))
		return 0;
	status = read_number(env, "SLURM_JOB_ID", 0, UINT32_MAX, &job);
	if (!status)
		status = read_number(env, "SLURM_STEP_ID", 0, UINT32_MAX, &step);
	if (status)
		return status;
	snprintf(launch->job, sizeof(launch->job), "slurm-%llu.%llu", (unsigned long long)job,
		(unsigned long long)step);
	if (!list) {
		name = "SLURM_JOB_NODELIST";
		list = look_up(env, name);
	}
	if (!list)
		return 0;
	if (first_host(list, host, sizeof(host)))
		return m2n__error(
			-EINVAL, "%s='%.100s': its first host cannot be read", name, list);
	return put_store(launch, host, (unsigned)(20000 + (job + step * 7919) % 40000));
}

static const struct names *choose(const struct env *env)
{
	for (size_t i = 0; i < N_LAUNCHERS; i++)
		if (look_up(env, launchers[i].rank) && look_up(env, launchers[i].n_ranks))
			return &launchers[i];
	for (size_t i = 0; i < N_LAUNCHERS; i++)
		if (launchers[i].rank_is_enough && look_up(env, launchers[i].rank))
			return &launchers[i];
	return NULL;
}

static int check_below(const char *rank_name, int rank, const char *n_name, int n_ranks)
{
	if (rank < 0 || n_ranks < 0 || rank < n_ranks)
		return 0;
	return m2n__error(-EINVAL, "%s=%d must be below %s=%d", rank_name, rank, n_name, n_ranks);
}

static int read_numbers(
	const struct env *env, const struct names *names, struct m2n__launch *launch)
{
	const char *n_name = look_up(env, names->n_ranks) ? names->n_ranks : "M2N_SIZE";
	int status;

	launch->launcher = names->launcher;
	status = read_int(env, names->rank, 0, &launch->rank);
	if (!status)
		status = read_int(env, n_name, 1, &launch->n_ranks);
	if (!status && names->local_rank)
		status = read_int(env, names->local_rank, 0, &launch->local_rank);
	if (!status && names->n_local_ranks)
		status = read_int(env, names->n_local_ranks, 1, &launch->n_local_ranks);
	if (!status)
		status = check_below(names->rank, launch->rank, n_name, launch->n_ranks);
	if (!status)
		status = check_below(names->local_rank, launch->local_rank, names->n_local_ranks,
			launch->n_local_ranks);
	return status;
}

static int read_launcher(
	const struct env *env, const struct names *names, struct m2n__launch *launch)
{
	int status = read_numbers(env, names, launch);

	if (status)
		return status;
	for (int i = 0; i < 2 && !launch->job[0]; i++)
		if (look_up(env, names->jobs[i]))
			put_job(launch, look_up(env, names->jobs[i]));
	/* A launcher's own address that cannot be used is no error when M2N_STORE replaces it. */
	if (names->find_store && !look_up(env, "M2N_STORE"))
		return names->find_store(env, launch);
	return 0;
}

static int read_store(const struct env *env, struct m2n__launch *launch)
{
	const char *store = look_up(env, "M2N_STORE");
	const char *job = look_up(env, "M2N_JOB");

	if (job)
		put_job(launch, job);
	if (!store)
		return 0;
	if (strlen(store) >= sizeof(launch->store))
		return m2n__error(-EINVAL, "M2N_STORE='%.64s...': longer than %zu bytes", store,
			sizeof(launch->store) - 1);
	strcpy(launch->store, store);
	return 0;
}

int m2n__launch_detect(m2n__getenv_fn get, void *arg, struct m2n__launch *launch)
{
	struct m2n__launch found = {.launcher = "none",
		.rank = -1,
		.n_ranks = -1,
		.local_rank = -1,
		.n_local_ranks = -1};
	const struct env env = {get, arg};
	const struct names *names;
	int status = 0;

	if (look_up(&env, "M2N_RANK") && !look_up(&env, "M2N_SIZE"))
		return m2n__error(-EINVAL, "M2N_RANK is set, M2N_SIZE (how many ranks) is not");
	names = choose(&env);
	if (names)
		status = read_launcher(&env, names, &found);
	if (!status)
		status = read_store(&env, &found);
	if (!status)
		*launch = found;
	return status;
}
