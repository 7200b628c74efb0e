/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting: spin for a moment, yield for a moment, then sleep in short naps, looking after control
 * connections between them. Used as
 *
 *     m2n__wait_begin(&w, ctx, timeout_ns);
 *     while (!there() && !(rc = m2n__wait_step(&w)))
 *             ;
 *     m2n__wait_end(&w);
 *
 * A wait that finds what it wants at once costs no clock reading, no call and few stores.
 */
#ifndef M2N_CORE_WAIT_H
#define M2N_CORE_WAIT_H

#include "core/context.h"

struct m2n__wait {
	struct m2n_ctx *ctx;
	int64_t timeout_ns; /* below 0: the context's */
	int64_t start_ns;   /* 0: not read yet */
	uint64_t n_steps;
	struct m2n__iface *dozing; /* whose sleeper this wait is; NULL: none */
	/* from the first step on */
	int64_t deadline_ns;
	uint32_t ticket;
	int armed;
	int spinning;
	unsigned n_short_naps; /* to come: while something is on its way that wakes nobody */
};

static inline void m2n__wait_begin(struct m2n__wait *w, struct m2n_ctx *ctx, int64_t timeout_ns)
{
	w->ctx = ctx;
	w->timeout_ns = timeout_ns;
	w->start_ns = 0;
	w->n_steps = 0;
	w->dozing = NULL;
}

/* 0: look again; -EAGAIN (timeout 0) or -ETIMEDOUT, without text. */
int m2n__wait_step(struct m2n__wait *w);

/* About to sleep, after the step before it said that nothing came. */
static inline int m2n__wait_sleeps(const struct m2n__wait *w)
{
	return w->dozing && w->armed;
}

void m2n__wait_wake(struct m2n__wait *w);
static inline void m2n__wait_end(struct m2n__wait *w)
{
	if (w->dozing)
		m2n__wait_wake(w);
}

/* Time waited so far: 0 when the first look succeeded. */
int64_t m2n__waited_ns(const struct m2n__wait *w);

#endif
