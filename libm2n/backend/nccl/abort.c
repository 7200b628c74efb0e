/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Aborting communicators. ncclCommAbort() tells its kernels to leave at once, and returns when it
 * has freed its memory; CUDA frees device memory only when the device is idle, and that may take
 * until other lost peers are aborted as well. Nobody waits for that but the end of the iface.
 */
#include <errno.h>
#include <stdlib.h>

#include "backend/nccl/nccl.h"

struct m2n__nccl_ender {
	struct m2n__nccl_ender *next;
	struct m2n__cuda *cuda;
	void *comm;
	pthread_t thread;
	atomic_int is_over;
};

static void *run(void *arg)
{
	struct m2n__nccl_ender *ender = arg;
	int mode, is_inside = m2n__cuda_enter_relaxed(ender->cuda, &mode) == 0;

	m2n__nccl.ncclCommAbort(ender->comm);
	if (is_inside)
		m2n__cuda_leave_relaxed(ender->cuda, &mode);
	atomic_store(&ender->is_over, 1);
	return NULL;
}

void m2n__nccl_abort(struct m2n__nccl_iface *u, void *comm)
{
	struct m2n__nccl_ender *ender = calloc(1, sizeof(*ender));

	if (ender) {
		ender->cuda = u->cuda;
		ender->comm = comm;
	}
	if (!ender || pthread_create(&ender->thread, NULL, run, ender)) {
		free(ender);
		m2n__nccl.ncclCommAbort(comm); /* without a thread, as it may */
		return;
	}
	pthread_mutex_lock(&u->enders_lock);
	ender->next = u->enders;
	u->enders = ender;
	pthread_mutex_unlock(&u->enders_lock);
}

void m2n__nccl_reap(struct m2n__nccl_iface *u, int all)
{
	struct m2n__nccl_ender *over = NULL, **at;

	pthread_mutex_lock(&u->enders_lock);
	at = &u->enders;
	while (*at) {
		struct m2n__nccl_ender *ender = *at;

		if (!all && !atomic_load(&ender->is_over)) {
			at = &ender->next;
			continue;
		}
		*at = ender->next;
		ender->next = over;
		over = ender;
	}
	pthread_mutex_unlock(&u->enders_lock);
	while (over) {
		struct m2n__nccl_ender *ender = over;

		over = ender->next;
		pthread_join(ender->thread, NULL);
		free(ender);
	}
}
