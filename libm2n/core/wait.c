/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of a wait. The clock is read every few spins only; naps are short because the death
 * of a peer shows on a socket, which a sleep on a futex does not watch.
 */
#include "core/wait.h"

#include <errno.h>
#include <sched.h>

#include "util/time.h"

#define SPINS_PER_LOOK 32
#define NAP_NS INT64_C(1000000)
#define SHORT_NAP_NS INT64_C(50000) /* while messages can come that wake nobody */

static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

static int64_t spin_ns(const struct m2n_ctx *ctx)
{
	return atomic_load_explicit(&ctx->spin_ns, memory_order_relaxed);
}

static void disarm(struct m2n__wait *w)
{
	w->dozing->ops->disarm(w->dozing);
	w->armed = 0;
}

void m2n__wait_wake(struct m2n__wait *w)
{
	if (w->armed)
		disarm(w);
	w->dozing->ops->doze(w->dozing, -1);
	w->dozing = NULL;
}

/* The end of spinning: from here on a peer's signal must look whether we sleep. */
static void doze(struct m2n__wait *w)
{
	struct m2n__iface *sleeper =
		atomic_load_explicit(&w->ctx->sleeper, memory_order_acquire);

	if (w->dozing || !sleeper)
		return;
	sleeper->ops->doze(sleeper, 1);
	w->dozing = sleeper;
}

int64_t m2n__waited_ns(const struct m2n__wait *w)
{
	return w->start_ns ? m2n__now_ns() - w->start_ns : 0;
}

/* Arm in one step, so that the caller looks once more; sleep in the next. */
static void nap(struct m2n__wait *w, int64_t now)
{
	struct m2n__iface *sleeper = w->dozing;
	int64_t left = w->deadline_ns - now;
	int is_short = w->n_short_naps ||
		       atomic_load_explicit(&w->ctx->others_come, memory_order_relaxed);
	int64_t nap_ns = is_short ? SHORT_NAP_NS : NAP_NS;

	if (!sleeper) {
		m2n__sleep_ns(SHORT_NAP_NS);
		m2n__ctx_poll(w->ctx);
	} else if (!w->armed) {
		w->ticket = sleeper->ops->arm(sleeper);
		w->armed = 1;
	} else {
		sleeper->ops->wait(sleeper, w->ticket, left < nap_ns ? left : nap_ns);
		disarm(w);
		w->n_short_naps -= w->n_short_naps > 0;
	}
}

static int try_once(struct m2n__wait *w)
{
	if (w->n_steps > 1)
		return -EAGAIN;
	m2n__ctx_poll_sometimes(w->ctx, m2n__now_ns());
	return 0;
}

static void start(struct m2n__wait *w)
{
	if (w->timeout_ns < 0)
		w->timeout_ns = w->ctx->options.timeout_ns;
	w->armed = 0;
	w->n_short_naps = 0;
	w->spinning = spin_ns(w->ctx) > 0;
}

int m2n__wait_step(struct m2n__wait *w)
{
	struct m2n_ctx *ctx = w->ctx;
	int64_t now, waited;
	int events;

	if (!w->n_steps++)
		start(w);
	events = m2n__ctx_progress(ctx);
	m2n__grants_poll(ctx);
	if (w->timeout_ns == 0)
		return try_once(w);
	if (w->spinning && w->n_steps % SPINS_PER_LOOK) {
		if (!events)
			relax();
		return 0;
	}
	now = m2n__now_ns();
	if (!w->start_ns) {
		w->start_ns = now;
		w->deadline_ns = w->timeout_ns > INT64_MAX - now ? INT64_MAX : now + w->timeout_ns;
	}
	waited = now - w->start_ns;
	w->spinning = waited < spin_ns(ctx);
	if (now >= w->deadline_ns)
		return -ETIMEDOUT;
	m2n__ctx_poll_sometimes(ctx, now);
	if (!w->spinning)
		doze(w);
	if (w->spinning)
		relax();
	else if (waited < spin_ns(ctx) + ctx->options.yield_ns)
		sched_yield();
	else
		nap(w, now);
	return 0;
}
