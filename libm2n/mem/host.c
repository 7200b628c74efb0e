/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host memory in memfds. A memfd belongs to no file system that could be full or unmounted, has
 * no name to clean up, and a peer reaches it by /proc/PID/fd. Pages are allocated by fallocate()
 * (which fails where a first touch would kill) and mapped at once, so that rounds never fault.
 * The tail that is not committed is address space: huge pages are not even reserved for it.
 *
 * Kinds of pages, best first: hugetlb; ordinary pages with MADV_HUGEPAGE; ordinary ones. With
 * HUGE_TRY, hugetlb is taken only where rounding up wastes little and nothing is left to be
 * committed later, when the pool may be empty.
 */
#include "mem/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem/cuda_memory.h"
#include "mem/limit.h"
#include "util/error.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* A signal makes fallocate() undo its work, so that a piece must be short beside a timer's tick. */
#define PIECE_BYTES ((size_t)64 << 20)
#define HUGE_BYTES ((size_t)2 << 20)
#define MAX_WASTE 8 /* hugetlb when rounding adds at most one part in this many */

enum pages {
	PAGES_ORDINARY,
	PAGES_TRANSPARENT,
	PAGES_HUGETLB,
};

static size_t round_up(size_t bytes, size_t unit)
{
	return (bytes + unit - 1) / unit * unit;
}

static size_t system_page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

/* ftruncate() beyond RLIMIT_FSIZE raises SIGXFSZ, which kills. */
static int set_size(int fd, size_t bytes)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && bytes > limit.rlim_cur)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: the limit on file sizes is "
			"%llu; raise RLIMIT_FSIZE (ulimit -f)", bytes,
			(unsigned long long)limit.rlim_cur);
	if (ftruncate(fd, (off_t)bytes))
		return m2n__error(-ENOMEM, "no memory for %zu bytes: ftruncate: %s", bytes,
			strerrordesc_np(errno));
	return 0;
}

static int open_memfd(size_t bytes, int hugetlb)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (hugetlb ? MFD_HUGETLB : 0);
	struct rlimit limit = {0};
	int fd = memfd_create("m2n", flags);

	if (fd >= 0)
		return fd;
	if (errno != EMFILE)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: memfd_create: %s", bytes,
			strerrordesc_np(errno));
	getrlimit(RLIMIT_NOFILE, &limit);
	return m2n__error(-ENOMEM, "no memory for %zu bytes: all %llu file descriptors are in use; "
		"raise RLIMIT_NOFILE (ulimit -n)", bytes, (unsigned long long)limit.rlim_cur);
}

static int map(struct m2n__mem *mem, int hugetlb)
{
	int flags = MAP_SHARED | (hugetlb ? MAP_NORESERVE : 0);
	void *base = mmap(NULL, mem->bytes, PROT_READ | PROT_WRITE, flags, mem->fd, 0);
	struct rlimit limit = {.rlim_cur = RLIM_INFINITY};

	if (base != MAP_FAILED) {
		mem->base = base;
		return 0;
	}
	getrlimit(RLIMIT_AS, &limit);
	if (limit.rlim_cur != RLIM_INFINITY)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: mmap: %s; the limit on "
			"address space is %llu, raise RLIMIT_AS (ulimit -v)", mem->bytes,
			strerrordesc_np(errno), (unsigned long long)limit.rlim_cur);
	return m2n__error(-ENOMEM, "no memory for %zu bytes: mmap: %s", mem->bytes,
		strerrordesc_np(errno));
}

/* For kernels before 5.14. An atomic or of 0 dirties a page without disturbing who shares it. */
static void touch(char *base, size_t bytes, size_t page_bytes)
{
	for (size_t at = 0; at < bytes; at += page_bytes)
		__atomic_fetch_or(base + at, 0, __ATOMIC_RELAXED);
}

static int commit_piece(struct m2n__mem *mem, size_t offset, size_t bytes)
{
	char *base = (char *)mem->base + offset;
	int ret;

	/* Faults see MADV_HUGEPAGE, fallocate() does not: where they can be had without a signal
	 * they go first. What they could not allocate is left to fallocate() to explain. */
	if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0)
		return 0;
	do
		ret = fallocate(mem->fd, 0, (off_t)offset, (off_t)bytes);
	while (ret && errno == EINTR);
	if (ret || madvise(base, bytes, MADV_POPULATE_WRITE) == 0)
		return ret ? -errno : 0;
	if (errno != EINVAL)
		return -errno;
	touch(base, bytes, mem->page_bytes);
	return 0;
}

int m2n__mem_commit(struct m2n__mem *mem, size_t offset, size_t bytes)
{
	int hugetlb = mem->page_bytes != system_page_bytes();
	size_t end, at;
	int ret;

	if (bytes > mem->bytes || offset > mem->bytes - bytes)
		return m2n__error(-EINVAL, "commit of %zu bytes at %zu, but the memory has %zu",
			bytes, offset, mem->bytes);
	if (!bytes || mem->fd < 0)
		return 0;
	at = offset / mem->page_bytes * mem->page_bytes;
	end = round_up(offset + bytes, mem->page_bytes);
	ret = m2n__mem_check_available(end - at, hugetlb);
	for (; !ret && at < end; at += PIECE_BYTES) {
		size_t n = end - at < PIECE_BYTES ? end - at : PIECE_BYTES;

		ret = commit_piece(mem, at, n);
		if (ret)
			ret = m2n__error(-ENOMEM, "no memory for %zu of %zu bytes: fallocate: "
				"%s; %s", bytes, mem->bytes, strerrordesc_np(-ret), hugetlb ?
				"raise vm.nr_hugepages" : "see the control group's memory limit");
	}
	if (!ret && offset <= mem->committed && end > mem->committed)
		mem->committed = end;
	return ret;
}

/* Sealed against shrinking: a peer that maps it can never fault. Against more seals: a seal on
 * writing would break the owner. */
static int seal(const struct m2n__mem *mem)
{
	if (fcntl(mem->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return m2n__error(-ENOMEM, "no memory for %zu bytes: sealing the memfd: %s",
			mem->bytes, strerrordesc_np(errno));
	return 0;
}

/* Builds `mem` up; what is there when it fails is for release(). */
static int fill(struct m2n__mem *mem, size_t bytes, size_t commit, enum pages pages,
	size_t max_bytes)
{
	struct stat info;
	int ret;

	mem->fd = open_memfd(bytes, pages == PAGES_HUGETLB);
	if (mem->fd < 0)
		return mem->fd;
	/* The file system of the memfd knows the size of its pages. */
	mem->page_bytes = pages == PAGES_HUGETLB && !fstat(mem->fd, &info) ?
		(size_t)info.st_blksize : system_page_bytes();
	mem->bytes = round_up(bytes, mem->page_bytes);
	if (mem->bytes > max_bytes)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: pages of %zu waste too much",
			bytes, mem->page_bytes);
	ret = set_size(mem->fd, mem->bytes);
	if (!ret)
		ret = map(mem, pages == PAGES_HUGETLB);
	if (!ret && pages == PAGES_TRANSPARENT)
		madvise(mem->base, mem->bytes, MADV_HUGEPAGE); /* a wish: ordinary ones will do */
	if (!ret)
		ret = m2n__mem_commit(mem, 0, commit);
	if (!ret)
		ret = seal(mem);
	return ret;
}

static void release(struct m2n__mem *mem)
{
	if (mem->kind == M2N__MEM_CUDA)
		m2n__mem_release_cuda(mem);
	if (mem->fd < 0 && !mem->is_private)
		return;
	if (mem->base)
		munmap(mem->base, mem->bytes);
	if (mem->fd >= 0)
		close(mem->fd);
	*mem = (struct m2n__mem){.kind = M2N__MEM_HOST, .fd = -1};
}

static int fill_best(struct m2n__mem *mem, size_t bytes, size_t commit, enum m2n__mem_huge huge)
{
	if (huge == M2N__HUGE_YES)
		return fill(mem, bytes, commit, PAGES_HUGETLB, SIZE_MAX);
	if (huge == M2N__HUGE_NO || bytes < HUGE_BYTES / 2)
		return fill(mem, bytes, commit, PAGES_ORDINARY, SIZE_MAX);
	if (commit == bytes) {
		if (!fill(mem, bytes, commit, PAGES_HUGETLB, bytes + bytes / MAX_WASTE))
			return 0;
		release(mem);
	}
	return fill(mem, bytes, commit, PAGES_TRANSPARENT, SIZE_MAX);
}

int m2n__mem_alloc(size_t bytes, size_t commit, enum m2n__mem_huge huge, struct m2n__mem **out)
{
	struct m2n__mem *mem;
	int ret;

	if (!bytes || commit > bytes)
		return m2n__error(-EINVAL, "memory of %zu bytes, %zu of them committed", bytes,
			commit);
	if (bytes > (size_t)INT64_MAX / 2)
		return m2n__error(-ENOMEM, "no memory for %zu bytes: more than an address space",
			bytes);
	mem = calloc(1, sizeof(*mem));
	if (!mem)
		return m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*mem));
	mem->fd = -1;
	ret = fill_best(mem, bytes, commit, huge);
	if (ret) {
		release(mem);
		free(mem);
		return ret;
	}
	*out = mem;
	return 0;
}

int m2n__mem_alloc_private(size_t bytes, struct m2n__mem **out)
{
	size_t page_bytes = system_page_bytes(), all = round_up(bytes, page_bytes);
	struct m2n__mem *mem;
	void *base;
	int ret = m2n__mem_check_available(all, 0);

	if (ret)
		return ret;
	mem = malloc(sizeof(*mem));
	if (!mem)
		return m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*mem));
	base = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED) {
		free(mem);
		return m2n__error(-ENOMEM, "no memory for %zu bytes: %s", all,
			strerrordesc_np(errno));
	}
	*mem = (struct m2n__mem){
		.kind = M2N__MEM_HOST,
		.base = base,
		.bytes = all,
		.committed = all,
		.page_bytes = page_bytes,
		.fd = -1,
		.is_private = 1,
	};
	*out = mem;
	return 0;
}

int m2n__mem_wrap(void *base, size_t bytes, struct m2n__mem **out)
{
	size_t page_bytes = system_page_bytes();
	uintptr_t first = (uintptr_t)base / page_bytes * page_bytes;
	uintptr_t end;
	struct m2n__mem *mem;

	if (!base || !bytes || __builtin_add_overflow((uintptr_t)base, bytes, &end))
		return m2n__error(-EINVAL, "memory at %p of %zu bytes", base, bytes);
	/* MS_ASYNC starts nothing; it only walks the mappings, and says ENOMEM where one lacks. */
	if (msync((char *)base - ((uintptr_t)base - first), end - first, MS_ASYNC))
		return m2n__error(-EINVAL, "memory at %p of %zu bytes is not all mapped", base,
			bytes);
	mem = malloc(sizeof(*mem));
	if (!mem)
		return m2n__error(-ENOMEM, "no memory for %zu bytes", sizeof(*mem));
	*mem = (struct m2n__mem){
		.kind = M2N__MEM_HOST,
		.base = base,
		.bytes = bytes,
		.committed = bytes,
		.page_bytes = page_bytes,
		.fd = -1,
	};
	*out = mem;
	return 0;
}

void m2n__mem_free(struct m2n__mem *mem)
{
	if (!mem)
		return;
	release(mem);
	free(mem);
}
