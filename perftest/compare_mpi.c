/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts the MPI yardstick: m2n_perf_mpi, which lies beside this program, under mpirun with as
 * many ranks as the run has. It maps the page, sleeps until it is its turn, and stamps its
 * iterations where ours are, so that both alternate on the same cores. m2n_perf itself does not
 * link MPI.
 */
#include "compare_mpi.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "run.h"

uint64_t perf_mpi_extra_bytes(const struct perf_routing *routing)
{
	return sizeof(struct mpi_task) + routing->bytes;
}

bool perf_mpi_find(char *path, size_t bytes)
{
	ssize_t length = readlink("/proc/self/exe", path, bytes - 1);

	if (length < 0)
		return false;
	path[length] = '\0';
	char *slash = strrchr(path, '/');
	if (slash == NULL || (size_t)(slash - path) + sizeof("/m2n_perf_mpi") > bytes)
		return false;
	strcpy(slash, "/m2n_perf_mpi");
	return access(path, X_OK) == 0;
}

static void fill_task(const struct perf_job *job)
{
	const struct perf_args *args = job->args;
	struct mpi_task *task = page_extra(job->page);

	*task = (struct mpi_task){.row_bytes = args->row_bytes,
		.out_row_bytes = perf_out_row_bytes(args),
		.n_iters = args->n_iters,
		.n_reps = args->n_reps,
		.n_warmup = args->n_warmup,
		.n_sources = (uint32_t)args->n_sources,
		.depth = (uint32_t)args->depth,
		.dtype = (uint32_t)args->dtype,
		.no_pin = args->no_pin};
	while (job->kinds[task->series] != PERF_MPI)
		task->series++;
	memcpy(task->routing, job->routing, job->routing->bytes);
}

/* In the child: standard input and output are mpirun's no more, its errors are seen. */
static void become_mpirun(const struct perf_job *job, pid_t parent)
{
	char helper[4096], n_ranks[16], page[64];
	bool crowded = job->dims.n_ranks > perf_n_cores();
	int null = open("/dev/null", O_RDWR);
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent || !perf_mpi_find(helper, sizeof(helper)))
		_exit(3);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	snprintf(n_ranks, sizeof(n_ranks), "%u", job->dims.n_ranks);
	snprintf(page, sizeof(page), "/proc/%d/fd/%d", (int)parent, job->page->fd);
	execlp("mpirun", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
		"--mca", "pml", "ob1", "--mca", "btl", "vader,self", "--mca", "mpi_yield_when_idle",
		crowded ? "1" : "0", "-np", n_ranks, helper, page, (char *)NULL);
	page_fail(job->page, PAGE_MPI_RANK, "mpirun: %s", strerror(errno));
	_exit(3);
}

int perf_mpi_start(const struct perf_job *job)
{
	pid_t parent = getpid();

	fill_task(job);
	pid_t pid = fork();
	if (pid == 0)
		become_mpirun(job, parent);
	return pid;
}
