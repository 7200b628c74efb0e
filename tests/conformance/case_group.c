/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups: join, peers' states, leave, drop, the shared secret, values in the store, callbacks.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bootstrap/auth.h"
#include "conformance/conformance.h"
#include "conformance/memory_store.h"

static int join(struct rank *rank, int number, int n_ranks, const char *store)
{
	struct m2n_group_params params = M2N_GROUP_PARAMS_INIT;
	struct m2n_group *group = NULL;
	int status;

	params.rank = number;
	params.n_ranks = n_ranks;
	params.store = store;
	params.timeout_ns = 300000000;
	status = m2n_group_join(rank->ctx, &params, &group);
	if (status)
		expect(group == NULL);
	m2n_group_leave(group);
	return status;
}

static void check_join_errors(struct rank *rank)
{
	expect_status(-EINVAL, join(rank, -2, 2, rank->store));
	expect_status(-EINVAL, join(rank, 0, 0, rank->store));
	expect_status(-EINVAL, join(rank, -1, -1, rank->store));
	expect_text("RANK");
	expect_status(-EINVAL, join(rank, 0, 1, "carrier-pigeon:home"));
	expect_text("tcp://");
	/* A name that leads nowhere: somebody else hosts it, or nobody. */
	expect(join(rank, 1, 2, "tcp://127.0.0.1:1") < 0);
	expect(join(rank, 0, 1, "dir:/proc/no/such/place") < 0);
	expect_equal(m2n_group_rank(rank->group), rank->rank);
	expect_equal(m2n_group_size(rank->group), rank->n_ranks);
}

static int join_errors(const struct conf *conf)
{
	return ranks_run(1, check_join_errors, NULL, &conf->opts);
}

static struct m2n_exchange *open_pair(struct rank *rank, int peer, int *status)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	struct m2n_exchange *exchange = NULL;

	params.name = "pair";
	params.send_to = params.recv_from = &peer;
	params.n_send = params.n_recv = 1;
	params.max_bytes = 64;
	*status = m2n_exchange_create(rank->group, &params, &exchange);
	return exchange;
}

static void check_states(struct rank *rank)
{
	int peer = 1 - rank->rank;
	struct m2n_exchange *exchange;
	struct m2n_peer_attr attr;
	int status;

	expect_status(-EINVAL, m2n_group_peer(rank->group, -1, &attr));
	expect_status(-EINVAL, m2n_group_peer(rank->group, 2, &attr));
	expect_ok(m2n_group_peer(rank->group, peer, &attr));
	expect(attr.state == M2N_PEER_IDLE || attr.state == M2N_PEER_JOINING ||
		attr.state == M2N_PEER_LIVE);
	exchange = open_pair(rank, peer, &status);
	expect_ok(status);
	expect_ok(m2n_group_peer(rank->group, peer, &attr));
	expect_equal(attr.state, M2N_PEER_LIVE);
	expect(attr.backend[0]);
	expect(!attr.reason[0]);
	rank_barrier(rank);
	if (rank->rank == 1) {
		m2n_exchange_destroy(exchange);
		return; /* leaves */
	}
	do {
		expect_ok(m2n_group_peer(rank->group, 1, &attr));
	} while (attr.state == M2N_PEER_LIVE);
	expect_equal(attr.state, M2N_PEER_LEFT);
	m2n_exchange_destroy(exchange);
}

static int states(const struct conf *conf)
{
	return ranks_run(2, check_states, NULL, &conf->opts);
}

static void check_drop(struct rank *rank)
{
	int peer = 1 - rank->rank;
	struct m2n_exchange *exchange;
	struct m2n_peer_attr attr;
	int status;

	exchange = open_pair(rank, peer, &status);
	expect_ok(status);
	rank_barrier(rank);
	if (rank->rank == 0) {
		expect_ok(m2n_group_drop(rank->group, 1));
		expect_ok(m2n_group_drop(rank->group, 1));
		expect_status(-EINVAL, m2n_group_drop(rank->group, 2));
	}
	do {
		expect_ok(m2n_group_peer(rank->group, peer, &attr));
	} while (attr.state == M2N_PEER_LIVE);
	expect_equal(attr.state, M2N_PEER_LOST);
	expect(attr.reason[0]);
	status = m2n_exchange_put(exchange, peer, &(struct m2n_iov){"x", 1}, 1, 0);
	expect_equal(status, M2N_ERR_PEER_LOST);
	m2n_exchange_destroy(exchange);
	rank_barrier(rank);
}

static int drop(const struct conf *conf)
{
	return ranks_run(2, check_drop, NULL, &conf->opts);
}

static void check_secret(struct rank *rank)
{
	const char *const *secrets = rank->arg;
	int status;

	rank->secret = secrets[rank->rank];
	expect_ok(rank_open(rank));
	rank_barrier(rank);
	status = m2n_group_add(rank->group, 1 - rank->rank, 2000000000);
	if (!strcmp(secrets[0], secrets[1])) {
		expect_ok(status);
	} else {
		expect(status < 0);
		if (status == M2N_ERR_AUTH)
			word_add(&rank->word[0], 1);
	}
	rank_barrier(rank);
	/* One side at least could tell that it is the secret. */
	if (strcmp(secrets[0], secrets[1]))
		expect(atomic_load(&rank->word[0]) >= 1);
	rank_close(rank);
}

static int secret(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;
	const char *good[] = {"open sesame", "open sesame"};
	const char *bad[] = {"open sesame", "open barley"};
	const char *none[] = {"open sesame", ""};
	struct m2n__auth_key key;

	if (m2n__auth_key_derive(good[0], &key) != 0) {
		printf("# %s\n", m2n_error_text());
		return RANKS_SKIP;
	}
	opts.bare = 1;
	return ranks_run(2, check_secret, good, &opts) || ranks_run(2, check_secret, bad, &opts) ||
	       ranks_run(2, check_secret, none, &opts);
}

static void check_values(struct rank *rank)
{
	char value[100];
	size_t bytes = sizeof(value);
	static char big[60001];

	if (rank->rank == 0) {
		expect_status(-EAGAIN, m2n_group_get(rank->group, "k/late", value, &bytes, 0));
		expect_status(
			-ETIMEDOUT, m2n_group_get(rank->group, "k/late", value, &bytes, 20000000));
		expect_text("k/late");
		expect_ok(m2n_group_put(rank->group, "k/1", "one", 3, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_group_put(rank->group, "k/1", "uno", 3, M2N_TIMEOUT_DEFAULT));
		expect_ok(m2n_group_put(rank->group, "big", big, 60000, M2N_TIMEOUT_DEFAULT));
		expect_status(-EINVAL, m2n_group_put(rank->group, "big", big, 60001, 0));
		expect_status(-EINVAL, m2n_group_put(rank->group, "a b", "", 0, 0));
		expect_status(-EINVAL, m2n_group_put(rank->group, "", "", 0, 0));
	}
	rank_barrier(rank);
	bytes = 2;
	expect_status(-ENOSPC, m2n_group_get(rank->group, "k/1", value, &bytes, 0));
	bytes = sizeof(value);
	expect_ok(m2n_group_get(rank->group, "k/1", value, &bytes, M2N_TIMEOUT_DEFAULT));
	expect(bytes == 3 && !memcmp(value, "uno", 3));
	bytes = sizeof(big);
	expect_ok(m2n_group_get(rank->group, "big", big, &bytes, M2N_TIMEOUT_DEFAULT));
	expect_equal(bytes, 60000);
}

static int values(const struct conf *conf)
{
	int n = strstr(conf->backend, "self") ? 1 : 2;

	return ranks_run(n, check_values, NULL, &conf->opts);
}

static void check_callbacks(struct rank *rank)
{
	struct m2n_store_callbacks callbacks = M2N_STORE_CALLBACKS_INIT;
	struct m2n_group_params params = M2N_GROUP_PARAMS_INIT;
	struct m2n_ctx_params ctx_params = M2N_CTX_PARAMS_INIT;
	struct m2n_exchange *exchange;
	int peer = rank->n_ranks - 1 - rank->rank;
	const void *data;
	size_t bytes;
	int status;

	memory_store_callbacks(rank->shared, &callbacks);
	ctx_params.backend = rank->backend;
	ctx_params.options = rank->options;
	expect_ok(m2n_ctx_open(&ctx_params, &rank->ctx));
	params.rank = rank->rank;
	params.n_ranks = rank->n_ranks;
	params.callbacks = &callbacks;
	expect_ok(m2n_group_join(rank->ctx, &params, &rank->group));
	exchange = open_pair(rank, peer, &status);
	expect_ok(status);
	expect_ok(m2n_exchange_put(
		exchange, peer, &(struct m2n_iov){"by hand", 7}, 1, M2N_TIMEOUT_DEFAULT));
	expect_ok(m2n_exchange_flush(exchange, peer, M2N_TIMEOUT_DEFAULT));
	expect_ok(m2n_exchange_get(exchange, peer, M2N_TIMEOUT_DEFAULT, &data, &bytes));
	expect(bytes == 7 && !memcmp(data, "by hand", 7));
	expect_ok(m2n_exchange_release(exchange, peer));
	rank_barrier(rank);
	m2n_exchange_destroy(exchange);
	rank_close(rank);
	expect(memory_store_puts(rank->shared) > 0);
}

static int callbacks(const struct conf *conf)
{
	struct ranks_opts opts = conf->opts;

	opts.bare = 1;
	opts.shared_bytes = memory_store_bytes();
	return ranks_run(strstr(conf->backend, "self") ? 1 : 2, check_callbacks, NULL, &opts);
}

static int refuse_put(void *arg, const char *key, const void *value, size_t bytes)
{
	(void)arg;
	(void)key;
	(void)value;
	(void)bytes;
	return -EIO;
}

static int refuse_get(void *arg, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	(void)arg;
	(void)key;
	(void)value;
	(void)bytes;
	(void)timeout_ns;
	return -EIO;
}

static void check_broken_callbacks(struct rank *rank)
{
	struct m2n_store_callbacks broken = M2N_STORE_CALLBACKS_INIT;
	struct m2n_group_params params = M2N_GROUP_PARAMS_INIT;
	struct m2n_group *group = NULL;

	params.rank = 0;
	params.n_ranks = 2;
	params.callbacks = &broken;
	expect_status(-EINVAL, m2n_group_join(rank->ctx, &params, &group));
	broken.put = refuse_put;
	broken.get = refuse_get;
	expect(m2n_group_join(rank->ctx, &params, &group) < 0);
	expect(group == NULL);
}

static int broken_callbacks(const struct conf *conf)
{
	return ranks_run(1, check_broken_callbacks, NULL, &conf->opts);
}

const struct conf_case group_cases[] = {
	{"group: errors of join", 1, join_errors, HOST_MEMORY},
	{"group: states of a peer that comes and leaves", 2, states, HOST_MEMORY},
	{"group: a dropped peer is lost on both sides", 2, drop, HOST_MEMORY},
	{"group: the secret must be the same", 2, secret, HOST_MEMORY},
	{"group: values in the store", 1, values, HOST_MEMORY},
	{"group: a store of callbacks", 1, callbacks, HOST_MEMORY},
	{"group: callbacks that fail", 1, broken_callbacks, HOST_MEMORY},
	{0},
};
