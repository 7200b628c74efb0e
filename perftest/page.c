/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared page. Waiting spins for a while where every process has a core of its own, and
 * sleeps on a futex where not; sleepers look every tenth of a second whether the run was given up.
 */
#include "page.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x6d326e2d70657266)

static uint64_t align_up(uint64_t value)
{
	return (value + 4095) & ~UINT64_C(4095);
}

static uint64_t notes_bytes(const struct page_dims *dims)
{
	return dims->n_cases * (sizeof(struct page_cost) +
				       (uint64_t)dims->n_series * dims->n_reps *
					       sizeof(struct page_figure));
}

struct page *page_create(const struct page_dims *dims, bool shared)
{
	uint64_t n = dims->n_ranks;
	uint64_t ranks_at = align_up(sizeof(struct page));
	uint64_t peers_at = align_up(ranks_at + n * sizeof(struct page_rank));
	uint64_t notes_at = align_up(peers_at + n * n * PAGE_N_FLOWS * sizeof(struct page_peer));
	uint64_t sheet_at = align_up(notes_at + n * notes_bytes(dims));
	uint64_t extra_at = align_up(sheet_at + n * dims->n_cases * dims->n_series * dims->n_iters *
							sizeof(struct page_stamp));
	uint64_t bytes = align_up(extra_at + dims->extra_bytes);
	int fd = -1;

	if (shared) {
		fd = memfd_create("m2n_perf", 0);
		if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
			return NULL;
	}
	struct page *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
	if (page == MAP_FAILED)
		return NULL;
	page->magic = MAGIC;
	page->bytes = bytes;
	page->dims = *dims;
	page->ranks_at = ranks_at;
	page->peers_at = peers_at;
	page->notes_at = notes_at;
	page->sheet_at = sheet_at;
	page->extra_at = extra_at;
	page->fd = fd;
	page->spin_ns = n <= perf_n_cores() ? 200000 : 0;
	atomic_store(&page->failed_rank, -1);
	return page;
}

struct page *page_map(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0 || (size_t)st.st_size < sizeof(struct page))
		return NULL;
	struct page *page =
		mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page == MAP_FAILED || page->magic != MAGIC || page->bytes != (uint64_t)st.st_size)
		return NULL;
	return page;
}

void page_free(struct page *page)
{
	if (page == NULL)
		return;
	int fd = page->fd;
	munmap(page, page->bytes);
	if (fd >= 0)
		close(fd);
}

size_t page_rank_sheet_bytes(const struct page *page)
{
	return sizeof(struct page_stamp) * page->dims.n_cases * page->dims.n_series *
		page->dims.n_iters;
}

struct page_stamp *page_stamps(struct page *page, uint32_t rank, uint32_t n_case, uint32_t series)
{
	size_t row = (size_t)n_case * page->dims.n_series + series;

	return (struct page_stamp *)((char *)page + page->sheet_at +
		       rank * page_rank_sheet_bytes(page)) +
		row * page->dims.n_iters;
}

struct page_rank *page_rank(struct page *page, uint32_t rank)
{
	return (struct page_rank *)((char *)page + page->ranks_at) + rank;
}

struct page_peer *page_peer(struct page *page, uint32_t rank, uint32_t peer, enum page_flow flow)
{
	size_t n = page->dims.n_ranks;

	return (struct page_peer *)((char *)page + page->peers_at) +
		(rank * n + peer) * PAGE_N_FLOWS + flow;
}

size_t page_rank_notes_bytes(const struct page *page)
{
	return notes_bytes(&page->dims);
}

struct page_cost *page_cost(struct page *page, uint32_t rank, uint32_t n_case)
{
	return (struct page_cost *)((char *)page + page->notes_at +
		       rank * notes_bytes(&page->dims)) +
		n_case;
}

struct page_figure *page_figures(
	struct page *page, uint32_t rank, uint32_t n_case, uint32_t series)
{
	size_t row = (size_t)n_case * page->dims.n_series + series;

	return (struct page_figure *)page_cost(page, rank, page->dims.n_cases) +
		row * page->dims.n_reps;
}

void *page_extra(struct page *page)
{
	return (char *)page + page->extra_at;
}

static void futex_sleep(_Atomic uint32_t *word, uint32_t seen)
{
	struct timespec tenth = {.tv_nsec = 100000000};

	syscall(SYS_futex, word, FUTEX_WAIT, seen, &tenth, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Spins until *word is no longer `seen`, or for the page's spinning time. */
static bool spin_while(struct page *page, _Atomic uint32_t *word, uint32_t seen)
{
	if (page->spin_ns == 0)
		return atomic_load_explicit(word, memory_order_acquire) != seen;
	int64_t until = perf_now() + page->spin_ns;
	do {
		for (int i = 0; i < 64; i++) {
			if (atomic_load_explicit(word, memory_order_acquire) != seen)
				return true;
			__builtin_ia32_pause();
		}
	} while (perf_now() < until);
	return false;
}

bool page_barrier(struct page *page, enum page_crowd crowd, uint32_t n)
{
	struct page_barrier *barrier = &page->barriers[crowd];
	uint32_t seen = atomic_load(&barrier->generation);

	if (atomic_fetch_add(&barrier->n_arrived, 1) == n - 1) {
		atomic_store(&barrier->n_arrived, 0);
		atomic_fetch_add(&barrier->generation, 1);
		if (atomic_load(&barrier->n_sleepers) > 0)
			futex_wake(&barrier->generation);
	} else if (!spin_while(page, &barrier->generation, seen)) {
		atomic_fetch_add(&barrier->n_sleepers, 1);
		while (atomic_load(&barrier->generation) == seen && !atomic_load(&page->abort))
			futex_sleep(&barrier->generation, seen);
		atomic_fetch_sub(&barrier->n_sleepers, 1);
	}
	return !atomic_load_explicit(&page->abort, memory_order_relaxed);
}

bool page_wait(struct page *page, _Atomic uint32_t *word, uint32_t value)
{
	uint32_t seen;

	while ((seen = atomic_load(word)) < value) {
		if (atomic_load(&page->abort))
			return false;
		futex_sleep(word, seen);
	}
	return true;
}

void page_post(_Atomic uint32_t *word, uint32_t value)
{
	atomic_store(word, value);
	futex_wake(word);
}

void page_fail(struct page *page, int rank, const char *form, ...)
{
	int32_t nobody = -1;
	va_list list;

	if (atomic_compare_exchange_strong(&page->failed_rank, &nobody, rank)) {
		va_start(list, form);
		vsnprintf(page->failed_text, sizeof(page->failed_text), form, list);
		va_end(list);
	}
	page_post(&page->abort, 1);
	futex_wake(&page->barriers[PAGE_OURS].generation);
	futex_wake(&page->barriers[PAGE_MPI].generation);
}

int64_t perf_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* The cores of the process before it was pinned, remembered by the first question. */
static const cpu_set_t *allowed_cores(void)
{
	static cpu_set_t set;

	if (CPU_COUNT(&set) == 0 && sched_getaffinity(0, sizeof(set), &set) != 0)
		CPU_SET(0, &set);
	return &set;
}

unsigned perf_n_cores(void)
{
	return (unsigned)CPU_COUNT(allowed_cores());
}

void perf_pin(unsigned rank)
{
	const cpu_set_t *allowed = allowed_cores();
	unsigned skip = rank % perf_n_cores();
	cpu_set_t one;

	CPU_ZERO(&one);
	for (unsigned core = 0; core < CPU_SETSIZE; core++) {
		if (!CPU_ISSET(core, allowed) || skip-- > 0)
			continue;
		CPU_SET(core, &one);
		sched_setaffinity(0, sizeof(one), &one);
		return;
	}
}
