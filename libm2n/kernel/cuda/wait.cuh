/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for heads, by one block: each thread looks at peers of its own until the head of the
 * round is there, the peer is gone, or the deadline has passed. `alive` lies in host memory, so it
 * is looked at rarely; a peer that is gone is looked at once more, since what it sent before may
 * have arrived meanwhile.
 */
#ifndef M2N_KERNEL_CUDA_WAIT_CUH
#define M2N_KERNEL_CUDA_WAIT_CUH

#include <errno.h>
#include <m2n/status.h>

#include "kernel/cuda/device.h"

#define LOOKS_A_CHECK 64u /* at `alive`, which is far away */
#define LOOKS_A_CLOCK 8u  /* the clock is slow to read, too */

/* Of a peer, in shared memory. */
enum { PEER_ABSENT = 0, PEER_PRESENT, PEER_DEAD, PEER_LATE, PEER_WRONG, PEER_OTHER_MAP };

struct wait {
	uint64_t rx;       /* table */
	uint64_t alive;    /* u32 [n] */
	uint64_t round;
	uint64_t deadline; /* 0: none */
	uint64_t stride;   /* of slots */
	uint32_t slot;
};

DEVICE uint64_t deadline_of(int64_t timeout_ns)
{
	return timeout_ns < 0 || timeout_ns > INT64_MAX / 2 ? 0 : now_ns() + (uint64_t)timeout_ns;
}

/* The head of the round, when it and all that it counts have arrived; else NULL. */
DEVICE const struct m2n__gpu_head *look(const struct wait *w, uint32_t peer)
{
	const struct m2n__gpu_rx *rx = at<struct m2n__gpu_rx>(w->rx, peer);
	uint64_t slots = relaxed_load_sys(&rx->slots);
	const struct m2n__gpu_head *head = at<struct m2n__gpu_head>(slots + w->slot * w->stride);
	const uint64_t *arrived = at<uint64_t>(rx->arrived, 2 * w->slot);
	const uint64_t *seen = at<uint64_t>(rx->seen, 2 * w->slot);

	if (!slots)
		return NULL;
	if (!rx->arrived) /* A20: pairs with R20 in dispatch.cuh, R22 in reply.cuh */
		return acquire_load_sys(&head->signal) == w->round + 1 ? head : NULL;
	/* A21: pairs with the progress thread's release, after what arrived was flushed. */
	if (acquire_load_sys(&arrived[0]) == seen[0] ||
		relaxed_load_sys(&head->signal) != w->round + 1)
		return NULL;
	return acquire_load_sys(&arrived[1]) - seen[1] >= head->n_body_puts ? head : NULL;
}

/* Messaging: what arrived for the slot is taken. */
DEVICE void take(const struct wait *w, uint32_t peer, const struct m2n__gpu_head *head)
{
	const struct m2n__gpu_rx *rx = at<struct m2n__gpu_rx>(w->rx, peer);
	uint64_t *seen = at<uint64_t>(rx->seen, 2 * w->slot);

	if (!rx->arrived)
		return;
	seen[0]++;
	seen[1] += head->n_body_puts;
}

/* Will this round still come from the peer? */
DEVICE int comes(const struct wait *w, uint32_t peer)
{
	const struct m2n__gpu_rx *rx = at<struct m2n__gpu_rx>(w->rx, peer);

	/* A12: pairs with R12 in core/gpu_link.c. */
	return acquire_load_sys(at<uint32_t>(w->alive, peer)) &&
	       relaxed_load_sys(&rx->first_round) <= w->round;
}

/* Why a peer that does not come is missing: it is not alive, or new. */
DEVICE uint32_t why_gone(const struct wait *w, uint32_t peer)
{
	return acquire_load_sys(at<uint32_t>(w->alive, peer)) ? PEER_ABSENT : PEER_DEAD;
}

/* One thread waits for one peer: PEER_PRESENT with its head, or why not. */
DEVICE uint32_t await_head(
	const struct wait *w, uint32_t peer, const struct m2n__gpu_head **head)
{
	int gone = 0, late = 0;

	for (uint32_t n = 0;; n++) {
		*head = look(w, peer);
		if (*head)
			return PEER_PRESENT;
		if (gone)
			return why_gone(w, peer);
		if (late)
			return PEER_LATE;
		gone = n % LOOKS_A_CHECK == 0 && !comes(w, peer);
		late = w->deadline && n % LOOKS_A_CLOCK == 0 && now_ns() >= w->deadline;
		if (!gone && !late)
			nap();
	}
}

DEVICE int32_t code_of(uint32_t state)
{
	switch (state) {
	case PEER_DEAD:
		return M2N_PARTIAL;
	case PEER_LATE:
		return -ETIMEDOUT;
	case PEER_WRONG:
		return M2N_ERR_PROTOCOL;
	case PEER_OTHER_MAP:
		return M2N_ERR_MAP;
	default:
		return 0;
	}
}

/* Who is here, who is missing, and who is to blame: those with the worst reason. */
struct verdict {
	uint64_t present[M2N__GPU_MASK_WORDS], missing[M2N__GPU_MASK_WORDS];
	uint64_t blamed[M2N__GPU_MASK_WORDS];
	uint32_t worst;
};

/* All threads of the block; the verdict lies in shared memory. */
DEVICE void judge(uint32_t n, const uint8_t *state, struct verdict *v)
{
	for (uint32_t w = threadIdx.x; w < M2N__GPU_MASK_WORDS; w += blockDim.x)
		v->present[w] = v->missing[w] = v->blamed[w] = 0;
	if (threadIdx.x == 0)
		v->worst = PEER_ABSENT;
	block_sync();
	for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
		set_bit(state[i] == PEER_PRESENT ? v->present : v->missing, i);
		if (state[i] != PEER_PRESENT)
			atomic_max(&v->worst, state[i]);
	}
	block_sync();
	for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
		if (state[i] == v->worst)
			set_bit(v->blamed, i);
	block_sync();
}

#endif
