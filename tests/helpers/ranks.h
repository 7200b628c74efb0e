/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks for tests: forked processes that share a page of words, join one group over a directory
 * store, and end by a deadline whatever happens. A rank function checks with expect*(): the
 * first check that fails writes where and why into the shared page and ends the process. The
 * parent collects results, kills what is left, and tells which ranks hung.
 *
 * Processes wait for each other with words (futexes), never with sleeps.
 */
#ifndef TESTS_RANKS_H
#define TESTS_RANKS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <m2n/m2n.h>

#define RANKS_MAX 72
#define RANKS_TEXT 1024
#define RANKS_WORDS 256
#define RANKS_SKIP 77

struct rank {
	int rank;
	int n_ranks;
	struct m2n_ctx *ctx; /* NULL with opts.bare */
	struct m2n_group *group; /* likewise */
	void *arg;
	_Atomic uint32_t *word; /* [RANKS_WORDS] shared by all ranks and the parent, 0 at start */
	void *shared; /* [opts.shared_bytes], 0 at start */
	const char *store; /* URL of the directory store */
	const char *backend;
	const char *const *options;
	const char *secret;
	enum m2n_memory memory; /* where the rows of its channels lie */
	int check_leaks;
};
typedef void (*rank_fn)(struct rank *rank);

struct ranks_opts {
	const char *backend; /* NULL: "auto" */
	const char *const *options; /* "NAME=value" texts ended by NULL, or NULL */
	const char *secret;
	enum m2n_memory memory; /* for struct rank */
	int uses_device; /* opens the CUDA device first: what the driver keeps is no leak */
	int nccl_hosts; /* each rank another host, as NCCL sees it */
	int bare; /* the rank function opens and joins by itself */
	int no_leak_check;
	int deadline_s; /* 0: 40 */
	size_t shared_bytes;
};

struct ranks;

/* Forks n ranks that run fn. Never NULL: what fails here ends the program. */
struct ranks *ranks_start(int n, rank_fn fn, void *arg, const struct ranks_opts *opts);
/* Waits for all; prints failures as "# ..." lines. 0, 1, or RANKS_SKIP; frees. */
int ranks_finish(struct ranks *ranks);
/* The two in one. */
int ranks_run(int n, rank_fn fn, void *arg, const struct ranks_opts *opts);
/* As ranks_run(), but copies the shared memory out before it goes. */
int ranks_run_shared(int n, rank_fn fn, void *arg, const struct ranks_opts *opts, void *copy);

/* For tests that kill. A rank killed here, or by rank_die(), does not count as failed. */
void ranks_kill(struct ranks *ranks, int rank);
void ranks_signal(struct ranks *ranks, int rank, int signal);
/* Starts a dead rank once more (or another process with its number). */
void ranks_spawn(struct ranks *ranks, int rank, rank_fn fn);
/* Waits until word >= value; 0, or -1 when a rank failed or the deadline passed first. */
int ranks_wait_word(struct ranks *ranks, unsigned word, uint32_t value);
_Atomic uint32_t *ranks_words(struct ranks *ranks);
void *ranks_shared(struct ranks *ranks);
const char *ranks_store_dir(struct ranks *ranks);
pid_t ranks_pid(struct ranks *ranks, int rank);
/* Waits until a rank has ended (0), or the deadline passed (-1). */
int ranks_wait_end(struct ranks *ranks, int rank);

/* Words. */
void word_set(_Atomic uint32_t *word, uint32_t value);
uint32_t word_add(_Atomic uint32_t *word, uint32_t value); /* the new value */
void word_wait(_Atomic uint32_t *word, uint32_t at_least);

/* Inside a rank. */
void rank_barrier(struct rank *rank); /* all n_ranks; not when one of them was killed */
void rank_die(void) __attribute__((noreturn)); /* SIGKILL to itself, expected by the parent */
void rank_done(void) __attribute__((noreturn)); /* ends well without closing anything */
void rank_skip(const char *reason) __attribute__((noreturn));
void rank_fail(const char *file, int line, const char *format, ...)
	__attribute__((noreturn, format(printf, 3, 4)));
/* Opens the context and joins; what ranks_run() does unless opts.bare. */
int rank_open(struct rank *rank);
void rank_close(struct rank *rank);

#define expect(cond)                                                                               \
	do {                                                                                       \
		if (!(cond))                                                                       \
			rank_fail(__FILE__, __LINE__, "%s", #cond);                                \
	} while (0)
/* The call returns `want`; otherwise its name, the result and the error text are told. */
#define expect_status(want, call)                                                                  \
	do {                                                                                       \
		int status_ = (call);                                                              \
		int want_ = (want);                                                                \
		if (status_ != want_)                                                              \
			rank_fail(__FILE__, __LINE__, "%s = %d (%s: %s), not %d", #call, status_,  \
				m2n_strerror(status_), m2n_error_text(), want_);                   \
	} while (0)
#define expect_ok(call) expect_status(0, call)
#define expect_equal(a, b)                                                                         \
	do {                                                                                       \
		long long a_ = (long long)(a), b_ = (long long)(b);                                \
		if (a_ != b_)                                                                      \
			rank_fail(__FILE__, __LINE__, "%s = %lld, not %s = %lld", #a, a_, #b, b_); \
	} while (0)
/* m2n_error_text() holds the words, anywhere. */
void expect_text_at(const char *file, int line, const char *words);
#define expect_text(words) expect_text_at(__FILE__, __LINE__, words)
/* m2n_error_text() names the rank: "rank 3", or "ranks 1 3". */
void expect_rank_named_at(const char *file, int line, int rank);
#define expect_rank_named(rank) expect_rank_named_at(__FILE__, __LINE__, rank)

#endif
