/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exchanges: beside the channels, sums over an attention group, and the step's report.
 *
 * A sum is a reduce-scatter and an all-gather without a ring: each rank adds one block of the
 * values, in the order of ranks, so all get the same bits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "run/comm_inner.h"

static int open_exchange(
	struct comm *c, struct m2n_exchange_params *params, struct m2n_exchange **exchange)
{
	int rc;

	params->timeout_ns = c->p.timeout_ns;
	rc = m2n_exchange_create(c->p.env->group, params, exchange);
	if (rc)
		return comm_fail(rc);
	c->bytes += params->n_recv * params->depth * params->max_bytes;
	return 0;
}

static int open_one_beside(struct comm *c, enum flow_way way)
{
	const struct place *place = c->p.place;
	uint32_t group = (uint32_t)place->group, i = (uint32_t)place->attention;
	int next = place_attention_rank(place, place_next(place, group), i);
	int before = place_attention_rank(place, place_before(place, group), i);
	size_t n = c->max_rows, row_bytes = c->p.config->hidden_size * sizeof(float);
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;

	c->peer_to[way] = way == FLOW_FORWARD ? next : before;
	c->peer_from[way] = way == FLOW_FORWARD ? before : next;
	params.name = way == FLOW_FORWARD ? "residuals" : "gradients";
	params.send_to = &c->peer_to[way];
	params.recv_from = &c->peer_from[way];
	params.n_send = params.n_recv = 1;
	params.max_bytes =
		n * row_bytes + (way == FLOW_FORWARD ? c->packed_bytes + 64
						     : n * c->p.config->top_k * sizeof(float));
	params.depth = c->p.flow->depth;
	return open_exchange(c, &params, &c->beside[way]);
}

static int open_sums(struct comm *c)
{
	const struct place *place = c->p.place;
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	int *peers = malloc(place->n_a * sizeof(*peers)), rc;

	if (!peers)
		return model_fail(-ENOMEM, "no memory for the ranks of a group");
	for (uint32_t i = 0; i < place->n_a; i++)
		if ((int)i != place->attention)
			peers[params.n_send++] =
				place_attention_rank(place, (uint32_t)place->group, i);
	params.name = "sums";
	params.send_to = params.recv_from = peers;
	params.n_recv = params.n_send;
	params.max_bytes = (size_t)COMM_SUM_BYTES;
	rc = open_exchange(c, &params, &c->sums);
	free(peers);
	return rc;
}

int comm_open_beside(struct comm *c)
{
	int rc = open_one_beside(c, FLOW_FORWARD);

	if (!rc)
		rc = open_one_beside(c, FLOW_BACKWARD);
	if (!rc && c->p.place->n_a > 1)
		rc = open_sums(c);
	return rc;
}

int comm_open_control(struct comm *c)
{
	struct m2n_exchange_params params = M2N_EXCHANGE_PARAMS_INIT;
	int n = c->p.env->n_ranks, rank = c->p.env->rank, rc;
	int *peers = malloc((size_t)n * sizeof(*peers));

	if (!peers)
		return model_fail(-ENOMEM, "no memory for %d ranks", n);
	for (int i = 0; i < n; i++)
		if (i != rank && (rank == 0 || i == 0))
			peers[params.n_send++] = i;
	params.name = "control";
	params.send_to = params.recv_from = peers;
	params.n_recv = params.n_send;
	params.max_bytes = COMM_REPORT_BYTES;
	rc = params.n_send ? open_exchange(c, &params, &c->control) : 0;
	free(peers);
	return rc;
}

static int put(struct comm *c, struct m2n_exchange *x, int peer, const void *data, size_t bytes)
{
	struct m2n_iov iov = {data, bytes};
	int rc = m2n_exchange_put(x, peer, &iov, 1, c->p.timeout_ns);

	if (!rc)
		rc = m2n_exchange_flush(x, peer, c->p.timeout_ns);
	return rc ? comm_fail(rc) : 0;
}

/* `take` gets what came, of just so many bytes. */
static int get(struct comm *c, struct m2n_exchange *x, int peer, size_t bytes,
	void (*take)(void *to, const void *data, size_t bytes), void *to)
{
	const void *data;
	size_t n_got;
	int rc = m2n_exchange_get(x, peer, c->p.timeout_ns, &data, &n_got), released;

	if (rc)
		return comm_fail(rc);
	if (n_got == bytes)
		take(to, data, bytes);
	released = m2n_exchange_release(x, peer);
	if (n_got != bytes)
		return model_fail(
			-EPROTO, "rank %d sent %zu bytes where %zu were due", peer, n_got, bytes);
	return released ? comm_fail(released) : 0;
}

static void take_copy(void *to, const void *data, size_t bytes)
{
	memcpy(to, data, bytes);
}

static void take_sum(void *to, const void *data, size_t bytes)
{
	const float *values = data;
	float *sums = to;

	for (size_t i = 0; i < bytes / sizeof(float); i++)
		sums[i] += values[i];
}

struct block {
	float *values;
	size_t n;
};

/* The part of a piece of values that rank i of the group adds. */
static struct block block_of(float *values, size_t n, uint32_t i, uint32_t n_ranks)
{
	size_t first = n * i / n_ranks;

	return (struct block){values + first, n * (i + 1) / n_ranks - first};
}

/* Adds everybody's version of the own block, the own one in its turn. */
static int add_block(struct comm *c, struct block own, float *sum)
{
	const struct place *place = c->p.place;
	int rc = 0;

	memset(sum, 0, own.n * sizeof(*sum));
	for (uint32_t i = 0; !rc && i < place->n_a; i++)
		if ((int)i == place->attention)
			take_sum(sum, own.values, own.n * sizeof(float));
		else
			rc = get(c, c->sums, place_attention_rank(place, (uint32_t)place->group, i),
				own.n * sizeof(float), take_sum, sum);
	memcpy(own.values, sum, own.n * sizeof(*sum));
	return rc;
}

static int add_piece(struct comm *c, float *values, size_t n, float *sum)
{
	const struct place *place = c->p.place;
	uint32_t self = (uint32_t)place->attention, n_a = place->n_a,
		 group = (uint32_t)place->group;
	struct block own = block_of(values, n, self, n_a), block;
	int rc = 0;

	for (uint32_t i = 0; !rc && i < n_a; i++) {
		block = block_of(values, n, i, n_a);
		if (i != self)
			rc = put(c, c->sums, place_attention_rank(place, group, i), block.values,
				block.n * sizeof(float));
	}
	if (!rc)
		rc = add_block(c, own, sum);
	for (uint32_t i = 0; !rc && i < n_a; i++)
		if (i != self)
			rc = put(c, c->sums, place_attention_rank(place, group, i), own.values,
				own.n * sizeof(float));
	for (uint32_t i = 0; !rc && i < n_a; i++) {
		block = block_of(values, n, i, n_a);
		if (i != self)
			rc = get(c, c->sums, place_attention_rank(place, group, i),
				block.n * sizeof(float), take_copy, block.values);
	}
	return rc;
}

int comm_add(struct comm *c, float *values, size_t n_values)
{
	size_t most = (size_t)COMM_SUM_BYTES / sizeof(float);
	float *sum;
	int rc = 0;

	if (!c->sums)
		return 0;
	sum = malloc((size_t)COMM_SUM_BYTES);
	if (!sum)
		return model_fail(-ENOMEM, "no memory for sums");
	for (size_t first = 0; !rc && first < n_values; first += most)
		rc = add_piece(
			c, values + first, n_values - first < most ? n_values - first : most, sum);
	free(sum);
	return rc;
}

int comm_gather(struct comm *c, const void *mine, size_t bytes, void *all)
{
	int rc = 0;

	if (c->p.env->rank != 0)
		return put(c, c->control, 0, mine, bytes);
	memcpy(all, mine, bytes);
	for (int i = 1; !rc && i < c->p.env->n_ranks; i++)
		rc = get(c, c->control, i, bytes, take_copy, (char *)all + (size_t)i * bytes);
	return rc;
}

int comm_share(struct comm *c, void *value, size_t bytes)
{
	int rc = 0;

	if (c->p.env->rank != 0)
		return get(c, c->control, 0, bytes, take_copy, value);
	for (int i = 1; !rc && i < c->p.env->n_ranks; i++)
		rc = put(c, c->control, i, value, bytes);
	return rc;
}
