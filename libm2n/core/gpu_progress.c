/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread of a context with channels in CUDA memory. The callers' threads do not come by here
 * while the device works, so somebody has to look after control connections (a peer's death ends
 * the waits of kernels) and, with messaging peers, to carry what kernels asked for: a *post* in
 * pinned memory is a transfer to make, and what arrived is told to the device in pinned words
 * that its waits read. No byte of a row passes here.
 *
 * Mapped peers alone: it sleeps on the control connections. With messaging peers it polls.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "core/gpu.h"
#include "util/error.h"
#include "util/time.h"

#define NAP_MS 2
#define IDLE_YIELDS 2000 /* empty looks before a messaging thread sleeps between them */
#define IDLE_NS INT64_C(50000)

struct m2n__gpu_thread {
	pthread_t thread;
	pthread_mutex_t lock; /* of the list: held while its channels are moved */
	struct m2n__gpu *first;
	atomic_int wanted; /* somebody waits for the lock */
	atomic_int stop;
};

/* Posts of one link that are new. Returns how many. */
static int send_posts(struct m2n__gpu_links *links, size_t i)
{
	struct m2n_exchange *x = links->x;
	struct m2n__tx *tx = &x->tx[i];
	uint32_t n_slots = x->spec.n_slots;
	int n = 0;

	for (uint32_t slot = 0; slot < n_slots; slot++) {
		struct m2n__gpu_post *post = &links->posts[i * n_slots + slot];
		/* A15: pairs with the release of a post by the kernel that filled it. */
		uint64_t seq = __atomic_load_n(&post->seq, __ATOMIC_ACQUIRE);

		if (seq == links->posted[i * n_slots + slot])
			continue;
		links->posted[i * n_slots + slot] = seq;
		/* a link that is down has no peer to tell: the loss is known already */
		if (m2n__tx_up(tx))
			(void)m2n__tx_put_device(
				x, tx, slot, post->head_bytes, post->body_at, post->body_bytes);
		n++;
	}
	return n;
}

/*
 * Signals of one link that are new, told to the device. What has arrived need not be seen by
 * kernels yet: between the look at the signals and the telling is the flush.
 */
static int tell_arrivals(struct m2n__gpu_links *links, size_t i)
{
	struct m2n_exchange *x = links->x;
	const struct m2n__rx *rx = &x->rx[i];
	uint32_t words = 2 * x->spec.n_slots, n = 0;
	uint64_t now[2 * M2N__MAX_DEPTH];

	for (uint32_t w = 0; w < words; w++) {
		/* A16: pairs with the backend's release of the signal word. */
		now[w] = atomic_load_explicit(
			&x->ctx->signals[rx->signal0 + w], memory_order_acquire);
		n += now[w] != atomic_load_explicit(
				       &links->arrived[i * words + w], memory_order_relaxed);
	}
	if (!n || !rx->ep || rx->ep->ops->flush_device(rx->ep->iface))
		return 0; /* it is tried again; when the link came up it had worked */
	for (uint32_t w = 0; w < words; w++)
		/* R16: pairs with A21, the acquire of `arrived` in the kernels' waits. */
		atomic_store_explicit(
			&links->arrived[i * words + w], now[w], memory_order_release);
	return (int)n;
}

/* Under the lock of the context: links neither come nor go meanwhile. */
static int move_links(struct m2n__gpu_links *links)
{
	int n = 0;

	for (size_t i = 0; i < links->x->n_rx; i++)
		if (links->rx[i].arrived && m2n__rx_up(&links->x->rx[i]))
			n += tell_arrivals(links, i);
	for (size_t i = 0; i < links->x->n_tx; i++)
		if (links->tx[i].post)
			n += send_posts(links, i);
	return n;
}

static int move_channel(struct m2n__gpu *gpu)
{
	int is_messaging = atomic_load_explicit(&gpu->dispatch.is_messaging, memory_order_acquire) |
			   atomic_load_explicit(&gpu->reply.is_messaging, memory_order_acquire);
	int n;

	if (!is_messaging)
		return -1;
	m2n__ctx_lock(gpu->ch->ctx);
	n = move_links(&gpu->dispatch);
	n += move_links(&gpu->reply);
	m2n__ctx_unlock(gpu->ch->ctx);
	return n;
}

/* Ranks that did not come in time are given up: the device went on without them. */
static void drop_late(struct m2n__gpu *gpu, unsigned which)
{
	struct m2n_channel *ch = gpu->ch;
	int of_sources = which == M2N__GPU_REPORT_RECV;
	const int *ranks = of_sources ? ch->p.sources : ch->p.experts;
	size_t n = of_sources ? ch->p.n_sources : ch->p.n_expert_ranks;
	struct m2n__gpu_report r;

	if (!m2n__gpu_read_report(gpu, which, &gpu->report_acted[which], &r) ||
		(r.code != -ETIMEDOUT && r.code != M2N_ERR_PROTOCOL))
		return;
	for (uint32_t i = 0; i < n; i++) {
		if (!m2n__bit(r.peers, i) || ranks[i] == ch->group->rank)
			continue;
		m2n__log(&ch->ctx->log, M2N_LOG_ERROR, "%s: round %lu: rank %d is dropped: %s",
			ch->title, (unsigned long)r.round, ranks[i],
			r.code == -ETIMEDOUT ? "it did not come in time"
					     : "what it sent makes no sense");
		m2n_group_drop(ch->group, ranks[i]);
	}
}

/* Region slots are free again when who may write to them is gone. */
static void release_held(struct m2n__gpu *gpu)
{
	struct m2n_exchange *x = gpu->reply.x;

	for (uint32_t place = 0; place < 2 * gpu->shape.depth; place++) {
		if (!atomic_load_explicit(&gpu->held[place], memory_order_acquire))
			continue;
		if (!x->quarantine[place])
			m2n__region_quarantine(x, place);
		if (!m2n__region_quarantined(x, place))
			atomic_store_explicit(&gpu->held[place], 0, memory_order_release);
	}
}

static void look_after(struct m2n__gpu *gpu)
{
	if (gpu->ch->self_expert >= 0)
		drop_late(gpu, M2N__GPU_REPORT_RECV);
	if (gpu->ch->self_source < 0)
		return;
	drop_late(gpu, M2N__GPU_REPORT_COMBINE);
	release_held(gpu);
}

/* One look at everything. Below 0: no channel has messaging peers; else what was moved. */
static int look(struct m2n__gpu_thread *t)
{
	int moved = -1;

	for (struct m2n__gpu *gpu = t->first; gpu; gpu = gpu->next) {
		int n = move_channel(gpu);

		look_after(gpu);
		if (n >= 0)
			moved = moved < 0 ? n : moved + n;
	}
	return moved;
}

static void *run(void *arg)
{
	struct m2n__gpu_thread *t = arg;
	uint32_t idle = 0;

	while (!atomic_load_explicit(&t->stop, memory_order_acquire)) {
		int moved;

		while (atomic_load_explicit(&t->wanted, memory_order_acquire))
			sched_yield();
		pthread_mutex_lock(&t->lock);
		moved = look(t);
		if (moved < 0 && t->first)
			m2n__group_wait(t->first->ch->group, NAP_MS);
		else if (t->first)
			moved += m2n__ctx_poll(t->first->ch->ctx);
		pthread_mutex_unlock(&t->lock);
		idle = moved > 0 ? 0 : idle + 1;
		if (moved == 0 && idle > IDLE_YIELDS)
			m2n__sleep_ns(IDLE_NS);
		else
			sched_yield();
	}
	return NULL;
}

static struct m2n__gpu_thread *start_thread(struct m2n_ctx *ctx)
{
	struct m2n__gpu_thread *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	pthread_mutex_init(&t->lock, NULL);
	if (pthread_create(&t->thread, NULL, run, t)) {
		pthread_mutex_destroy(&t->lock);
		free(t);
		return NULL;
	}
	ctx->gpu_thread = t;
	return t;
}

static void lock(struct m2n__gpu_thread *t)
{
	atomic_fetch_add_explicit(&t->wanted, 1, memory_order_acq_rel);
	pthread_mutex_lock(&t->lock);
	atomic_fetch_sub_explicit(&t->wanted, 1, memory_order_acq_rel);
}

int m2n__gpu_progress_add(struct m2n__gpu *gpu)
{
	struct m2n_ctx *ctx = gpu->ch->ctx;
	struct m2n__gpu_thread *t;

	m2n__ctx_lock(ctx);
	t = ctx->gpu_thread ? ctx->gpu_thread : start_thread(ctx);
	m2n__ctx_unlock(ctx);
	if (!t)
		return m2n__error(-ENOMEM, "%s: no thread for progress", gpu->ch->title);
	lock(t);
	gpu->next = t->first;
	t->first = gpu;
	pthread_mutex_unlock(&t->lock);
	return 0;
}

void m2n__gpu_progress_remove(struct m2n__gpu *gpu)
{
	struct m2n_ctx *ctx = gpu->ch->ctx;
	struct m2n__gpu_thread *t = ctx->gpu_thread;

	if (!t)
		return;
	lock(t);
	for (struct m2n__gpu **at = &t->first; *at; at = &(*at)->next) {
		if (*at == gpu) {
			*at = gpu->next;
			break;
		}
	}
	pthread_mutex_unlock(&t->lock);
}

void m2n__gpu_progress_stop(struct m2n_ctx *ctx)
{
	struct m2n__gpu_thread *t = ctx->gpu_thread;

	if (!t)
		return;
	atomic_store_explicit(&t->stop, 1, memory_order_release);
	pthread_join(t->thread, NULL);
	pthread_mutex_destroy(&t->lock);
	free(t);
	ctx->gpu_thread = NULL;
}
