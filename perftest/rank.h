/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rank of a run, as a test sees it: who it is, its page, its context and group, and how it
 * meets the others: at the page's barrier when the ranks were forked here, else through an
 * exchange with rank 0.
 */
#ifndef PERF_RANK_H
#define PERF_RANK_H

#include "args.h"
#include "page.h"
#include "routing.h"

struct perf_rank;
struct m2n__mem;

/* What one series of a run measures. */
enum perf_kind {
	PERF_OURS = 0,
	PERF_MEMCPY, /* the bare yardstick with memcpy() */
	PERF_STREAM, /* the same with non-temporal stores */
	PERF_MPI,
	PERF_UCX,
	PERF_NCCL,
	PERF_IB_WRITE_BW, /* from here on: programs, see compare_tool.h */
	PERF_IB_WRITE_LAT,
	PERF_IB_SEND_BW,
	PERF_IB_SEND_LAT,
	PERF_UCP_PUT_BW,
	PERF_UCP_PUT_LAT,
};
#define PERF_FIRST_TOOL PERF_IB_WRITE_BW

/* A test, ready to run: what it measures, and what its ranks need. */
struct perf_job {
	const struct perf_args *args;
	const struct perf_routing *routing; /* moe, init */
	void (*body)(struct perf_rank *rank);
	bool joins_itself;   /* init: the body opens context and group */
	bool many_hosts;     /* stamps of two ranks cannot be compared */
	struct page_dims dims;
	uint64_t n_steps;    /* progress of all ranks at the end, for the progress line */
	enum perf_kind kinds[PERF_MAX_SERIES]; /* [dims.n_series]; the first is PERF_OURS */
	/* Memory that the memcpy yardstick's ranks share, made before the fork. */
	struct m2n__mem *bounce_mem;
	void *bounce;
	struct page *page;
	char store[64];      /* of forked ranks: a directory's URL */
	bool nccl_hosts;     /* ranks as processes tell NCCL that they are hosts of their own */
	char nccl_how[160];  /* of --compare nccl: what was needed, or why it is left out */
};

struct perf_rank {
	struct perf_job *job;
	const struct perf_args *args;
	struct page *page;
	int rank;
	int n_ranks;
	int source;          /* index, or -1 */
	int expert;          /* index, or -1 */
	struct m2n_ctx *ctx;
	struct m2n_group *group;
	uint64_t size;       /* of the messages now */
	uint32_t n_case;     /* now */
	uint32_t n_messages; /* of one iteration now */
	/* At the end of a batch, for a series that must not be left as it is; NULL: none does. */
	void (*batch_end)(void *arg, unsigned series);
	struct m2n_exchange *sync; /* NULL: forked, the page's barrier is used */
};

/* Opens the context and joins the group. */
void perf_rank_join(struct perf_rank *rank, const char *group_name);
void perf_rank_leave(struct perf_rank *rank);
/* Ends the rank, and with it the run, with this text and libm2n's. */
void perf_rank_fail(struct perf_rank *rank, int status, const char *what) __attribute__((noreturn));
/* Fails unless status is 0. */
static inline void perf_rank_check(struct perf_rank *rank, int status, const char *what)
{
	if (__builtin_expect(status != 0, 0))
		perf_rank_fail(rank, status, what);
}
/* All ranks meet. Its end is no part of any sample. */
void perf_rank_barrier(struct perf_rank *rank);
/* One more step towards job->n_steps. */
static inline void perf_rank_step(struct perf_rank *rank)
{
	atomic_fetch_add_explicit(
		&page_rank(rank->page, (uint32_t)rank->rank)->progress, 1, memory_order_relaxed);
}
/* Memory for rows: zeroed, registered, on huge pages where there are any. */
void *perf_rank_memory(struct perf_rank *rank, size_t bytes, struct m2n_mem **mem);
/* Notes the backend that reaches `peer`. */
void perf_rank_note_backend(struct perf_rank *rank, int peer);

/* Adds a series to the job; returns its number. */
unsigned perf_job_add(struct perf_job *job, enum perf_kind kind);
bool perf_job_has(const struct perf_job *job, enum perf_kind kind);

/* One measured step of a series, see job->kinds; iter < 0 is not stamped. */
typedef void (*perf_step_fn)(void *arg, unsigned series, int64_t iter);
/*
 * Warm-up, then `n_reps` alternations over the series, so that noise meets all of them; the
 * iterations of a case are spread over the alternations. PERF_MPI is run by the MPI helper.
 */
void perf_rank_loop(struct perf_rank *rank, perf_step_fn step, void *arg);

/* Iterations of alternation `rep` are [first, last). */
static inline void perf_batch(
	const struct perf_args *args, uint64_t rep, int64_t *first, int64_t *last)
{
	*first = (int64_t)(args->n_iters * rep / args->n_reps);
	*last = (int64_t)(args->n_iters * (rep + 1) / args->n_reps);
}
/* Iterations at the begin of each batch that are not measured. */
#define PERF_SETTLE 3

#endif
