/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notices: what the two ends of a backend's connection tell each other while data moves, as frames
 * of the control connection. A backend says one from the data path, with its own locks held, so
 * here it is only queued; whoever makes progress next and finds the context's lock free sends it.
 * A notice belongs to the connection that it was said on: it names it by serial number, so that
 * one to a peer that was lost, or came anew, goes nowhere.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/group.h"
#include "util/error.h"

struct m2n__notice {
	struct m2n__notice *next;
	struct m2n__peer *peer; /* lives as long as its group, which forgets what is queued */
	uint64_t serial;        /* of the peer's ep */
	size_t bytes;
	uint8_t body[];
};

int m2n__notice_say(void *arg, struct m2n__ep *ep, const void *bytes, size_t n)
{
	struct m2n_ctx *ctx = arg;
	struct m2n__notice *notice;

	if (n > M2N__NOTICE_BYTES)
		return m2n__error(
			-EINVAL, "a notice of %zu bytes, at most %d", n, M2N__NOTICE_BYTES);
	notice = malloc(sizeof(*notice) + n);
	if (!notice)
		return m2n__error(-ENOMEM, "no memory for a notice");
	notice->next = NULL;
	notice->peer = ep->owner;
	notice->serial = ep->serial;
	notice->bytes = n;
	memcpy(notice->body, bytes, n);
	pthread_mutex_lock(&ctx->notice_lock);
	*ctx->notices_end = notice;
	ctx->notices_end = &notice->next;
	atomic_fetch_add_explicit(&ctx->n_notices, 1, memory_order_relaxed);
	pthread_mutex_unlock(&ctx->notice_lock);
	return 0;
}

static struct m2n__notice *take_all(struct m2n_ctx *ctx)
{
	struct m2n__notice *all;

	pthread_mutex_lock(&ctx->notice_lock);
	all = ctx->notices;
	ctx->notices = NULL;
	ctx->notices_end = &ctx->notices;
	atomic_store_explicit(&ctx->n_notices, 0, memory_order_relaxed);
	pthread_mutex_unlock(&ctx->notice_lock);
	return all;
}

static void send_notice(const struct m2n__notice *notice)
{
	struct m2n__peer *peer = notice->peer;

	if (!peer->ep || peer->ep->serial != notice->serial)
		return;
	if (peer->conn)
		m2n__conn_send(peer->conn, M2N__FRAME_NOTICE, notice->body, notice->bytes);
	else if (m2n__peer_noticed(peer, notice->body, notice->bytes)) /* to ourselves */
		m2n__peer_lost(peer, M2N_PEER_LOST, m2n_error_text());
}

void m2n__notices_send(struct m2n_ctx *ctx)
{
	struct m2n__notice *all;

	if (pthread_mutex_trylock(&ctx->lock))
		return; /* who has it makes progress, too */
	all = take_all(ctx);
	while (all) {
		struct m2n__notice *notice = all;

		all = notice->next;
		send_notice(notice);
		free(notice);
	}
	pthread_mutex_unlock(&ctx->lock);
}

int m2n__peer_noticed(struct m2n__peer *peer, const void *notice, size_t bytes)
{
	if (bytes > M2N__NOTICE_BYTES)
		return m2n__error(M2N_ERR_PROTOCOL,
			"rank %d sent a notice of %zu bytes, at most %d",
			peer->rank, bytes, M2N__NOTICE_BYTES);
	return peer->ep ? peer->ep->ops->hear(peer->ep, notice, bytes) : 0;
}

void m2n__notices_forget(struct m2n_group *group)
{
	struct m2n_ctx *ctx = group->ctx;
	struct m2n__notice **at;
	unsigned n = 0;

	pthread_mutex_lock(&ctx->notice_lock);
	at = &ctx->notices;
	while (*at) {
		struct m2n__notice *notice = *at;

		if (notice->peer->group != group) {
			n++;
			at = &notice->next;
			continue;
		}
		*at = notice->next;
		free(notice);
	}
	ctx->notices_end = at;
	atomic_store_explicit(&ctx->n_notices, n, memory_order_relaxed);
	pthread_mutex_unlock(&ctx->notice_lock);
}
