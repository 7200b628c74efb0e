/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping until a completion comes. Several threads may wait, but an event of a completion
 * channel can be taken by one only: the *leader* polls the descriptors, the others sleep on a
 * generation word that grows whenever events were taken. A ticket is the generation at arm().
 *
 * progress() of another thread may have polled the completion that a waiter armed for before it
 * armed, so whoever polled something raises the generation too (kick).
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"
#include "util/time.h"

#define MAX_FDS (2 * VERBS_MAX_RAILS + 2)

int m2n__verbs_sleep_start(struct verbs_iface *v)
{
	if (v->kick_fd >= 0)
		return 0;
	v->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return v->kick_fd < 0 ? m2n__error(-errno, "verbs: eventfd: %s", strerrordesc_np(errno))
			      : 0;
}

void m2n__verbs_sleep_stop(struct verbs_iface *v)
{
	if (v->kick_fd >= 0)
		close(v->kick_fd);
	v->kick_fd = -1;
}

static void wake_followers(struct verbs_iface *v)
{
	atomic_fetch_add(&v->generation, 1);
	if (atomic_load(&v->n_followers))
		syscall(SYS_futex, &v->generation, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void m2n__verbs_kick(struct verbs_iface *v)
{
	const uint64_t one = 1;

	/* Signals before the look at n_armed; a waiter arms before it looks at signals. */
	atomic_thread_fence(memory_order_seq_cst);
	if (!atomic_load_explicit(&v->n_armed, memory_order_relaxed))
		return;
	wake_followers(v);
	if (atomic_load(&v->is_polling) && write(v->kick_fd, &one, sizeof(one)) < 0)
		return; /* it is full: the leader wakes anyway */
}

uint32_t m2n__verbs_arm(struct m2n__iface *iface)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;
	uint32_t ticket;

	atomic_fetch_add(&v->n_armed, 1);
	ticket = atomic_load(&v->generation);
	if (!atomic_load_explicit(&v->is_started, memory_order_acquire))
		return ticket;
	for (unsigned i = 0; i < v->n_rails; i++)
		(void)ibv_req_notify_cq(v->rails[i].cq, 0);
	return ticket;
}

void m2n__verbs_disarm(struct m2n__iface *iface)
{
	atomic_fetch_sub(&((struct verbs_iface *)iface)->n_armed, 1);
}

static struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static void follow(struct verbs_iface *v, uint32_t ticket, int64_t timeout_ns)
{
	struct timespec limit = to_timespec(timeout_ns);

	atomic_fetch_add(&v->n_followers, 1);
	syscall(SYS_futex, &v->generation, FUTEX_WAIT_PRIVATE, ticket, &limit, NULL, 0);
	atomic_fetch_sub(&v->n_followers, 1);
}

/* One event: each arming makes at most one, and what is left shows at the next sleep. */
static void drain(struct verbs_rail *rail)
{
	struct ibv_cq *cq = NULL;
	void *arg = NULL;

	if (m2n__ibv.get_cq_event(rail->channel, &cq, &arg) == 0)
		m2n__ibv.ack_cq_events(rail->cq, 1);
}

/* Sleeps on all descriptors, and takes the events that came. */
static void lead(struct verbs_iface *v, int64_t timeout_ns)
{
	struct timespec limit = to_timespec(timeout_ns);
	struct pollfd fds[MAX_FDS];
	unsigned n = 0, n_rare;
	uint64_t kicks;

	for (unsigned i = 0; i < v->n_rails; i++)
		fds[n++] = (struct pollfd){v->rails[i].channel->fd, POLLIN, 0};
	fds[n++] = (struct pollfd){v->kick_fd, POLLIN, 0};
	n_rare = n;
	for (unsigned i = 0; i < v->n_rails; i++)
		fds[n++] = (struct pollfd){v->rails[i].ctx->async_fd, POLLIN, 0};
	fds[n++] = (struct pollfd){m2n__verbs_cm_fd(v), POLLIN, 0};
	if (ppoll(fds, n, &limit, NULL) <= 0)
		return;
	for (unsigned i = 0; i < v->n_rails; i++)
		if (fds[i].revents)
			drain(&v->rails[i]);
	if (fds[v->n_rails].revents && read(v->kick_fd, &kicks, sizeof(kicks)) < 0)
		return; /* somebody's kick was read already */
	for (unsigned i = n_rare; i < n; i++) {
		if (fds[i].revents) {
			m2n__verbs_look(v);
			break;
		}
	}
}

void m2n__verbs_wait(struct m2n__iface *iface, uint32_t ticket, int64_t timeout_ns)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;

	if (timeout_ns <= 0 || !atomic_load_explicit(&v->is_started, memory_order_acquire))
		return;
	if (atomic_exchange(&v->is_led, 1)) {
		follow(v, ticket, timeout_ns);
		return;
	}
	/* is_polling before the look at the generation: a kick sees the one or raised the other. */
	atomic_store(&v->is_polling, 1);
	if (atomic_load(&v->generation) == ticket)
		lead(v, timeout_ns);
	atomic_store(&v->is_polling, 0);
	atomic_store(&v->is_led, 0);
	/* Followers too: one of them leads next. */
	wake_followers(v);
}
