/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page: what the processes of one run share. Barriers, whose turn it is, the failure of the
 * first rank that failed, each rank's results, and a sheet of time stamps, one pair for each
 * (rank, case, series, iteration). Series 0 is libm2n, the others are yardsticks; a case is a
 * phase or a size.
 *
 * Forked ranks and the MPI helper map one memfd, so their stamps (CLOCK_MONOTONIC, one host) can
 * be compared. Under a launcher each rank has a page of its own and rank 0 gathers them. The
 * page holds no pointers: everything is reached through offsets in its head.
 */
#ifndef PERF_PAGE_H
#define PERF_PAGE_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PERF_MAX_SERIES 6
#define PERF_TEXT_BYTES 512

struct page_stamp {
	int64_t start, end; /* ns; 0: this rank has no part in it */
};

/* Whom one rank waited for. */
struct page_peer {
	uint64_t n_rounds, n_rows, bytes, wait_ns;
};
enum page_flow {
	PAGE_DISPATCH_SENT,
	PAGE_DISPATCH_RECEIVED,
	PAGE_COMBINE_SENT,
	PAGE_COMBINE_RECEIVED,
	PAGE_N_FLOWS,
};

/* What the transfers of one case cost, from the counters of all flows that this rank sent. */
struct page_cost {
	uint64_t n_rounds, n_puts, staged_bytes;
};

/*
 * What a yardstick that is a program of its own said in one alternation: GB/s for bw, else us.
 * 0: nothing, or for p99 that it does not say.
 */
struct page_figure {
	double value, p99;
};

struct page_rank {
	alignas(64) _Atomic uint64_t progress; /* counts iterations, for the watchdog */
	uint32_t finished;
	uint32_t verified;      /* rows or messages that were checked and right */
	uint32_t tool_status;   /* exit status for a yardstick's program that did not run */
	uint64_t staged_bytes;
	/* init: what the library says, and this rank's share of what is there. */
	uint64_t memory_predicted, memory_share, memory_mapped;
	char backend[24];
	char host[96];          /* equal on ranks of one host */
};

struct page_barrier {
	alignas(64) _Atomic uint32_t n_arrived;
	alignas(64) _Atomic uint32_t generation;
	_Atomic uint32_t n_sleepers;
};

enum page_crowd {
	PAGE_OURS = 0,
	PAGE_MPI = 1,
};

struct page_dims {
	uint32_t n_ranks;
	uint32_t n_cases;
	uint32_t n_series;
	uint32_t n_iters;
	uint32_t n_reps;
	uint64_t extra_bytes; /* behind the sheet, for the test: routing, buffers' addresses */
};

struct page {
	uint64_t magic;
	uint64_t bytes;
	struct page_dims dims;
	uint64_t ranks_at, peers_at, notes_at, sheet_at, extra_at; /* offsets */
	int fd;                 /* -1: private */
	uint32_t spin_ns;       /* before a waiter sleeps */
	struct page_barrier barriers[2];
	alignas(64) _Atomic uint32_t mpi_ready; /* 1: the MPI helper is there */
	alignas(64) _Atomic uint32_t mpi_open; /* batches that the MPI helper may have begun */
	alignas(64) _Atomic uint32_t mpi_done; /* batches that it has finished */
	alignas(64) _Atomic uint32_t abort;    /* somebody failed: everybody leaves */
	_Atomic int32_t failed_rank;           /* -1: nobody; MPI ranks count from PAGE_MPI_RANK */
	char failed_text[PERF_TEXT_BYTES];
	char commands[PERF_MAX_SERIES][PERF_TEXT_BYTES]; /* of programs, as rank 0 ran them */
};
#define PAGE_MPI_RANK 1000000

/* A new page; shared ones can be mapped by a process that is told /proc/PID/fd/FD. NULL: errno. */
struct page *page_create(const struct page_dims *dims, bool shared);
struct page *page_map(const char *path);
void page_free(struct page *page);

/* Bytes of one rank's part of the sheet, and where it begins. */
size_t page_rank_sheet_bytes(const struct page *page);
struct page_stamp *page_stamps(
	struct page *page, uint32_t rank, uint32_t n_case, uint32_t series); /* [n_iters] */
struct page_rank *page_rank(struct page *page, uint32_t rank);
struct page_peer *page_peer(struct page *page, uint32_t rank, uint32_t peer, enum page_flow flow);
/* A rank's notes: costs of the cases, then figures; and how many bytes they are. */
struct page_cost *page_cost(struct page *page, uint32_t rank, uint32_t n_case);
struct page_figure *page_figures(
	struct page *page, uint32_t rank, uint32_t n_case, uint32_t series); /* [n_reps] */
size_t page_rank_notes_bytes(const struct page *page);
void *page_extra(struct page *page);

/* Waits for n processes of the crowd. False: the run is being given up. */
bool page_barrier(struct page *page, enum page_crowd crowd, uint32_t n);
/* Waits until *word >= value. False: the run is being given up. */
bool page_wait(struct page *page, _Atomic uint32_t *word, uint32_t value);
/* Sets *word and wakes its waiters. */
void page_post(_Atomic uint32_t *word, uint32_t value);
/* The first failure is kept; everybody is told to leave. */
void page_fail(struct page *page, int rank, const char *form, ...)
	__attribute__((format(printf, 3, 4)));

int64_t perf_now(void);
/* Pins the calling process to core rank % cores of those that it may use. */
void perf_pin(unsigned rank);
unsigned perf_n_cores(void);

#endif
