/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that can be shared: host memory in sealed memfds (sealed against shrinking, so that a
 * peer that maps it can never fault), or the user's own. Pages are allocated when the memory is,
 * not when a round first touches them: -ENOMEM at set-up, never a signal later.
 */
#ifndef M2N_MEM_H
#define M2N_MEM_H

#include <stddef.h>
#include <stdint.h>

enum m2n__mem_kind {
	M2N__MEM_HOST = 0,
	M2N__MEM_CUDA = 1,
};

enum m2n__mem_huge {
	M2N__HUGE_NO = 0,
	M2N__HUGE_TRY = 1, /* hugetlb pages, else transparent ones, else ordinary */
	M2N__HUGE_YES = 2, /* hugetlb pages or -ENOMEM */
};

struct m2n__cuda;

struct m2n__mem {
	enum m2n__mem_kind kind;
	void *base;       /* kind CUDA: an address on the device */
	size_t bytes;     /* mapped */
	size_t committed; /* from the start; the rest is address space only */
	size_t page_bytes;
	int fd;           /* memfd; -1: the user's memory, or private */
	int is_private;
	int is_ours;      /* kind CUDA: allocated here, not the user's */
	struct m2n__cuda *cuda; /* kind CUDA: its device; NULL: host memory */
};

/*
 * Allocates `bytes` of zeroed address space of which the first `commit` bytes have pages.
 * -ENOMEM with size and limit in the text; -EINVAL for 0.
 */
int m2n__mem_alloc(size_t bytes, size_t commit, enum m2n__mem_huge huge, struct m2n__mem **mem);
/* The same for memory that no other process maps: takes no descriptor, pages come with use. */
int m2n__mem_alloc_private(size_t bytes, struct m2n__mem **mem);
/* Commits [offset, offset + bytes): for the rarely used tail. 0 or -ENOMEM. */
int m2n__mem_commit(struct m2n__mem *mem, size_t offset, size_t bytes);
/* Describes memory of the user; nothing is allocated behind it. -EINVAL when it is not mapped. */
int m2n__mem_wrap(void *base, size_t bytes, struct m2n__mem **mem);
/* Frees or forgets. NULL is allowed. */
void m2n__mem_free(struct m2n__mem *mem);

#endif
