/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joining and leaving a group: who we are (call, options, launcher), the store, the address
 * record, the control port; and the application's own values in the store.
 */
#include "core/group.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "bootstrap/launcher.h"
#include "util/error.h"
#include "util/time.h"

static int fill_record(struct m2n_group *group)
{
	struct m2n_ctx *ctx = group->ctx;
	struct m2n__record *r = &group->record;

	if (getrandom(&r->incarnation, sizeof(r->incarnation), 0) < 0)
		r->incarnation = (uint64_t)m2n__now_ns();
	r->incarnation |= 1;
	r->n_ranks = (uint32_t)group->n_ranks;
	snprintf(r->host_id, sizeof(r->host_id), "%s", ctx->host_id);
	for (unsigned i = 0; i < ctx->n_backends; i++) {
		struct m2n__backend *b = &ctx->backends[i];
		size_t n = M2N__ADDRESS_BYTES;
		int rc;

		if (!b->iface)
			continue;
		rc = b->ops.address(b->iface, r->backends[r->n_backends].blob, &n);
		if (rc)
			return rc;
		snprintf(r->backends[r->n_backends].name, sizeof(r->backends[0].name), "%s",
			b->ops.name);
		r->backends[r->n_backends++].bytes = (uint32_t)n;
	}
	return 0;
}

/* The address that peers call: the option's, or the one that reaches the store. */
static const char *own_address(struct m2n_group *group)
{
	if (group->ctx->options.address[0])
		return group->ctx->options.address;
	return group->store->local_addr[0] ? group->store->local_addr : "127.0.0.1";
}

static int publish(struct m2n_group *group, int64_t timeout_ns)
{
	uint8_t bytes[M2N__RECORD_BYTES_MAX];
	struct m2n__cursor cursor = {bytes, bytes + sizeof(bytes), 0};
	char key[M2N__STORE_KEY_MAX];
	size_t n = sizeof(bytes);
	int rc;

	snprintf(group->record.address, sizeof(group->record.address), "%s", own_address(group));
	rc = m2n__control_open(group, group->record.address);
	if (!rc)
		rc = fill_record(group);
	if (rc)
		return rc;
	m2n__peer_key(group, group->rank, key);
	rc = group->store->ops->get(group->store, key, bytes, &n, 0);
	group->replacing = rc == 0;
	if (rc && rc != -EAGAIN && rc != -ENOSPC)
		return rc;
	m2n__record_pack(&group->record, &cursor);
	return group->store->ops->put(
		group->store, key, bytes, (size_t)(cursor.at - bytes), timeout_ns);
}

/* Who are we: the call's params, then options, then the launcher. */
static int find_place(struct m2n_ctx *ctx, struct m2n_group_params *p, struct m2n__launch *launch,
	struct m2n_group *group)
{
	int rc = m2n__launch_detect(m2n__getenv, NULL, launch);
	const char *name;

	if (rc)
		return rc;
	group->rank = p->rank >= 0             ? p->rank
		      : ctx->options.rank >= 0 ? (int)ctx->options.rank
					       : launch->rank;
	group->n_ranks = p->n_ranks >= 0             ? p->n_ranks
			 : ctx->options.n_ranks >= 0 ? (int)ctx->options.n_ranks
						     : launch->n_ranks;
	name = p->name ? p->name : ctx->options.group;
	snprintf(group->name, sizeof(group->name), "%s", name);
	for (const char *c = name; *c; c++)
		if (*c <= ' ' || *c > '~' || strlen(name) >= sizeof(group->name))
			return m2n__error(-EINVAL,
				"group name '%s': 1..63 printable characters without spaces", name);
	if (group->rank < 0 || group->n_ranks < 1 || group->rank >= M2N__MAX_RANKS)
		return m2n__error(-EINVAL,
			"rank %d of %d: give rank and n_ranks, set M2N_RANK and M2N_SIZE, or start "
			"by torchrun, mpirun or srun (launcher found: %s)",
			group->rank, group->n_ranks, launch->launcher);
	return 0;
}

static int open_store(struct m2n_ctx *ctx, struct m2n_group_params *p,
	const struct m2n__launch *launch, struct m2n_group *group)
{
	const char *url = p->store                ? p->store
			  : ctx->options.store[0] ? ctx->options.store
						  : launch->store;
	const char *secret = p->secret ? p->secret : ctx->options.secret;
	int is_dir = strncmp(url, "dir:", 4) == 0;
	int rc = m2n__auth_key_derive(secret, &group->key);

	if (rc)
		return rc;
	if (p->callbacks)
		return m2n__store_open_callbacks(p->callbacks, &group->store);
	if (!url[0])
		return m2n__error(-EINVAL,
			"no store: give a URL, or set M2N_STORE to tcp://HOST:PORT or dir:PATH "
			"(launcher found: %s)",
			launch->launcher);
	/* A directory is left as it is: a rank that ends early must not take others' keys away. */
	return m2n__store_open(
		url, group->rank == 0 && !is_dir, &group->key, p->timeout_ns, &group->store);
}

int m2n_group_join(
	struct m2n_ctx *ctx, const struct m2n_group_params *params, struct m2n_group **group_out)
{
	static const struct m2n_group_params init = M2N_GROUP_PARAMS_INIT;
	struct m2n__launch launch;
	struct m2n_group_params p;
	struct m2n_group *group;
	int rc = m2n__params_read(&p, sizeof(p), &init, params, "m2n_group_params");

	if (rc)
		return rc;
	if (!ctx || !group_out)
		return m2n__error(-EINVAL, "m2n_group_join: ctx or group is NULL");
	if (p.timeout_ns < 0)
		p.timeout_ns = ctx->options.timeout_ns;
	group = calloc(1, sizeof(*group));
	if (!group)
		return m2n__error(-ENOMEM, "no memory for a group");
	group->ctx = ctx;
	group->listen_fd = group->epoll_fd = -1;
	rc = find_place(ctx, &p, &launch, group);
	if (!rc)
		rc = open_store(ctx, &p, &launch, group);
	if (!rc)
		rc = publish(group, p.timeout_ns);
	m2n__ctx_lock(ctx);
	if (!rc) {
		group->next = ctx->groups;
		ctx->groups = group;
	}
	m2n__ctx_unlock(ctx);
	if (rc) {
		m2n_group_leave(group);
		return rc;
	}
	*group_out = group;
	return 0;
}

static void free_peers(struct m2n_group *group)
{
	m2n__notices_forget(group);
	for (int r = 0; r < group->n_peers; r++) {
		struct m2n__peer *peer = group->peers[r];

		if (peer && peer->ep) {
			if (peer->same_host && r != group->rank)
				m2n__count_local(group->ctx, -1);
			peer->ep->ops->disconnect(peer->ep);
		}
		free(peer);
	}
	free(group->peers);
	while (group->old_eps) {
		struct m2n__old_ep *old = group->old_eps;

		group->old_eps = old->next;
		old->ep->ops->disconnect(old->ep);
		free(old);
	}
	m2n__graves_close(group);
	while (group->pending) {
		struct m2n__pending *pending = group->pending;

		group->pending = pending->next;
		free(pending);
	}
}

void m2n_group_leave(struct m2n_group *group)
{
	struct m2n_ctx *ctx;

	if (!group)
		return;
	ctx = group->ctx;
	m2n__ctx_lock(ctx);
	while (group->exchanges)
		m2n__exchange_close(group->exchanges);
	for (struct m2n_group **at = &ctx->groups; *at; at = &(*at)->next) {
		if (*at == group) {
			*at = group->next;
			break;
		}
	}
	for (int r = 0; r < group->n_peers; r++)
		if (group->peers[r] && r != group->rank)
			m2n__peer_send(group->peers[r], M2N__FRAME_BYE, NULL, 0);
	m2n__control_close(group);
	free_peers(group);
	m2n__store_close(group->store);
	m2n__ctx_unlock(ctx);
	free(group);
}

static int app_key(struct m2n_group *group, const char *key, char full[M2N__STORE_KEY_MAX])
{
	if (!group || !key || !key[0] || strlen(key) > 100)
		return m2n__error(-EINVAL, "m2n_group_put/get: a key has 1..100 characters");
	snprintf(full, M2N__STORE_KEY_MAX, "%s/app/%s", group->name, key);
	return 0;
}

int m2n_group_put(struct m2n_group *group, const char *key, const void *value, size_t bytes,
	int64_t timeout_ns)
{
	char full[M2N__STORE_KEY_MAX];
	int rc = app_key(group, key, full);

	if (rc || bytes > 60000)
		return rc ? rc
			  : m2n__error(-EINVAL, "m2n_group_put: %zu bytes, at most 60000", bytes);
	m2n__ctx_lock(group->ctx);
	rc = group->store->ops->put(group->store, full, value, bytes,
		timeout_ns < 0 ? group->ctx->options.timeout_ns : timeout_ns);
	m2n__ctx_unlock(group->ctx);
	return rc;
}

int m2n_group_get(
	struct m2n_group *group, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	char full[M2N__STORE_KEY_MAX];
	int64_t deadline;
	size_t room;
	int rc = app_key(group, key, full);

	if (rc)
		return rc;
	room = *bytes;
	deadline = m2n__deadline_ns(timeout_ns < 0 ? group->ctx->options.timeout_ns : timeout_ns);
	for (;;) { /* in short waits, so that peers are served meanwhile */
		m2n__ctx_lock(group->ctx);
		*bytes = room;
		rc = group->store->ops->get(group->store, full, value, bytes, 0);
		m2n__ctx_unlock(group->ctx);
		if (rc != -EAGAIN || timeout_ns == 0)
			return rc;
		if (m2n__now_ns() > deadline)
			return m2n__error(-ETIMEDOUT, "key '%s' did not appear in the store", key);
		m2n__group_wait(group, 1);
	}
}
