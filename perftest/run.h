/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a job's ranks and sees to its end: all forked on this host, or this process as one rank
 * of a launcher's job.
 */
#ifndef PERF_RUN_H
#define PERF_RUN_H

#include "rank.h"

/*
 * Forks the ranks (and with a PERF_MPI series starts the MPI helper), shows progress, and waits.
 * Returns 0, or an exit status after it printed which rank failed and why. Never hangs: a run
 * without progress for --timeout is ended and the ranks that did not finish are named.
 */
int perf_run_fork(struct perf_job *job);

/*
 * Looks whether a launcher started this process. 1: yes, `rank` has joined its group; 0: no;
 * negative: it failed, and was printed.
 */
int perf_launch_join(const struct perf_args *args, struct perf_rank *rank);
/* Runs the job as the rank that joined; on rank 0 job->page holds everybody's results after. */
int perf_run_launched(struct perf_job *job, struct perf_rank *rank);

/* A line on the terminal that the next one overwrites; nothing when stderr is no terminal. */
void perf_progress_show(const struct perf_job *job, uint64_t n_steps);
void perf_progress_clear(void);
/* Steps of all ranks together. */
uint64_t perf_progress_sum(const struct perf_job *job);

/* The MPI helper as a child: its pid, or -1 with errno. */
int perf_mpi_start(const struct perf_job *job);

#endif
